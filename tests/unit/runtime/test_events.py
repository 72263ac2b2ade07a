"""The journal of sandboxes' events: what is kept, what is dropped and told, and how it is read over HTTP."""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing

from sandboxd.client import AsyncClient, Client
from sandboxd.client.async_stream import Body
from sandboxd.errors import InvalidRequest, ServerBusy
from sandboxd.runtime import events as module
from sandboxd.runtime.events import DENIED_BURST, DENIED_PER_S, MAX_BATCH, MAX_DENIED, MAX_EVENTS, Events, Filter
from sandboxd.wire.sse import SseDecoder, SseEvent
from tests.support.fake_daemon import FakeDaemon, daemon_in, problem

ALL = Filter()
SSE = {"Accept": "text/event-stream"}


class Clock:
    def __init__(self) -> None:
        self.now = 1.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
async def daemon(tmp_path: Path) -> AsyncIterator[FakeDaemon]:
    async with daemon_in(tmp_path) as daemon:
        yield daemon


def everything(journal: Events) -> list[module.Happening]:
    found, at = [], journal.first
    while at < journal.next:
        batch = journal.read(at, ALL)
        found += batch.events
        at = batch.next_offset
    return found


# --- the journal


def test_offsets_grow_and_a_reader_goes_on_where_it_was() -> None:
    journal = Events()
    for number in range(MAX_BATCH + 10):
        journal.add("created", f"s{number}", None)
    first = journal.read(journal.first, ALL)
    assert (len(first.events), first.dropped) == (MAX_BATCH, 0)
    rest = journal.read(first.next_offset, ALL)
    assert [event.sandbox for event in rest.events] == [f"s{MAX_BATCH + number}" for number in range(10)]
    assert (rest.next_offset, rest.dropped) == (journal.next, 0)
    assert journal.read(rest.next_offset, ALL).events == []


def test_filters_take_ids_names_and_types() -> None:
    journal = Events()
    journal.add("created", "id1", "box")
    journal.add("created", "id2", None)
    journal.add("destroyed", "id1", "box")
    for wanted, count in (
        (Filter("box"), 2),
        (Filter("id1"), 2),
        (Filter("id2"), 1),
        (Filter(None, {"destroyed"}), 1),
        (Filter("id2", {"destroyed"}), 0),
    ):
        batch = journal.read(journal.first, wanted)
        assert (len(batch.events), batch.next_offset, batch.dropped) == (count, journal.next, 0)


def test_what_is_too_old_is_dropped_and_told() -> None:
    journal = Events()
    for _ in range(MAX_EVENTS + 100):
        journal.add("created", "id", None)
    late = journal.read(journal.base, ALL)
    assert late.dropped == 100
    assert journal.first == journal.base + 100
    assert len(everything(journal)) == MAX_EVENTS


def test_a_reader_of_an_earlier_daemon_is_told_and_misses_nothing_of_this_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "time", lambda: 1_000_000_000.0)
    before = Events()
    before.add("created", "id", None)
    monkeypatch.setattr(time, "time", lambda: 1_000_000_001.0)
    after = Events()
    after.add("destroyed", "id", None)
    batch = after.read(before.next, ALL)
    assert ([event.type for event in batch.events], batch.dropped) == (["destroyed"], None)
    assert after.base < 2**53
    monkeypatch.setattr(time, "time", lambda: 1_000_000_000.0)
    assert Events().read(after.next, ALL).dropped == 0  # a clock that was set back


def test_a_sandbox_pushes_out_nobody_elses_events() -> None:
    clock = Clock()
    journal = Events(clock)
    journal.add("created", "quiet", None)
    journal.deny("quiet", None, {"name": "a.example", "reason": "no"})
    for _ in range(4 * MAX_EVENTS):
        clock.now += 1 / DENIED_PER_S
        journal.deny("loud", None, {"address": "192.0.2.1", "protocol": "tcp", "port": 80})
    found = everything(journal)
    assert [event.type for event in found if event.sandbox == "quiet"] == ["created", "network-denied"]
    assert sum(event.sandbox == "loud" for event in found) == MAX_DENIED
    assert journal.read(journal.first, ALL).dropped


