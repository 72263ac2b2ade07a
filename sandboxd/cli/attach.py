"""A command's standard streams joined to this program's: bytes, as they come, in both directions.

The main thread reads the command's output and writes it; a thread of its own reads standard input and posts it,
because either may wait for ever. The command's end ends both: the thread waits for input and for a wake-up at
once, so that a terminal on which nobody types does not keep the program.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import stat
import threading
from typing import TYPE_CHECKING, Final, Self

from sandboxd.cli.failure import TIMED_OUT
from sandboxd.cli.output import say, write_all
from sandboxd.cli.passing import Passing
from sandboxd.errors import SandboxdError

if TYPE_CHECKING:
    from types import TracebackType

    from sandboxd.client import ExecStream, ExitStatus

_READ_BYTES: Final = 256 * 1024
#: How long the end waits for the thread (seconds), which may be in a request; it is a daemon thread besides.
_JOIN_S: Final = 2.0


def has_stdin() -> bool:
    """Return whether standard input can hold anything: it is not /dev/null."""
    found = os.fstat(0)
    return not (stat.S_ISCHR(found.st_mode) and found.st_rdev == os.makedev(1, 3))


def attach(stream: ExecStream, *, feed: bool) -> ExitStatus:
    """Join the streams, and pass signals on, until the command ends and return how it did.

    Raises:
        OutputClosed, OutputFailed: our output cannot be written.
        Interrupted: a second signal came, or the command did not end after the first.
    """
    with Passing(stream.send_signal), _Feeder(stream) if feed else contextlib.nullcontext():
        for chunk in stream:
            write_all(1 if chunk.stream == "stdout" else 2, chunk.data)
        return stream.wait()


def exit_code(result: ExitStatus) -> int:
    """Return the status that a shell would give: 128 and the signal's number, 124 for a timeout."""
    if result.timed_out:
        return TIMED_OUT
    if result.signal is not None:
        return signal_status(result.signal)
    return result.exit_code if result.exit_code is not None else 1


def signal_status(name: str) -> int:
    """Return the status that a shell gives for the end by a signal."""
    try:
        return 128 + signal.Signals[name]
    except KeyError:  # a real-time signal: SIGRTMIN+3 has no name of its own
        return 128 + 9


def explain(result: ExitStatus) -> None:
    """Say on stderr what an exit status alone does not."""
    if result.oom_killed:
        say("sandboxd: the command was killed: it ran out of memory", err=True)
    elif result.timed_out:
        say(f"sandboxd: the command was killed: it timed out after {result.duration_s:.1f} s", err=True)


class _Feeder:
    """The thread that posts our standard input to the command."""

    def __init__(self, stream: ExecStream) -> None:
        self._stream = stream
        self._wake_read, self._wake_write = os.pipe2(os.O_CLOEXEC)
        self._thread = threading.Thread(target=self._pass_stdin, name="stdin", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.close(self._wake_write)
        if kind is None:
            self._thread.join(_JOIN_S)
        if not self._thread.is_alive():
            os.close(self._wake_read)

    def _pass_stdin(self) -> None:
        # The command has ended, or closed its input: it wants no more. Any other failure of the daemon meets the
        # main thread too, on the stream that it reads.
        with contextlib.suppress(SandboxdError):
            while self._readable():
                try:
                    data = os.read(0, _READ_BYTES)
                except BlockingIOError:
                    continue
                except OSError:
                    data = b""
                if not data:
                    break
                self._stream.write_stdin(data)
            else:
                return
            self._stream.close_stdin()

    def _readable(self) -> bool:
        """Wait for input; return False when the command has ended instead."""
        poll = select.poll()
        poll.register(0, select.POLLIN)
        poll.register(self._wake_read, select.POLLIN)
        return all(fd != self._wake_read for fd, _ in poll.poll())
