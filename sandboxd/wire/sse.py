"""Server-sent events as the WHATWG HTML standard defines them (section 9.2, "Server-sent events").

Sans-I/O: `encode` returns one event's bytes, `SseDecoder` takes bytes in any pieces and returns events. What the
standard says and people forget: a line ends in LF, CR or CRLF (so a CR in data is a line end, and comes back as
LF); several `data` lines are joined by LF; one space after the colon is dropped; an `id` with a NUL is ignored;
a byte order mark at the very start is dropped; an event without data is not an event, but its id counts; what
follows the last blank line when the stream ends is dropped.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from sandboxd.errors import LocalProtocolError, RemoteProtocolError

__all__ = ["KEEP_ALIVE", "MAX_EVENT_BYTES", "SseDecoder", "SseEvent", "comment", "encode"]

#: The bound of one event on the way in. The largest that the daemon sends is 1 MiB of output that JSON has to
#: escape (`\u001b`: six bytes for one), or a picture in base64; 16 MiB holds both, and a reader can hold it.
MAX_EVENT_BYTES: Final = 16 * 1024 * 1024
#: A comment that keeps proxies from closing an idle stream; readers drop it.
KEEP_ALIVE: Final = b": keep-alive\n\n"

_BOM: Final = b"\xef\xbb\xbf"


class SseEvent(NamedTuple):
    """One event: its type ("message" where none is given), its data, and the last id that the stream named."""

    event: str
    data: str
    id: str = ""


def encode(data: str | bytes, *, event: str = "", id: str | int | None = None) -> bytes:  # noqa: A002 - the field's own name
    """Return the bytes of one event; `data` is text or UTF-8, and each CR, LF or CRLF in it starts a new line.

    Raises:
        LocalProtocolError: `event` or `id` has a line end in it, or `id` a NUL: no reader would get them back.
    """
    raw = data.encode() if isinstance(data, str) else data
    parts: list[bytes] = []
    if id is not None:
        parts.append(b"id: " + _field("id", str(id)) + b"\n")
    if event:
        parts.append(b"event: " + _field("event", event) + b"\n")
    if b"\n" in raw or b"\r" in raw:
        lines = raw.replace(b"\r\n", b"\n").replace(b"\r", b"\n").split(b"\n")
        parts.extend(b"data: " + line + b"\n" for line in lines)
    else:
        parts += (b"data: ", raw, b"\n")
    parts.append(b"\n")
    return b"".join(parts)


def comment(text: str = "") -> bytes:
    """Return a comment, which readers drop."""
    return b"".join(b": " + line.encode() + b"\n" for line in text.splitlines() or [""]) + b"\n"


def _field(name: str, value: str) -> bytes:
    if "\n" in value or "\r" in value or "\0" in value:
        raise LocalProtocolError(f"cannot encode an event: its {name} has a line end or a NUL", field=name)
    return value.encode()


class SseDecoder:
    """Turns bytes in any pieces into events.

    It holds at most one unfinished event, bounded by `MAX_EVENT_BYTES`, and looks at each byte once.
    """

    def __init__(self, limit: int = MAX_EVENT_BYTES) -> None:
        self.last_id = ""
        self.retry_ms: int | None = None
        self._limit = limit
        self._pieces: list[bytes] = []  # the unfinished line
        self._held = 0  # bytes in _pieces and _data
        self._data: list[bytes] = []
        self._event = b""
        self._after_cr = False
        self._at_start = True
        self._failed = False

    def feed(self, data: bytes) -> list[SseEvent]:
        """Take the next bytes and return the events that they complete.

        Raises:
            RemoteProtocolError: an event is over the bound; after that, always.
        """
        if self._failed:
            raise self._fail()
        if self._after_cr and data:
            # The CR ended its line already; this LF is the second half of that line end.
            self._after_cr = False
            data = data.removeprefix(b"\n")
        if not data:
            return []
        events: list[SseEvent] = []
        # bytes.splitlines splits at LF, CR and CRLF only: the standard's line ends exactly.
        lines = data.splitlines()
        self._after_cr = data.endswith(b"\r")
        tail = b"" if self._after_cr or data.endswith(b"\n") else lines.pop()
        if lines and self._pieces:
            self._pieces.append(lines[0])
            self._held -= sum(map(len, self._pieces[:-1]))
            lines[0] = b"".join(self._pieces)
            self._pieces = []
        for line in lines:
            self._line(line, events)
        if tail:
            self._hold(len(tail))
            self._pieces.append(tail)
            if len(self._pieces) > 1024:  # a peer that sends bytes one by one costs objects, not just bytes
                self._pieces = [b"".join(self._pieces)]
        return events

    def _line(self, line: bytes, events: list[SseEvent]) -> None:
        if self._at_start:
            self._at_start = False
            line = line.removeprefix(_BOM)
        if not line:
            self._dispatch(events)
            return
        name, _, value = line.partition(b":")
        value = value.removeprefix(b" ")
        if name == b"data":
            self._hold(len(value) + 1)
            self._data.append(value)
        elif name == b"event":
            self._hold(len(value) - len(self._event))
            self._event = value
        elif name == b"id" and b"\0" not in value:
            self.last_id = value.decode("utf-8", "replace")
        elif name == b"retry" and value.isdigit():
            self.retry_ms = int(value[:9])

    def _dispatch(self, events: list[SseEvent]) -> None:
        if self._data:
            name = self._event.decode("utf-8", "replace") or "message"
            events.append(SseEvent(name, b"\n".join(self._data).decode("utf-8", "replace"), self.last_id))
            self._data = []
        self._event = b""
        self._held = 0

    def _hold(self, count: int) -> None:
        self._held += count
        if self._held > self._limit:
            raise self._fail()

    def _fail(self) -> RemoteProtocolError:
        self._failed = True
        self._pieces, self._data = [], []
        return RemoteProtocolError(
            f"cannot read the event stream: an event is over the limit of {self._limit} bytes", limit_bytes=self._limit
        )