def test_denied_events_come_at_a_rate_and_the_rest_is_counted() -> None:
    clock = Clock()
    journal = Events(clock)
    for _ in range(DENIED_BURST + 1000):
        journal.deny("loud", None, {"name": "a.example", "reason": "no"})
    assert len(everything(journal)) == DENIED_BURST
    clock.now += 1
    journal.deny("loud", None, {"name": "a.example", "reason": "no"})
    assert everything(journal)[-1].facts == {"name": "a.example", "reason": "no", "suppressed": 1000}
    journal.deny("loud", None, {"name": "x" * 1000, "reason": "no"})
    assert everything(journal)[-1].facts == {"name": "x" * 300, "reason": "no"}


def test_nothing_is_kept_of_sandboxes_that_are_gone_and_forgotten() -> None:
    journal = Events()
    for number in range(MAX_EVENTS):
        journal.deny(f"s{number}", None, {"name": "a.example", "reason": "no"})
        journal.add("destroyed", f"s{number}", None)
    for _ in range(MAX_EVENTS):
        journal.add("created", "id", None)
    assert (journal._denied, journal._rates) == ({}, {})


async def test_waiting_ends_with_an_event_or_with_the_daemon() -> None:
    journal = Events()
    with trio.fail_after(30):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(journal.wait, journal.next)
            await trio.testing.wait_all_tasks_blocked()
            journal.add("created", "id", None)
        journal.close()
        await journal.wait(journal.first)  # what there is can still be read
        with pytest.raises(ServerBusy):
            await journal.wait(journal.next)


# --- over HTTP


async def read_events(
    daemon: FakeDaemon, count: int, headers: dict[str, str] | None = None, **query: Any
) -> list[SseEvent]:
    request = daemon.client.build_request("GET", "/v1/events", params=query, headers=SSE | (headers or {}))
    response = await daemon.client.send(request, stream=True)
    assert response.headers["content-type"].startswith("text/event-stream")
    found: list[SseEvent] = []
    body, decoder = Body(response), SseDecoder()
    try:
        with trio.fail_after(30):
            while len(found) < count:
                piece = await body.read()
                assert piece
                found += decoder.feed(piece)
    finally:
        await body.close()
    return found


async def test_a_sandbox_life_is_told(daemon: FakeDaemon) -> None:
    made = await daemon.create(name="box")
    for verb in ("freeze", "freeze", "thaw", "thaw"):
        assert (await daemon.client.post(f"/v1/sandboxes/box/{verb}")).status_code == 200
    daemon.manager._denied(made["id"], {"name": "a.example", "reason": "it is not on the allow list"})
    daemon.manager._denied(made["id"], {"address": "192.0.2.1", "protocol": "icmp", "port": None})
    daemon.manager._denied("nobody", {"name": "a.example", "reason": "no"})
    other = await daemon.create()
    await daemon.client.delete("/v1/sandboxes/box")
    page = (await daemon.client.get("/v1/events")).json()
    types = ["created", "frozen", "thawed", "network-denied", "network-denied", "created", "destroyed"]
    assert [item["type"] for item in page["items"]] == types
    assert page["dropped"] == 0
    assert {item["sandbox"] for item in page["items"]} == {made["id"], other["id"]}
    named, addressed = page["items"][3:5]
    assert (named["name"], named["reason"], named["sandbox_name"]) == (
        "a.example",
        "it is not on the allow list",
        "box",
    )
    assert (addressed["address"], addressed["port"], addressed["protocol"]) == ("192.0.2.1", None, "icmp")
    assert "name" not in addressed

    streamed = await read_events(daemon, 7)
    assert [event.event for event in streamed] == types
    for event, item in zip(streamed, page["items"], strict=True):
        assert int(event.id) == item["offset"]
        assert json.loads(event.data) == item
    again = await read_events(daemon, 2, {"Last-Event-ID": streamed[4].id})
    assert again == streamed[5:]
    assert await read_events(daemon, 2, None, **{"from": str(page["items"][5]["offset"])}) == streamed[5:]
    assert await read_events(daemon, 2, sandbox="box", type="created,destroyed") == [streamed[0], streamed[6]]
    part = (await daemon.client.get("/v1/events", params={"limit": 3, "from": page["items"][2]["offset"]})).json()
    assert part["items"] == page["items"][2:5]
    assert part["next_offset"] == page["items"][5]["offset"]


