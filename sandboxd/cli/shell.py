"""`sandboxd shell`: a terminal in a sandbox, joined to this one.

The main thread shows what comes; a thread of its own reads the keyboard and sends it, because either may wait for
ever, and each must go on while the other does. Keys go to the sandbox as they are: Ctrl-C is a signal there.
"""

from __future__ import annotations

import contextlib
import os
import select
import shlex
import signal
import sys
import threading
from typing import TYPE_CHECKING, Any, Final, Self

import click

from sandboxd.cli.failure import RUN_FAILED, Failure, status
from sandboxd.cli.output import write_all
from sandboxd.cli.params import start_options, target_of
from sandboxd.errors import SandboxdError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import TracebackType

    from sandboxd.client import Pty

_READ_BYTES: Final = 64 * 1024
_END_OF_FILE: Final = b"\x04"
#: How often an input that is at its end says so.
_END_AGAIN_MS: Final = 500


@click.command(context_settings={"allow_interspersed_args": False})
@click.option("-a", "--attach", metavar="PROCESS", help="Reconnect to an existing terminal.")
@click.option("-s", "--session", metavar="ID", help="Start with the shell state of a session.")
@click.option("--id", "process_id", metavar="ID", help="Id for the terminal's process.")
@start_options
@click.option(
    "--linger",
    type=click.FloatRange(min=0, min_open=True),
    default=300.0,
    metavar="SECONDS",
    help="How long the terminal stays alive after you leave or lose the connection.  [default: 300]",
)
@click.argument("sandbox")
@click.argument("command", nargs=-1, type=click.UNPROCESSED, metavar="[[--] COMMAND...]")
@click.pass_context
def shell(
    ctx: click.Context,
    *,
    attach: str | None,
    session: str | None,
    process_id: str | None,
    options: dict[str, Any],
    linger: float,
    sandbox: str,
    command: tuple[str, ...],
) -> None:
    """Open a terminal in SANDBOX (an id or a name) that runs COMMAND, or the user's shell.

    The exit status is the program's, as with `sandboxd exec`. If you leave the terminal or lose the connection, it
    stays alive for --linger seconds; --attach reconnects to it and restores its screen.
    """
    if not hasattr(signal, "SIGWINCH"):
        raise Failure("cannot open a terminal: `sandboxd shell` needs a POSIX system; use `sandboxd exec`", RUN_FAILED)
    words = command[1:] if command[:1] == ("--",) else command
    if attach is not None and (words or options or process_id or session):
        raise click.UsageError("--attach takes neither COMMAND nor options for a new terminal.")
    with status(RUN_FAILED):
        from sandboxd.cli.attach import signal_status  # noqa: PLC0415

        found = target_of(ctx, sandbox, session, options)
        if attach is not None:
            options["process"] = attach
        cols, rows = _size()
        with found.open_pty(words or None, cols=cols, rows=rows, id=process_id, linger=linger, **options) as pty:
            try:
                with _raw_terminal(), _Keyboard(pty):
                    _show(pty)
            except SandboxdError as error:
                back = f"sandboxd shell --attach {pty.process_id} {shlex.quote(sandbox)}"
                error.add_note(f"the terminal is still running for now; to reconnect: {back}")
                raise
            result = pty.wait()
    ctx.exit(signal_status(result.signal) if result.signal is not None else result.exit_code or 0)


def _show(pty: Pty) -> None:
    for data in pty:
        write_all(1, data)


def _size() -> tuple[int, int]:
    try:
        cols, rows = os.get_terminal_size(0)
    except OSError:
        return 80, 24
    return min(2000, cols or 80), min(2000, rows or 24)


@contextlib.contextmanager
def _raw_terminal() -> Iterator[None]:
    """Let every key through, where we have a terminal; give it back as it was."""
    if not sys.stdin.isatty():
        yield
        return
    import termios  # noqa: PLC0415 - not every system that the client runs on has it
    import tty  # noqa: PLC0415

    before = termios.tcgetattr(0)
    try:
        tty.setraw(0, termios.TCSADRAIN)
        yield
    except SandboxdError:
        # Cut off in the middle of a full-screen program: another screen, a hidden cursor, mouse reports.
        os.write(1, b"\x1b[?1049l\x1b[?25h\x1b[?1000l\x1b[?1002l\x1b[?1003l\x1b[?2004l\x1b[0m" if os.isatty(1) else b"")
        raise
    finally:
        termios.tcsetattr(0, termios.TCSADRAIN, before)


class _Keyboard:
    """The thread that sends what is typed, and tells of a new size of our terminal."""

    def __init__(self, pty: Pty) -> None:
        self._pty = pty
        self._wake_read, self._wake_write = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self._thread = threading.Thread(target=self._pass_keys, name="keyboard", daemon=True)
        self._before: Any = None

    def __enter__(self) -> Self:
        self._before = signal.signal(signal.SIGWINCH, lambda *_: self._wake(b"w"))
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        signal.signal(signal.SIGWINCH, self._before)
        self._wake(b"q")

    def _wake(self, what: bytes) -> None:
        with contextlib.suppress(BlockingIOError):
            os.write(self._wake_write, what)

    def _pass_keys(self) -> None:
        poll = select.poll()
        poll.register(0, select.POLLIN)
        poll.register(self._wake_read, select.POLLIN)
        again: float | None = None
        # The terminal has ended or the connection has: the main thread meets that too.
        with contextlib.suppress(SandboxdError):
            while True:
                ready = {fd for fd, _ in poll.poll(again)}
                if not ready:
                    self._pty.write(_END_OF_FILE)
                if self._wake_read in ready:
                    if b"q" in os.read(self._wake_read, 1024):
                        return
                    self._pty.resize(*_size())
                if 0 in ready:
                    try:
                        data = os.read(0, _READ_BYTES)
                    except OSError:
                        data = b""
                    self._pty.write(data or _END_OF_FILE)
                    if not data:
                        # There is nothing more for whoever reads next, either; and a shell that was just starting
                        # loses what was typed before it took the terminal.
                        poll.unregister(0)
                        again = _END_AGAIN_MS
