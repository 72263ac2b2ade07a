"""File jobs: short-lived forks of init that do one task which may wait for a disk or take long.

Theory of operation. init has one thread and must never wait, so a task that walks a tree, copies data, matches an
untrusted pattern or unpacks an untrusted archive runs in a separate fork. The fork is created in a cgroup leaf below
`work/`, so that its time, memory and files count against the sandbox; it has the permissions of the sandbox's root and
none of init's descriptors. It speaks directly to the daemon, over pipes that the daemon made and passed: it sends
frames (`frames.py`), and some jobs receive pieces of data. init only starts it, kills it (at its deadline, on a Cancel,
or when the daemon is gone), reaps it, and then ends the request: with the job's own result, or with the reason why
there is none.

Like init, a file job imports nothing. It first empties `sys.meta_path`, so that a module that was not loaded before the
creation raises an error and never loads the rootfs's code.
"""

from __future__ import annotations

import contextlib
import dataclasses
import gc
import os
import resource
import signal
import sys
from collections.abc import Callable
from types import FrameType
from typing import Any, Final

from ..errors import InternalError, InvalidRequest, LimitExceeded, SandboxdError, ServerBusy
from ..linux.eventloop import EventLoop, Timer
from ..linux.kernel import Kernel
from ..wire import exhausted
from .frames import ChunkReader, FrameWriter
from .leaf_cgroups import LeafCgroup, LeafCgroups
from .link_server import LinkServer
from .paths import file_error
from .users import User

#: File jobs at once: each is a process with about 1 MiB of its own, and a watch lives as long as its client.
MAX_JOBS: Final = 64
#: What a file job may map beyond init's own: a bound on patterns and archives that want all memory there is.
MAX_MEMORY_BYTES: Final = 1 << 30
#: Descriptors: a walk holds one a level.
MAX_FILES: Final = 4096
#: How long a file job that is to end may take to put things in order.
TIDY_S: Final = 5.0


@dataclasses.dataclass(frozen=True, slots=True)
class Deps:
    """What a file job works with."""

    kernel: Kernel
    owner: User
    writer: FrameWriter
    chunks: ChunkReader | None


#: A file job: takes its means and parameters and returns its result, a map.
Function = Callable[[Deps, dict[str, Any]], dict[str, Any]]


@dataclasses.dataclass(slots=True, eq=False)
class _Job:
    peer: LinkServer
    request: int
    name: str
    leaf: LeafCgroup
    pid: int
    timer: Timer | None = None
    killed: SandboxdError | None = None


class FileJobs:
    """Starts file jobs and ends them; `functions` says which there are."""

    def __init__(self, loop: EventLoop, kernel: Kernel, leaves: LeafCgroups, functions: dict[str, Function]) -> None:
        self._loop = loop
        self._kernel = kernel
        self._leaves = leaves
        self._functions = functions
        self._running: dict[int, _Job] = {}
        self._next = 1

    def start(self, peer: LinkServer, request: int, params: dict[str, Any], owner: User) -> None:
        """Fork a file job; the request is answered when it has ended.

        Params: `do` (its name), `with` (its parameters), `feed` (whether a second pipe brings data in), `timeout_s`.

        Raises:
            ServerBusy: there are too many.
        """
        fds = peer.take_fds(2 if params["feed"] else 1)
        try:
            name, given, timeout = params["do"], params["with"], params.get("timeout_s")
            if name not in self._functions:
                raise InvalidRequest(f"cannot do {name!r:.40}: no such operation", field="do")
            if len(self._running) >= MAX_JOBS:
                raise ServerBusy(f"cannot {name}: {MAX_JOBS} file operations are under way already")
            job = self._fork(peer, request, name, given, owner, fds)
        except OSError as error:
            raise exhausted.known(error, name) from error
        finally:
            for fd in fds:
                os.close(fd)
        self._running[job.pid] = job
        if timeout is not None:
            late = LimitExceeded(f"cannot {name}: it took longer than {timeout:g} s", timeout_s=timeout)
            job.timer = self._loop.call_later(float(timeout), lambda: self._kill(job, late))

    def _fork(
        self, peer: LinkServer, request: int, name: str, given: dict[str, Any], owner: User, fds: list[int]
    ) -> _Job:
        leaf = self._leaves.new(f"_{self._next}")  # no process can have that id
        self._next += 1
        leaf_fd = leaf.open()
        try:
            pid, pidfd = self._kernel.clone3(0, cgroup_fd=leaf_fd)
        except OSError:
            self._leaves.drop(leaf)
            raise
        finally:
            os.close(leaf_fd)
        if pid == 0:
            _be_job(self._kernel, self._functions[name], name, given, owner, fds)
        os.close(pidfd)
        return _Job(peer, request, name, leaf, pid)

    # --- ends ---

    def cancel(self, peer: LinkServer, request: int) -> bool:
        """Kill the file job of a request that nobody waits for; return whether there is one."""
        for job in self._running.values():
            if job.peer is peer and job.request == request:
                self._kill(job, InternalError(f"cannot {job.name}: it was cancelled"))
                return True
        return False

    def drop(self, peer: LinkServer) -> None:
        """Kill the file jobs of a daemon that is gone."""
        for job in self._running.values():
            if job.peer is peer:
                self._kill(job, InternalError(f"cannot {job.name}: the caller stopped waiting for it"))

    def _kill(self, job: _Job, why: SandboxdError) -> None:
        """End a file job: it may take away what is half done, then it is killed."""
        if job.killed is None:
            job.killed = why
            if job.timer is not None:
                job.timer.cancel()
            job.timer = self._loop.call_later(TIDY_S, lambda: _signal(job.pid, signal.SIGKILL))
            _signal(job.pid, signal.SIGTERM)

    def on_exit(self, pid: int, status: int) -> None:
        """Take the status of a child that the reaper saw; one that is no file job is passed over."""
        job = self._running.pop(pid, None)
        if job is None:
            return
        if job.timer is not None:
            job.timer.cancel()
        if status == 0:
            job.peer.reply(job.request, {})
        else:
            job.peer.fail(job.request, job.killed or self._why(job, status))
        self._loop.defer(lambda: self._leaves.drop(job.leaf))

    def _why(self, job: _Job, status: int) -> SandboxdError:
        if job.leaf.oom_kills():
            why = f"cannot {job.name}: the sandbox is out of memory"
            return LimitExceeded(why, limit="memory_bytes", oom_killed=True)
        return InternalError(f"cannot {job.name}: it ended with status {status:#x}")


