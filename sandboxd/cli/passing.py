"""Signals to us, passed on to what we run in a sandbox, as a terminal gives them to its foreground program.

What runs there may clean up, print a summary, or go on: its status is ours. The second signal, or `GRACE_S` after the
first, ends the waiting: `Interrupted` is raised, and whoever leaves the command's stream kills the command.
"""

from __future__ import annotations

import contextlib
import queue
import signal
import threading
import time
from typing import TYPE_CHECKING, Any, Final, Self

from sandboxd.cli.failure import SIGNALS, Interrupted
from sandboxd.errors import SandboxdError

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import FrameType, TracebackType

#: How long what runs may take to end after the first signal, in seconds; every `--help` that passes signals says so.
GRACE_S: Final = 10.0
#: timeout(1) sends the same signal to us and to our group: within this it is one.
_SAME_S: Final = 0.2


class Passing:
    """While it is entered, a signal is given to `send`, in a thread: the main thread may be in the same connections.

    Attributes:
        first: the signal that came, if one did.
    """

    def __init__(self, send: Callable[[int], object]) -> None:
        self.first: int | None = None
        self._send = send
        self._came_at = 0.0
        self._wanted: queue.SimpleQueue[int | None] = queue.SimpleQueue()
        self._before: dict[int, Any] = {}
        self._thread = threading.Thread(target=self._pass_signals, name="signals", daemon=True)

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            self._thread.start()
            for number in SIGNALS:
                if signal.getsignal(number) is not signal.SIG_IGN:  # as nohup(1) and a shell's & leave them
                    self._before[number] = signal.signal(number, self._arrived)
            if hasattr(signal, "SIGALRM"):
                self._before[signal.SIGALRM] = signal.signal(signal.SIGALRM, self._over)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._set_alarm(0)
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._wanted.put(None)

    def _arrived(self, number: int, _: FrameType | None) -> None:
        now = time.monotonic()
        if self.first is not None:
            if number == self.first and now - self._came_at < _SAME_S:
                return
            raise Interrupted(number)
        self.first, self._came_at = number, now
        self._set_alarm(GRACE_S)
        self._wanted.put(number)

    @staticmethod
    def _set_alarm(seconds: float) -> None:
        """End the waiting in a while; where there are no alarms (Windows) only the second signal does."""
        if hasattr(signal, "setitimer"):
            signal.setitimer(signal.ITIMER_REAL, seconds)

    def _over(self, number: int, _: FrameType | None) -> None:
        raise Interrupted(self.first or number)

    def _pass_signals(self) -> None:
        while (number := self._wanted.get()) is not None:
            # Where it cannot be told it has just ended, as the main thread is about to learn, or the daemon has.
            with contextlib.suppress(SandboxdError):
                self._send(number)
