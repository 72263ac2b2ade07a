"""A run's journal: bounds, followers, ends."""

from __future__ import annotations

import pytest
import trio
import trio.testing

from sandboxd.errors import ContextRestarting
from sandboxd.runtime import run_log, runs
from sandboxd.runtime.runs import Run
from sandboxd.wire.worker import Result


def make() -> Run:
    run = Run("1", None, {}, detach=False)
    run.begin()
    return run


def result(size: int = 1) -> Result:
    return Result(1, True, {"text": "x" * size}, None, None, False)


async def all_of(run: Run, start: int = 0) -> list[str]:
    found = []
    while batch := await run.next_batch(start):
        found += [event.type for event in batch]
        start = batch[-1].offset + 1
    return found


async def test_followers_see_all_of_it_from_any_offset_at_any_time() -> None:
    run = make()
    seen: list[list[str]] = []
    async with trio.open_nursery() as nursery:

        async def follow(start: int) -> None:
            seen.append(await all_of(run, start))

        nursery.start_soon(follow, 0)
        nursery.start_soon(follow, 2)
        await trio.testing.wait_all_tasks_blocked()
        run.add_output("stdout", b"a")
        run.add_result(result())
        await trio.testing.wait_all_tasks_blocked()
        run.add_error({"ename": "E"})
        run.add_error({"ename": "F"})
        run.finish("error", execution_count=3)
    assert sorted(seen, key=len) == [["error", "end"], ["stdout", "result", "error", "end"]]
    assert await all_of(run) == ["stdout", "result", "error", "end"]
    assert run.error == {"ename": "E"}
    run.finish("ok")
    assert run.status == "error"
    assert await run.next_batch(99) == []


async def test_output_is_bounded_and_its_beginning_is_kept() -> None:
    run = make()
    run.add_output("stdout", b"first")
    for _ in range(40):
        run.add_output("stderr", b"x" * 1024 * 1024)
    assert run.is_flooded
    run.finish("ok")
    assert run.truncated
    assert run.events[0].data == b"first"
    kept = sum(len(event.data) for event in run.events if isinstance(event.data, bytes))
    assert kept <= runs.MAX_OUTPUT_BYTES
    assert run.events[-2].data == {"dropped_bytes": 5 + 40 * 1024 * 1024 - kept, "dropped_results": 0}
    small = make()
    for _ in range(200_000):
        small.add_output("stdout", b"y")
    assert len(small.events) <= runs.MAX_OUTPUT_BYTES // run_log.EVENT_OVERHEAD


def test_results_are_bounded_by_number_and_by_size() -> None:
    run = make()
    for _ in range(runs.MAX_RESULTS + 5):
        run.add_result(result())
        run.add_clear(wait=False)
    assert len(run.events) == runs.MAX_RESULTS
    large = make()
    for _ in range(5):
        large.add_result(result(10 * 1024 * 1024))
    assert len(large.events) == 3
    large.finish("ok")
    assert large.truncated


async def test_one_that_is_given_up_tells_why() -> None:
    run = Run("1", None, {}, detach=False)
    run.give_up(ContextRestarting("no"))
    with pytest.raises(ContextRestarting):
        await run.next_batch(0)
    assert run.status is None


async def test_neighbours_of_one_stream_are_one_event_until_somebody_reads_them() -> None:
    run = make()
    for number in range(10):
        run.add_output("stdout", b"%d\n" % number)
    run.add_output("stderr", b"e")
    run.add_output("stdout", b"x")
    (out, err), (rest,) = await run.next_batch(0), await run.next_batch(2)
    assert (out.data, err.data, rest.data) == (b"".join(b"%d\n" % n for n in range(10)), b"e", b"x")
    run.add_output("stdout", b"y")
    run.finish("ok")
    assert [event.data for event in (await run.next_batch(2))[:2]] == [b"x", b"y"], "what was read stays as it was"


@pytest.mark.parametrize("line", [b"y\n", b"a line of some twenty\n"])
async def test_short_lines_are_kept_up_to_the_bound_as_long_ones_are(line: bytes) -> None:
    run = make()
    count = 2_000_000 // len(line)
    for number in range(count):
        run.add_output("stdout", line)
        if number % 50 == 0 and len(run.events) < 500:
            await run.next_batch(len(run.events))  # somebody follows it
    assert not run.truncated
    run.finish("ok")
    data = b"".join(event.data for event in run.events if isinstance(event.data, bytes))
    assert data == line * count
    assert len(run.events) < 1000


async def test_a_reader_of_very_many_pieces_gets_them_in_larger_ones(
    monkeypatch: pytest.MonkeyPatch, autojump_clock: trio.testing.MockClock
) -> None:
    monkeypatch.setattr(runs, "MANY_EVENTS", 10)
    run = make()
    seen: list[bytes] = []

    async def follow() -> None:
        position = 0
        while batch := await run.next_batch(position):
            seen.extend(event.data for event in batch if isinstance(event.data, bytes))
            position = batch[-1].offset + 1

    async with trio.open_nursery() as nursery:
        nursery.start_soon(follow)
        for _ in range(1000):
            run.add_output("stdout", b"z")
            await trio.sleep(0.001)
        run.finish("ok")
    assert b"".join(seen) == b"z" * 1000
    assert seen[:10] == [b"z"] * 10
    assert len(seen) < 40
