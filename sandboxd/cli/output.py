r"""What the command line writes: whole or told, and nothing in it that a terminal obeys.

A write that fails, by click, rich, print or the last flush, is one of two errors here, which `failure.guarded` turns
into a sentence and a status. `shown` and `shown_line` are the
one place where text that a sandbox chose (names, arguments, labels, errors) is made harmless; what a command prints
goes through as it is.
"""

from __future__ import annotations

import io
import os
import select
import shlex
from typing import TYPE_CHECKING, Final

import click

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

_NAMES: Final = {1: "standard output", 2: "standard error"}
_SHORT: Final = {"\n": "\\n", "\r": "\\r", "\t": "\\t", "\\": "\\\\"}


class OutputClosed(OSError):
    """Nobody reads our output any more, as in `sandboxd run … | head`. Its errno is None: click would take it."""


class OutputFailed(OSError):
    """Our output cannot be written: a full disk, a closed stream. `fd` says which. Its errno is None."""

    def __init__(self, fd: int, why: str) -> None:
        super().__init__(f"cannot write to {_NAMES.get(fd, fd)}: {why}")
        self.fd = fd


def write_all(fd: int, data: ReadableBuffer) -> None:
    """Write all of `data` to one of our own streams, past Python's buffers.

    Raises:
        OutputClosed: nobody reads it any more.
        OutputFailed: it cannot be written.
    """
    with memoryview(data) as view:
        position = 0
        while position < len(view):
            try:
                position += os.write(fd, view[position:])
            except BlockingIOError:  # whoever gave us the descriptor made it non-blocking
                select.select([], [fd], [])
            except BrokenPipeError as error:
                raise OutputClosed("the reader closed the output") from error
            except OSError as error:
                raise OutputFailed(fd, error.strerror or str(error)) from error


class Output(io.RawIOBase):
    """A standard stream whose writes fail by `write_all`'s errors."""

    def __init__(self, fd: int) -> None:
        self._fd = fd

    def fileno(self) -> int:
        """Return the descriptor."""
        return self._fd

    def isatty(self) -> bool:
        """Tell whether it is a terminal."""
        return os.isatty(self._fd)

    def writable(self) -> bool:
        """It is, or says so when it is written to."""
        return True

    def write(self, data: ReadableBuffer, /) -> int:
        """Write all of it."""
        write_all(self._fd, data)
        return memoryview(data).nbytes


def say(text: str, *, err: bool = False) -> None:
    """Print one line, made harmless."""
    click.echo(shown_line(text), err=err)


def shown(name: str) -> str:
    r"""Return a name on one line: what is no UTF-8 and what a terminal would obey as `\xff`, a backslash doubled.

    A shell's `$'…'` turns it back, where no quote is in it.
    """
    return "".join(_SHORT.get(char) or _printable(char) for char in name)


def quoted(word: str) -> str:
    """Return a word as bash reads it back, on one line and without anything that a terminal obeys."""
    return shlex.quote(word) if word.isprintable() else "$'" + shown(word).replace("'", "\\'") + "'"


def shown_line(text: str) -> str:
    """Return a line as it is, but for what a terminal would obey; what `shown` has made stays."""
    return "".join(char if char == "\t" else _printable(char) for char in text)


def _printable(char: str) -> str:
    if char.isprintable():
        return char
    # Of a name's surrogates these are the bytes that they stand for; any other lone surrogate has no bytes at all.
    return "".join(f"\\x{byte:02x}" for byte in char.encode("utf-8", _handler(char)))


def _handler(char: str) -> str:
    return "surrogateescape" if "\udc80" <= char <= "\udcff" else "surrogatepass"
