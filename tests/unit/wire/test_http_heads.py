"""Heads before they are parsed: how many bytes and fields, and what no head has."""

from __future__ import annotations

import h11
import pytest

from sandboxd.errors import HeaderTooLarge, InvalidRequest, SandboxdError
from sandboxd.wire import http_heads
from sandboxd.wire.http_heads import MAX_FIELDS, MAX_HEAD_BYTES, check

LINE = b"GET / HTTP/1.1\r\n"


@pytest.mark.parametrize("end", [b"\r\n", b"", b"\n"])
@pytest.mark.parametrize("is_trailer", [False, True])
@pytest.mark.parametrize("count", [0, 1, MAX_FIELDS - 1, MAX_FIELDS, MAX_FIELDS + 1, MAX_FIELDS + 2, 12_000])
def test_fields_are_counted(count: int, is_trailer: bool, end: bytes) -> None:
    data = (b"" if is_trailer else LINE) + b"a:b\r\n" * count + end
    for behind in (b"", b"a:b\r\n" * 500 if end else b""):  # a body is no head
        if count > MAX_FIELDS:
            with pytest.raises(HeaderTooLarge):
                check(data + behind, is_trailer=is_trailer)
        else:
            check(data + behind, is_trailer=is_trailer)


@pytest.mark.parametrize("size", [MAX_HEAD_BYTES, MAX_HEAD_BYTES + 1])
@pytest.mark.parametrize("is_whole", [False, True])
def test_bytes_are_counted(size: int, is_whole: bool) -> None:
    end = b"\r\n\r\n" if is_whole else b""
    data = LINE + b"a:"
    data += b"b" * (size - len(data) - len(end)) + end
    if size > MAX_HEAD_BYTES:
        with pytest.raises(HeaderTooLarge):
            check(data)
    else:
        check(data + b"x" * 100_000 if is_whole else data)


@pytest.mark.parametrize(
    "rows",
    [b"a: b\r\n c\r\n", b"a: b\r\n\tc\r\n", b" a: b\r\n", b"a: b\n c\n", b"a: \0\r\n", b"a\x0b: b\r\n", b"a: \x0c\r\n",
     b"a: b\rc: d\r\n", b"a: b\r\r\n"],
)  # fmt: skip
def test_what_no_head_has(rows: bytes) -> None:
    """h11 takes the folded lines; the rest it refuses too, sooner or later."""
    for data in (LINE + rows + b"\r\n", LINE + rows):
        with pytest.raises(InvalidRequest):
            check(data)
    check(LINE + b"a: b\r\n\r\n" + rows)


@pytest.mark.parametrize(
    "data", [b"", b"G", LINE, LINE + b"a: b\r", b"\r\n", b"\n", b"GET / HTTP/1.1\n\n", LINE + b"\r\n"]
)
def test_what_is_not_whole_or_not_ours_to_judge(data: bytes) -> None:
    check(data)


def test_the_trailer_of_a_body_is_bounded_as_h11_reads_it() -> None:
    for rows, is_fine in ((b"a: b\r\n", True), (b"", True), (b"a:b\r\n" * 101, False), (b"a: b\r\n c\r\n", False)):
        reader = h11.Connection(h11.SERVER)
        reader.receive_data(
            b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n" + rows + b"\r\n"
        )
        assert isinstance(reader.next_event(), h11.Request)
        http_heads.bound_trailer(reader)
        data = reader.next_event()
        assert isinstance(data, h11.Data)
        assert bytes(data.data) == b"abc"
        if is_fine:
            end = reader.next_event()
            assert isinstance(end, h11.EndOfMessage)
            assert len(list(end.headers)) == rows.count(b"\n")
        else:
            with pytest.raises(h11.RemoteProtocolError):
                reader.next_event()
    assert issubclass(HeaderTooLarge, SandboxdError)
