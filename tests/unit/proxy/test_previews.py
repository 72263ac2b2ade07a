"""The pure parts of previews: host names, tokens, heads."""

from __future__ import annotations

import h11
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sandboxd.errors import InvalidRequest, LimitExceeded
from sandboxd.proxy import heads, pages, plain
from sandboxd.proxy.heads import Front
from sandboxd.runtime.ports import MAX_PORTS, MAX_SHARE_LINKS, Port, Ports, PortSpec, new_token
from sandboxd.runtime.preview_urls import PreviewUrls, Target
from sandboxd.spec import new_id

ID = "abcdefghij0123456789"
SITE = PreviewUrls("http", "localhost", 8080)
FRONT = Front(b"127.0.0.1", b"http", False, b"the-daemons-own-token")
TRUSTED = Front(b"10.0.0.1", b"http", True, None)


def asked(text: str) -> heads.Asked:
    reader = h11.Connection(h11.SERVER)
    reader.receive_data(text.replace("\n", "\r\n").encode("latin-1") + b"\r\n\r\n")
    event = reader.next_event()
    assert isinstance(event, h11.Request)
    return heads.read(heads.of_request(event))


# --- host names ----------------------------------------------------------------------------------------------


@given(
    st.integers(1, 65535),
    st.none() | st.from_regex(r"[a-z0-9_]{1,16}", fullmatch=True),
    st.sampled_from(["localhost", "p.example.com"]),
    st.sampled_from([("http", 80), ("https", 443), ("http", 8080)]),
)
def test_a_url_names_its_port_again(port: int, token: str | None, domain: str, origin: tuple[str, int]) -> None:
    urls, sandbox_id = PreviewUrls(origin[0], domain, origin[1]), new_id()
    url = urls.url(sandbox_id, PortSpec(port=port, token=token))
    host = url.split("/")[2]
    assert (":" in host) == (origin[1] == 8080)
    assert len(host.split(".")[0]) <= 63
    for form in (host, host.upper(), host.replace(domain, domain + ".")):
        assert urls.parse(form.encode()) == Target(port, sandbox_id, token)


@pytest.mark.parametrize(
    "host",
    [
        "localhost",
        "127.0.0.1:8080",
        "[::1]:8080",
        f"8000-{ID}",
        f"8000-{ID}.localhost.evil.com",
        f"a.8000-{ID}.localhost",
        f"08000-{ID}.localhost",
        f"0-{ID}.localhost",
        f"65536-{ID}.localhost",
        f"99999-{ID}.localhost",
        f"8000-{ID[:-1]}.localhost",
        f"8000-{ID}-.localhost",
        f"8000-{ID}-{'a' * 17}.localhost",
        f"8000-{ID}-a-b.localhost",
        f"8000-{ID}.localhostx",
        f"8000-{ID}xlocalhost",
    ],
)
def test_other_names_are_no_preview(host: str) -> None:
    assert SITE.parse(host.encode()) is None


@pytest.mark.parametrize("host", [b"", b"a b", b"a\x00", b"a@b", b"a/b", b"a:b", b"\xff", b"a:999999", b"a,b"])
def test_what_is_no_host_at_all(host: bytes) -> None:
    with pytest.raises(ValueError, match="not a host"):
        SITE.parse(host)


# --- tokens --------------------------------------------------------------------------------------------------


def test_tokens() -> None:
    assert len({new_token() for _ in range(1000)}) == 1000
    secret, public = PortSpec(port=1, token="abc"), PortSpec(port=1, token=None)
    assert secret.admits_token("abc")
    assert not any(secret.admits_token(other) for other in ("abd", "", None, "ä"))
    assert public.admits_token(None)
    assert not public.admits_token("abc")


def test_a_cookie_is_for_one_port_and_token() -> None:
    values = {
        PortSpec(port=port, token=token).cookie(sandbox_id)
        for port in (1, 2)
        for token in ("a", "b")
        for sandbox_id in (ID, ID[::-1])
    }
    assert len(values) == 8
    public = Port(ID, PortSpec(port=1, token=None))
    assert not public.admits_cookie(b"")


