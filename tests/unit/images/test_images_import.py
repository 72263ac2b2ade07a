"""Unpacking and choosing, in this process: what becomes of members and layers, and what is refused."""

import bz2
import gzip
import io
import json
import lzma
import os
import tarfile

import pytest

from sandboxd.images import choice, oci, unpack_child
from sandboxd.images.archive import Tape, shown
from sandboxd.images.blobs import ArchiveBlobs
from sandboxd.images.readers import Budget, Hashing, ImageRefused, decompressed
from sandboxd.images.skeleton import complete_skeleton
from sandboxd.images.unpack import Unpacker
from tests.support import images
from tests.support.images import directory, file, hardlink, symlink, tar


@pytest.fixture
def place(tmp_path):
    """A directory to unpack into, beside one that nothing may touch."""
    (tmp_path / "canary").mkdir()
    (tmp_path / "canary/victim").write_text("kept")
    (tmp_path / "tree").mkdir()
    return tmp_path


def outside(place):
    """Return all that can be seen of what lies beside the tree."""
    entries = [place, *sorted(path for path in place.rglob("*") if place / "tree" not in (path, *path.parents))]
    facts = [(path.lstat().st_ino, path.lstat().st_mode, path.lstat().st_nlink) for path in entries]
    times = [path.lstat().st_mtime_ns for path in entries[1:]]
    return [str(path) for path in entries], facts, times, (place / "canary/victim").read_text()


class Unpacked:
    def __init__(self, place, *layers, layered=True, max_bytes=10**8, max_entries=10_000):
        self.tree = place / "tree"
        self.root = os.open(self.tree, os.O_RDONLY | os.O_DIRECTORY)
        self.budget = Budget(max_bytes, max_entries)
        self.unpacker = Unpacker(self.root, self.budget)
        try:
            for layer in layers:
                data = layer if isinstance(layer, bytes) else tar(layer)
                tape = Tape(io.BytesIO(data), self.budget)
                self.unpacker.apply(tape, layered=layered)
                tape.finish()
            complete_as_owner(self.root, self.unpacker.notes)
            self.unpacker.restore_directory_times()
        finally:
            os.close(self.root)

    def names(self):
        hidden = {"dev", "proc", "sys", "tmp", "workspace", "etc"}
        return sorted(
            str(path.relative_to(self.tree))
            for path in self.tree.rglob("*")
            if path.relative_to(self.tree).parts[0] not in hidden
        )


def complete_as_owner(root, notes):
    if os.geteuid() == 0:
        complete_skeleton(root, notes)
        return
    chown, os.fchown = os.fchown, lambda *_: None
    try:
        complete_skeleton(root, notes)
    finally:
        os.fchown = chown


@pytest.mark.parametrize("name", images.HOSTILE)
def test_a_hostile_member_is_refused_and_nothing_outside_is_touched(place, name) -> None:
    archive, reason = images.hostile(str(place / "canary"))[name]
    before = outside(place)
    with pytest.raises((ImageRefused, *unpack_child._DAMAGE, RecursionError)) as caught:
        Unpacked(place, archive, layered=False)
    if isinstance(caught.value, ImageRefused):
        assert caught.value.facts["reason"] == reason
        assert caught.value.why.isprintable()
    else:
        assert reason == "damaged"
    assert outside(place) == before


