"""One interpreter by the events that init sends of it: which may come in which state, and who pays for the others."""

from __future__ import annotations

import struct
from typing import Any

import msgpack
import pytest

from sandboxd.errors import ProtocolError, SandboxdError, SandboxFailed
from sandboxd.runtime.worker import Worker
from sandboxd.runtime.worker_states import State
from sandboxd.wire.messages import Event
from tests.support.fake_peer import exit_data


def frame(**message: Any) -> tuple[str, bytes]:
    body = msgpack.packb(message)
    return "frame", struct.pack(">I", len(body)) + body


START: tuple[str, Any] = ("start", {})
READY, EXIT = frame(op="ready", version="1"), ("exit", exit_data())
GARBAGE = ("frame", struct.pack(">I", 1) + b"\xc1")


class FakeLink:
    """An init that says what a test wants, one event after the other."""

    def __init__(self, *events: tuple[str, Any]) -> None:
        self._events = [Event(1, number, 0.0, kind, data) for number, (kind, data) in enumerate(events)]
        self.asked: list[str] = []
        self.states: list[State] = []
        self.heard: list[object] = []
        self.worker = Worker(self, "w", self)  # type: ignore[arg-type]

    def stream(self, op: str, params: dict[str, Any], *, fds: Any = ()) -> FakeLink:
        return self

    async def __aenter__(self) -> FakeLink:
        return self

    def close(self, *, cancel: bool = True) -> None: ...

    async def next_batch(self) -> list[Event]:
        self.states.append(self.worker.state)
        return [self._events.pop(0)] if self._events else []

    async def ask(self, op: str, /, **params: Any) -> dict[str, Any]:
        self.asked.append(op)
        return {}

    async def why_broken(self, error: ProtocolError) -> SandboxdError:
        return SandboxFailed(f"its init broke the protocol: {error}")

    def on_output(self, stream: str, data: bytes) -> None:
        self.heard.append(data)

    def on_frame(self, frame: object) -> None:
        self.heard.append(frame)

    def on_gone(self, worker: Worker) -> None:
        self.states.append(worker.state)


async def test_a_life() -> None:
    link = FakeLink(START, READY, ("stdout", b"x"), EXIT)
    await link.worker.serve("context_start", {})
    assert link.states == [State.ASKED, State.STARTED, State.READY, State.READY, State.EXITED, State.GONE]
    assert (link.worker.failure, link.worker.reason, link.heard) == (None, exit_data()["reason"], [b"x"])
    assert link.asked == ["context_forget"]


async def test_one_that_an_earlier_daemon_had() -> None:
    link = FakeLink(START, EXIT)
    link.worker.take_over()
    await link.worker.serve("context_follow", {})
    assert link.states == [State.READY, State.READY, State.EXITED, State.GONE]
    assert link.worker.failure is None


async def test_one_that_breaks_the_rules_of_frames_is_killed_and_not_heard_any_more() -> None:
    link = FakeLink(START, READY, GARBAGE, frame(op="end", run=1, status="ok", count=1), GARBAGE, EXIT)
    await link.worker.serve("context_start", {})
    assert link.states[3:] == [State.BROKEN] * 3 + [State.EXITED, State.GONE]
    assert link.asked == ["context_kill", "context_forget"]
    assert (link.worker.failure, link.worker.reason, link.heard) == (None, "protocol error", [])


@pytest.mark.parametrize(
    "events",
    [
        (START, START, EXIT),
        (START, READY, EXIT, EXIT),
        (START, READY, EXIT, ("stdout", b"x")),
        (START, READY, EXIT, START),
        (START, GARBAGE, START, EXIT),
        (START, READY),
        (),
    ],
)
async def test_an_init_that_says_what_cannot_be_breaks_its_link(events: tuple[tuple[str, Any], ...]) -> None:
    link = FakeLink(*events)
    await link.worker.serve("context_start", {})
    assert isinstance(link.worker.failure, SandboxFailed)
    assert (link.worker.state, link.heard) == (State.GONE, [])
    assert all(event.is_set() for event in (link.worker.seen, link.worker.ready, link.worker.gone))
