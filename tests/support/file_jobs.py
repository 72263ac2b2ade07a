"""File jobs in the test's own process: the functions that init forks for, over memory files instead of pipes."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import struct
from collections.abc import Iterator, Sequence
from typing import Any

from sandboxd.guest.frames import ChunkReader, FrameWriter
from sandboxd.guest.jobs import Deps, Function
from sandboxd.guest.users import User
from sandboxd.linux.kernel import Kernel
from sandboxd.wire import framing

#: Whoever runs the tests: a file can be given to oneself without root.
OWNER = User("u", os.geteuid(), os.getegid(), (), "/", "/bin/sh")


@dataclasses.dataclass(frozen=True)
class Done:
    """What a file job said: its result, its rows, and the bytes of its stream."""

    result: dict[str, Any]
    rows: list[dict[str, Any]]
    data: bytes


def run(
    function: Function, params: dict[str, Any], *, feed: Sequence[bytes] | None = None, kernel: Kernel | None = None
) -> Done:
    """Run a file job on `params`, fed with these pieces."""
    with left_open(), contextlib.ExitStack() as stack:
        out = _memory_file(stack)
        chunks = None
        if feed is not None:
            source = _memory_file(stack)
            os.write(source, b"".join(struct.pack(">I", len(piece)) + piece for piece in [*feed, b""]))
            os.lseek(source, 0, os.SEEK_SET)
            chunks = ChunkReader(source)
        writer = FrameWriter(out)
        result = function(Deps(kernel or Kernel(), OWNER, writer, chunks), params)
        writer.flush()
        rows, data = _said(out)
    return Done(result, rows, data)


@contextlib.contextmanager
def left_open() -> Iterator[None]:
    """Close what a file job leaves open: its process ends with it."""
    before = set(_open_fds())
    try:
        yield
    finally:
        for fd in set(_open_fds()) - before:
            os.close(fd)


def _open_fds() -> list[int]:
    names = os.listdir("/proc/self/fd")
    return [int(name) for name in names if os.path.lexists(f"/proc/self/fd/{name}")]  # not the listing's own


def _memory_file(stack: contextlib.ExitStack) -> int:
    fd = os.memfd_create("file-job")
    stack.callback(os.close, fd)
    return fd


def _said(fd: int) -> tuple[list[dict[str, Any]], bytes]:
    rows: list[dict[str, Any]] = []
    data = bytearray()
    decoder = framing.FrameDecoder(limit=framing.MAX_REPLY_FRAME)
    os.lseek(fd, 0, os.SEEK_SET)
    while piece := os.read(fd, 1 << 20):
        decoder.feed(piece)
        while (frame := decoder.next_message()) is not None:
            kind, content = frame
            assert kind in ("rows", "data"), frame
            if kind == "rows":
                rows += content
            else:
                data += content
    return rows, bytes(data)
