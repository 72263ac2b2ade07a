"""Images made from nothing: tar members, layers, and the archives and directories that tools put them in."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import os
import pathlib
import tarfile
from collections.abc import Iterable, Mapping
from typing import Any

Member = tuple[tarfile.TarInfo, bytes]


def member(name: str, kind: bytes = tarfile.REGTYPE, data: bytes = b"", **facts: Any) -> Member:
    """Return a member, owned by whoever runs the tests."""
    info = tarfile.TarInfo(name)
    info.type = kind
    info.size = len(data)
    info.mode = 0o755 if kind == tarfile.DIRTYPE else 0o644
    info.uid, info.gid, info.mtime = os.getuid(), os.getgid(), 1_000_000_000
    for key, value in facts.items():
        setattr(info, key, value)
    return info, data


def file(name: str, data: bytes | str = b"", **facts: Any) -> Member:
    return member(name, tarfile.REGTYPE, data.encode() if isinstance(data, str) else data, **facts)


def directory(name: str, **facts: Any) -> Member:
    return member(name, tarfile.DIRTYPE, **facts)


def symlink(name: str, target: str, **facts: Any) -> Member:
    return member(name, tarfile.SYMTYPE, linkname=target, **facts)


def hardlink(name: str, target: str, **facts: Any) -> Member:
    return member(name, tarfile.LNKTYPE, linkname=target, **facts)


def tar(members: Iterable[Member], *, form: int = tarfile.PAX_FORMAT) -> bytes:
    """Return an archive of the members."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=form) as archive:
        for info, data in members:
            archive.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def tree(path: pathlib.Path) -> list[Member]:
    """Return the members of a directory on disk, as root's."""
    found: list[Member] = []
    with tarfile.open(fileobj=io.BytesIO(), mode="w") as archive:
        for entry in sorted(path.rglob("*")):
            info = archive.gettarinfo(str(entry), str(entry.relative_to(path)))
            info.uid = info.gid = 0
            found.append((info, entry.read_bytes() if info.isreg() else b""))
    return found


