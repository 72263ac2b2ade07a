"""Open files of a sandbox: descriptors that its init passed, vetted, then read and written in worker threads.

init is not trusted (sandboxd/README.md): a descriptor is taken only with the access mode that was asked for, no
O_PATH, O_DIRECT or O_ASYNC, and only for a regular file on one of the sandbox's own devices, which shuts out
memfd, /proc and hugetlb. It is never mapped and never reopened. O_NONBLOCK does nothing on a regular file.
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
from typing import TYPE_CHECKING, Final, TypeVar, TypeVarTuple, Unpack

import trio

from ..errors import InternalError, NotAFile, QuotaExceeded, RemoteProtocolError

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable
    from types import TracebackType

    from .files import Files

_Given = TypeVarTuple("_Given")
_Result = TypeVar("_Result")

#: One read or write: large enough that the hop to a thread (~0.1 ms) does not show.
PIECE_BYTES: Final = 1024 * 1024
_REFUSED_FLAGS: Final = os.O_PATH | os.O_DIRECT | os.O_ASYNC
#: Threads that do file I/O for all sandboxes together; trio's own limiter stays free for the rest.
FILE_THREADS: Final = 16
threads: Final = trio.CapacityLimiter(FILE_THREADS)
#: How many of them one sandbox may have: a slow disk or a hostile init holds up its own sandbox only.
SANDBOX_THREADS: Final = 4


def vet(fd: int, access: int, devices: frozenset[int]) -> os.stat_result:
    """Return the file's facts if the daemon may touch it. Runs in a worker thread: fstat can block.

    Raises:
        RemoteProtocolError: it is not what was asked for; the caller drops the link.
        NotAFile: it lies on a filesystem whose files the daemon does not touch (proc, a memfd).
    """
    flags = fcntl.fcntl(fd, fcntl.F_GETFL)
    if flags & _REFUSED_FLAGS or flags & os.O_ACCMODE != access:
        raise RemoteProtocolError(f"cannot accept a descriptor with flags {flags:#o}")
    facts = os.fstat(fd)
    if not stat.S_ISREG(facts.st_mode):
        raise RemoteProtocolError(f"cannot accept a descriptor of type {stat.S_IFMT(facts.st_mode):#o}")
    if facts.st_dev not in devices:
        # An honest init opens whatever path it is told, /proc/self/status too: no reason to give the sandbox up.
        raise NotAFile("cannot use the file: it is not on the sandbox's own disk", file_type="foreign")
    return facts


async def in_thread(
    turns: trio.CapacityLimiter, function: Callable[[Unpack[_Given]], _Result], *given: *_Given
) -> _Result:
    """Call `function` in a file thread when it is the sandbox's turn; `turns` is the sandbox's own."""
    async with turns:
        return await trio.to_thread.run_sync(function, *given, limiter=threads)


class _File:
    """What reading and writing share: one descriptor, one owner, closed once, in a thread."""

    def __init__(self, turns: trio.CapacityLimiter, fd: int) -> None:
        self._turns = turns
        self._fd = fd

    def __repr__(self) -> str:
        return f"<{type(self).__name__} fd={self._fd}>"

    async def aclose(self) -> None:
        """Close the descriptor; twice is fine."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            # In a thread, whatever happens: the last close of a file can write to a disk.
            with trio.CancelScope(shield=True):
                await in_thread(self._turns, os.close, fd)


class FileReader(_File):
    """A file open for reading. Made by `Files.open_read`; an async context manager."""

    def __init__(self, turns: trio.CapacityLimiter, fd: int, facts: os.stat_result, head: bytes) -> None:
        super().__init__(turns, fd)
        self.size = facts.st_size
        self.mtime = facts.st_mtime
        self._head = head

    async def __aenter__(self) -> FileReader:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    async def read(self, offset: int, limit: int) -> bytes:
        """Return 1 to `limit` bytes from `offset`, none at the end."""
        if offset < len(self._head):
            await trio.lowlevel.checkpoint()
            return self._head[offset : offset + limit]
        return await in_thread(self._turns, os.pread, self._fd, min(limit, PIECE_BYTES), offset)

    async def pieces(self, start: int = 0, end: int | None = None) -> AsyncGenerator[bytes, None]:
        """Give the bytes from `start` to `end`, or to the file's end.

        Raises:
            InternalError: the file became shorter than `end`.
        """
        at = start
        while end is None or at < end:
            piece = await self.read(at, PIECE_BYTES if end is None else min(PIECE_BYTES, end - at))
            if not piece:
                if end is None:
                    return
                raise InternalError("cannot send the whole file: it was truncated in the meantime")
            at += len(piece)
            yield piece


def vet_and_read(fd: int, devices: frozenset[int]) -> tuple[os.stat_result, bytes]:
    """Vet a descriptor for reading and read its first piece, in one hop to a thread."""
    facts = vet(fd, os.O_RDONLY, devices)
    return facts, os.pread(fd, min(PIECE_BYTES, facts.st_size), 0) if facts.st_size else b""


class FileWriter(_File):
    """A new version of a file, not yet in place. Made by `Files.open_write`; an async context manager.

    Leaving it without `commit` aborts: the old file stays whole.
    """

    def __init__(self, files: Files, fd: int, ticket: int | str) -> None:
        super().__init__(files.turns, fd)
        self._files = files
        self._ticket = ticket
        self._pending = bytearray()
        self._offset = 0
        self._is_finished = False

    async def __aenter__(self) -> FileWriter:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()
        if not self._is_finished:
            self._is_finished = True
            with trio.CancelScope(shield=True):
                await self._files.abort_write(self._ticket)

    @property
    def size(self) -> int:
        """Bytes given so far."""
        return self._offset + len(self._pending)

    async def write(self, data: bytes | bytearray) -> None:
        """Append `data`, a bytearray for good; it reaches the file in pieces.

        Raises:
            QuotaExceeded: no room.
        """
        if self._pending or not isinstance(data, bytearray):
            self._pending += data
        else:
            self._pending = data
        if len(self._pending) >= PIECE_BYTES:
            await self._write_out()

    async def commit(self) -> bool:
        """Put the new version in the old one's place; return whether there was no old one."""
        if self._pending:
            await self._write_out()
        await self.aclose()
        self._is_finished = True
        return await self._files.commit_write(self._ticket)

    async def _write_out(self) -> None:
        data, self._pending = self._pending, bytearray()
        try:
            await in_thread(self._turns, _pwrite_all, self._fd, data, self._offset)
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
                raise QuotaExceeded(f"cannot write the file: {os.strerror(error.errno)}", errno=error.errno) from None
            raise InternalError(f"cannot write the file: {error.strerror}") from error
        self._offset += len(data)


def _pwrite_all(fd: int, data: bytearray, offset: int) -> None:
    with memoryview(data) as view:
        done = 0
        while done < len(view):
            done += os.pwrite(fd, view[done:], offset + done)
