"""One command: start, restart, feed, signal, end.

A command is a process in a cgroup leaf of its own, so that its whole tree can be counted and killed. It ends when
its main process has exited and its output gave end-of-file, or a grace after that exit; what the leaf still holds
is then killed, unless the caller keeps orphans. One that was asked to end by a signal ends when its tree is empty, or
is killed when the time for that is up (`endings.py`). One that is to be restarted on failure starts again and goes on
with the same journal; its `exit` event comes once, at the last end.
`process_states.py` has the states.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import resource
import signal
import time
from collections.abc import Callable
from typing import Any, Final

from ..errors import InternalError, ProcessNotRunning
from ..linux.eventloop import EventLoop, Timer
from ..linux.kernel import Kernel
from ..spec import STOP_GRACE_S, CommandSpec
from ..transitions import next_state
from ..wire.exhausted import limit_error
from . import endings, lines, spawn, terminals, users
from .leaf_cgroups import KILLED_S, POLL_S, LeafCgroup, LeafCgroups
from .output import Output
from .process_states import ALIVE, EXITED, TRANSITIONS, Event, State
from .standby import Standby
from .stdin_writer import Done, StdinWriter
from .users import User

#: How long after its main process's exit a command's pipes may stay open.
ORPHAN_GRACE_S: Final = 0.1
#: Restarts in a row: the delay doubles from the first to the last; a run that lasted starts the count anew.
MAX_RESTARTS: Final = 10
RESTART_DELAY_S: Final = 0.1
MAX_RESTART_DELAY_S: Final = 30.0
LASTING_RUN_S: Final = 60.0
#: How long a terminal's programs may take to heed SIGHUP.
HANGUP_GRACE_S: Final = 2.0
#: How long a killed main process may stay unreaped before whoever traces it is killed too.
TRACED_GRACE_S: Final = 0.5
#: Signals that ask a program to end: after one of them it is not restarted.
_ENDING: Final = frozenset({signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGTERM, signal.SIGKILL})
#: What `info` shows of a command: a reply is a frame, and a list has many.
_SHOWN_WORDS: Final = 256
_SHOWN_BYTES: Final = 16 * 1024


@dataclasses.dataclass(slots=True)
class Deps:
    """What every command of a sandbox is made with; `null_fd` is /dev/null, once there is a sandbox."""

    loop: EventLoop
    kernel: Kernel
    leaves: LeafCgroups
    standby: Standby
    null_fd: int = -1


@dataclasses.dataclass(frozen=True, slots=True)
class Shell:
    """A session's shell for one command: its words and variables, and the descriptors that it gets from `first_fd` on.

    `fds` are the prelude, the state (whose owner closes it) and the next state.
    """

    argv: tuple[str, ...]
    env: dict[str, str]
    fds: tuple[int, int, int]
    first_fd: int
    user: User

    def close(self) -> None:
        """Close what is this command's alone."""
        os.close(self.fds[0])
        os.close(self.fds[2])


