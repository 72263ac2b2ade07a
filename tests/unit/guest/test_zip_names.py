"""Names in zips of every maker: read as they were meant, checked afterwards, and written so that others read them."""

from __future__ import annotations

import io
import os
import pathlib
import shutil
import stat
import struct
import subprocess
import threading
import unicodedata
import zipfile
from typing import Any

import pytest

from sandboxd.errors import ArchiveRefused
from sandboxd.guest import archives
from sandboxd.guest.frames import ChunkReader, FrameWriter
from sandboxd.guest.jobs import Deps
from sandboxd.guest.users import User
from sandboxd.linux.kernel import Kernel
from sandboxd.wire import framing
from tests.support.zips import UTF_8, extra, raw_zip

OWNER = User("u", os.geteuid(), os.getegid(), (), "/", "/bin/sh")


def unpack(directory: pathlib.Path, data: bytes) -> dict[str, Any]:
    """Unpack as the file job does, and return its result."""
    source, feed = os.pipe()

    def write() -> None:
        with open(feed, "wb") as file:
            file.write(struct.pack(">I", len(data)) + data + struct.pack(">I", 0))

    thread = threading.Thread(target=write)
    thread.start()
    try:
        deps = Deps(Kernel(), OWNER, FrameWriter(-1), ChunkReader(source))
        return archives.unpack(deps, {"path": str(directory), "format": "zip", "max_bytes": 1 << 30})
    finally:
        os.close(source)
        thread.join()


def pack(directory: pathlib.Path) -> bytes:
    """Pack as the file job does."""
    source, sink = os.pipe()
    found = bytearray()

    def read() -> None:
        decoder = framing.FrameDecoder(limit=framing.MAX_REPLY_FRAME)
        with open(source, "rb", buffering=0) as file:
            while data := file.read(1 << 16):
                decoder.feed(data)
                while (frame := decoder.next_message()) is not None:
                    found.extend(frame[1])

    thread = threading.Thread(target=read)
    thread.start()
    writer = FrameWriter(sink)
    try:
        archives.pack(Deps(Kernel(), OWNER, writer, None), {"path": str(directory), "format": "zip"})
        writer.flush()
    finally:
        os.close(sink)
        thread.join()
    return bytes(found)


def names_in(directory: pathlib.Path) -> set[bytes]:
    root = os.fsencode(directory)
    return {
        os.path.relpath(os.path.join(at, name), root)
        for at, directories, files in os.walk(root)
        for name in directories + files
    }


E_ACUTE_437 = "é.txt".encode("cp437")
JAPANESE = "日本.txt"


@pytest.mark.parametrize(
    ("data", "wanted"),
    [
        # What Debian's `zip -r` writes: the bytes as they are, and its extra field.
        (raw_zip(JAPANESE.encode(), system=3, more=extra(JAPANESE, JAPANESE.encode())), JAPANESE),
        # An older `zip`: what the code page has no word for is escaped in the header.
        (raw_zip(b"#U65e5#U672c.txt", system=3, more=extra(JAPANESE, b"#U65e5#U672c.txt")), JAPANESE),
        (raw_zip(E_ACUTE_437, system=0, more=extra("é.txt", E_ACUTE_437)), "é.txt"),
        # The field of a name that was changed since, or that is damaged, does not count.
        (raw_zip(b"new", system=3, more=extra("old", b"new", wrong=1)), "new"),
        (raw_zip(b"new", system=3, more=extra("v2", b"new", version=2)), "new"),
        (raw_zip(b"new", system=3, more=struct.pack("<HHB", 0x7075, 1, 1)), "new"),
        (raw_zip("é".encode(), system=3, flags=UTF_8, more=extra("other", "é".encode())), "é"),
        # macOS: UTF-8, decomposed, without the flag; other systems' numbers too.
        (raw_zip(unicodedata.normalize("NFD", "é").encode(), system=3), unicodedata.normalize("NFD", "é")),
        (raw_zip("é".encode(), system=19), "é"),
        (raw_zip("ünï.txt".encode(), system=0, flags=UTF_8), "ünï.txt"),
        # cp437, from systems that have it; bytes, from one that has not.
        (raw_zip(E_ACUTE_437, system=0), "é.txt"),
        (raw_zip("Größe ½".encode("cp437"), system=10), "Größe ½"),
        (raw_zip("é.txt".encode("latin-1"), system=3), "\udce9.txt"),
        # Backslashes part directories for Windows, and are a part of names for Unix.
        (raw_zip(b"a\\b\\c.txt", system=0), "a/b/c.txt"),
        (raw_zip(b"a\\b/c.txt", system=10), "a/b/c.txt"),
        (raw_zip(b"C:\\a\\b", system=14), "C:/a/b"),
        (raw_zip(b"\\\\host\\share\\a", system=0), "host/share/a"),
        (raw_zip(b"a\\b", system=3), "a\\b"),
    ],
    ids=lambda value: ascii(value) if isinstance(value, str) else "zip",
)
def test_a_name_is_what_was_meant(tmp_path: pathlib.Path, data: bytes, wanted: str) -> None:
    assert unpack(tmp_path / "out", data)["entries"] >= 1
    parts = wanted.split("/")
    assert names_in(tmp_path / "out") == {os.fsencode("/".join(parts[:n])) for n in range(1, len(parts) + 1)}
    assert (tmp_path / "out" / wanted).read_bytes() == b"x"


