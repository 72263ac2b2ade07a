"""Request bodies with a bound: Quart's own body takes all that comes, this one makes the sender wait."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final

import trio
from quart_trio.wrappers.request import TrioRequest

from ...errors import BodyTooLarge, RequestTimeout
from ...spec import MAX_JSON_BODY_BYTES

if TYPE_CHECKING:
    from ...runtime.budget import Hold

#: What one request holds of a body that its handler has not read yet; beyond it the client's writes wait.
HIGH_WATER: Final = 1024 * 1024
#: A JSON body comes at once; one that stops this long is given up.
JSON_IDLE_S: Final = 30.0
#: An upload may come from a slow pipe.
UPLOAD_IDLE_S: Final = 300.0
#: How long, and for how many bytes, the rest of a refused body is read so that the client sees the answer.
LINGER_S: Final = 1.0
LINGER_BYTES: Final = 16 * 1024 * 1024


class BoundedBody:
    """A body whose sender waits while `HIGH_WATER` bytes are unread.

    It stands where Quart's own would and shares nothing with it: that one's insides changed from one Quart to the next.
    """

    def __init__(self, expected_content_length: int | None, max_content_length: int | None) -> None:
        self.expected = expected_content_length
        self.received = 0
        self._data = bytearray()
        self._news = trio.Event()
        self._wanted = 1
        self._complete = trio.Event()
        self._room = trio.Event()
        self._discarding = False
        self._discarded = 0

    async def put(self, data: bytes | memoryview) -> None:
        """Take what came from the client; returns when there is room for more."""
        self.received += len(data)
        if self._discarding:
            self._discarded += len(data)
            if self._discarded > LINGER_BYTES:
                self.set_complete()
            return
        if data:
            self._data += data
            if len(self._data) >= self._wanted:
                self._news.set()
        while len(self._data) >= HIGH_WATER and not self._discarding:
            self._room = trio.Event()
            await self._room.wait()

    def load(self, data: bytes) -> None:
        """Take a body that is whole already."""
        self.received = len(data)
        self._data += data
        self.set_complete()

    def set_complete(self) -> None:
        """Say that no more will come."""
        self._complete.set()
        self._news.set()

    def discard(self) -> None:
        """Drop what is here and what still comes: nobody will read it."""
        self._discarding = True
        self._data.clear()
        self._room.set()

    async def linger(self) -> None:
        """Take the rest of a body that nobody wants, within bounds, so that the client can read the answer."""
        self.discard()
        with trio.move_on_after(LINGER_S):
            await self._complete.wait()

    @property
    def is_complete(self) -> bool:
        """Whether all of it has come."""
        return self._complete.is_set()

    async def next_piece(self, *, idle_s: float = math.inf, at_least: int = 1) -> bytearray:
        """Return what has come, waiting for it; no bytes are the end.

        With `at_least` (up to `HIGH_WATER`) it waits for that much, or the end, or a pause of `idle_s`: whoever
        writes large pieces need not wake for each small one.

        Raises:
            RequestTimeout: nothing came for `idle_s` seconds.
        """
        while len(self._data) < at_least and not self._complete.is_set():
            before = len(self._data)
            self._wanted = at_least
            self._news = trio.Event()
            with trio.move_on_after(idle_s) as scope:
                await self._news.wait()
            if scope.cancelled_caught and len(self._data) == before:
                if not before:
                    raise RequestTimeout(f"cannot read the body: no data arrived for {idle_s:g} s")
                break
        piece, self._data = self._data, bytearray()
        self._room.set()
        return piece

    async def read_json(self, limit: int = MAX_JSON_BODY_BYTES, hold: Hold | None = None) -> bytes:
        """Return the whole body, which `hold` is charged with.

        Raises:
            BodyTooLarge: it is over `limit` bytes; the rest is not read.
            ServerBusy: there is no room for it.
        """
        if self.expected is not None and self.expected > limit:
            raise BodyTooLarge(f"cannot accept a JSON body of over {limit} bytes", limit_bytes=limit)
        if self._complete.is_set() and len(self._data) <= limit:
            return bytes(await self.next_piece())
        found = bytearray()
        while piece := await self.next_piece(idle_s=JSON_IDLE_S):
            if hold is not None:
                hold.take(len(piece), "read the body")
            found += piece
            if len(found) > limit:
                raise BodyTooLarge(f"cannot accept a JSON body of over {limit} bytes", limit_bytes=limit)
        return bytes(found)


class ApiRequest(TrioRequest):
    """Quart's request with a bounded body."""

    body_class = BoundedBody  # type: ignore[assignment]  # what Quart and we ask of a body