def test_links_are_used_once_and_bounded() -> None:
    port = Port(ID, PortSpec(port=1, token="abc"))
    codes = [port.new_link()[0] for _ in range(MAX_SHARE_LINKS + 1)]
    assert port.redeem(codes[0]) is None
    cookie = port.redeem(codes[1])
    assert cookie
    assert port.admits_cookie(cookie.encode())
    assert port.redeem(codes[1]) is None
    assert port.redeem("") is None


def test_ports_are_bounded() -> None:
    ports = Ports(ID)
    for number in range(1, MAX_PORTS + 1):
        ports.add(PortSpec(port=number, token=None))
    with pytest.raises(LimitExceeded):
        ports.add(PortSpec(port=MAX_PORTS + 1, token=None))


# --- heads ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        "GET http://h/ HTTP/1.1\nHost: h",
        "GET //h HTTP/1.1",
        "CONNECT h:1 HTTP/1.1\nHost: h",
        "TRACE / HTTP/1.1\nHost: h",
        "GET * HTTP/1.1\nHost: h",
        "GET x HTTP/1.1\nHost: h",
        "GET / HTTP/1.1\nHost:",
        "GET / HTTP/1.0",
        "POST / HTTP/1.1\nHost: h\nContent-Length: 1\nTransfer-Encoding: chunked",
        "POST / HTTP/1.1\nHost: h\nTransfer-Encoding: chunked\nContent-Length: 0",
        "POST / HTTP/1.0\nHost: h\nTransfer-Encoding: chunked",
        "POST / HTTP/1.1\nHost: h\nTransfer-Encoding: gzip, chunked",
        "POST / HTTP/1.1\nHost: h\nTransfer-Encoding: xchunked",
        "POST / HTTP/1.1\nHost: h\nTransfer-Encoding : chunked",
        "POST / HTTP/1.1\nHost: h\nContent-Length: 1\nContent-Length: 2",
        "POST / HTTP/1.1\nHost: h\nContent-Length: +1",
        "POST / HTTP/1.1\nHost: h\nContent-Length: 0x1",
        "POST / HTTP/1.1\nHost: h\nContent-Length: -1",
        "GET / HTTP/1.1\nHost: h\nHost: h",
        "GET / HTTP/1.1\nHost: h\nA: b\x00c",
        "GET / HTTP/1.1\nHost: h\n A: b\nB\x0b: c",
        "GET / HTTP/2.0\nHost: h",
        "GET /\nHost: h",
        "GET / HTTP/1.1\nHost: h\nConnection: upgrade\nUpgrade: x\nContent-Length: 3",
    ],
)
def test_ambiguous_requests_are_refused(text: str) -> None:
    with pytest.raises((InvalidRequest, h11.RemoteProtocolError)):
        asked(text)


def rows(head: bytes) -> list[bytes]:
    assert head.endswith(b"\r\n\r\n")
    return head[:-4].split(b"\r\n")


def test_what_goes_to_the_service() -> None:
    text = (
        "POST /a?b HTTP/1.1\nHost: h\nContent-Length: 3\nCookie: a=1; sandboxd_preview=x; b=2\nAccept: text/html\n"
        "Connection: close, X-Drop, Content-Length\nX-Drop: 1\nX-Sandboxd-Token: t\nX-Forwarded-For: 6.6.6.6\n"
        "Authorization: Bearer the-daemons-own-token\nX-Also: the-daemons-own-token\nX-Own: 1"
    )
    found = asked(text)
    assert (found.length, found.keep_alive, found.token, found.wants_page) == (3, False, "t", True)
    assert rows(heads.forward(found, FRONT)) == [
        b"POST /a?b HTTP/1.1",
        b"Host: h",
        b"Content-Length: 3",
        b"Cookie: a=1; b=2",
        b"Accept: text/html",
        b"X-Own: 1",
        b"X-Forwarded-For: 127.0.0.1",
        b"X-Forwarded-Host: h",
        b"X-Forwarded-Proto: http",
    ]