class Process:
    """One command of the sandbox.

    `on_start` is called with each new main process, `on_end` once, after the exit event has gone out.
    """

    def __init__(  # noqa: PLR0913 - what a command is made of
        self,
        deps: Deps,
        process_id: str,
        spec: CommandSpec,
        env: dict[str, str],
        cwd: str,
        user: User,
        on_start: Callable[[Process], None],
        on_end: Callable[[Process], None],
        *,
        background: bool = False,
        shell: Shell | None = None,
    ) -> None:
        self.id = process_id
        self.spec = spec
        self.background = background
        self.pid = 0
        self.started_at = time.time()
        self.ended_at: float | None = None
        self.result: dict[str, Any] | None = None
        self.viewers = 0
        self.output = Output(deps.loop, self._maybe_finish, is_terminal=spec.terminal is not None)
        self.leaf = deps.leaves.new(process_id)
        #: This run's, and those of earlier ones in which something may go on.
        self.leaves: list[LeafCgroup] = []
        self._deps = deps
        self._loop = deps.loop
        self._env = env
        self._cwd = cwd
        self._user = user
        self._shell = shell
        self._on_start = on_start
        self._on_end = on_end
        self._state = State.STARTING
        self._feed: StdinWriter | None = None
        self._terminal: int | None = None
        self._status: int | None = None
        self._rusage: resource.struct_rusage | None = None
        self._timed_out = False
        self._kill_reason: str | None = None
        self._ending: endings.Ending | None = None
        self._restarts = 0
        self._restarts_in_a_row = 0
        self._earlier: dict[str, Any] = {"cpu_s": 0.0, "memory_peak_bytes": None}
        self._grace: Timer | None = None
        self._hangup: Timer | None = None
        self._rest: Timer | None = None
        self._timeout: Timer | None = None
        self._unreaped: Timer | None = None
        self._ended: list[Callable[[], None]] = []
        self._began = self._run_began = time.monotonic()
        self._start()
        if spec.timeout_s is not None:
            self._timeout = self._loop.call_later(spec.timeout_s, self._on_timeout)
        if spec.linger_s is not None:
            self._hangup = self._loop.call_later(spec.linger_s, self.hang_up)

    @property
    def has_ended(self) -> bool:
        """Whether nothing more will come of it."""
        return self._state is State.ENDED

    def _move(self, event: Event) -> bool:
        """Take an event; one that the table refuses is a bug of ours, which costs this command and not init.

        Init has no log: the command's end tells of it.
        """
        try:
            self._state = next_state(TRANSITIONS, self._state, event)
        except InternalError as error:
            self._kill_reason = f"bug: {error.message}"
            self.leaf.kill()
            return False
        return True

    # --- start ---

    def _start(self) -> None:
        try:
            self._start_in_leaf()
        except BaseException as error:
            self.output.end_sources(keep_reading=False)
            if self._feed is not None:
                self._feed.close()
            self._drop_leaf()
            limit = limit_error(error, "start a process")
            if limit is None:
                raise
            raise limit from None
        self.leaves[:] = [*(leaf for leaf in self.leaves if not leaf.is_gone), self.leaf]
        self.output.append("start", {"id": self.id, "pid": self.pid})
        self.output.start()
        if self._feed is not None and isinstance(self.spec.stdin, bytes):
            self._feed.put(self.spec.stdin)
        self._on_start(self)
        self._move(Event.START)

    def _start_in_leaf(self) -> None:
        with contextlib.ExitStack() as undo:
            stdio = self._stdio()
            for fd in set(stdio):
                undo.callback(os.close, fd)
            order, fds = self._order(stdio, undo)
            ready = self._deps.standby.take(order, fds)
            if ready is not None:
                self.pid, self.leaf = ready
                return
            leaf = self.leaf.open()
            undo.callback(os.close, leaf)
            kernel = self._deps.kernel
            pid, pidfd = kernel.clone3(0, cgroup_fd=leaf)
            if pid == 0:
                spawn.run_child(kernel, order, fds)
            undo.callback(os.close, pidfd)
            self.pid = pid

    def _order(self, stdio: tuple[int, ...], undo: contextlib.ExitStack) -> tuple[spawn.SpawnRequest, tuple[int, ...]]:
        spec, shell = self.spec, self._shell
        if shell is not None:
            # Its environment and working directory are the state's: the shell takes them on by itself.
            request = spawn.SpawnRequest.of(spec, self._user, shell.argv, shell.env, "/", shell.first_fd)
            return request, (*stdio, *shell.fds)
        argv, first = spec.argv, 3
        if (line := spec.long_line) is not None:
            source = lines.open_line(line)
            undo.callback(os.close, source)
            argv, first, stdio = lines.argv(argv), lines.LINE_FD, (*stdio, source)
        return spawn.SpawnRequest.of(spec, self._user, argv, self._env, self._cwd, first), stdio

    def _stdio(self) -> tuple[int, int, int]:
        """Open our sides, and return the program's."""
        if self.spec.terminal is not None:
            cols, rows = self.spec.terminal
            self._terminal, theirs = terminals.open_terminal(self._deps.kernel, cols, rows, self._user)
            self.output.attach(self._terminal, "stdout")
            # A descriptor of its own, so that the loop can wait for both ways apart.
            self._feed = StdinWriter(self._loop, self.id, os.dup(self._terminal))
            return theirs, theirs, theirs
        with contextlib.ExitStack() as undo:
            made: list[int] = []
            for name in ("stdin", "stdout", "stderr"):
                made.append(self._stdin_pipe() if name == "stdin" else self.output.pipe(name, self._user))
                undo.callback(os.close, made[-1])
            undo.pop_all()
        return made[0], made[1], made[2]

    def _stdin_pipe(self) -> int:
        if self.spec.stdin is None or self.spec.stdin is False:
            return os.dup(self._deps.null_fd)  # never by its path, which the sandbox may have made a FIFO
        theirs, ours = users.pipe_of(self._user)
        self._feed = StdinWriter(self._loop, self.id, ours, close_after=self.spec.stdin is not True)
        return theirs

    # --- stdin and the terminal ---

    def write_stdin(self, data: bytes, done: Done) -> None:
        """Feed the program; `done` is called when all of `data` is in the pipe, or with why it will not be.

        Raises:
            ProcessNotRunning: there is no stdin to write to.
            ServerBusy: as much as may wait waits already; nothing of `data` was taken.
        """
        self._open_feed("write to").write(data, done)

    def close_stdin(self) -> None:
        """Give the program end-of-file after what is queued.

        Raises:
            ProcessNotRunning: there is no stdin to close, or it is a terminal (which ends by a control character).
        """
        feed = self._open_feed("close stdin of")
        if self._terminal is not None:
            raise ProcessNotRunning(f"cannot close stdin of process {self.id}: it is a terminal", id=self.id)
        feed.close_when_written()

    def _open_feed(self, verb: str) -> StdinWriter:
        if self._feed is None or not self._feed.is_open:
            raise ProcessNotRunning(f"cannot {verb} process {self.id}: it has no open stdin", id=self.id)
        return self._feed

    def resize(self, cols: int, rows: int) -> None:
        """Give the terminal another size.

        Raises:
            ProcessNotRunning: it has no terminal, or has ended.
        """
        if self._terminal is None or not self.output.is_open:
            raise ProcessNotRunning(f"cannot resize process {self.id}: it has no open terminal", id=self.id)
        terminals.resize(self._terminal, cols, rows)

    def redraw(self) -> None:
        """Let a full-screen program paint its screen anew."""
        if self._terminal is not None and self.output.is_open:
            group = terminals.foreground(self._terminal)
            if group is not None:
                with contextlib.suppress(OSError):
                    os.killpg(group, signal.SIGWINCH)

    def add_viewer(self) -> None:
        """Somebody looks at the terminal."""
        self.viewers += 1
        self._cancel("_hangup")

    def remove_viewer(self) -> None:
        """One looks no more; the last one to go leaves it a while to live."""
        self.viewers -= 1
        if self.spec.linger_s is not None and not self.viewers and not self.has_ended:
            self._hangup = self._loop.call_later(self.spec.linger_s, self.hang_up)

    def hang_up(self) -> None:
        """Tell the terminal's programs that nobody is there any more, and insist after a while."""
        if self._state in ALIVE:
            self._move(Event.STOP)
            self._kill_reason = self._kill_reason or "hangup"
            if not self.spec.keep_orphans:
                self._ending = endings.Ending(self.leaf, HANGUP_GRACE_S)
            for number in (signal.SIGHUP, signal.SIGCONT):
                endings.signal_led(self.pid, number)
            self._hangup = self._loop.call_later(HANGUP_GRACE_S, lambda: self.kill("hangup"))

    # --- signals ---

    def signal(self, number: int) -> None:
        """Send a signal to the command's process group; SIGTERM and SIGKILL go to its whole tree.

        After one that asks it to end the command is over when those who got it are gone, STOP_GRACE_S later at most.

        Raises:
            ProcessNotRunning: it has ended.
        """
        has_exited = self._state in EXITED
        if self.has_ended or (has_exited and not self._is_awaited()):
            raise ProcessNotRunning(f"cannot signal process {self.id}: it has ended", id=self.id)
        if number in _ENDING:
            self._move(Event.STOP)
        if self.has_ended:
            self._finish()  # it was between two runs
        elif self._state is State.RESTING:
            return  # nobody is there to hear it
        elif number == signal.SIGKILL:
            self.kill("killed")
        else:
            if number in _ENDING and (self._ending is None or not self._ending.is_whole):
                group = None if number == signal.SIGTERM else self.pid
                self._ending = endings.Ending(self.leaf, STOP_GRACE_S, group)
            if number == signal.SIGTERM:
                endings.signal_tree(self.leaf, number, None if has_exited else self.pid)
            elif has_exited:
                endings.signal_group(self.leaf, number, self.pid)
            else:
                endings.signal_led(self.pid, number)

    def kill(self, reason: str) -> None:
        """SIGKILL the whole tree; `reason` names the end."""
        if not self.has_ended and self._move(Event.STOP):
            self._kill_reason = self._kill_reason or reason
            if self.has_ended:
                self._finish()  # it was between two runs
            else:
                self._kill_tree()

    def _kill_tree(self) -> None:
        """Kill until the main process is reaped, and wait a while for the rest.

        The kernel keeps a dead process from its parent until a tracer of it has looked; a program of the sandbox
        that traces all others and never looks would hold every command, its timeout too.
        """
        self.leaf.kill()
        self._ending = endings.Ending(self.leaf, KILLED_S, is_kill=True)
        self._cancel("_unreaped")
        self._unreaped = self._loop.call_later(TRACED_GRACE_S, self._kill_tracer)

    def _kill_tracer(self) -> None:
        self._unreaped = None
        if self._state in ALIVE:
            tracer = tracer_of(self.pid)
            if tracer > 1:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(tracer, signal.SIGKILL)
            self._kill_tree()

    def _on_timeout(self) -> None:
        if self._state in ALIVE or self._state is State.RESTING:
            self._timed_out = True
            self.kill("timeout")

    # --- the end ---

    def when_ended(self, callback: Callable[[], None]) -> None:
        """Call back at its end, or now."""
        if self.has_ended:
            callback()
        else:
            self._ended.append(callback)

    def forget_ended(self, callback: Callable[[], None]) -> None:
        """Do not call back any more."""
        with contextlib.suppress(ValueError):
            self._ended.remove(callback)

    def on_exit(self, status: int, rusage: resource.struct_rusage) -> None:
        """Take the main process's status; called by the reaper."""
        if not self._move(Event.EXIT):
            return
        self._status = status
        self._rusage = rusage
        if self._feed is not None:
            self._feed.close()
        if self._ending is not None and self._ending.is_late:
            self._ending = None  # it did not heed the signal then, and goes by itself now
        grace = ORPHAN_GRACE_S if self._ending is None else POLL_S
        self._grace = self._loop.call_later(grace, self._end_grace)
        self.output.read_what_is_there()
        self._maybe_finish()

    def _end_grace(self) -> None:
        self._grace = None
        if self._is_awaited():
            self._grace = self._loop.call_later(POLL_S, self._end_grace)
            return
        if self._ending is not None and self._ending.leaves_some_to_kill():
            self._kill_tree()
            self._grace = self._loop.call_later(POLL_S, self._end_grace)
            return
        if not self._keeps_orphans():
            self.leaf.kill()
        self.output.end_sources(keep_reading=self._keeps_orphans())
        self._maybe_finish()

    def _is_awaited(self) -> bool:
        """Return whether those who were told to end are waited for."""
        return self._ending is not None and not self._ending.is_late and self._ending.has_members()

    def _keeps_orphans(self) -> bool:
        return self.spec.keep_orphans and (self._ending is None or not self._ending.is_whole)

    def _maybe_finish(self) -> None:
        if self._state not in EXITED or self.output.is_open or self._is_awaited():
            return
        self._cancel("_grace")
        self._terminal = None
        self.result = self._result()
        if self._is_to_restart():
            self._take_rest()
        else:
            self._move(Event.END)
            self._finish()

    def _finish(self) -> None:
        """Tell of the end, which has come."""
        self.ended_at = time.time()
        if self.spec.long_line is not None:  # megabytes, which nobody needs any more
            self.spec = dataclasses.replace(self.spec, argv=tuple(_printable_argv(self.spec.argv)), session=None)
        for name in ("_rest", "_timeout", "_hangup", "_unreaped"):
            self._cancel(name)
        self.output.append("exit", self.result or {})
        self.output.finish()
        ended, self._ended = self._ended, []  # a wait that hears of the end forgets itself
        for callback in ended:
            callback()
        # After the flush that the end has deferred: who waits for the exit need not wait for the tidying up.
        self._loop.defer(self._tidy)

    def _tidy(self) -> None:
        self._drop_leaf()
        self._on_end(self)

    def _drop_leaf(self) -> None:
        self._deps.leaves.drop(self.leaf, keep_rest=self._keeps_orphans())

    def _cancel(self, name: str) -> None:
        timer: Timer | None = getattr(self, name)
        if timer is not None:
            timer.cancel()
            setattr(self, name, None)

    # --- restarts ---

    def _is_to_restart(self) -> bool:
        if not self.spec.restart or self._state is State.ENDING:
            return False
        if time.monotonic() - self._run_began >= LASTING_RUN_S:
            self._restarts_in_a_row = 0
        assert self.result is not None  # noqa: S101 - made before
        return self.result["exit_code"] != 0 and self._restarts_in_a_row < MAX_RESTARTS

    def _take_rest(self) -> None:
        assert self.result is not None  # noqa: S101 - made before
        delay = min(MAX_RESTART_DELAY_S, RESTART_DELAY_S * 2**self._restarts_in_a_row)
        self._restarts += 1
        self._restarts_in_a_row += 1
        self._move(Event.REST)
        self._earlier = self.result["usage"]
        self._drop_leaf()
        facts = {name: self.result[name] for name in ("exit_code", "signal", "reason")}
        self.output.append("restart", {**facts, "delay_s": delay, "count": self._restarts})
        self.output.pump()
        self._rest = self._loop.call_later(delay, self._restart)

    def _restart(self) -> None:
        self._rest = None
        self._status = self._rusage = self._kill_reason = None
        self._run_began = time.monotonic()
        self._move(Event.RESTART)
        self.leaf = self._deps.leaves.new(self.id)
        try:
            self._start()
        except Exception:  # whatever it is, the next try may do better: no descriptors or processes just now
            self._move(Event.FAIL)
            self._finish()

    # --- facts ---

    def _result(self) -> dict[str, Any]:
        status = self._status or 0
        signalled = os.WIFSIGNALED(status)
        oom = self.leaf.oom_kills() > 0  # of any process in the leaf: a shell outlives what it started
        how = (self._kill_reason or "signal") if signalled else "exit"
        # A program that heeds SIGHUP ends by itself, but that is what it ends of.
        how = "hangup" if self._kill_reason == "hangup" else how
        reason = "timeout" if self._timed_out else "oom" if oom else how
        return {
            "exit_code": None if signalled else os.waitstatus_to_exitcode(status),
            "signal": signal_name(os.WTERMSIG(status)) if signalled else None,
            "duration_s": round(time.monotonic() - self._began, 6),
            "timed_out": self._timed_out,
            "oom_killed": oom,
            "usage": self._usage(),
            "reason": reason,
        }

    def _usage(self) -> dict[str, Any]:
        """Return what its tree has used, over all its runs."""
        if self._state is State.RESTING:
            return self._earlier
        found = self.leaf.usage(self._rusage)
        if self._restarts:
            found["cpu_s"] = round(found["cpu_s"] + self._earlier["cpu_s"], 6)
            peaks = [
                peak for peak in (found["memory_peak_bytes"], self._earlier["memory_peak_bytes"]) if peak is not None
            ]
            found["memory_peak_bytes"] = max(peaks, default=None)
        return found

    def info(self) -> dict[str, Any]:
        """Return what a list shows of it: times are seconds since the epoch, `pid` is None between two runs."""
        alive = not self.has_ended
        return {
            "id": self.id,
            "pid": self.pid if self._state in ALIVE else None,
            "running": alive,
            "argv": _printable_argv(self.spec.argv),
            "cwd": self._cwd,
            "user": self._user.name,
            "started_at": self.started_at,
            "ended_at": self.ended_at,
            "restarts": self._restarts,
            "terminal": self.spec.terminal is not None,
            "result": None if alive else self.result,
            "usage": self._usage() if alive else None,
            "next": self.output.journal.next,
        }


def _printable_argv(argv: tuple[str, ...]) -> list[str]:
    """Return the words that fit; a cut is told by an ellipsis."""
    found: list[str] = []
    left = _SHOWN_BYTES
    for word in argv[:_SHOWN_WORDS]:
        if len(word.encode()) > left:
            return [*found, word.encode()[:left].decode("utf-8", "ignore") + "…"]
        found.append(word)
        left -= len(word.encode())
    return found if len(argv) <= _SHOWN_WORDS else [*found, "…"]


def signal_name(number: int) -> str:
    """Return a signal's name, as SIGKILL or SIGRTMIN+3."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"SIGRTMIN+{number - signal.SIGRTMIN}"


def tracer_of(pid: int) -> int:
    """Return who traces `pid`; 0 is nobody."""
    with contextlib.suppress(OSError), open(f"/proc/{pid}/status", "rb", buffering=0) as file:
        for line in file.read(4096).splitlines():
            if line.startswith(b"TracerPid:"):
                return int(line.split()[1])
    return 0