async def test_a_sandbox_that_fails_is_told_to_who_waits(daemon: FakeDaemon) -> None:
    await daemon.create(name="box")
    await daemon.manager.registry.find("box").ping()  # the link that it fails by
    async with trio.open_nursery() as nursery:

        async def follow() -> None:
            (event,) = await read_events(daemon, 1, type="failed")
            assert json.loads(event.data)["sandbox_name"] == "box"
            assert json.loads(event.data)["reason"]

        nursery.start_soon(follow)
        await trio.testing.wait_all_tasks_blocked()
        daemon.init.die()


async def test_a_daemon_that_stops_ends_the_stream_with_a_word(daemon: FakeDaemon) -> None:
    decoder = SseDecoder()
    with trio.fail_after(30):
        async with daemon.client.stream("GET", "/v1/events", headers=SSE) as response:
            daemon.manager.stop()
            events = [event async for piece in response.aiter_raw() for event in decoder.feed(piece)]
    assert [(event.event, json.loads(event.data)["kind"]) for event in events] == [("problem", "server-busy")]


async def test_a_reader_that_comes_too_late_is_told(daemon: FakeDaemon) -> None:
    daemon.manager.events.add("created", "id", None)
    told, event = await read_events(daemon, 2, None, **{"from": "5"})
    assert (told.event, told.id, json.loads(told.data)["count"]) == ("dropped", "", None)
    assert event.event == "created"


@pytest.mark.parametrize(
    ("query", "field"),
    [
        ({"type": "create"}, "type"),
        ({"type": ""}, "type"),
        ({"sandbox": ""}, "sandbox"),
        ({"sandbox": "x" * 201}, "sandbox"),
        ({"from": "-1"}, "from"),
        ({"limit": "0"}, "limit"),
        ({"limit": "257"}, "limit"),
        ({"follow": "true"}, "follow"),
    ],
)
async def test_bad_questions(daemon: FakeDaemon, query: dict[str, str], field: str) -> None:
    found = problem(await daemon.client.get("/v1/events", params=query))
    assert (found["status"], found["field"]) == (400, field)


async def test_a_last_event_id_that_is_no_offset(daemon: FakeDaemon) -> None:
    found = problem(await daemon.client.get("/v1/events", headers=SSE | {"Last-Event-ID": "x"}))
    assert (found["status"], found["field"]) == (400, "Last-Event-ID")


# --- the SDK


async def test_both_clients_read_them(daemon: FakeDaemon) -> None:
    made = await daemon.create(name="box")
    daemon.manager._denied(made["id"], {"name": "a.example", "reason": "no"})
    url = f"unix://{daemon.socket_path}"

    async with AsyncClient(url) as client, client.events(types=["created", "network-denied"]) as stream:
        assert stream.next_offset is None
        created = await anext(aiter(stream))
        denied = await anext(aiter(stream))
        following = stream.next_offset
    assert (created.type, created.sandbox, created.sandbox_name, created.facts) == ("created", made["id"], "box", {})
    assert (denied.type, denied.facts) == ("network-denied", {"name": "a.example", "reason": "no"})
    assert following == denied.offset + 1

    def read() -> None:
        with Client(url) as client:
            with client.events(sandbox="box", start=denied.offset) as stream:
                assert next(iter(stream)) == denied
                assert stream.next_offset == following
            with client.events(start=1) as stream:
                assert next(iter(stream)).facts == {"count": None}
            with pytest.raises(InvalidRequest):
                client.events(types="nonsense")

    with trio.fail_after(30):
        await trio.to_thread.run_sync(read)