def test_a_trusted_front_proxy_is_believed() -> None:
    text = "GET / HTTP/1.1\nHost: h\nX-Forwarded-For: 1.1.1.1\nX-Forwarded-Proto: https\nX-Forwarded-Host: outer"
    assert rows(heads.forward(asked(text), TRUSTED))[-3:] == [
        b"X-Forwarded-For: 1.1.1.1, 10.0.0.1",
        b"X-Forwarded-Host: outer",
        b"X-Forwarded-Proto: https",
    ]
    assert rows(heads.forward(asked(text), FRONT))[-3:] == [
        b"X-Forwarded-For: 127.0.0.1",
        b"X-Forwarded-Host: h",
        b"X-Forwarded-Proto: http",
    ]


def test_an_upgrade_is_asked_for_and_nothing_else_of_connection() -> None:
    found = asked("GET / HTTP/1.1\nHost: h\nConnection: keep-alive, Upgrade\nUpgrade: websocket\nSec-WebSocket-Key: k")
    assert found.upgrade == b"websocket"
    assert not found.is_idempotent
    assert rows(heads.forward(found, FRONT))[-2:] == [b"Connection: Upgrade", b"Upgrade: websocket"]
    assert asked("GET / HTTP/1.1\nHost: h\nUpgrade: websocket").upgrade is None


def answered(text: str, method: bytes = b"GET") -> tuple[heads.Answered, list[bytes]]:
    reader = h11.Connection(h11.CLIENT)
    reader.send(h11.Request(method=method, target="/", headers=[("Host", "h")]))
    reader.receive_data(text.replace("\n", "\r\n").encode() + b"\r\n\r\n")
    event = reader.next_event()
    assert isinstance(event, h11.Response)
    head = heads.of_response(event)
    found = heads.measure(head, method)
    return found, rows(heads.backward(head, found, old=False, close=False))


def test_how_answers_are_framed() -> None:
    assert answered("HTTP/1.1 200 OK\nContent-Length: 5")[0] == heads.Answered(5, False, True, 200)
    assert answered("HTTP/1.1 200 OK\nContent-Length: 5\nConnection: close")[0].reusable is False
    assert answered("HTTP/1.0 200 OK\nContent-Length: 5")[0].reusable is False
    assert answered("HTTP/1.1 304 N\nContent-Length: 5")[0].length == 0
    found, head = answered("HTTP/1.1 200 OK\nContent-Length: 5", b"HEAD")
    assert (found.length, b"Content-Length: 5" in head) == (0, True)
    found, head = answered("HTTP/1.1 200 OK\nContent-Length: 5\nTransfer-Encoding: chunked")
    assert found == heads.Answered(None, True, True, 200)
    assert head == [b"HTTP/1.1 200 OK", b"Transfer-Encoding: chunked"]
    found, head = answered(
        "HTTP/1.1 200 OK\nSet-Cookie: a=b; Domain=.x.com; Secure\nConnection: X\nX: 1\nKeep-Alive: 5"
    )
    assert found == heads.Answered(None, False, False, 200)
    assert head == [b"HTTP/1.1 200 OK", b"Set-Cookie: a=b; Secure", b"Transfer-Encoding: chunked"]


def test_pages_name_port_and_sandbox() -> None:
    error = InvalidRequest("cannot <b>")
    page = pages.answer(error, Target(80, ID, "secret"), page=True, close=True)
    assert b"80" in page
    assert ID.encode() in page
    assert b"<b>" not in page
    assert b"secret" not in page
    assert pages.answer(error, None, page=False, close=False).startswith(b"HTTP/1.1 400 Bad Request\r\n")


# --- the plainest heads, beside h11 --------------------------------------------------------------------------

