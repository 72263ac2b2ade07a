"""One clone of a git repository into a sandbox, seen from the daemon.

The work is done by a child of the template `git` inside the sandbox (`templates/git`), which init expects, gives its
order and waits for (`guest/clones.py`). The child tells of it over a pipe (`child_stream.py`), which the daemon reads
with suspicion: the sandbox has its other end. The daemon sees to the time, and, where a child was killed before it
could tidy up, removes the temporary directory, whose name it chose.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
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
    RemoteProtocolError,
    SandboxdError,
    kinds_from,
)
from ..spec import new_id
from . import checks
from .child_stream import PipedChild
from .handoff import MAX_LEAF_CHARS

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
        self._child = PipedChild[CloneResult](
            sandbox,
            limit=_MAX_FRAME_BYTES,
            parse_end=functools.partial(_result, target=self._target),
            parse_failure=_failure,
            fail_protocol=_fail_clone,
        )
        self._entered = False

    def __repr__(self) -> str:
        return f"<Clone into {self._target} of {self._sandbox!r} result={self.result}>"

    @property
    def result(self) -> CloneResult | None:
        """What it was, once it is there."""
        return self._child.result

    async def __aenter__(self) -> Clone:
        handoff = self._sandbox.handoff()
        try:
            await self._child.start(self._ask, [handoff.for_init], pipe_bytes=_PIPE_BYTES)
        except BaseException:
            handoff.close()
            raise
        self._entered = True
        try:
            await self._bring(handoff)
        except BaseException:
            handoff.close()
            await self._stop()
            raise
        return self

    def _ask(self, fds: list[int]) -> Stream:
        return self._sandbox.open_stream("clone", self._params(), fds=fds)

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
            batch = await self._child.events()
            try:
                if not batch or batch[0].type != "expecting" or not isinstance(batch[0].data, dict):
                    raise RemoteProtocolError("a clone gave no leaf")
                leaf = checks.text(batch[0].data, "leaf", limit=MAX_LEAF_CHARS)
            except RemoteProtocolError as error:  # that was init
                raise await self._sandbox.why_broken(error) from error
            why = await handoff.bring("git", leaf, wait=True)
        if why is not None:
            raise await self._why_nobody(why)

    async def _why_nobody(self, why: str) -> SandboxdError:
        """Return why no child came: init knows whether it was for want of room."""
        try:
            with trio.move_on_after(STOP_TIMEOUT_S):
                await self._child.events()
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
        frame = await self._child.next_frame("progress")
        try:
            return None if frame is None else _progress(frame[1])
        except RemoteProtocolError as error:
            raise await _fail_clone(error) from error

    def _in_time(self) -> _Deadline:
        return _Deadline(self._deadline, self._spec.url, self._timeout_s)

    # --- its end ---

    async def _stop(self) -> None:
        """End what is not over, and see to it that nothing is left."""
        if not self._entered:
            return
        self._entered = False
        with trio.CancelScope(shield=True):
            with trio.move_on_after(STOP_TIMEOUT_S), contextlib.suppress(SandboxdError):
                await self._await_end()  # an error: it was killed, or its sandbox is gone
            if not self._child.has_ended:
                with trio.move_on_after(STOP_TIMEOUT_S):
                    await self._tidy()
            self._child.close()
            await self._child.close_pipes()

    async def _await_end(self) -> None:
        if not self._child.has_ended:  # else it has tidied up
            await self._sandbox.ask("clone_stop", name=self._temporary)
            await self._child.close_pipes()
        while await self._child.events():
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


async def _fail_clone(error: RemoteProtocolError) -> SandboxdError:
    """Return what it means that the process of a clone broke the rules: this clone has failed, and nothing else."""
    return InternalError(f"cannot clone: its process broke the protocol: {error}")


def _failure(kind: str, message: str, facts: dict[str, Any]) -> SandboxdError:
    error = checks.failure(kind, message, facts, allowed=KINDS)
    names = facts.get("suggestions")
    if kind == "git-ref-not-found" and isinstance(names, list):
        error.facts["suggestions"] = [name[:256] for name in names[:_MAX_SUGGESTIONS] if isinstance(name, str)]
    return error


def _progress(data: Any) -> Progress:  # noqa: ANN401 - from a sandbox
    if not isinstance(data, dict) or data.get("phase") not in _PHASES:
        raise RemoteProtocolError("progress of no known phase")
    return Progress(
        phase=data["phase"],
        done=checks.integer(data, "done", high=_MAX_COUNT),
        total=checks.integer(data, "total", high=_MAX_COUNT),
        received_bytes=checks.integer(data, "received_bytes", high=_MAX_COUNT),
        submodule=checks.text(data, "submodule", limit=4096) if "submodule" in data else None,
    )


def _result(data: dict[str, Any], target: str) -> CloneResult:
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
