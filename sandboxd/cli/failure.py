"""How the command line fails: one sentence on stderr, and a status."""

from __future__ import annotations

import contextlib
import io
import os
import signal
import sys
import threading
from typing import IO, TYPE_CHECKING, Any, Final, NoReturn, Self, TextIO

import click

from sandboxd.cli import output
from sandboxd.errors import SandboxdError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import FrameType, TracebackType

#: sandboxd itself failed before or while it ran a command (as in docker run, chroot(1) and timeout(1)).
RUN_FAILED: Final = 125
#: The command line is wrong (as click's own errors).
USAGE: Final = 2
#: The command's time was over (as in timeout(1)).
TIMED_OUT: Final = 124
#: What asks a program to end: by a key, by kill(1), by a terminal that goes. Not every system has all of them.
SIGNALS: Final = tuple(
    signal.Signals[name] for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGQUIT") if name in signal.Signals.__members__
)
#: What a shell reports for a program whose reader has gone (SIGPIPE).
READER_GONE: Final = 128 + 13


class Failure(click.ClickException):
    """Ends the program with one sentence."""

    def __init__(self, message: str, exit_code: int = 1) -> None:
        super().__init__(message)
        self.exit_code = exit_code  # type: ignore[misc]  # click reads it from the instance too

    def show(self, file: IO[Any] | None = None) -> None:
        """Print the sentence."""
        click.echo(output.shown_line(f"sandboxd: {self.message}"), file=file or sys.stderr)


def one_sentence(error: SandboxdError) -> str:
    """Return an error's text on one line, with its hint, and what else went wrong on the way out."""
    parts = [str(error)]
    hint = error.facts.get("hint") or error.facts.get("remedy")
    if hint:
        parts.append(str(hint))
    parts += getattr(error, "__notes__", [])
    return " ".join("; ".join(parts).split())


def unexpected(error: OSError) -> Failure:
    """Return what to tell of an error that no verb explains: the call and the file, or else the place in our code.

    `sandboxd serve --log-level debug` logs the traceback as well.
    """
    import logging  # noqa: PLC0415 - a client that has no such error does not need it
    import traceback  # noqa: PLC0415 - as above

    logging.getLogger("sandboxd").debug("The call that failed", exc_info=error)
    named = " ".join(str(part) for part in (getattr(error, "syscall", None), error.filename, error.filename2) if part)
    why = error.strerror or str(error) or type(error).__name__
    if named:
        return Failure(f"cannot continue: {named}: {why}")
    frames = ((frame.f_globals["__name__"], frame, line) for frame, line in traceback.walk_tb(error.__traceback__))
    *_, (module, frame, line) = (found for found in frames if found[0].partition(".")[0] == "sandboxd")
    return Failure(f"cannot continue: {why} (in {module}.{frame.f_code.co_qualname}, line {line})")


@contextlib.contextmanager
def status(code: int) -> Iterator[None]:
    """End the program with `code` if sandboxd fails in the block."""
    try:
        yield
    except SandboxdError as error:
        raise Failure(one_sentence(error), code) from error


def guarded(program: Callable[[], object]) -> NoReturn:
    """Run the command line, which ends by SystemExit; output that cannot be written is one sentence and status 125."""
    sys.stdout, sys.stderr = _checked(1, sys.stdout, os.isatty(1)), _checked(2, sys.stderr, True)
    try:
        try:
            program()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
        sys.exit(0)
    except output.OutputClosed:
        _drop(1, 2)
        sys.exit(READER_GONE)
    except output.OutputFailed as error:
        _drop(error.fd)
        with contextlib.suppress(OSError):
            click.echo(f"sandboxd: {error}", err=True)
        _drop(1, 2)
        sys.exit(RUN_FAILED)


def _checked(fd: int, stream: TextIO, by_line: bool) -> TextIO:
    buffer = io.BufferedWriter(output.Output(fd))
    return io.TextIOWrapper(buffer, stream.encoding, stream.errors, line_buffering=by_line)


def _drop(*fds: int) -> None:
    """Let what is left in the buffers go nowhere: the interpreter flushes them at its end, and would tell."""
    null = os.open(os.devnull, os.O_WRONLY)
    for fd in fds:
        os.dup2(null, fd)
    os.close(null)


class Interrupted(BaseException):
    """A signal asks the program to end: `number`."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


class Interrupts:
    """While it is entered, `SIGNALS` raise `Interrupted` in the main thread.

    In a `held` block (a sandbox is being made or destroyed, which takes milliseconds) the first signal waits for
    the block's end, so that no sandbox is left over; a second one does not wait.
    """

    def __init__(self) -> None:
        self._held = False
        self._waiting: int | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            for number in SIGNALS:
                if signal.getsignal(number) is not signal.SIG_IGN:  # as nohup(1) and a shell's & leave them
                    self._before[number] = signal.signal(number, self._arrived)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Let the first signal wait for the block's end."""
        self._held = True
        try:
            yield
        finally:
            self._held = False

    def raise_waiting(self) -> None:
        """Raise `Interrupted` for a signal that came while they were held."""
        if self._waiting is not None:
            raise Interrupted(self._waiting)

    def _arrived(self, number: int, _: FrameType | None) -> None:
        if self._held and self._waiting is None:
            self._waiting = number
            return
        raise Interrupted(number)