def content(archive: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    """Return what a member holds."""
    file = archive.extractfile(member) if member.isreg() else None
    return b"" if file is None else file.read()


@pytest.mark.parametrize("name", ["through an absolute link", "through a relative link", "hard link through a link"])
def test_a_link_of_a_lower_layer_is_not_followed_either(place, name) -> None:
    archive, _ = images.hostile(str(place / "canary"))[name]
    with tarfile.open(fileobj=io.BytesIO(archive)) as opened:
        members = [(info, content(opened, info)) for info in opened]
    before = outside(place)
    with pytest.raises(ImageRefused):
        Unpacked(place, members[:1], members[1:])
    assert outside(place) == before


@pytest.mark.parametrize(
    "whiteout", ["l/.wh.victim", "l/.wh..wh..opq", ".wh...", ".wh..", ".wh.", "../canary/.wh.victim"]
)
def test_a_whiteout_removes_nothing_outside(place, whiteout) -> None:
    before = outside(place)
    with pytest.raises(ImageRefused):
        Unpacked(place, [symlink("l", str(place / "canary"))], [file(whiteout)])
    assert outside(place) == before


def test_a_tree_is_kept_as_it_is(place) -> None:
    latin1 = os.fsdecode(b"caf\xe9")
    done = Unpacked(
        place,
        [
            directory("./"),
            directory("bin", mode=0o750, mtime=5),
            file("bin/su", "su", mode=0o4755),
            symlink("bin/sh", "/bin/su", mtime=7),
            symlink("up", "../../../../etc"),
            hardlink("bin/su2", "./bin/su"),
            hardlink("bin/sh2", "bin/sh"),
            file(latin1, "x", mode=0o2640, mtime=1234.5),
            file("deep/er/file"),
            directory("deep", mode=0o700),
            file("Deep", "another case"),
            file("old", mtime=-1),
        ],
        layered=False,
    )
    tree = done.tree
    assert (tree / "bin/su").stat().st_mode == 0o104755
    assert (tree / "bin/su").stat().st_ino == (tree / "bin/su2").stat().st_ino
    assert os.readlink(tree / "bin/sh2") == "/bin/su"
    assert os.readlink(tree / "up") == "../../../../etc"
    assert (tree / "bin").stat().st_mode == 0o40750
    assert (tree / "bin").stat().st_mtime == 5
    assert (tree / "bin/sh").lstat().st_mtime == 7
    assert (tree / latin1).stat().st_mtime_ns == 1_234_500_000_000
    assert (tree / latin1).stat().st_mode == 0o102640
    assert (tree / "deep").stat().st_mode == 0o40700
    assert (tree / "deep/er").stat().st_mode == 0o40755
    assert (tree / "old").stat().st_mtime == 0
    assert not done.unpacker.notes


def test_layers(place) -> None:
    done = Unpacked(
        place,
        [
            file("a/one", "1"),
            file("a/two"),
            file("a/sub/three"),
            file("b/old"),
            file("b/in/old"),
            symlink("l", "a"),
            file("f"),
        ],
        [
            file("a/.wh.two"),
            file("a/.wh.missing"),
            file("missing/.wh.x"),
            file("b/new", "new"),
            file("b/in/new"),
            file("b/.wh..wh..opq"),
            file(".wh.f"),
            directory("f"),
            file("f/inside"),
            directory("l"),
            file("l/real"),
            file(".wh..wh.plnk"),
        ],
        [hardlink("c", "a/one"), file("a/sub", "a file over a directory"), file("a/one", "changed")],
    )
    assert done.names() == [
        *("a", "a/one", "a/sub", "b", "b/in", "b/in/new", "b/new"),
        *("c", "f", "f/inside", "l", "l/real"),
    ]
    assert (done.tree / "c").read_text() == "1"
    assert (done.tree / "a/one").read_text() == "changed"


def test_a_whiteout_spares_its_own_layer(place) -> None:
    done = Unpacked(
        place,
        [file("d/low"), file("e")],
        [file("d/high"), file(".wh.d"), file("e", "new"), file(".wh.e")],
        [file(".wh.d")],
    )
    assert done.names() == ["e"]


def test_names_that_differ_in_case_are_other_names(place) -> None:
    odd = [directory("/", mode=0), symlink("Etc", "/"), symlink("DEV", "/x"), file("a/.WH.b"), file("a/b")]
    assert Unpacked(place, odd).names() == ["DEV", "Etc", "a", "a/.WH.b", "a/b"]
    assert (place / "tree").stat().st_mode & 0o7777 == 0o755


def test_whiteouts_are_names_like_others_in_a_plain_tree(place) -> None:
    assert Unpacked(place, [file(".wh.x")], layered=False).names() == [".wh.x"]


def test_what_a_birth_needs_is_there(place) -> None:
    done = Unpacked(
        place,
        [
            file("dev/console"),
            images.member("dev/null", tarfile.CHRTYPE),
            file("proc/version"),
            symlink("etc/resolv.conf", "../run/systemd/resolve/stub-resolv.conf"),
            symlink("etc/mtab", "/proc/mounts"),
            file("etc/hostname", "built-on"),
            symlink("tmp", "var/tmp"),
        ],
        layered=False,
    )
    tree = done.tree
    for name in ("dev", "proc", "sys", "etc", "tmp", "workspace"):
        assert (tree / name).is_dir()
        assert not (tree / name).is_symlink()
    assert list((tree / "dev").iterdir()) == list((tree / "proc").iterdir()) == []
    for name in ("hostname", "hosts", "machine-id", "resolv.conf"):
        assert not (tree / "etc" / name).is_symlink()
        assert (tree / "etc" / name).read_bytes() == b""
    assert os.readlink(tree / "etc/mtab") == "/proc/mounts"
    assert (tree / "tmp").stat().st_mode == 0o41777
    told = unpack_child._told(done.unpacker.notes)
    assert told == [
        "skipped below /dev, /proc and /sys, because a sandbox has its own (3)",
        "replaced by a directory: the link /tmp",
        "replaced by an empty file: the link /etc/resolv.conf",
    ]


def test_extended_attributes(place) -> None:
    headers = {
        "SCHILY.xattr.user.mime": os.fsdecode(b"\xff\x00x"),
        "SCHILY.xattr.security.capability": "x",
        "SCHILY.xattr.trusted.overlay.redirect": "/etc",
        "SCHILY.xattr.user.overlay.opaque": "y",
    }
    done = Unpacked(place, [file("f", pax_headers=headers)])
    assert {name: os.getxattr(done.tree / "f", name) for name in os.listxattr(done.tree / "f")} == {
        "user.mime": b"\xff\0x"
    }
    assert sum(done.unpacker.notes.values()) == 3


def test_bounds(place) -> None:
    with pytest.raises(ImageRefused, match="--max-size") as caught:
        Unpacked(place, [file("zeros", bytes(2_000_000))], max_bytes=1_000_000)
    assert caught.value.facts["reason"] == "too-large"
    assert (place / "tree/zeros").stat().st_size < 1_000_000
    with pytest.raises(ImageRefused, match="over 10 members"):
        Unpacked(place, [directory(f"d{number}") for number in range(20)], max_entries=10)


def test_a_bomb_stops_where_its_bound_is(place) -> None:
    bomb = gzip.compress(tar([file("zeros", bytes(30_000_000))]))
    stream, compressed = decompressed(io.BytesIO(bomb))
    assert compressed
    budget = Budget(1_000_000, 10)
    with pytest.raises(ImageRefused):
        Unpacker(os.open(place / "tree", os.O_RDONLY), budget).apply(Tape(stream, budget), layered=False)
    assert budget.bytes < 1_500_000


@pytest.mark.parametrize("compress", [bytes, gzip.compress, lzma.compress, bz2.compress])
def test_compression_is_found_by_content(compress) -> None:
    data = tar([file("a", b"x" * 100_000)])
    stream, compressed = decompressed(io.BytesIO(compress(data)))
    assert compressed == (compress is not bytes)
    assert Hashing(stream).finish() == images.digest(data)


def test_zstd_is_named() -> None:
    with pytest.raises(ImageRefused, match="zstd"):
        decompressed(io.BytesIO(b"\x28\xb5\x2f\xfd" + bytes(100)))


def test_names_are_shown_safely() -> None:
    assert shown("a\x1b[2J\n" + os.fsdecode(b"\xff")) == r"a\x1b[2J\n\xff"
    assert len(shown("x" * 5000)) == 201


class TestChoice:
    @pytest.fixture
    def found(self, tmp_path):
        def found(archive):
            path = tmp_path / "archive"
            path.write_bytes(archive)
            images = oci.find_images(ArchiveBlobs(os.open(path, os.O_RDONLY), len(archive)))
            return None if images is None else images[0]

        return found

    def test_several_images_are_named(self, found) -> None:
        layout = images.Layout()
        layout.image([tar([file("a")])], "busybox")
        layout.image([tar([file("b")])], "docker.io/library/alpine:3")
        layout.image([tar([file("c")])], "other", architecture="s390x")
        every = found(layout.archive())
        with pytest.raises(ImageRefused) as caught:
            choice.choose(every, None, None, "linux/amd64")
        assert caught.value.facts["images"] == ["busybox (linux/amd64)", "docker.io/library/alpine:3 (linux/amd64)"]
        assert choice.choose(every, "busybox:latest", None, "linux/amd64").names == ("busybox",)
        assert choice.choose(every, "alpine:3", None, "linux/amd64").names == ("docker.io/library/alpine:3",)
        assert choice.choose(every, None, "linux/s390x", "linux/amd64").names == ("other",)
        assert choice.choose(every, every[0].digest, None, "linux/amd64") == every[0]
        for image, platform in (("nothing", None), (None, "linux/arm64")):
            with pytest.raises(ImageRefused, match="no such image, only: busybox"):
                choice.choose(every, image, platform, "linux/amd64")
        with pytest.raises(ImageRefused, match="a platform other than"):
            choice.choose(every, "other", None, "linux/amd64")

    def test_an_index_of_platforms_without_all_blobs(self, found) -> None:
        layout = images.Layout()
        ours = layout.image([tar([file("a")])])
        theirs = {"digest": "sha256:" + "0" * 64, "platform": {"os": "linux", "architecture": "arm64"}}
        unknown = layout.image([tar([file("b")])])
        unknown["platform"] = {"os": "unknown", "architecture": "unknown"}
        nested = layout.blob(json.dumps({"manifests": [ours, theirs, unknown]}).encode())
        layout.manifests = [{**nested, "annotations": {"io.containerd.image.name": "docker.io/library/x:1"}}]
        [image] = found(layout.archive())
        assert image.names == ("docker.io/library/x:1",)
        assert image.digest == ours["digest"]

    @pytest.mark.parametrize(
        "broken",
        [
            {"index.json": b"[]"},
            {"index.json": b"{"},
            {"index.json": b'{"manifests": 1}'},
            {"index.json": b'{"manifests": [1]}'},
            {"index.json": b'{"manifests": [{"digest": "sha256:../../x"}]}'},
            {"index.json": b'{"manifests": [{"digest": "md5:0"}]}'},
            {"index.json": b'{"manifests": []}'},
            {"index.json": b"[" * 100_000},
            {"index.json": b" " * 5_000_000},
            {"manifest.json": b"[{}]"},
            {"manifest.json": b'[{"Config": "../x", "Layers": []}]'},
            {"manifest.json": b'{"layers": [], "config": null}'},
        ],
    )
    def test_malformed_metadata_is_refused(self, found, broken) -> None:
        archive = tar([file("oci-layout"), *(file(name, data) for name, data in broken.items())])
        if broken == {"index.json": b"[]"}:
            assert found(archive) is None  # no image at all
            return
        with pytest.raises(ImageRefused) as caught:
            found(archive)
        assert caught.value.facts["reason"] in {"malformed", "digest", "missing", "no-image", "too-large"}

    def test_a_blob_that_is_not_its_digest_is_refused(self, found) -> None:
        layout = images.Layout()
        manifest = layout.image([tar([file("a")])])
        name = f"blobs/sha256/{manifest['digest'].removeprefix('sha256:')}"
        layout.files[name] = layout.files[name] + b" "
        with pytest.raises(ImageRefused, match="does not match its digest"):
            found(layout.archive())
