"""The bounded log: offsets never change, and each policy keeps its own end of it."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from sandboxd.wire.boundedlog import BoundedLog, WhenFull


class Sizes(BoundedLog[int]):
    """Entries are numbers, each of which counts itself."""

    def size_of(self, entry: int) -> int:
        return entry


@given(st.lists(st.integers(0, 50), max_size=60), st.integers(0, 100), st.integers(0, 10**12))
def test_one_that_drops_the_oldest_keeps_as_many_of_the_newest_as_fit(
    entries: list[int], bound: int, start: int
) -> None:
    dropped: list[int] = []
    log = Sizes(bound, WhenFull.DROP_OLDEST, start=start, on_drop=dropped.append)
    for number, entry in enumerate(entries):
        assert log.next == start + number
        log.add(entry)
        assert log.read(start + number) == entry, "the newest stays, whatever it counts"
        assert log.size == sum(log) <= max(bound, entry)
    assert dropped + list(log) == entries
    assert (log.first, log.next) == (start + len(dropped), start + len(entries))
    assert not dropped or len(log) == 1 or sum(log) + dropped[-1] > bound, "nothing goes without need"
    log.shrink(0)
    assert log.size == 0
    assert dropped + list(log) == entries


@given(st.lists(st.integers(), max_size=30), st.integers(0, 40), st.integers(0, 40), st.integers(1, 10))
def test_a_reader_gets_what_is_at_its_offset_or_the_oldest_above(
    entries: list[int], bound: int, offset: int, limit: int
) -> None:
    for policy in WhenFull:
        log = BoundedLog[tuple[int, int]](bound, policy)
        for number, entry in enumerate(entries):
            log.add((number, entry))
        there = [(number, entry) for number, entry in log if number >= offset]
        assert log.read(offset) == (there[0] if there else None)
        assert log.slice(offset) == there
        assert log.slice(offset, limit) == there[:limit]


def test_one_that_refuses_the_newest_takes_nothing_behind_a_gap() -> None:
    log = BoundedLog[bytes](10, WhenFull.REFUSE_NEWEST)
    log.claim(6)
    log.add(b"first")
    assert (log.left, log.size, log.refused) == (4, 6, 0)
    log.refuse(5)
    assert (log.left, log.refused) == (0, 5)
    log.add(b"the end is told whatever happens")
    assert list(log) == [b"first", b"the end is told whatever happens"]
    log.clear()
    assert (list(log), log.first, log.next) == ([], 2, 2)
