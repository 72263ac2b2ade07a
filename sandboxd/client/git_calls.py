"""The request for a clone, and the reader of its events; no I/O (see `calls`)."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

from sandboxd.errors import RemoteProtocolError
from sandboxd.wire import sse

from .calls import Call, StreamCall, Streamed, given, read_events, sandbox_path
from .code_calls import SSE_TYPE
from .models import read

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from .calls import Request


@dataclasses.dataclass(frozen=True, slots=True)
class GitProgress:
    """The progress of a clone.

    Attributes:
        phase: connecting, counting, compressing (both by the server), receiving, resolving or checking-out.
        done, total: objects, or files while checking out; a total of 0 means that it is unknown.
        percent: done of total; None if the total is unknown.
        received_bytes: bytes received so far.
        submodule: the submodule being cloned.
    """

    phase: str
    done: int
    total: int
    percent: int | None
    received_bytes: int
    submodule: str | None


@dataclasses.dataclass(frozen=True, slots=True)
class GitCheckout:
    """A finished clone: where it is, and what is checked out.

    `branch` is None if a tag or a commit was requested; `commit` is None if the repository is empty.
    """

    target_dir: str
    branch: str | None
    commit: str | None
    objects: int
    received_bytes: int
    files: int


def git_checkout(  # noqa: PLR0913 - the options of a clone, all by keyword
    key: str,
    repo_url: str,
    *,
    branch: str | None = None,
    target_dir: str | None = None,
    depth: int | None = None,
    single_branch: bool | None = None,
    submodules: bool = False,
    sparse: Sequence[str] = (),
    username: str | None = None,
    password: str | None = None,
    token: str | None = None,
    timeout: float | None = None,
    on_progress: Callable[[GitProgress], object] | None = None,
) -> Request[GitCheckout]:
    """Clone a git repository into the sandbox; git need not be installed there. A failed clone leaves nothing behind.

    Args:
        repo_url: an https, http or git:// address, or an absolute path in the sandbox.
        branch: a branch, a tag, or a commit of 40 digits; default: the repository's default branch.
        target_dir: the directory to create, absolute or relative to the sandbox's cwd; default: the repository's name.
            If it exists, it must be empty.
        depth: how many commits of history to fetch; default: all.
        single_branch: fetch only `branch`; default: True if a depth is given.
        submodules: whether to clone the submodules as well.
        sparse: directories to check out; default: all.
        username: the user name for https and http.
        password: the password for https and http.
        token: a token instead of a password; without `username`, a user name that GitHub, GitLab and Gitea accept is
            used.
        timeout: seconds after which to give up; default: 600.
        on_progress: called with a `GitProgress` from time to time; in asynchronous code it may be a coroutine function.

    Raises:
        GitAuthentication: the server requires a login, or rejects this one.
        GitRepositoryNotFound: there is no repository at the address.
        GitRefNotFound: the repository has no such branch, tag or commit; `suggestions` are similar names.
        GitUnreachable, GitTimeout, GitProtocolError: the server failed; see `reason`.
        GitRefused: the repository contains something that is not allowed; see `reason`.
        DirectoryNotEmpty, FileExists: the target exists.
    """
    what = given(url=repo_url, branch=branch, depth=depth, single_branch=single_branch, submodules=submodules or None)
    where = given(target_dir=target_dir, sparse=list(sparse) or None, timeout_s=timeout)
    body = what | where | given(username=username, password=password, token=token)
    path = sandbox_path(key, "/git/clone")
    # No time bound: a server may be silent as long as the daemon lets it.
    if on_progress is None:
        return Call("POST", path, body=body, timeout_s=None, what="clone", parse=_parse_checkout)
    return CloneRequest(StreamCall("POST", path, body=body, accept=SSE_TYPE, timeout_s=None), on_progress)


def _parse_checkout(value: Any) -> GitCheckout:  # noqa: ANN401 - JSON
    return GitCheckout(
        target_dir=str(value["target_dir"]),
        branch=None if value["branch"] is None else str(value["branch"]),
        commit=None if value["commit"] is None else str(value["commit"]),
        objects=int(value["objects"]),
        received_bytes=int(value["received_bytes"]),
        files=int(value["files"]),
    )


def _parse_progress(value: Any) -> GitProgress:  # noqa: ANN401 - JSON
    return GitProgress(
        phase=str(value["phase"]),
        done=int(value["done"]),
        total=int(value["total"]),
        percent=value.get("percent"),
        received_bytes=int(value["received_bytes"]),
        submodule=value.get("submodule"),
    )


class CloneRequest(Streamed[GitProgress, GitCheckout]):
    """A clone that reports its progress."""

    def __init__(self, call: StreamCall, on_progress: Callable[[GitProgress], object]) -> None:
        super().__init__(call)
        self._on_progress = on_progress
        self._decoder = sse.SseDecoder()
        self._result: GitCheckout | None = None

    def feed(self, data: bytes) -> list[GitProgress]:
        found = []
        complaint = "cannot read the clone's events: one is not JSON"
        for kind, value in read_events(self._decoder, data, complaint):
            if kind == "progress":
                found.append(read("progress", _parse_progress, value))
            elif kind == "end":
                self._result = read("clone", _parse_checkout, value)
        return found

    def callback(self, item: GitProgress) -> Callable[[], object]:
        return lambda: self._on_progress(item)

    def close(self) -> GitCheckout:
        if self._result is None:
            raise RemoteProtocolError("cannot read the clone's events: they ended before the clone did")
        return self._result
