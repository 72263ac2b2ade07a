"""What we use of h11's insides is still there, and still does what we think."""

from __future__ import annotations

import h11
import pytest

from sandboxd.wire import h11_parts

HEAD = b"PUT / HTTP/1.1\r\nHost: x\r\n"


def begun(head: bytes) -> h11.Connection:
    connection = h11.Connection(h11.SERVER)
    connection.receive_data(head)
    assert isinstance(connection.next_event(), h11.Request)
    return connection


def test_nothing_is_gone() -> None:
    assert h11_parts.missing() == []


def test_what_is_gone_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    class Renamed:
        def __call__(self) -> None: ...

    used = [
        (name, Renamed if name.endswith("ContentLengthReader") else make, parts)
        for name, make, parts in h11_parts._USED
    ]
    monkeypatch.setattr(h11_parts, "_USED", tuple(used))
    assert h11_parts.missing() == ["h11._readers.ContentLengthReader._remaining"]


def test_bytes_of_a_body_are_skipped() -> None:
    connection = begun(HEAD + b"Content-Length: 10\r\n\r\nab")
    event = connection.next_event()
    assert isinstance(event, h11.Data)
    assert h11_parts.unseen_body(connection) == 8
    h11_parts.skip_body(connection, 7)
    connection.receive_data(b"z")
    assert connection.next_event().data == b"z"  # type: ignore[union-attr]
    assert isinstance(connection.next_event(), h11.EndOfMessage)


@pytest.mark.parametrize("fields", [b"Transfer-Encoding: chunked\r\n", b""])
def test_a_body_without_a_length_is_left_alone(fields: bytes) -> None:
    assert h11_parts.unseen_body(begun(HEAD + fields + b"\r\n")) in (None, 0)
