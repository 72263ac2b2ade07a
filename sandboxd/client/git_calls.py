"""The request for a clone, and the reader of its events; without I/O, as calls.py."""

from __future__ import annotations

import dataclasses
import json
from typing import TYPE_CHECKING, Any

from sandboxd.errors import RemoteProtocolError
from sandboxd.wire import sse

from .calls import Call, StreamCall, sandbox_path
from .code_calls import SSE_TYPE
from .failures import from_problem
from .models import read

if TYPE_CHECKING:
    from collections.abc import Sequence


@dataclasses.dataclass(frozen=True, slots=True)
class GitProgress:
    """How far a clone is.

    Attributes:
        phase: connecting, counting, compressing (both by the server), receiving, resolving or checking-out.
        done, total: objects, or files while checking out; a total of 0 is not known.
        percent: of them; None where the total is not known.
        received_bytes: what came so far.
        submodule: the submodule that this is about.
    """

    phase: str
    done: int
    total: int
    percent: int | None
    received_bytes: int
    submodule: str | None


@dataclasses.dataclass(frozen=True, slots=True)
class GitCheckout:
    """A clone that is there: where, and what is checked out.

    `branch` is None where a tag or a commit was asked for, `commit` in an empty repository.
    """

    target_dir: str
    branch: str | None
    commit: str | None
    objects: int
    received_bytes: int
    files: int


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class CloneOptions:
    """What `git_checkout` takes beside the address."""

    branch: str | None
    target_dir: str | None
    depth: int | None
    single_branch: bool | None
    submodules: bool
    sparse: Sequence[str]
    username: str | None
    password: str | None
    token: str | None
    timeout_s: float | None

    def body(self, url: str) -> dict[str, Any]:
        """Return the request's body."""
        fields = {"url": url, **{field.name: getattr(self, field.name) for field in dataclasses.fields(self)}}
        fields["sparse"] = list(self.sparse) or None
        return {name: value for name, value in fields.items() if value is not None and value is not False} | (
            {"single_branch": False} if self.single_branch is False else {}
        )


def clone(key: str, url: str, options: CloneOptions) -> StreamCall:
    """POST …/git/clone, answered by events; a server may be silent as long as the daemon lets it."""
    body = options.body(url)
    return StreamCall("POST", sandbox_path(key, "/git/clone"), body=body, accept=SSE_TYPE, timeout_s=None)


def clone_whole(key: str, url: str, options: CloneOptions) -> Call[GitCheckout]:
    """POST …/git/clone, answered by one object at the end."""
    call = clone(key, url, options)
    return Call(call.method, call.path, body=call.body, timeout_s=None, what="clone", parse=_parse_checkout)


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


class CloneReader:
    """Reads the events of one clone."""

    def __init__(self) -> None:
        self._decoder = sse.SseDecoder()
        self._result: GitCheckout | None = None

    def feed(self, data: bytes) -> list[GitProgress]:
        """Take bytes of the answer's body and return what they tell.

        Raises:
            SandboxdError: why the clone failed, as its kind.
            RemoteProtocolError: the events are malformed.
        """
        found = []
        for event in self._decoder.feed(data):
            try:
                value = json.loads(event.data)
            except ValueError as error:
                raise RemoteProtocolError("cannot read the clone's events: one is no JSON") from error
            if event.event == "problem":
                raise from_problem(value)
            if event.event == "progress":
                found.append(read("progress", _parse_progress, value))
            elif event.event == "end":
                self._result = read("clone", _parse_checkout, value)
        return found

    def close(self) -> GitCheckout:
        """Say that the body has ended, and return what came of it.

        Raises:
            RemoteProtocolError: the body was cut.
        """
        if self._result is None:
            raise RemoteProtocolError("cannot read the clone's events: they ended before the clone did")
        return self._result
