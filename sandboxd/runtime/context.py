"""A code context: an interpreter that keeps its state, and the runs that wait for it.

Theory of operation. One task (`serve`) owns the context: it starts the worker, takes one run after the other from
the queue, and is the only one that interrupts, kills or starts workers. A second task reads what the worker says
(`Worker.serve`) and puts it into the present run. Callers only queue runs, stop them (`Run.stop`), and read their
journals; a caller that leaves changes nothing else.

The states are in `context_states.py`, those of the present turn in `turn_states.py`; what callers want (a restart, the
end) is a state too.

Timeouts: a run whose time is over, or that was stopped, is interrupted, and again every `INTERRUPT_AGAIN_S`. If it does
not end within `INTERRUPT_GRACE_S`, the worker is killed and another one started, without the state. Runs that waited
meanwhile are dropped, since they were meant for the lost state.
"""

from __future__ import annotations

import collections
import contextlib
import logging
import time
from typing import TYPE_CHECKING, Any, Final

import trio

from ..errors import (
    ContextNotFound,
    ContextRestarting,
    InternalError,
    ProcessNotRunning,
    SandboxdError,
    SandboxGone,
    ServerBusy,
)
from ..transitions import next_state
from ..wire import worker as frames
from .between_runs import BetweenRuns
from .budget import UNBOUNDED, Share
from .context_states import LEAVING, TRANSITIONS, Event, State
from .kept_runs import KeptRuns
from .muting import Muting
from .questions import Question
from .runs import Run, error_of
from .start_failures import exited, failure_of
from .turn import Turn
from .turn_states import Event as TurnEvent
from .worker import Link, Worker

if TYPE_CHECKING:
    from collections.abc import Callable

    from ..spec import ContextSpec

_log = logging.getLogger(__name__)

#: How long an interpreter may take to wait for code: a cold disk, and a machine full of others.
START_TIMEOUT_S: Final = 60.0
#: How long one that waited for its context may take to begin, before another is started instead.
SPARE_TIMEOUT_S: Final = 5.0
#: How long a killed worker may take to be gone.
KILL_TIMEOUT_S: Final = 10.0
#: How long a worker may take to accept a frame.
SEND_TIMEOUT_S: Final = 30.0
#: Runs that may wait in one context.
MAX_WAITING: Final = 64


