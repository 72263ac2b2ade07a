"""What the daemon holds for its callers: bounds, spare holds, and JSON that is made in parts."""

from __future__ import annotations

import base64
import contextlib
import json
import random
import time
from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest
import trio
import trio.testing

from sandboxd.api import pieces
from sandboxd.api.cloudflare import container_code
from sandboxd.api.v1 import contexts, logs
from sandboxd.api.v1.streams import SseBody
from sandboxd.errors import ServerBusy
from sandboxd.runtime import budget as budgets
from sandboxd.runtime.budget import Budget, Hold
from sandboxd.runtime.headtail import HeadTail
from sandboxd.runtime.kept_runs import KeptRuns
from sandboxd.runtime.logs import Snapshot
from sandboxd.runtime.runs import Run
from sandboxd.runtime.trimming import WORTH_BYTES, Trimmer
from sandboxd.wire.messages import Event
from sandboxd.wire.worker import Result

FREE = budgets.FREE_BYTES
MIB = 1 << 20


def filled(budget: Budget, size: int) -> Hold:
    hold = budget.share().hold()
    hold.take(size, "test")
    return hold


def test_a_share_has_its_bound_and_all_have_one() -> None:
    budget = Budget(total=5 * MIB, each=2 * MIB)
    share = budget.share()
    first, second = share.hold(), share.hold()
    assert first.grow(2 * MIB)
    assert not second.grow(MIB)
    assert second.grow(FREE), "what is small is never refused"
    others = [filled(budget, 2 * MIB), filled(budget, MIB)]
    with pytest.raises(ServerBusy) as caught:
        filled(budget, MIB)
    assert caught.value.facts["bound_bytes"] == 2 * MIB
    for hold in (first, second, *others):
        hold.close()
        hold.close()
    assert budget.held == share.held == 0


def test_as_much_as_there_is_room_for_to_the_byte() -> None:
    budget = Budget(total=3 * MIB, each=2 * MIB)
    hold = budget.share().hold()
    assert hold.grow_some(10 * MIB) == 2 * MIB + FREE
    assert hold.grow_some(1) == 0
    assert hold.size == 2 * MIB + FREE
    hold.force(MIB)
    assert budget.held == 3 * MIB


def test_what_is_spare_goes_first_the_oldest_of_the_share_then_of_all() -> None:
    budget = Budget(total=4 * MIB, each=2 * MIB)
    share, other = budget.share(), budget.share()
    gone: list[str] = []
    holds = {}
    for name, owner in (("a", other), ("b", share), ("c", share), ("d", other)):
        holds[name] = owner.hold()
        holds[name].take(MIB, "test")
        holds[name].make_spare(lambda name=name: gone.append(name))  # type: ignore[misc]
    needed = share.hold()
    needed.take(MIB, "test")
    assert gone == ["b"], "its own, though another's is older"
    budget.share().hold().take(MIB, "test")
    assert gone == ["b", "a"]
    holds["c"].make_needed()
    assert not share.hold().grow(MIB)
    assert holds["c"].size == MIB
    assert gone == ["b", "a"], "another's would not help"


@pytest.mark.parametrize("seed", range(20))
def test_the_figures_are_those_of_a_simple_sum(seed: int) -> None:
    rng = random.Random(seed)
    budget = Budget(total=40 * FREE, each=15 * FREE)
    shares = [budget.share() for _ in range(4)]
    holds: list[tuple[int, Hold]] = []
    for _ in range(300):
        act = rng.random()
        if act < 0.3 or not holds:
            index = rng.randrange(4)
            holds.append((index, shares[index].hold()))
        elif act < 0.8:
            rng.choice(holds)[1].grow_some(rng.randrange(3 * FREE))
        elif act < 0.9:
            rng.choice(holds)[1].make_spare(lambda: None)
        else:
            holds.pop(rng.randrange(len(holds)))[1].close()
        used = [sum(max(0, hold.size - FREE) for at, hold in holds if at == index) for index in range(4)]
        assert all(size <= share.held <= budget.each for size, share in zip(used, shares, strict=True))
        assert budget.held == sum(share.held for share in shares) <= budget.total
    for _, hold in holds:
        hold.close()
    assert budget.held == 0


# --- the beginning and the end ---


