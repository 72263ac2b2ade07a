"""The parts of h11 that are not its interface, and all that we do with them.

h11 has no words for two things that we need: to skip bytes of a body that went past it (large uploads go straight from
the socket to their reader), and to bound the trailer of a body in chunks. Both reach into the reader that a connection
keeps for the body under way. No other module names these parts; pyproject.toml bounds h11's version, and a test says
which of them an upgrade has taken away.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import h11
from h11._readers import ChunkedReader, ContentLengthReader

if TYPE_CHECKING:
    from collections.abc import Callable

    from h11._receivebuffer import ReceiveBuffer

#: What `missing` looks for: the object, and its attributes.
_USED: Final[tuple[tuple[str, Callable[[], Any], tuple[str, ...]], ...]] = (
    ("h11.Connection", lambda: h11.Connection(h11.SERVER), ("_reader", "trailing_data", "their_state", "our_state")),
    ("h11._readers.ContentLengthReader", lambda: ContentLengthReader(1), ("_remaining", "__call__")),
    ("h11._readers.ChunkedReader", ChunkedReader, ("_reading_trailer", "__call__")),
)


def missing() -> list[str]:
    """Return which of the parts that are used here the installed h11 lacks, as dotted names."""
    return [f"{name}.{part}" for name, make, parts in _USED for part in parts if not hasattr(make(), part)]


def unseen_body(connection: h11.Connection) -> int | None:
    """Return how many bytes of the body under way h11 has not seen; None where its length is not known (chunks)."""
    reader = _reader(connection)
    return int(reader._remaining) if isinstance(reader, ContentLengthReader) else None


def skip_body(connection: h11.Connection, count: int) -> None:
    """Tell h11 that `count` bytes of a body whose length is known have come, which it will not see."""
    _reader(connection)._remaining -= count


def check_trailer(connection: h11.Connection, check: Callable[[bytes], None]) -> None:
    """Have `check` look at the trailer of a body in chunks before h11 parses it; to be called when a head was read.

    What `check` raises must be an `h11.LocalProtocolError`, which h11 makes the other side's.
    """
    inside: Any = connection
    if type(inside._reader) is ChunkedReader:
        inside._reader = _CheckedChunks(check)


def _reader(connection: h11.Connection) -> Any:  # noqa: ANN401 - h11's own
    inside: Any = connection
    return inside._reader


class _CheckedChunks(ChunkedReader):
    def __init__(self, check: Callable[[bytes], None]) -> None:
        super().__init__()
        self._check = check

    def __call__(self, buf: ReceiveBuffer) -> h11.Data | h11.EndOfMessage | None:
        if self._reading_trailer:
            self._check(bytes(buf))
        return super().__call__(buf)
