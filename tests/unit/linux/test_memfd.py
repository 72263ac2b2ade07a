"""A sealed memory file stays as it is, and sealing it does not depend on what the kernel is doing."""

from __future__ import annotations

import contextlib
import fcntl
import mmap
import os
import pathlib
import sys
from collections.abc import Callable, Iterator

import pytest

import sandboxd
from sandboxd import daemon
from sandboxd.linux import memfd

PAGE = mmap.PAGESIZE


@contextlib.contextmanager
def memory() -> Iterator[int]:
    fd = os.memfd_create("test", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        os.write(fd, b"x" * (2 * PAGE))
        yield fd
    finally:
        os.close(fd)


@contextlib.contextmanager
def page_held(fd: int) -> Iterator[None]:
    """Have the kernel hold a page of the file: a pipe that it was spliced into does."""
    out, into = os.pipe()
    try:
        assert os.splice(fd, into, PAGE, offset_src=0) == PAGE
        yield
    finally:
        os.close(out)
        os.close(into)


def test_a_page_that_the_kernel_holds_does_not_prevent_sealing() -> None:
    with memory() as fd, page_held(fd):
        with pytest.raises(OSError, match="busy"):
            fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_WRITE)
        memfd.seal(fd)


def write_anew(fd: int) -> None:
    again = os.open(f"/proc/self/fd/{fd}", os.O_RDWR)
    try:
        os.write(again, b"y")
    finally:
        os.close(again)


CHANGES: dict[str, Callable[[int], object]] = {
    "write": lambda fd: os.pwrite(fd, b"y", 0),
    "shrink": lambda fd: os.ftruncate(fd, PAGE),
    "grow": lambda fd: os.ftruncate(fd, 3 * PAGE),
    "map": lambda fd: mmap.mmap(fd, PAGE),
    "sendfile": lambda fd: os.sendfile(fd, fd, PAGE, 1),
    "seal": lambda fd: fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_WRITE),
    "write anew": write_anew,
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_sealed_file_cannot_be_changed(change: str) -> None:
    with memory() as fd:
        memfd.seal(fd)
        os.lseek(fd, 0, os.SEEK_SET)
        with pytest.raises(PermissionError):
            CHANGES[change](fd)
        assert os.pread(fd, 3 * PAGE, 0) == b"x" * (2 * PAGE)


def test_a_sealed_file_can_be_mapped_for_reading() -> None:
    with memory() as fd:
        memfd.seal(fd)
        with mmap.mmap(fd, PAGE, prot=mmap.PROT_READ) as mapped:
            assert mapped[:1] == b"x"


def test_nothing_is_sealed_in_another_way() -> None:
    package = pathlib.Path(sandboxd.__file__).parent
    named = [path for path in package.rglob("*.py") if "F_ADD_SEALS" in path.read_text()]
    assert named == [package / "linux" / "memfd.py"]


def test_a_daemon_starts_while_the_kernel_holds_a_page_of_its_interpreter(monkeypatch: pytest.MonkeyPatch) -> None:
    """`sandboxd: cannot continue: Device or resource busy` was all that one start in some hundreds said."""
    with contextlib.ExitStack() as held:
        change_mode = os.fchmod

        def hold(fd: int, mode: int) -> None:
            held.enter_context(page_held(fd))
            change_mode(fd, mode)

        monkeypatch.setattr(os, "fchmod", hold)
        copy = daemon._private_interpreter()
        held.callback(os.close, copy)
        assert os.fstat(copy).st_size == pathlib.Path(sys.executable).stat().st_size
