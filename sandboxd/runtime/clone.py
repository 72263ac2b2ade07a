"""One clone of a git repository into a sandbox, seen from the daemon.

The work is done by a child of the template `git` inside the sandbox (`templates/git`), which init expects, gives its
order and waits for (`guest/clones.py`). The daemon makes the pipe on which the child tells of it, reads that with
suspicion (the sandbox has its other end), sees to the time, and, where a child was killed before it could tidy up,
removes the temporary directory, whose name it chose.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import os
import re
from typing import TYPE_CHECKING, Any, Final

import trio

from ..errors import (
    FileNotFound,
    GitTimeout,
    InternalError,
    LaunchFailed,
    LimitExceeded,
    NotAFile,
    Origin,
    ProtocolError,
    RemoteProtocolError,
    SandboxdError,
    kinds_from,
)
from ..spec import new_id
from ..wire import framing
from . import checks
from .handoff import MAX_LEAF_CHARS
from .link_client import discard

if TYPE_CHECKING:
    from types import TracebackType

    from ..git_spec import CloneSpec
    from .handoff import Handoff
    from .link_client import Stream
    from .sandbox import Sandbox

DEFAULT_TIMEOUT_S: Final = 600.0
#: How long a server may say nothing.
STALL_S: Final = 60.0
#: init's own end of it, should the daemon be gone.
_SLACK_S: Final = 15.0
#: How long a child may take to tidy up, and init to kill one that does not.
STOP_TIMEOUT_S: Final = 20.0
#: Room for half an hour of progress that nobody reads.
_PIPE_BYTES: Final = 1024 * 1024
_RECEIVE_BYTES: Final = 64 * 1024
_MAX_FRAME_BYTES: Final = 64 * 1024
_PHASES: Final = frozenset({"connecting", "counting", "compressing", "receiving", "resolving", "checking-out"})
_COMMIT: Final = re.compile(r"[0-9a-f]{40}\Z")
_MAX_COUNT: Final = 2**53
_MAX_SUGGESTIONS: Final = 5
#: What the child may say failed.
KINDS: Final = kinds_from(Origin.CLONE)


@dataclasses.dataclass(frozen=True, slots=True)
class Progress:
    """How far a clone is: `done` of `total` objects or files, 0 while the total is not known."""

    phase: str
    done: int
    total: int
    received_bytes: int
    submodule: str | None


@dataclasses.dataclass(frozen=True, slots=True)
class CloneResult:
    """A clone that is there."""

    target_dir: str
    branch: str | None
    commit: str | None
    objects: int
    received_bytes: int
    files: int


class Clone:
    """A clone under way. Made by `Git.clone`; an async context manager whose end stops it and leaves nothing.

    Raises (on entry or later):
        SandboxdError: why it failed; nothing of it is left.
    """

    def __init__(self, sandbox: Sandbox, spec: CloneSpec) -> None:
        self._sandbox = sandbox
        self._spec = spec
        self._target = spec.target(sandbox.spec.cwd)
        self._temporary = f".sandboxd-clone-{new_id()}"
        self._timeout_s = spec.timeout_s or DEFAULT_TIMEOUT_S
        self._deadline = trio.current_time() + self._timeout_s
        self._decoder = framing.FrameDecoder(limit=_MAX_FRAME_BYTES)
        self._out: trio.lowlevel.FdStream
        self._stream: Stream
        #: Whether the child has said how it ended, and so has tidied up.
        self._told_end = False
        self._entered = False
        self.result: CloneResult | None = None

    def __repr__(self) -> str:
        return f"<Clone into {self._target} of {self._sandbox!r} result={self.result}>"

    async def __aenter__(self) -> Clone:
        handoff = self._sandbox.handoff()
        if handoff is None:
            raise InternalError("cannot clone: there is no launcher")
        try:
            ours, theirs = os.pipe2(os.O_CLOEXEC)
        except OSError as error:
            handoff.drop()
            raise InternalError(f"cannot make a pipe: {error.strerror}") from error
        self._out = trio.lowlevel.FdStream(ours)
        with_room(ours)
        fds = [handoff.for_init, theirs]
        try:
            self._stream = self._sandbox.open_stream("clone", self._params(), fds=fds)
            await self._stream.__aenter__()
        except BaseException as error:
            discard([theirs])  # they never left
            handoff.drop()
            await self._close()
            if isinstance(error, ProtocolError):
                raise await self._sandbox.why_broken(error) from error
            raise
        self._entered = True
        try:
            await self._bring(handoff)
        except BaseException:
            handoff.close()
            await self._stop()
            raise
        return self

    def _params(self) -> dict[str, Any]:
        spec = self._spec
        limit = self._sandbox.limits.memory_bytes
        order = {
            "url": spec.url,
            "ref": spec.ref,
            "target": self._target,
            "temporary": self._temporary,
            "depth": spec.depth,
            "single_branch": spec.depth is not None if spec.single_branch is None else spec.single_branch,
            "submodules": spec.submodules,
            "sparse": list(spec.sparse),
            "login": None if spec.username is None else [spec.username, spec.password or ""],
            "stall_s": min(STALL_S, self._timeout_s),
            "memory_bytes": None if limit is None else limit * 3 // 4,
        }
        return {"order": order, "timeout_s": self._timeout_s + _SLACK_S}

    async def _bring(self, handoff: Handoff) -> None:
        """Have a child of the template come, into the leaf that init names."""
        with self._in_time():
            batch = await self._events()
            if not batch or batch[0].type != "expecting" or not isinstance(batch[0].data, dict):
                raise await self._fail_protocol("no leaf")
            leaf = checks.text(batch[0].data, "leaf", limit=MAX_LEAF_CHARS)
            why = await handoff.bring("git", leaf, wait=True)
        if why is not None:
            raise await self._why_nobody(why)

    async def _why_nobody(self, why: str) -> SandboxdError:
        """Return why no child came: init knows whether it was for want of room."""
        try:
            with trio.move_on_after(STOP_TIMEOUT_S):
                await self._events()
        except LimitExceeded as error:
            return error
        except SandboxdError:
            pass  # it says the same in fewer words
        return LaunchFailed(f"cannot clone: {why}", step="template")

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._stop()

    # --- what it tells ---

    async def finish(self) -> CloneResult:
        """Wait for the end."""
        while await self.next_progress() is not None:
            pass
        assert self.result is not None  # noqa: S101 - next_progress says so
        return self.result

    async def next_progress(self) -> Progress | None:
        """Return what it tells next; None is the end, and `result` is set."""
        if self.result is not None:
            return None
        try:
            with self._in_time():
                return await self._next()
        except SandboxdError:
            await self._stop()  # before anybody is told: then there is nothing of it left
            raise

    async def _next(self) -> Progress | None:
        await trio.lowlevel.checkpoint()
        while (frame := self._decode()) is None:
            await self._receive()
        if len(frame) == 2 and frame[0] == "progress":
            return _progress(frame[1])
        self._take_end(frame)
        return None

    def _in_time(self) -> _Deadline:
        return _Deadline(self._deadline, self._spec.url, self._timeout_s)

    def _take_end(self, frame: list[Any]) -> None:
        if len(frame) == 2 and frame[0] == "end":
            self.result = _result(frame[1], self._target)
            self._told_end = True
            return
        if len(frame) == 4 and frame[0] == "fail":
            kind, message, facts = frame[1:]
            if isinstance(kind, str) and kind in KINDS and isinstance(message, str) and isinstance(facts, dict):
                self._told_end = True
                error = checks.failure(kind, message, facts, allowed=KINDS)
                names = facts.get("suggestions")
                if kind == "git-ref-not-found" and isinstance(names, list):
                    error.facts["suggestions"] = [
                        name[:256] for name in names[:_MAX_SUGGESTIONS] if isinstance(name, str)
                    ]
                raise error
        raise _nonsense("a frame of an unknown kind")

    async def _receive(self) -> None:
        try:
            data = await self._out.receive_some(_RECEIVE_BYTES)
        except (trio.BrokenResourceError, OSError) as error:
            raise InternalError(f"cannot read the clone's progress: {error}") from error
        if not data:
            raise await self._early_end()
        self._decoder.feed(data)

    def _decode(self) -> list[Any] | None:
        try:
            return self._decoder.next_message()
        except RemoteProtocolError as error:
            raise _nonsense(str(error)) from error

    async def _early_end(self) -> SandboxdError:
        """Return why it ended without a word: init knows."""
        try:
            await self._events()
        except SandboxdError as error:
            return error
        return _nonsense("no end")

    async def _events(self) -> list[Any]:
        try:
            return await self._stream.next_batch()
        except ProtocolError as error:
            raise await self._sandbox.why_broken(error) from error

    async def _fail_protocol(self, what: str) -> SandboxdError:
        return await self._sandbox.why_broken(RemoteProtocolError(f"a clone gave {what}"))

    # --- its end ---

    async def _stop(self) -> None:
        """End what is not over, and see to it that nothing is left."""
        if not self._entered:
            return
        self._entered = False
        with trio.CancelScope(shield=True):
            with trio.move_on_after(STOP_TIMEOUT_S), contextlib.suppress(SandboxdError):
                await self._await_end()  # an error: it was killed, or its sandbox is gone
            if not self._told_end:
                with trio.move_on_after(STOP_TIMEOUT_S):
                    await self._tidy()
            self._stream.close()
            await self._close()

    async def _await_end(self) -> None:
        if not self._told_end:
            await self._sandbox.ask("clone_stop", name=self._temporary)
            await self._out.aclose()
        while await self._stream.next_batch():
            pass

    async def _tidy(self) -> None:
        """Remove the temporary directory of a child that could not."""
        parent = self._target.rpartition("/")[0]
        for place in (f"{parent}/{self._temporary}", f"{self._target}/{self._temporary}"):
            try:
                await self._sandbox.files.delete(place, recursive=True)
            except (FileNotFound, NotAFile):
                continue
            except SandboxdError:
                return  # the sandbox is gone, and with it the directory

    async def _close(self) -> None:
        with trio.CancelScope(shield=True):
            await self._out.aclose()


class _Deadline:
    """A block that has to be over by then, or raises `GitTimeout`."""

    def __init__(self, deadline: float, url: str, timeout_s: float) -> None:
        self._scope = trio.CancelScope(deadline=deadline)
        self._url = url
        self._timeout_s = timeout_s

    def __enter__(self) -> None:
        self._scope.__enter__()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._scope.__exit__(kind, error, trace)
        if self._scope.cancelled_caught:
            raise GitTimeout(
                f"cannot clone {self._url}: it took longer than {self._timeout_s:g} s",
                stalled=False,
                timeout_s=self._timeout_s,
            )


def with_room(fd: int) -> None:
    """Let a pipe hold much, where the kernel's bound for users allows it."""
    try:
        fcntl.fcntl(fd, fcntl.F_SETPIPE_SZ, _PIPE_BYTES)
    except OSError:
        return