@pytest.mark.parametrize("bound", [8, 9, 64, 1000, 10**6])
@pytest.mark.parametrize("text", ["x", "\u00e9", "\u20ac", "\U0001f600"])
def test_head_and_tail(bound: int, text: str) -> None:
    rng = random.Random(bound)
    data = (text * (300_000 // len(text.encode()))).encode()
    kept, start = HeadTail(bound, budgets.UNBOUNDED.hold()), 0
    while start < len(data):
        size = rng.choice((1, 3, 1000, 70_000))
        kept.add(data[start : start + size])
        start += size
    kept.finish()
    assert kept.size + kept.dropped_bytes == len(data)
    assert max(0, min(bound, len(data)) - 6) <= kept.size <= bound
    assert "\ufffd" not in b"".join(kept.parts).decode("utf-8", "replace")
    assert data.startswith(bytes(kept.parts[0]))
    assert data.endswith(bytes(kept.parts[-1]))


def test_bytes_that_are_no_text_are_kept_too() -> None:
    kept = HeadTail(1000, budgets.UNBOUNDED.hold())
    kept.add(b"\x80" * 5000)
    assert [len(part) for part in kept.finish().parts] == [500, 500]


# --- JSON in parts ---


class Row(msgspec.Struct):
    name: str
    data: bytes | msgspec.UnsetType = msgspec.UNSET
    raw: msgspec.Raw = msgspec.Raw(b"[1]")


@pytest.mark.parametrize(
    "value",
    [
        None,
        [],
        {},
        {"a": [{}, [], ""], "b": 1.5, "c": True},
        '\x01\u20ac\U0001f600"\\' * 30_000,
        {"a": b"\xff" * 100_001, "list": ["x" * 100_000, "y"]},
        [Row("a"), Row("b" * 60_000, b"\0" * 50_000), Row("c", b"\1")],
        [{"deep": {"er": ["\u20ac" * 50_000]}}],
    ],
    ids=lambda value: str(value)[:20],
)
def test_parts_are_what_one_encoding_gives(value: Any) -> None:
    parts = list(pieces.encode(value))
    assert msgspec.json.decode(b"".join(parts)) == msgspec.json.decode(msgspec.json.encode(value))
    assert max(map(len, parts)) <= 6 * pieces.CHUNK_BYTES
    ascii_parts = b"".join(pieces.ascii_only(parts))
    assert ascii_parts.isascii()
    assert json.loads(ascii_parts) == msgspec.json.decode(msgspec.json.encode(value))


def test_text_is_decoded_over_the_ends_of_parts_and_steps() -> None:
    data = "\u20ac".encode() * 100_000 + b"\xff\xe2\x82"
    for disconnect in (1, 2, 3, pieces.STEP, pieces.STEP + 1):
        parts = [data[:disconnect], data[disconnect:]]
        assert json.loads(b"".join(pieces.Text(parts).encode())) == data.decode("utf-8", "replace")
        shown = json.loads(b"".join(pieces.Text(parts, "base64").encode()))
        assert base64.b64decode(shown, validate=True) == data
        assert shown == str(pieces.Text(parts, "base64"))


def test_raw_json_goes_on_one_line() -> None:
    raw = msgspec.Raw(b'{\n "a": "\\n",\r\n "b": [1,\n2]}')
    shown = b"".join(pieces.encode({"x": raw}))
    assert b"\n" not in shown
    assert json.loads(shown) == {"x": {"a": "\n", "b": [1, 2]}}


# --- runs ---


def a_run(kept: KeptRuns, size: int, readers: contextlib.ExitStack | None = None) -> Run:
    run = Run("1", None, {}, detach=False)
    kept.charge(run)
    kept.add(run)
    run.begin()
    if readers is not None:
        readers.enter_context(run.following())
    run.add_result(Result(1, True, {"text": "x" * size}, None, None, False))
    run.finish("ok")
    return run


def test_runs_that_are_over_make_room_but_not_while_they_are_read() -> None:
    budget = Budget(total=20 * MIB, each=10 * MIB)
    share = budget.share()
    kept = KeptRuns(share)
    readers = contextlib.ExitStack()
    read = a_run(kept, 3 * MIB, readers)
    old, new = a_run(kept, 3 * MIB), a_run(kept, 3 * MIB)
    assert budget.held <= budget.each
    late = a_run(kept, 3 * MIB)
    assert kept.get(old.id) is None
    assert [kept.get(run.id) for run in (read, new, late)] == [read, new, late]
    assert not old.events, "not when the garbage collector comes"
    kept.clear()
    assert [len(run.events) for run in (read, new)] == [2, 0]
    assert 3 * MIB <= share.held <= 4 * MIB
    readers.close()
    assert share.held == 0


def test_what_a_run_has_no_room_for_is_told() -> None:
    budget = Budget(total=4 * MIB, each=4 * MIB)
    kept = KeptRuns(budget.share())
    run = a_run(kept, 5 * MIB)
    assert run.truncated
    assert [event.type for event in run.events] == ["truncated", "end"]


RICH = Result(
    1,
    True,
    {"text": "\x01" * (5 * MIB), "png": b"\0" * (2 * MIB), "json": "[" + "1," * (2 * MIB - 2) + "1]"},
    None,
    None,
    False,
)


@pytest.mark.parametrize("form", ["json", "sse", "cloudflare"])
async def test_a_rich_run_is_shown_in_short_steps(form: str) -> None:
    run = Run("1", None, {}, detach=False)
    run.begin()
    for _ in range(3):
        run.add_result(RICH)
    run.add_output("stdout", "\u20ac".encode() * MIB)
    run.finish("ok")
    if form == "json":
        body: Any = pieces.each(pieces.joined(pieces.encode(await contexts.collect("c", run))))
    else:
        body = aiter(contexts.RunBody(run, 0) if form == "sse" else container_code._Run(run))
    longest, size, over = 0.0, 0, False
    while not over:
        began = time.thread_time()  # the loop's own: what is done in threads does not count, nor what others do
        try:
            size += len(await anext(body))
        except StopAsyncIteration:
            over = True
        longest = max(longest, time.thread_time() - began)
    assert size > 2 * 6 * 5 * MIB  # the third is over the bound of a run
    assert longest < 0.1


async def test_memory_is_given_back_once_for_much_that_was_let_go_of(autojump_clock: trio.testing.MockClock) -> None:
    budget, trims, trimmed = Budget(), 0, trio.Event()

    def trim() -> None:
        nonlocal trims
        trims += 1
        trio.from_thread.run_sync(trimmed.set)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(Trimmer(budget, trim).run)
        for size in (WORTH_BYTES // 2, WORTH_BYTES, WORTH_BYTES):
            filled(budget, size + FREE).close()
        await trimmed.wait()
        filled(budget, MIB).close()
        await trio.sleep(60)
        assert trims == 1
        nursery.cancel_scope.cancel()


async def test_who_follows_the_end_of_a_log_holds_it_no_longer_than_it_takes() -> None:
    class Following:
        exit = None

        async def next_batch(self) -> list[Event]:
            await trio.sleep_forever()
            raise AssertionError

    @contextlib.asynccontextmanager
    async def follow(*_: Any, **__: Any) -> AsyncIterator[Following]:
        yield Following()

    budget = Budget()
    events = tuple(Event(1, n, 0.0, "stdout", b"x" * 1000 + b"\n") for n in range(1000))
    processes: Any = SimpleNamespace(follow=follow)
    async with contextlib.AsyncExitStack() as stack:
        hold = stack.enter_context(budget.share().hold())
        hold.take(sum(event.cost for event in events), "test")
        found = Snapshot(events, 1000, 0, running=True)
        tail = await logs._Tail(found, 10, "p", hold).open(stack, processes, 0)
        assert tail._passed == 1_001_000
        body = aiter(SseBody(tail, "utf-8"))
        assert (await anext(body)).count(b"event: stdout") == 10
        assert budget.held
        with trio.move_on_after(0.01):
            await anext(body)
        assert not budget.held


async def test_a_sign_of_life_costs_no_results(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where it is due while a batch of results is made theirs."""
    monkeypatch.setattr(pieces, "KEEP_ALIVE_S", 0.05)
    theirs = container_code._formats

    def slowly(result: Result) -> dict[str, Any]:
        time.sleep(0.06)
        return theirs(result)

    monkeypatch.setattr(container_code, "_formats", slowly)
    run = Run("1", None, {}, detach=False)
    for number in range(3):
        run.add_result(Result(1, True, {"text": f"no {number}"}, None, None, False))
    run.finish("ok")
    shown = b"".join([piece async for piece in container_code._Run(run)])
    assert [shown.count(b'"no %d"' % number) for number in range(3)] == [1, 1, 1]
    assert shown.count(b"execution_complete") == 1
