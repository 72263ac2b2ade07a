"""Directories as tar streams: what goes in whole, what comes out bounded, and what is left out and told."""

from __future__ import annotations

import io
import itertools
import os
import socket
import tarfile
from typing import TYPE_CHECKING, Any

import pytest

from sandboxd.client import directories
from sandboxd.errors import ArchiveRefused

if TYPE_CHECKING:
    from pathlib import Path


def packed(directory: Path) -> tuple[dict[str, tarfile.TarInfo], list[tuple[str, str]]]:
    told: list[tuple[str, str]] = []
    packing = directories.Packing(directory, on_left_out=lambda name, why: told.append((name, why)))
    with tarfile.open(fileobj=io.BytesIO(b"".join(packing))) as archive:
        return {member.name: member for member in archive}, told


def test_links_of_both_kinds_stay(tmp_path: Path) -> None:
    (tmp_path / ".venv/bin").mkdir(parents=True)
    (tmp_path / ".venv/bin/python").symlink_to("/usr/bin/python3")
    (tmp_path / "up").symlink_to("../../else")
    (tmp_path / "a").write_text("content")
    (tmp_path / "b").hardlink_to(tmp_path / "a")
    (tmp_path / "z").write_text("last")
    found, told = packed(tmp_path)
    assert found[".venv/bin/python"].linkname == "/usr/bin/python3"
    assert found["up"].linkname == "../../else"
    assert (found["b"].islnk(), found["b"].linkname) == (True, "a")
    assert found["z"].size == 4
    assert told == []


def test_what_cannot_go_is_told_and_the_rest_goes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Root reads everything, so the refusals are the kernel's to a user, by hand."""
    os.mkfifo(tmp_path / "fifo")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "sock"))
    os.mknod(tmp_path / "dev", 0o20666, os.makedev(1, 5))
    (tmp_path / "dark").mkdir()
    for name in ("private", "gone", "torn", "z"):
        (tmp_path / name).write_text("content")
    real_open, real_scandir = os.open, os.scandir

    def refuse(path: object, *more: object, **named: object) -> int:
        if str(path).endswith("private"):
            raise PermissionError(13, "Permission denied", str(path))
        if str(path).endswith("gone"):
            raise FileNotFoundError(2, "No such file or directory", str(path))
        return real_open(path, *more, **named)  # type: ignore[arg-type]

    def scandir(path: Any) -> Any:
        if str(path).endswith("dark"):
            raise PermissionError(13, "Permission denied", str(path))
        return real_scandir(path)

    monkeypatch.setattr(os, "open", refuse)
    monkeypatch.setattr(os, "scandir", scandir)
    found, told = packed(tmp_path)
    assert sorted(found) == ["dark", "torn", "z"]
    assert dict(told) == {
        "fifo": "it is a FIFO",
        "sock": "it is a socket",
        "dev": "it is a device",
        "dark": "Permission denied",
        "private": "Permission denied",
        "gone": "No such file or directory",
    }
    packing = directories.Packing(tmp_path)
    assert b"".join(packing)
    with pytest.raises(OSError, match=r"Permission denied|No such file"):
        packing.check()


def tar_of(*members: tuple[tarfile.TarInfo, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for info, data in members:
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def file_header(name: str, size: int) -> bytes:
    info = tarfile.TarInfo(name)
    info.size = size
    return info.tobuf(tarfile.PAX_FORMAT)


def test_holes_stay_holes_and_nothing_else_does(tmp_path: Path) -> None:
    size = 64 << 20
    data = bytes(10_000) + b"x" + bytes(1 << 20) + b"y" * 5000
    stream = itertools.chain(
        [file_header("sparse", size)], itertools.repeat(bytes(1 << 20), 64), [tar_of((tarfile.TarInfo("d"), data))]
    )
    assert directories.unpack(stream, tmp_path / "out") == []
    facts = (tmp_path / "out/sparse").stat()
    assert facts.st_size == size
    assert facts.st_blocks == 0
    assert (tmp_path / "out/d").read_bytes() == data
    assert (tmp_path / "out/d").stat().st_blocks * 512 < len(data) // 2


@pytest.mark.parametrize(
    "stream",
    [
        lambda: iter([file_header("f", 1 << 40), *[b"x" * 512] * 9]),
        lambda: itertools.chain([file_header("f", 1 << 40)], itertools.repeat(b"x" * 65536)),
        lambda: (file_header(f"f{number}", 65536) + b"x" * 65536 for number in itertools.count()),
        lambda: (file_header(f"f{number}", 65536) + bytes(65536) for number in itertools.count()),
    ],
    ids=["announced", "one-file", "many-files", "many-holes"],
)
def test_what_does_not_end_is_cut_and_leaves_nothing(tmp_path: Path, stream: object) -> None:
    with pytest.raises(ArchiveRefused) as caught:
        directories.unpack(stream(), tmp_path / "out", max_bytes=1 << 20)  # type: ignore[operator]
    assert caught.value.reason == "too-large"
    assert list(tmp_path.iterdir()) == []


def test_names_without_end_and_headers_without_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(directories, "_MAX_MEMBERS", 100)
    with pytest.raises(ArchiveRefused):
        directories.unpack((file_header(f"f{number}", 0) for number in itertools.count()), tmp_path / "out")
    monkeypatch.setattr(directories, "_MAX_HEADERS", 1 << 20)
    long = tarfile.TarInfo("././@LongLink")
    long.type, long.size = tarfile.GNUTYPE_LONGNAME, 1 << 33
    with pytest.raises(ArchiveRefused):
        directories.unpack(itertools.chain([long.tobuf()], itertools.repeat(b"x" * 65536)), tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_not_filled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.statvfs(tmp_path)
    nearly_full = os.statvfs_result((4096, 4096, 1000, 60, 60, *tuple(real)[5:]))
    monkeypatch.setattr(os, "statvfs", lambda path: nearly_full)
    stream = tar_of((tarfile.TarInfo("a"), b"x" * 40_960), (tarfile.TarInfo("b"), b"x" * 40_960))
    with pytest.raises(OSError, match="5% of the disk"):
        directories.unpack(iter([stream]), tmp_path / "out")
    assert list(tmp_path.iterdir()) == []
    assert directories.unpack(iter([tar_of((tarfile.TarInfo("a"), bytes(1 << 20)))]), tmp_path / "out") == []


def test_a_merge_that_cannot_be_moves_nothing(tmp_path: Path) -> None:
    target = tmp_path / "out"
    (target / "z").mkdir(parents=True)
    stream = tar_of((tarfile.TarInfo("a"), b"new"), (tarfile.TarInfo("z"), b"a file"))
    with pytest.raises(FileExistsError):
        directories.unpack(iter([stream]), target)
    assert [path.name for path in target.iterdir()] == ["z"]
    strange = tarfile.TarInfo("a")
    strange.mtime = 10**15
    assert directories.unpack(iter([tar_of((strange, b"new"))]), target) == []  # a time that no calendar has
    assert (target / "a").read_text() == "new"
