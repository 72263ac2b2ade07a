"""A run's or a question's turn with its interpreter: how far it has come, and how it ended.

The states are in `turn_states.py`. Whoever waits for the turn's end is woken by all that may be one, and looks.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import trio

from ..transitions import next_state
from ..wire import worker as frames
from .questions import Question
from .runs import Run, error_of
from .turn_states import EXPIRED, TAKEN, TRANSITIONS, Event, State

if TYPE_CHECKING:
    from collections.abc import Callable

    from .between_runs import BetweenRuns
    from .worker import Worker

#: How long an interrupted run may go on before its interpreter is killed; on a busy machine the first traceback,
#: with all that it imports, takes a second or two.
INTERRUPT_GRACE_S: Final = 5.0
#: When it is interrupted again: the first may have been swallowed, by an `except` of the code or in a `__str__`.
INTERRUPT_AGAIN_S: Final = 2.0
_ERROR_FIELDS: Final = ("ename", "evalue", "traceback", "traceback_ansi")


class Turn:
    """One turn. `number` is what the interpreter's frames name it by; `end` is the frame that ended it, if one did."""

    def __init__(self, item: Run | Question, number: int, is_lost: Callable[[], bool]) -> None:
        """`is_lost` tells whether the interpreter says no more, whatever it has said."""
        self.item = item
        self.number = number
        self.state = State.SENDING
        self.end: frames.End | None = None
        self._is_lost = is_lost
        self._changed = trio.Event()
        item.on_stop = self.wake

    def __repr__(self) -> str:
        return f"<Turn {self.number} {self.state.value}>"

    def move(self, event: Event) -> None:
        """Go on to the next state."""
        self.state = next_state(TRANSITIONS, self.state, event)

    def begin(self, between: BetweenRuns) -> None:
        """Have a run begin, with what was printed before it."""
        if isinstance(self.item, Run):
            self.item.begin()
            between.move_to(self.item)

    def close(self) -> None:
        """Say that nobody waits for it any more."""
        self.item.on_stop = None
        self.move(Event.END)

    @property
    def was_taken(self) -> bool:
        """Whether the interpreter has taken its message."""
        return self.state in TAKEN

    @property
    def has_expired(self) -> bool:
        """Whether its time is over."""
        return self.state in EXPIRED

    # --- who waits for its end ---

    @property
    def is_over(self) -> bool:
        """Whether there is nothing to wait for: the interpreter has said all that there is to say, or says no more."""
        answered = isinstance(self.item, Question) and self.item.answer is not None
        return self.end is not None or answered or self._is_lost()

    def wake(self) -> None:
        """Let whoever waits look at what has become of it, or is asked of it."""
        self._changed.set()

    async def wait_for_end(self, timeout_s: float | None) -> bool:
        """Wait until it is over; False when it is not, but its time is, or it is to stop."""
        if self.item.wants_stop:
            return self.is_over  # not whether it was woken: the wish to stop wakes too
        with trio.move_on_after(float("inf") if timeout_s is None else timeout_s):
            await self._changed.wait()
        return self.is_over

    async def stop(self, worker: Worker) -> None:
        """Interrupt it, and give it a while."""
        if not self.is_over:
            self._changed = trio.Event()
            await worker.interrupt(self.number)
        with trio.move_on_after(INTERRUPT_GRACE_S):
            while not self.is_over:
                with trio.move_on_after(INTERRUPT_AGAIN_S) as again:
                    await self._changed.wait()
                if again.cancelled_caught:
                    await worker.interrupt(self.number)
                elif not self.is_over:
                    self._changed = trio.Event()

    # --- what the interpreter says ---

    def on_frame(self, frame: frames.Frame) -> None:
        """Take a frame of this turn; nothing counts after its end."""
        if self.end is not None:
            return
        if isinstance(self.item, Run):
            self._on_run_frame(self.item, frame)
        elif isinstance(frame, frames.Answer):
            self.item.answer = frame.value
            self.item.done.set()
            self.wake()

    def _on_run_frame(self, run: Run, frame: frames.Frame) -> None:
        if isinstance(frame, frames.Result):
            run.add_result(frame)
        elif isinstance(frame, frames.Clear):
            run.add_clear(wait=frame.wait)
        elif isinstance(frame, frames.Error):
            run.add_error({name: getattr(frame, name) for name in _ERROR_FIELDS})
        elif isinstance(frame, frames.End):
            self.end = frame
            self.wake()

    def finish(self, run: Run, end: frames.End) -> None:
        """End the run as the interpreter said, or by its time."""
        if self.has_expired and run.error is None:
            why = f"the run took over {run.timeout_s:g} s, and its interrupt was caught"
            run.add_error(error_of("TimeoutError", why))
        elif end.status == "error" and run.error is None:
            run.add_error(error_of("Error", "the code failed, and its interpreter did not say how"))
        run.finish("timeout" if self.has_expired else end.status, execution_count=end.count)