def _signal(pid: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)


class _Stopped(BaseException):
    """Nobody waits for this file job any more."""


def _stop(number: int, frame: FrameType | None) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    raise _Stopped


def _be_job(kernel: Kernel, function: Function, name: str, given: dict[str, Any], owner: User, fds: list[int]) -> None:
    """Be the file job; never returns."""
    try:
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        # Errors, not ends: what is half done is taken away first.
        signal.signal(signal.SIGPIPE, signal.SIG_IGN)
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, _stop)
        sys.meta_path.clear()
        gc.disable()
        writer = FrameWriter(_keep(kernel, fds))
        chunks = ChunkReader(4) if len(fds) > 1 else None
        _bound()
        os.umask(0o022)
        try:
            result = function(Deps(kernel, owner, writer, chunks), given)
        except Exception as error:
            writer.fail(_known(error, name))
        else:
            writer.end(result)
        os._exit(0)
    finally:
        os._exit(1)


def _keep(kernel: Kernel, fds: list[int]) -> int:
    """Move the pipes to 3 and 4, and close everything else of init's; returns the outlet's number."""
    high = [os.dup(fd) for fd in fds]
    while min(high) < 8:
        high = [os.dup(fd) for fd in high]
    for target, fd in enumerate(high, 3):
        os.dup2(fd, target, inheritable=False)
    kernel.close_range(3 + len(fds), 2**32 - 1)
    return 3


def _bound() -> None:
    with open("/proc/self/statm", "rb") as file:
        pages = int(file.read(64).split()[0])
    limit = pages * resource.getpagesize() + MAX_MEMORY_BYTES
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    soft = MAX_FILES if hard == resource.RLIM_INFINITY else min(MAX_FILES, hard)
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    # The kernel's default of the last resort is a core file; there is none here, and no place for one.
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _known(error: Exception, name: str) -> SandboxdError:
    """Return what to tell of a file job's failure."""
    if isinstance(error, SandboxdError):
        return error
    if isinstance(error, MemoryError):
        return LimitExceeded(
            f"cannot {name}: it needs more than {MAX_MEMORY_BYTES} bytes of memory", limit="memory_bytes"
        )
    if isinstance(error, OSError):
        where = error.filename if isinstance(error.filename, str | bytes) else "the file"
        return file_error(error, os.fsdecode(where), name)
    if isinstance(error, KeyError | TypeError | ValueError | OverflowError):
        return InternalError(f"cannot {name}: bad parameters ({error!r:.200})")
    return InternalError(f"cannot {name}: {error!r:.200}")
