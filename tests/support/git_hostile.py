"""Repositories that git itself would not make: hostile names, lying packs, submodules that lead elsewhere."""

from __future__ import annotations

import shutil
import struct
import subprocess
import zlib
from collections.abc import Iterable, Mapping, Sequence
from hashlib import sha1
from pathlib import Path
from typing import Any

from tests.support.git_server import GIT_ENV


def git(directory: Path, *args: str, ok: bool = True) -> str:
    done = subprocess.run(
        ["git", "-C", str(directory), *args], capture_output=True, text=True, env=GIT_ENV, check=False
    )
    assert done.returncode == 0 or not ok, done.stderr
    return done.stdout.strip()


def with_submodule(root: Path, url: str = "../history.git", path: str = "libs/history", name: str | None = None) -> str:
    """Make outer.git, whose submodule is at `url`."""
    commit = git(root / "history.git", "rev-parse", "v1.2^{commit}")
    declared = f'[submodule "{name or path}"]\n\tpath = {path}\n\turl = {url}\n'
    outer = root / "outer.git"
    shutil.rmtree(outer, ignore_errors=True)
    write_repository(
        outer,
        {".gitmodules": ("100644", declared.encode()), "own.txt": ("100644", b"own\n"), path: ("160000", commit)},
    )
    return commit


def fast_import(path: Path, parts: Iterable[bytes]) -> None:
    subprocess.run(["git", "init", "-q", "--bare", "-b", "main", str(path)], check=True, env=GIT_ENV)
    subprocess.run(["git", "-C", str(path), "fast-import", "--quiet"], input=b"".join(parts), check=True, env=GIT_ENV)


def write_repository(path: Path, files: Mapping[str, tuple[str, Any]]) -> None:
    parts = [b"commit refs/heads/main\ncommitter A <a@example.com> 1600000000 +0000\ndata 1\nx\n"]
    for name, (mode, data) in files.items():
        if mode == "160000":
            parts.append(f"M 160000 {data} {name}\n".encode())
        else:
            parts.append(f"M {mode} inline {name}\ndata {len(data)}\n".encode() + data + b"\n")
    fast_import(path, parts)


PWNED = b"#!/bin/sh\ntouch /tmp/sandboxd-pwned\n"


def raw_repository(path: Path, entries: list[Any], more: Sequence[tuple[Any, ...]] = ()) -> str:
    """Make a repository whose tree has entries that git itself would not make: (mode, name, content)."""
    objects: list[tuple[Any, ...]] = []

    def add(kind: int, data: bytes) -> bytes:
        objects.append((kind, data))
        return sha1(b"%b %d\0" % ({1: b"commit", 2: b"tree", 3: b"blob"}[kind], len(data)) + data).digest()

    def tree(rows: list[Any]) -> bytes:
        body = b""
        for mode, name, content in rows:
            name_of = tree(content) if isinstance(content, list) else add(3, content)
            body += mode + b" " + name + b"\0" + name_of
        return add(2, body)

    top = tree(entries)
    commit = add(1, b"tree %b\nauthor a <a> 0 +0000\ncommitter a <a> 0 +0000\n\nx\n" % top.hex().encode())
    write_pack(path, [*objects, *more], commit.hex())
    return commit.hex()


def packed(objects: Sequence[tuple[Any, ...]]) -> bytes:
    rows = [b"PACK" + struct.pack(">II", 2, len(objects))]
    for kind, data, *rest in objects:
        size = rest[0] if rest else len(data)
        byte, size = (kind << 4) | (size & 15), size >> 4
        head = bytearray()
        while size:
            head.append(byte | 0x80)
            byte, size = size & 0x7F, size >> 7
        head.append(byte)
        rows.append(bytes(head) + (rest[1] if len(rest) > 1 else b"") + zlib.compress(data))
    body = b"".join(rows)
    return body + sha1(body).digest()


def write_pack(path: Path, objects: Iterable[tuple[Any, ...]], commit: str) -> None:
    subprocess.run(["git", "init", "-q", "--bare", "-b", "main", str(path)], check=True, env=GIT_ENV)
    pack = path / "objects/pack/pack-x.pack"
    pack.write_bytes(packed(list(dict.fromkeys(objects))))
    subprocess.run(
        ["git", "-C", str(path), "index-pack", "-o", str(pack.with_suffix(".idx")), str(pack)],
        check=True,
        env=GIT_ENV,
        capture_output=True,
    )
    (path / "refs/heads/main").write_text(commit + "\n")