class Context:
    """One context. Made by `Contexts`, which runs `serve`."""

    def __init__(
        self,
        context_id: str,
        spec: ContextSpec,
        link: Link,
        program: Callable[[], dict[str, Any]],
        *,
        is_default: bool,
        share: Share = UNBOUNDED,
    ) -> None:
        self.id = context_id
        self.spec = spec
        self.is_default = is_default
        self.created_at = time.time()
        self.state = State.STARTING
        self.execution_count = 0
        self.version = ""
        self.started = trio.Event()
        self.runs = KeptRuns(share)
        self._share = share
        self._link = link
        self._program = program
        self._worker: Worker | None = None
        self.generation = 0
        self._taken_over = ""
        self._queue: collections.deque[Run | Question] = collections.deque()
        self._work = trio.Event()
        self._restarted = trio.Event()  # set at the end of the restart that is under way
        self._turn: Turn | None = None
        # Above any that an earlier daemon gave to the same worker.
        self._number = time.time_ns() // 1_000_000
        self._between = BetweenRuns()
        self._muting = Muting()
        # What the next run is told, and no state: that the interpreter has begun anew without anybody asking for it.
        self._tell_anew = False
        self.start_failure: SandboxdError | None = None
        self._nursery: trio.Nursery | None = None

    def __repr__(self) -> str:
        return f"<Context {self.id} {self.spec.language} {self.state.value}, {len(self._queue)} wait>"

    def _move(self, event: Event) -> None:
        self.state = next_state(TRANSITIONS, self.state, event)

    # --- what callers do --------------------------------------------------------------------------------

    def check_usable(self) -> None:
        """Raise why no code can be run now, if so; a default context that has ended begins anew for the next run."""
        if self.state is State.EXITED and not self.is_default:
            raise self._exited("cannot run code in")
        if self.state is State.RESTARTING:
            raise ContextRestarting(f"cannot run code in context {self.id}: it is being restarted", context=self.id)
        if self.state in (State.DELETING, State.GONE):
            raise SandboxGone(f"cannot run code in context {self.id}: it is gone")

    def _exited(self, verb: str) -> SandboxdError:
        return exited(self._worker, self.id, verb)

    def submit(self, run: Run) -> None:
        """Queue a run.

        Raises:
            ContextExited, ContextRestarting: it cannot run code now.
            ServerBusy: too many wait.
        """
        self.runs.charge(run)
        try:
            self._put(run)
        except SandboxdError:
            run.hold.close()
            raise
        self.runs.add(run)

    async def ask(self, question: Question) -> str:
        """Ask the interpreter between two runs and return the JSON text that it answers.

        Raises:
            ContextExited, ContextRestarting, ServerBusy: as of `submit`.
        """
        if self.state is State.EXITED:
            raise self._exited("cannot ask")
        self._put(question)
        try:
            await question.done.wait()
        finally:
            question.give_up(SandboxGone("nobody waits"))
        if question.failure is not None:
            raise question.failure
        return question.answer or "null"

    def _put(self, item: Run | Question) -> None:
        if self.state in (State.IDLE, State.BUSY) and self._is_dead() and self._worker and not self._worker.failure:
            self._note_exit()  # our task has not seen it yet
        self.check_usable()
        if len(self._queue) >= MAX_WAITING:
            raise ServerBusy(f"cannot run code in context {self.id}: {MAX_WAITING} are waiting", bound=MAX_WAITING)
        self._queue.append(item)
        self._work.set()

    async def interrupt(self) -> bool:
        """Interrupt the present run and return when it is over; False when there is none."""
        run = self._present_run
        if run is None:
            return False
        run.stop()
        await run.finished.wait()
        return True

    @property
    def _present_run(self) -> Run | None:
        return self._turn.item if self._turn is not None and isinstance(self._turn.item, Run) else None

    def _wake(self) -> None:
        """Let our task look at what is asked for, whatever it waits for."""
        if self._turn is not None:
            self._turn.wake()
        self._work.set()

    async def restart(self) -> None:
        """Start the interpreter anew, without its state.

        Raises:
            InterpreterMissing, ContextExited: it did not start.
        """
        if self.state is not State.RESTARTING:
            self._begin_restart()
        restarted = self._restarted
        self._give_up_waiting(ContextRestarting(f"cannot run code in context {self.id}: it was restarted"))
        if (run := self._present_run) is not None:
            run.stop()
        self._wake()
        await restarted.wait()
        if self.start_failure is not None:
            raise self.start_failure
        if self.state is State.GONE:
            self.check_usable()

    def _begin_restart(self) -> None:
        if self.state in (State.DELETING, State.GONE):
            self.check_usable()
        self._move(Event.RESTART)
        self._restarted = trio.Event()

    async def delete(self) -> None:
        """End it for good; returns when its interpreter is gone."""
        if self.state is not State.GONE:
            self._move(Event.DELETE)
        self._wake()
        worker = self._worker
        if worker is not None:
            await worker.kill()
            with trio.move_on_after(KILL_TIMEOUT_S):
                await worker.gone.wait()

    def lose_sandbox(self, error: SandboxdError) -> None:
        """Hear that the sandbox is gone: of an interpreter that has ended before, nobody else says so."""
        if self._worker is not None:
            self._worker.failure = self._worker.failure or error
        self._work.set()

    def take_over(self, name: str, generation: int) -> None:
        """Say which worker of an earlier daemon is this context's; then `serve` with `take_over`."""
        self._taken_over = name
        self.generation = generation

    # --- its task ---------------------------------------------------------------------------------------

    async def serve(self, *, take_over: bool = False) -> None:
        """Live until it is deleted or the sandbox is gone. Never raises but Cancelled."""
        try:
            async with trio.open_nursery() as nursery:
                self._nursery = nursery
                try:
                    await self._live(take_over=take_over)
                except SandboxdError as error:
                    self.start_failure = error
                    if isinstance(error, InternalError):
                        await self._end_by_bug()
                nursery.cancel_scope.cancel()
        finally:
            self._move(Event.END)
            self.started.set()
            self.runs.clear()
            gone = self.start_failure or SandboxGone(f"cannot continue in context {self.id}: it is gone")
            if self._turn is not None:
                self._turn.item.give_up(gone)
            self._give_up_waiting(gone)
            self._restarted.set()

    async def _end_by_bug(self) -> None:
        """End the interpreter that nobody leads any more; the sandbox goes on."""
        _log.exception("Context %s ends by a bug", self.id)
        with contextlib.suppress(SandboxdError):
            await self._end_worker()

    async def _live(self, *, take_over: bool) -> None:
        await self._start_worker(take_over=take_over)
        if self.start_failure is not None:
            raise self.start_failure
        self._note_start(State.STARTING)
        self.started.set()
        while self.state is not State.DELETING:
            self._work = trio.Event()
            if self.state is State.RESTARTING:
                await self._restart_worker()
            elif self.state is State.EXITED or self._is_dead():
                await self._do_without_worker()
            elif self._queue:
                item = self._queue.popleft()
                try:
                    await self._serve_item(item)
                except SandboxdError as error:
                    item.give_up(error)
                    raise
            else:
                await self._work.wait()
        if not self._is_dead():
            await self._end_worker()

    def _is_dead(self) -> bool:
        return self._worker is not None and self._worker.is_gone

    async def _do_without_worker(self) -> None:
        """Wait for what needs an interpreter again, and start one."""
        if self._worker is not None and self._worker.failure is not None:
            raise self._worker.failure  # the sandbox itself is gone
        if self.state is not State.EXITED:
            self._note_exit()
        if self._queue:
            await self._begin_anew()
        else:
            await self._work.wait()

    def _note_exit(self) -> None:
        """Give up what waits for an interpreter that has ended; what comes from now on is for the next one."""
        self._move(Event.EXIT)
        self._tell_anew = False
        self._give_up_waiting(self._exited("cannot run code in"))

    async def _begin_anew(self) -> None:
        """Start the next interpreter of a default context for the runs that wait."""
        self._move(Event.START_AGAIN)
        await self._start_worker()
        self._tell_anew = self.start_failure is None
        self._note_start(State.STARTING)
        if self.start_failure is not None:
            self._give_up_waiting(self.start_failure)

    def _note_start(self, state: State) -> None:
        """Take what came of a start, unless something else was asked for since it began in `state`."""
        if self.state is state:
            self._move(Event.READY if self.start_failure is None else Event.FAIL)

    async def _start_worker(self, *, take_over: bool = False) -> None:
        """Start an interpreter and wait until it takes code; how it failed is in `start_failure`."""
        assert self._nursery is not None  # noqa: S101 - serve opened it
        self.start_failure = None
        if take_over:
            worker = self._new_worker(self._taken_over)
            # Its run, if it was in one, was for a daemon that is gone.
            self._nursery.start_soon(worker.serve, "context_follow", {})
            worker.take_over()
            await worker.interrupt(0)
            await worker.mute(on=False)
            return
        worker = self._next_worker()
        handoff = self._link.handoff(self.spec)
        self._nursery.start_soon(worker.serve, "context_start", self._program(), handoff)
        await self._wait_until_ready(worker)
        if worker.was_spare and not worker.is_ready and worker.failure is None:
            _log.info("A spare interpreter did not become context %s: %s", self.id, self._how())
            await self._end_worker()
            worker = self._next_worker()
            self._nursery.start_soon(worker.serve, "context_start", {**self._program(), "spare": None})
            await self._wait_until_ready(worker)
        if worker.is_ready:
            self.version = worker.version
            return
        if not worker.is_gone:
            await self._end_worker()
        self.start_failure = failure_of(worker, self.id, self.spec.language, self._between)

    def _next_worker(self) -> Worker:
        self.generation += 1
        return self._new_worker(f"{self.id}.{self.generation}")

    def _new_worker(self, name: str) -> Worker:
        self._between.clear()
        self._muting.is_on = False
        self._worker = Worker(self._link, name, self, self._share.hold())
        return self._worker

    @staticmethod
    async def _wait_until_ready(worker: Worker) -> None:
        """Wait until it takes code, is gone, or has taken too long."""
        with trio.move_on_after(START_TIMEOUT_S) as scope:
            await worker.seen.wait()
            if worker.was_spare:
                scope.deadline = trio.current_time() + SPARE_TIMEOUT_S
            await worker.ready.wait()

    async def _restart_worker(self) -> None:
        if not self._is_dead():
            await self._end_worker()
        await self._start_worker()
        self._tell_anew = False
        self._note_start(State.RESTARTING)
        self._restarted.set()

    async def _end_worker(self) -> None:
        if self._worker is not None:
            await self._worker.kill()
            with trio.move_on_after(KILL_TIMEOUT_S):
                await self._worker.gone.wait()

    def _give_up_waiting(self, error: Exception) -> None:
        queue, self._queue = self._queue, collections.deque()
        for item in queue:
            item.give_up(error)

    # --- one run ----------------------------------------------------------------------------------------

    async def _serve_item(self, item: Run | Question) -> None:
        if isinstance(item, Question):
            if not item.done.is_set():
                await self._ask(item)
        elif item.wants_stop:
            item.give_up(SandboxGone("cannot run the code: it was stopped before it began"))
        else:
            await self._run_code(item)
        if self.state is State.BUSY:
            self._move(Event.DONE)

    async def _run_code(self, run: Run) -> None:
        assert self._worker is not None  # noqa: S101 - _live looked
        self._move(Event.RUN)
        run.restarted, self._tell_anew = run.restarted or self._tell_anew, False
        message = {"op": "run", "code": run.code, "env": run.env}
        turn = await self._hand_over(run, {**message, "json": True} if run.wants_json else message)
        if not await turn.wait_for_end(run.timeout_s):
            if not run.wants_stop:
                turn.move(TurnEvent.EXPIRE)
            await turn.stop(self._worker)
        await self._unmute(run)
        end = turn.end
        if end is None and not self._worker.is_gone and self.state in LEAVING:
            await self._end_worker()
        self._turn = None
        if end is not None:
            self._finish(turn, run, end)
        elif self._worker.failure is not None:
            run.give_up(self._worker.failure)  # the sandbox itself is gone, or the daemon stops
        elif self._worker.is_gone and self._is_for_the_next(turn, run):
            if self.state is State.BUSY:  # else who came since has noted it, and is for the next one too
                self._note_exit()
            self._queue.appendleft(run)
        elif self._worker.is_gone or self.state is State.DELETING:
            self._finish_dead(run, restarted=self.state is State.RESTARTING)
        else:
            await self._replace_worker(run, "timeout" if turn.has_expired else "error")
        turn.close()

    async def _replace_worker(self, run: Run, status: str) -> None:
        """Start another interpreter, since this one does not heed an interrupt: nothing else helps."""
        if self.state is not State.RESTARTING:
            self._begin_restart()
        self._give_up_waiting(ContextRestarting(f"cannot run code in context {self.id}: it was restarted"))
        run.add_error(error_of("Interrupted", "the code ignored an interrupt; its interpreter was restarted"))
        try:
            await self._restart_worker()
        finally:
            run.finish(status, restarted=True)

    def _is_for_the_next(self, turn: Turn, run: Run) -> bool:
        """Whether an interpreter that has ended never began with a run of a default context; once for each run."""
        taken = turn.was_taken and self._worker is not None and not self._worker.left_unread
        return self.is_default and not (taken or run.restarted or self.state is State.RESTARTING)

    async def _ask(self, question: Question) -> None:
        assert self._worker is not None  # noqa: S101 - _live looked
        self._move(Event.RUN)
        turn = await self._hand_over(question, question.message)
        if not await turn.wait_for_end(START_TIMEOUT_S):
            await turn.stop(self._worker)
        self._turn = None
        turn.close()
        question.give_up(self._exited("cannot ask"))

    async def _hand_over(self, item: Run | Question, message: dict[str, Any]) -> Turn:
        """Give the worker a message; if it does not take it, the turn's end comes another way."""
        assert self._worker is not None  # noqa: S101 - _live looked
        self._number += 1
        self._turn = turn = Turn(item, self._number, self._is_lost)
        turn.begin(self._between)
        if isinstance(item, Run):
            await self._unmute(item)
        if self._is_lost():
            turn.wake()
            return turn
        with trio.move_on_after(SEND_TIMEOUT_S):
            try:
                await self._worker.send({**message, "run": turn.number})
                turn.move(TurnEvent.TAKE)
            except (ProcessNotRunning, ContextNotFound):  # it has ended, or init has forgotten it since
                await self._worker.gone.wait()
                turn.wake()
        return turn

    def _is_lost(self) -> bool:
        """Whether the present interpreter says no more: it has ended, or is to be ended."""
        return self._is_dead() or self.state in LEAVING

    # --- what the worker says ---------------------------------------------------------------------------

    def on_output(self, stream: str, data: bytes) -> None:
        """Take what it printed: to the present run, or kept for the next one."""
        run = self._present_run
        if run is not None and self._turn is not None and self._turn.end is None:
            run.add_output(stream, data)
            full = run.is_flooded
        else:
            self._between.add(stream, data)
            full = self._between.is_full
        if full and not self._muting.is_on and self._worker is not None and self._nursery is not None:
            self._muting.is_on = True
            self._nursery.start_soon(self._mute, self._worker)

    async def _unmute(self, run: Run) -> None:
        """Hear again what is printed; what was dropped is told with the run."""
        if self._muting.is_on and self._worker is not None:
            run.miss(await self._muting.end(self._worker))

    async def _mute(self, worker: Worker) -> None:
        try:
            await self._muting.begin(worker)
        except SandboxdError as error:
            _log.debug("Cannot mute context %s: %s", self.id, error)

    def on_frame(self, frame: frames.Frame) -> None:
        """Take what it said; what is of another run than the present one came too late and is dropped."""
        turn = self._turn
        if isinstance(frame, frames.Dropped):
            self._take_dropped(None if turn is None else turn.item)
            return
        if isinstance(frame, frames.Ready | frames.Failed) or turn is None or frame.run != turn.number:
            return
        turn.on_frame(frame)
        if isinstance(turn.item, Run) and frame is turn.end and not self._muting.is_on:
            # At once: whoever waits for it need not wait for the context's task too.
            self._finish(turn, turn.item, turn.end)

    def _take_dropped(self, present: Run | Question | None) -> None:
        """Tell that there was no room for a frame: a result that is missing, or no answer."""
        if isinstance(present, Run):
            present.drop_result()
        elif isinstance(present, Question):
            present.give_up(ServerBusy(f"cannot accept the answer of context {self.id}: the daemon has no room for it"))

    def on_gone(self, worker: Worker) -> None:
        """Take note that the worker has ended."""
        if worker is self._worker:
            self._wake()

    def _finish(self, turn: Turn, run: Run, end: frames.End) -> None:
        self.execution_count = end.count
        turn.finish(run, end)

    # --- how it ended -----------------------------------------------------------------------------------

    def _how(self) -> str:
        return "its interpreter is gone" if self._worker is None else self._worker.how_it_ended()

    def _finish_dead(self, run: Run, *, restarted: bool) -> None:
        worker = self._worker
        oom = worker is not None and worker.exit is not None and worker.exit.oom_killed
        run.add_error(error_of("OutOfMemory" if oom else "ContextExited", self._how()))
        run.finish("oom" if oom else "exited", restarted=restarted)
