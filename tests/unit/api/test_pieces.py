"""Bodies in pieces: how parts are joined, which piece is the last, and that what gives them is closed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import trio

from sandboxd.api import pieces
from sandboxd.api.call import Last, streamed
from sandboxd.errors import LimitExceeded, SandboxdError

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Iterable, Iterator

HALF = pieces.CHUNK_BYTES // 2


@pytest.mark.parametrize(
    ("sizes", "joined"),
    [
        ((), []),
        ((0, 0), []),
        ((1, 2), [3]),
        ((HALF, HALF), [2 * HALF]),
        ((HALF, HALF, 1), [2 * HALF, 1]),
        ((3 * HALF, HALF, HALF, 0), [3 * HALF, 2 * HALF]),
    ],
)
def test_parts_are_joined(sizes: tuple[int, ...], joined: list[int]) -> None:
    found = list(pieces.joined((bytes(size) for size in sizes), is_last=True))
    assert [len(piece) for piece in found] == joined
    assert not any(isinstance(piece, Last) for piece in found[:-1])
    # One that is full goes out at once: whether a part follows is not known yet.
    assert isinstance(found[-1], Last) == (len(found[-1]) < pieces.CHUNK_BYTES) if found else True
    assert not any(isinstance(piece, Last) for piece in pieces.joined(bytes(size) for size in sizes))


def test_the_next_part_is_made_when_the_piece_before_is_on_its_way() -> None:
    made = 0

    def parts() -> Iterator[bytes]:
        nonlocal made
        for _ in range(4):
            made += 1
            yield bytes(pieces.CHUNK_BYTES)

    for number, _ in enumerate(pieces.joined(parts()), 1):
        assert made == number


async def test_a_source_is_followed_to_its_end(autojump_clock: trio.testing.MockClock) -> None:
    """With a sign of life for each time that it says nothing, and the end where it says so."""
    batches: Iterator[tuple[float, tuple[bytes, ...], bool]] = iter(
        [(0, (b"a", b"b"), False), (2.5 * pieces.KEEP_ALIVE_S, (b"c",), False), (0, (), False), (0, (b"d",), True)]
    )
    waits, parts, is_last = next(batches)
    ready = trio.current_time() + waits

    async def take() -> tuple[Iterable[bytes], bool]:
        nonlocal waits, parts, is_last, ready
        await trio.sleep_until(ready)
        given = parts, is_last
        waits, parts, is_last = next(batches, (0.0, (), False))
        ready = trio.current_time() + waits
        return given

    def tell(error: SandboxdError) -> bytes:
        raise error

    found = [piece async for piece in pieces.follow(take, tell, first=b"0", idle=b"-")]
    assert found == [b"0", b"ab", b"-", b"-", b"c", b"d"]
    assert [isinstance(piece, Last) for piece in found] == [False] * 5 + [True]


async def test_a_source_that_fails_is_told_of_last() -> None:
    async def take() -> tuple[Iterable[bytes], bool]:
        await trio.lowlevel.checkpoint()
        raise LimitExceeded("cannot go on")

    found = [piece async for piece in pieces.follow(take, lambda error: error.kind.encode())]
    assert found == [b"limit-exceeded"]
    assert isinstance(found[0], Last)


async def test_a_generator_is_closed_where_its_reader_leaves() -> None:
    closed = False

    async def give() -> AsyncGenerator[bytes, None]:
        nonlocal closed
        try:
            while True:
                await trio.lowlevel.checkpoint()
                yield b"x"
        finally:
            closed = True

    body: Any = streamed(give(), 200, {}).response
    with trio.CancelScope() as scope:
        async with body as given:
            async for _ in given:
                scope.cancel()
                await trio.lowlevel.checkpoint()
    assert scope.cancelled_caught
    assert closed
