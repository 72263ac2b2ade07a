"""What file jobs give as they go: what a search finds, what a watch sees, the bytes of an archive."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Generic, Self, TypeVar

from ..errors import RemoteProtocolError
from . import checks, filefacts
from .filefacts import Change, Match, Searched

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable
    from types import TracebackType

    from .jobs import FileJob

_T = TypeVar("_T")


class _Running:
    """A file job that begins with the block and ends with it. An async context manager."""

    def __init__(self, job: FileJob) -> None:
        self._job = job

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self._job!r}>"

    async def __aenter__(self) -> Self:
        await self._job.__aenter__()
        try:
            await self._begin()
        except BaseException as error:
            await self._job.__aexit__(type(error), error, error.__traceback__)
            raise
        return self

    async def _begin(self) -> None:
        """Wait for what has to come before the block may begin."""

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._job.__aexit__(kind, error, trace)

    @property
    def result(self) -> dict[str, Any]:
        """How it ended, not yet checked; empty before."""
        return self._job.result or {}


class Found(_Running, Generic[_T]):
    """What a file job finds, each row checked by `parse`, `at_most` so many."""

    def __init__(self, job: FileJob, parse: Callable[[dict[str, Any]], _T], at_most: int | None = None) -> None:
        super().__init__(job)
        self._parse = parse
        self._left = at_most

    async def next(self) -> list[_T]:
        """Return what is found next; an empty list is the end.

        Raises:
            SandboxdError: why the file job failed.
        """
        rows = await self._job.next_rows()
        if self._left is not None:
            self._left -= len(rows)
            if self._left < 0:
                raise RemoteProtocolError("cannot accept more data than was requested")
        return [self._parse(row) for row in rows]


class SearchResults(Found[Match]):
    """A search under way."""

    def __init__(self, job: FileJob, limit: int) -> None:
        super().__init__(job, filefacts.parse_match, limit)

    @property
    def end(self) -> Searched:
        """How the search ended, after its last match.

        Raises:
            RemoteProtocolError: init tells nonsense.
        """
        return Searched(filefacts.parse_truncated(self.result), checks.integer(self.result, "files"))


class Watch(Found[Change]):
    """A watch under way. It can be entered only where the path can be watched; its first change is "ready"."""

    def __init__(self, job: FileJob) -> None:
        super().__init__(job, filefacts.parse_change)
        self._first: list[Change] = []

    async def _begin(self) -> None:
        self._first = await super().next()

    async def next(self) -> list[Change]:
        """Return the next changes; an empty list says that what was watched is gone.

        Raises:
            SandboxdError: why the file job failed.
        """
        first, self._first = self._first, []
        return first or await super().next()


class Archive(_Running):
    """An archive while it is packed. It can be entered only where there is something to pack."""

    def __init__(self, job: FileJob) -> None:
        super().__init__(job)
        self._first = b""

    async def _begin(self) -> None:
        self._first = await self._job.next_piece()

    async def pieces(self) -> AsyncGenerator[bytes, None]:
        """Give its bytes, once.

        Raises:
            SandboxdError: why it cannot be finished.
        """
        piece, self._first = self._first, b""
        while piece:
            yield piece
            piece = await self._job.next_piece()

    @property
    def entries(self) -> int:
        """How many entries the archive has, after its last piece.

        Raises:
            RemoteProtocolError: init tells nonsense.
        """
        return checks.integer(self.result, "entries")