@pytest.mark.parametrize(
    ("data", "wanted"),
    [
        (raw_zip(b"a\\b\\", system=0, data=b""), "a/b"),
        (raw_zip(b"a/b/", system=3, data=b""), "a/b"),
        (raw_zip(b"d", system=3, mode=stat.S_IFDIR | 0o755, data=b""), "d"),
    ],
    ids=lambda value: ascii(value) if isinstance(value, str) else "zip",
)
def test_a_folder_is_one(tmp_path: pathlib.Path, data: bytes, wanted: str) -> None:
    unpack(tmp_path / "out", data)
    assert (tmp_path / "out" / wanted).is_dir()


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (raw_zip(b"", system=3), "name"),
        (raw_zip(b".", system=0), "name"),
        (raw_zip(b"a\0b", system=3), "name"),
        (raw_zip(b"..\\evil", system=0), "outside"),
        (raw_zip(b"a\\..\\..\\evil", system=10), "outside"),
        (raw_zip(b"safe", system=3, more=extra("../evil", b"safe")), "outside"),
        (raw_zip(b"safe", system=0, more=extra("..\\evil", b"safe")), "outside"),
        (raw_zip(b"safe", system=3, more=extra("a\0b", b"safe")), "name"),
        (raw_zip(b"\xff", system=3, flags=UTF_8), "damaged"),
        (raw_zip(b"a", system=3, offset=0xFFFFFFF0), "damaged"),
        (raw_zip(b"a", system=3, offset=0xFFFFFFFF, more=struct.pack("<HHQ", 1, 8, (1 << 64) - 1)), "damaged"),
        (raw_zip(b"a", system=3, more=b"\1\0\xff\xff"), "damaged"),
    ],
    ids=lambda value: ascii(value) if isinstance(value, str) else "zip",
)
def test_what_a_name_becomes_is_checked(tmp_path: pathlib.Path, data: bytes, reason: str) -> None:
    (tmp_path / "in").mkdir()
    with pytest.raises(ArchiveRefused) as caught:
        unpack(tmp_path / "in" / "out", data)
    assert caught.value.facts["reason"] == reason
    assert names_in(tmp_path) == {b"in", b"in/out"}


def test_every_name_comes_back(tmp_path: pathlib.Path) -> None:
    names = [b"plain", "日本.txt".encode(), "e\u0301".encode(), b"latin-\xe9", b"a\\b", b"\xff\xfe", b" space "]
    source = tmp_path / "source"
    source.mkdir()
    for name in names:
        (source / os.fsdecode(name)).write_text("x")
    (source / "größe").mkdir()
    data = pack(source)
    unpack(tmp_path / "out", data)
    assert names_in(tmp_path / "out") == {*names, "größe".encode()}
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        assert archive.testzip() is None
        flags = {one.filename: bool(one.flag_bits & UTF_8) for one in archive.infolist()}
    assert flags["日本.txt"]
    assert flags["größe/"]
    assert not flags["plain"]


@pytest.mark.skipif(not shutil.which("zip"), reason="needs zip")
def test_what_info_zip_writes(tmp_path: pathlib.Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    names = {"日本.txt", "é.txt", "d", "d/ü"}
    (source / "d").mkdir()
    for name in names - {"d"}:
        (source / name).write_text("x")
    made = subprocess.run(["zip", "-r", "-", "."], cwd=source, capture_output=True, check=True, timeout=30).stdout
    unpack(tmp_path / "out", made)
    assert names_in(tmp_path / "out") == {name.encode() for name in names}