def _nonsense(what: str) -> InternalError:
    return InternalError(f"cannot clone: its process reported {what}")


def _progress(data: Any) -> Progress:  # noqa: ANN401 - from a sandbox
    try:
        if not isinstance(data, dict) or data.get("phase") not in _PHASES:
            raise RemoteProtocolError("progress of no known phase")
        return Progress(
            phase=data["phase"],
            done=checks.integer(data, "done", high=_MAX_COUNT),
            total=checks.integer(data, "total", high=_MAX_COUNT),
            received_bytes=checks.integer(data, "received_bytes", high=_MAX_COUNT),
            submodule=checks.text(data, "submodule", limit=4096) if "submodule" in data else None,
        )
    except RemoteProtocolError as error:
        raise _nonsense(str(error)) from error


def _result(data: Any, target: str) -> CloneResult:  # noqa: ANN401 - from a sandbox
    try:
        if not isinstance(data, dict):
            raise RemoteProtocolError("an end that is not a map")
        commit = data.get("commit")
        if commit is not None and (not isinstance(commit, str) or not _COMMIT.match(commit)):
            raise RemoteProtocolError("a malformed commit id")
        return CloneResult(
            target_dir=target,
            branch=None if data.get("branch") is None else checks.text(data, "branch", limit=1024),
            commit=commit,
            objects=checks.integer(data, "objects", high=_MAX_COUNT),
            received_bytes=checks.integer(data, "received_bytes", high=_MAX_COUNT),
            files=checks.integer(data, "files", high=_MAX_COUNT),
        )
    except RemoteProtocolError as error:
        raise _nonsense(str(error)) from error