NAMES = [
    "Host",
    "host",
    "Content-Length",
    "content-length",
    "Transfer-Encoding",
    "Connection",
    "X-A",
    "Cookie",
    "a b",
    "",
]
VALUES = [
    "h",
    "1",
    "0",
    "01",
    "1, 1",
    "-1",
    "+1",
    "1 1",
    "chunked",
    "close",
    "a\x00",
    "a\tb",
    " a ",
    "",
    "\xe9",
    "a\x7f",
    "a\x0b",
    "99999999999999999999",
    "b\r\n c",
    "b\nX: y",
]
REQUEST_LINES = [
    "GET / HTTP/1.1",
    "GET / HTTP/1.0",
    "get / HTTP/1.1",
    "GET  / HTTP/1.1",
    "GET /a b HTTP/1.1",
    "POST //x?y#z HTTP/1.1",
    "GET /\x7f HTTP/1.1",
    "GET /\xe9 HTTP/1.1",
    "GET / HTTP/1.1 ",
    "\r\nGET / HTTP/1.1",
    "M-SEARCH * HTTP/1.1",
]
STATUS_LINES = [
    "HTTP/1.1 200 OK",
    "HTTP/1.1 200",
    "HTTP/1.1 204 ",
    "HTTP/1.0 200 OK",
    "HTTP/1.1 100 C",
    "HTTP/1.1 304 Not Modified",
    "HTTP/1.1 2000 OK",
    "HTTP/1.1 404 \xe9",
    "HTTP/1.1  200 OK",
    "HTTP/1.1 999 x",
]
FIELDS = st.lists(
    st.tuples(st.sampled_from(NAMES), st.sampled_from([":", ": ", " :", ""]), st.sampled_from(VALUES)), max_size=5
)
ENDS = st.sampled_from(["\r\n", "\r\n", "\r\n", "\n"])


def said(line: str, fields: list[tuple[str, str, str]], end: str) -> bytes:
    return "".join([line, end, *(f"{name}{colon}{value}{end}" for name, colon, value in fields), end, "rest"]).encode(
        "latin-1"
    )


@given(st.sampled_from(REQUEST_LINES), FIELDS, ENDS)
def test_a_plain_request_is_what_h11_reads(line: str, fields: list[tuple[str, str, str]], end: str) -> None:
    data = said(line, fields, end)
    found = plain.request(data)
    if found is None:
        return
    reader = h11.Connection(h11.SERVER)
    reader.receive_data(data)
    event = reader.next_event()
    assert isinstance(event, h11.Request)
    assert found[:3] == (event.method, event.target, event.http_version)
    # h11 makes one of a length that is said twice in one line; such a head is not plain.
    assert found.headers == event.headers.raw_items()
    assert data[found.size :] == reader.trailing_data[0] == b"rest"


@given(st.sampled_from(STATUS_LINES), FIELDS, ENDS)
def test_a_plain_response_is_what_h11_reads(line: str, fields: list[tuple[str, str, str]], end: str) -> None:
    data = said(line, fields, end)
    found = plain.response(data)
    if found is None:
        return
    reader = h11.Connection(h11.CLIENT)
    reader.send(h11.Request(method="GET", target="/", headers=[("Host", "h")]))
    reader.receive_data(data)
    event = reader.next_event()
    assert isinstance(event, h11.Response)
    assert found[:3] == (b"%d" % event.status_code, event.reason, event.http_version)
    assert found.headers == event.headers.raw_items()
    assert data[found.size :] == reader.trailing_data[0] == b"rest"


def test_the_usual_heads_are_plain() -> None:
    data = b"POST /a HTTP/1.1\r\nHost: h\r\nContent-Length: 3\r\nCookie: a=b; c=d\r\nEmpty:\r\n\r\nabc"
    found = plain.request(data)
    assert found is not None
    assert (found.first, found.second, data[found.size :]) == (b"POST", b"/a", b"abc")
    assert found.headers == [(b"Host", b"h"), (b"Content-Length", b"3"), (b"Cookie", b"a=b; c=d"), (b"Empty", b"")]
    for cut in range(len(data) - 3):
        assert plain.request(data[:cut]) is None
    assert plain.response(b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\na") is not None