def digest(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def config_of(layers: list[bytes], config: Mapping[str, Any] | None = None, architecture: str = "amd64") -> bytes:
    """Return an image's configuration; `layers` are archives."""
    diff_ids = [digest(layer) for layer in layers]
    value = {"architecture": architecture, "os": "linux", "config": dict(config or {})}
    return json.dumps({**value, "rootfs": {"type": "layers", "diff_ids": diff_ids}}).encode()


class Layout:
    """An OCI layout under way: `files` by name."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {"oci-layout": b'{"imageLayoutVersion": "1.0.0"}'}
        self.manifests: list[dict[str, Any]] = []

    def blob(self, data: bytes) -> dict[str, Any]:
        self.files[f"blobs/sha256/{digest(data).removeprefix('sha256:')}"] = data
        return {"digest": digest(data), "size": len(data)}

    def image(
        self,
        layers: list[bytes],
        name: str | None = None,
        *,
        zipped: bool = True,
        architecture: str = "amd64",
        **config: Any,
    ) -> dict[str, Any]:
        """Add an image; returns its manifest's descriptor."""
        kind = "application/vnd.oci.image.layer.v1.tar" + ("+gzip" if zipped else "")
        blobs = [gzip.compress(layer, mtime=0) if zipped else layer for layer in layers]
        manifest = {
            "schemaVersion": 2,
            "config": {
                "mediaType": "application/vnd.oci.image.config.v1+json",
                **self.blob(config_of(layers, config, architecture)),
            },
            "layers": [{"mediaType": kind, **self.blob(blob)} for blob in blobs],
        }
        descriptor = {
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            **self.blob(json.dumps(manifest).encode()),
            "platform": {"os": "linux", "architecture": architecture},
        }
        if name:
            descriptor["annotations"] = {"org.opencontainers.image.ref.name": name}
        self.manifests.append(descriptor)
        return descriptor

    def all_files(self) -> dict[str, bytes]:
        index = json.dumps({"schemaVersion": 2, "manifests": self.manifests}).encode()
        return {**self.files, "index.json": index}

    def archive(self) -> bytes:
        return tar(file(name, data) for name, data in self.all_files().items())

    def write(self, path: pathlib.Path) -> pathlib.Path:
        return write(path, self.all_files())


def write(path: pathlib.Path, files: Mapping[str, bytes]) -> pathlib.Path:
    for name, data in files.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(data)
    return path


def docker_save(layers: list[bytes], tags: list[str], *, shared: bool = False, **config: Any) -> bytes:
    """Return a `docker save` archive of the old form; `shared` links a layer to another's file, as old ones did."""
    content = config_of(layers, config)
    name = digest(content).removeprefix("sha256:") + ".json"
    members, paths = [], []
    first: dict[bytes, str] = {}
    for number, layer in enumerate(layers):
        path = f"{number:064x}/layer.tar"
        paths.append(path)
        if shared and layer in first:
            members.append(symlink(path, f"../{first[layer]}"))
        else:
            members.append(file(path, layer))
        first.setdefault(layer, path)
    manifest = [{"Config": name, "RepoTags": tags, "Layers": paths}]
    members += [file(name, content), file("manifest.json", json.dumps(manifest)), file("repositories", "{}")]
    return tar(members)


def skopeo_dir(path: pathlib.Path, layers: list[bytes]) -> pathlib.Path:
    """Write a directory as `skopeo copy … dir:` does."""
    layout = Layout()
    manifest = layout.image(layers)
    files = {name.removeprefix("blobs/sha256/"): data for name, data in layout.files.items()}
    files["manifest.json"] = files.pop(manifest["digest"].removeprefix("sha256:"))
    del files["oci-layout"]
    return write(path, {**files, "version": b"Directory Transport Version: 1.1\n"})


def _patched(archive: bytes, offset: int, data: bytes) -> bytes:
    """Return an archive whose first header holds `data` at `offset`, its checksum right."""
    header = bytearray(archive[:512])
    header[offset : offset + len(data)] = data
    header[148:156] = b" " * 8
    header[148:156] = f"{sum(header):06o}\0 ".encode()
    return bytes(header) + archive[512:]


def _header_of(size: int, kind: bytes) -> bytes:
    """Return a header that claims `size` bytes of that kind, with nothing behind it."""
    info, _ = member("x", kind)
    info.size = size
    return info.tobuf(tarfile.GNU_FORMAT) + bytes(4096)


def hostile(canary: str) -> dict[str, tuple[bytes, str]]:
    """Return archives that must be refused, each with the reason; `canary` is a directory that they try to reach."""
    out = f"../../../../../../../../..{canary}"
    long = "/".join(["d"] * 300)
    made = {
        "absolute file": ([file(f"{canary}/x", "evil")], "absolute"),
        "absolute with many slashes": ([file(f"///{canary}/x", "evil")], "absolute"),
        "absolute directory": ([directory(f"{canary}/x")], "absolute"),
        "absolute symlink name": ([symlink(f"{canary}/x", "y")], "absolute"),
        "dot-dot": ([file(f"{out}/x", "evil")], "dot-dot"),
        "dot-dot inside": ([directory("a"), file("a/../b", "evil")], "dot-dot"),
        "dot-dot at the end": ([directory("a/..")], "dot-dot"),
        "through an absolute link": ([symlink("l", canary), file("l/x", "evil")], "through-link"),
        "through a relative link": ([symlink("l", out), file("l/x", "evil")], "through-link"),
        "through a link that stays": ([directory("a"), symlink("l", "a"), file("l/x", "evil")], "through-link"),
        "through a link of links": ([symlink("m", canary), symlink("l", "m"), file("l/a/b/x", "evil")], "through-link"),
        "directory through a link": ([symlink("l", canary), directory("l/x")], "through-link"),
        "whole path of links": ([directory("a"), symlink("a/l", out), file("a/l/victim", "evil")], "through-link"),
        "over its own link": ([symlink("l", f"{canary}/victim"), file("l", "evil")], "duplicate"),
        "link then directory of its name": ([symlink("l", canary), directory("l", mode=0o777)], "duplicate"),
        "through a file": ([file("f"), file("f/x")], "through-file"),
        "hard link out, absolute": ([hardlink("h", f"{canary}/victim"), file("h", "evil")], "absolute"),
        "hard link out, dot-dot": ([hardlink("h", f"{out}/victim")], "dot-dot"),
        "hard link through a link": ([symlink("l", canary), hardlink("h", "l/victim")], "link"),
        "hard link to nothing": ([hardlink("h", "nothing")], "link"),
        "hard link to itself": ([file("f"), hardlink("h", "h")], "link"),
        "hard link to a directory": ([directory("d"), hardlink("h", "d")], "link"),
        "hard link as a directory": ([symlink("l", canary), hardlink("h", "l"), file("h/x", "evil")], "through-link"),
        "character device": ([member("null", tarfile.CHRTYPE, devmajor=1, devminor=3)], "kind"),
        "block device": ([member("etc/disk", tarfile.BLKTYPE, devmajor=8, devminor=0)], "kind"),
        "overlay whiteout": ([member("bin/sh", tarfile.CHRTYPE, devmajor=0, devminor=0)], "kind"),
        "fifo": ([member("run/fifo", tarfile.FIFOTYPE)], "kind"),
        "fifo as resolv.conf": ([member("etc/resolv.conf", tarfile.FIFOTYPE)], "kind"),
        "dev is a link": ([symlink("dev", canary)], "no-folder"),
        "dev is a link, dotted": ([symlink("./dev", "../../etc")], "no-folder"),
        "dev is a file": ([file("dev")], "no-folder"),
        "dev is a hard link": ([symlink("l", canary), hardlink("dev", "l")], "no-folder"),
        "proc is a link": ([symlink("proc", "tmp")], "no-folder"),
        "sys is a link": ([symlink("sys", canary)], "no-folder"),
        "etc is a link": ([symlink("etc", canary)], "no-folder"),
        "root is a link": ([symlink("./", canary)], "no-folder"),
        "hostname is a link": ([symlink("etc/hostname", "/proc/sys/kernel/core_pattern")], "no-file"),
        "hosts is a link": ([symlink("etc/hosts", f"{canary}/victim")], "no-file"),
        "hosts is a hard link": ([file("etc/passwd"), hardlink("etc/hosts", "etc/passwd")], "no-file"),
        "hostname is a directory": ([directory("etc/hostname")], "no-file"),
        "resolv.conf is a directory": ([directory("etc/resolv.conf")], "no-file"),
        "tmp is a file": ([file("tmp")], "no-folder"),
        "the same file twice": ([file("a", "one"), file("./a", "two")], "duplicate"),
        "a file over its directory": ([file("a/b"), file("a")], "duplicate"),
        "owner too high": ([file("a", uid=65536)], "owner"),
        "group too high": ([directory("a", gid=2**31)], "owner"),
        "name with NUL": ([file("a\0b", pax_headers={"path": "a\0b"})], "name"),
        "name too deep": ([file(long)], "name"),
        "part too long": ([file("x" * 300)], "write"),
        "link to nothing": ([symlink("a", "b\0c", pax_headers={"linkpath": "b\0c"})], "link"),
        "sparse": ([member("s", pax_headers={"GNU.sparse.map": "0,1", "GNU.sparse.size": "1000000000000"})], "kind"),
        "huge pax header": ([file("a", pax_headers={"comment": "x" * 2_000_000})], "header"),
    }
    found = {name: (tar(members), reason) for name, (members, reason) in made.items()}
    found["header claims 8 GiB of name"] = (_header_of(8 * 2**30 - 1, tarfile.GNUTYPE_LONGNAME), "header")
    found["header claims 8 GiB of pax"] = (_header_of(8 * 2**30 - 1, tarfile.XHDTYPE), "header")
    found["negative size"] = (_patched(tar([file("a", "x")]), 124, b"\xff" * 11 + b"\0"), "header")
    found["unknown kind"] = (_patched(tar([file("a")]), 156, b"Y"), "kind")
    found["pax headers in pax headers"] = (
        (tar([file("a", pax_headers={"c": "x"})])[:1024] * 3000) + bytes(1024),
        "damaged",
    )
    found["cut off in a file"] = (tar([file("a", b"x" * 5000)])[:2048], "truncated")
    found["cut off between"] = (tar([file("a", b"x" * 512)])[:1024], "truncated")
    found["broken header"] = (tar([file("a")])[:512] + b"\1" * 512 + bytes(1024), "truncated")
    found["no archive"] = (b"#!/bin/sh\necho hello\n" * 100, "no-archive")
    found["empty"] = (b"", "no-archive")
    return found


HOSTILE = tuple(hostile("/canary"))
