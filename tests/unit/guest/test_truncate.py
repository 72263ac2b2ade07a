"""What sets a file's size, run here: whatever is no regular file stays untouched, and is not even opened."""

from __future__ import annotations

import os
import socket
from pathlib import Path
from typing import Any

import pytest

from sandboxd.errors import FileNotFound, NotAFile, QuotaExceeded, SandboxdError
from sandboxd.guest.file_operations import truncate
from sandboxd.guest.frames import FrameWriter
from sandboxd.guest.jobs import Deps
from sandboxd.guest.users import User
from sandboxd.linux.kernel import Kernel


def set_size(path: Path, size: int) -> dict[str, Any]:
    deps = Deps(Kernel(), User("root", 0, 0, (), "/", "/bin/sh"), FrameWriter(-1), None)
    row: dict[str, Any] = truncate(deps, {"path": os.fsencode(path), "size": size})["file"]
    return row


def test_a_file_is_cut_and_grows(tmp_path: Path) -> None:
    file = tmp_path / "f"
    file.write_bytes(b"0123456789")
    assert set_size(file, 4)["size"] == 4
    assert file.read_bytes() == b"0123"
    (tmp_path / "l").symlink_to("f")
    row = set_size(tmp_path / "l", 1 << 30)
    assert (row["path"], row["type"], row["size"]) == (os.fsencode(tmp_path / "l"), "file", 1 << 30)
    assert file.stat().st_blocks <= 16
    with file.open("rb") as opened:
        assert opened.read(6) == b"0123\0\0"


def test_a_name_that_is_no_utf8(tmp_path: Path) -> None:
    file = tmp_path / os.fsdecode(b"\xff")
    file.touch()
    assert set_size(file, 1)["path"].endswith(b"/\xff")


def test_what_is_no_regular_file_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    reader = os.open(tmp_path / "fifo", os.O_RDONLY | os.O_NONBLOCK)
    (tmp_path / "device").symlink_to("/dev/null")
    (tmp_path / "directory").mkdir()
    (tmp_path / "dangling").symlink_to("nowhere")
    (tmp_path / "loop").symlink_to("loop")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "socket"))
        for name in ("fifo", "device", "directory", "socket", "fifo/below"):
            with pytest.raises(NotAFile):
                set_size(tmp_path / name, 0)
    os.close(reader)
    for name in ("none", "dangling"):
        with pytest.raises(FileNotFound):
            set_size(tmp_path / name, 0)
    with pytest.raises(SandboxdError):
        set_size(tmp_path / "loop", 0)
    with pytest.raises(SandboxdError):
        set_size(Path("/proc/self/fd/0"), 0)  # a magic link


def test_a_size_that_no_file_may_have_is_no_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: str, size: int) -> None:
        raise OSError(28, os.strerror(28), path)

    (tmp_path / "f").write_text("x")
    monkeypatch.setattr(os, "truncate", refuse)
    with pytest.raises(QuotaExceeded) as caught:
        set_size(tmp_path / "f", 1 << 20)
    assert caught.value.facts["path"] == str(tmp_path / "f")
