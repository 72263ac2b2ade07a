"""News wakes all who wait, and nobody for what was there before."""

from __future__ import annotations

import trio
import trio.testing

from sandboxd.runtime.news import News


async def test_all_who_wait_are_woken_and_only_by_what_comes_later() -> None:
    news, woken = News(), list[int]()

    async def wait(number: int) -> None:
        await news.wait()
        woken.append(number)

    news.tell()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(wait, 1)
        nursery.start_soon(wait, 2)
        await trio.testing.wait_all_tasks_blocked()
        assert woken == []
        news.tell()
        nursery.start_soon(wait, 3)
        await trio.testing.wait_all_tasks_blocked()
        assert sorted(woken) == [1, 2]
        news.tell()
    assert sorted(woken) == [1, 2, 3]
