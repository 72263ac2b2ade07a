"""What a child with pipes says: frames in order, one end, and what it means that it breaks the rules."""

from __future__ import annotations

import os
import struct
from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any

import msgpack
import pytest
import trio

from sandboxd.errors import (
    FileNotFound,
    InternalError,
    InvalidRequest,
    ProtocolError,
    RemoteProtocolError,
    SandboxdError,
    SandboxFailed,
)
from sandboxd.runtime import checks, child_stream
from sandboxd.runtime.child_stream import PipedChild


class Link:
    """A sandbox and the one request of its init, which ends as `end` says."""

    def __init__(self) -> None:
        self.end: Exception | None = None
        self.refusal: Exception | None = None
        self.given: list[int] = []
        self.closed: list[bool] = []
        self.blamed: list[str] = []

    def ask(self, fds: list[int]) -> Any:
        self.given = list(fds)  # the peer's, once the request was made
        return self

    async def __aenter__(self) -> None:
        if self.refusal is not None:
            raise self.refusal

    def close(self, *, cancel: bool) -> None:
        self.closed.append(cancel)

    async def next_batch(self) -> list[Any]:
        await trio.lowlevel.checkpoint()
        if self.end is not None:
            raise self.end
        return []

    async def why_broken(self, error: ProtocolError) -> SandboxdError:
        self.blamed.append(str(error))
        return SandboxFailed("the link is gone", reason="link lost")

    def say(self, *frames: object, end: bool = False) -> None:
        for frame in frames:
            body = frame if isinstance(frame, bytes) else msgpack.packb(frame)
            os.write(self.given[0], struct.pack(">I", len(body)) + body)
        if end:
            os.close(self.given.pop(0))


async def fail(error: RemoteProtocolError) -> SandboxdError:
    return InternalError(f"it broke the rules: {error}")


def piped(link: Link) -> PipedChild[dict[str, Any]]:
    def parse_end(end: dict[str, Any]) -> dict[str, Any]:
        if "odd" in end:
            raise RemoteProtocolError("an odd end")
        return end

    return PipedChild(
        link,
        limit=1000,
        parse_end=parse_end,
        parse_failure=lambda kind, message, facts: checks.failure(kind, message, facts, allowed=checks.INIT_KINDS),
        fail_protocol=fail,
    )


@pytest.fixture
async def rig() -> AsyncIterator[SimpleNamespace]:
    link = Link()
    child = piped(link)
    await child.start(link.ask, [], has_input=True)
    yield SimpleNamespace(link=link, child=child)
    child.close()
    await child.close_pipes()
    for fd in link.given:
        os.close(fd)


async def test_frames_in_order_and_one_end(rig: SimpleNamespace) -> None:
    rig.link.say(["rows", 1], ["rows", None], ["end", {"n": 2}], ["rows", 3])
    assert await rig.child.next_frame("rows") == ["rows", 1]
    assert await rig.child.next_frame("rows") == ["rows", None]
    assert not rig.child.has_ended
    for _ in range(3):
        assert await rig.child.next_frame("rows") is None
    assert rig.child.result == {"n": 2}


async def test_a_failure_is_raised_once_and_is_its_end(rig: SimpleNamespace) -> None:
    rig.link.say(["fail", "file-not-found", "cannot find it", {"path": "/x"}])
    with pytest.raises(FileNotFound, match="cannot find it"):
        await rig.child.next_frame("rows")
    assert rig.child.has_ended
    assert rig.child.result is None
    assert await rig.child.next_frame("rows") is None


@pytest.mark.parametrize(
    "frame",
    [
        ["other", 1],
        ["rows"],
        [],
        [[], 1],
        ["end", 1],
        ["end", {"odd": 1}],
        ["fail", "no-such-kind", "", {}],
        ["fail", 1, "", {}],
        {"rows": 1},
        b"\xc1",
        b"x" * 1001,
    ],
)
async def test_what_breaks_the_rules_is_its_owners_to_judge(rig: SimpleNamespace, frame: object) -> None:
    rig.link.say(["rows", 0], frame)
    assert await rig.child.next_frame("rows") == ["rows", 0]
    with pytest.raises(InternalError, match="it broke the rules"):
        await rig.child.next_frame("rows")
    assert not rig.child.has_ended
    assert not rig.link.blamed


@pytest.mark.parametrize(
    ("end", "expected"),
    [
        (None, InternalError),
        (InvalidRequest("no", field="x"), InvalidRequest),
        (RemoteProtocolError("x"), SandboxFailed),
    ],
)
async def test_why_it_ended_without_a_word_init_knows(
    rig: SimpleNamespace, end: Exception | None, expected: type[Exception]
) -> None:
    rig.link.end = end
    rig.link.say(["rows", 0], end=True)
    assert await rig.child.next_frame("rows") == ["rows", 0]
    with pytest.raises(expected):
        await rig.child.next_frame("rows")
    assert not rig.child.has_ended


async def test_input_that_is_taken_no_more_is_no_error(rig: SimpleNamespace) -> None:
    assert await rig.child.send(b"abc")
    assert os.read(rig.link.given[1], 10) == b"abc"
    os.close(rig.link.given.pop())
    assert not await rig.child.send(b"abc")


@pytest.mark.parametrize(
    ("refusal", "expected"),
    [
        (InvalidRequest("no", field="x"), InvalidRequest),
        (RemoteProtocolError("x"), SandboxFailed),
        (KeyError(), KeyError),
    ],
)
async def test_nothing_is_left_open_where_the_request_does_not_leave(
    refusal: Exception, expected: type[Exception], monkeypatch: pytest.MonkeyPatch
) -> None:
    discarded: list[int] = []
    monkeypatch.setattr(child_stream, "discard", discarded.extend)
    link = Link()
    link.refusal = refusal
    child = piped(link)
    handed = os.dup(0)
    with pytest.raises(expected):
        await child.start(link.ask, [handed], has_input=True)
    assert len(link.given) == 3
    assert handed in link.given
    assert discarded == link.given
    child.close()  # nothing to do
    assert not link.closed
    with pytest.raises(trio.ClosedResourceError):
        await child.send(b"x")
    for fd in link.given:
        os.close(fd)


async def test_a_pipe_that_cannot_be_made_costs_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[int] = []
    pipe2 = os.pipe2

    def second_fails(flags: int) -> tuple[int, int]:
        if made:
            raise OSError(24, "Too many open files")
        made.extend(pipe2(flags))
        return made[0], made[1]

    monkeypatch.setattr(os, "pipe2", second_fails)
    link = Link()
    with pytest.raises(InternalError, match="cannot create a pipe: Too many open files"):
        await piped(link).start(link.ask, [], has_input=True)
    assert not link.given
