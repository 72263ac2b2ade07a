"""Previews of real services in real sandboxes: what a web app needs of HTTP/1.1, and who may come in."""

from __future__ import annotations

import hashlib
import json
import os
import re
import signal
import struct
import threading
import time
import urllib.parse
from collections.abc import Iterator

import pytest
from prometheus_client.parser import text_string_to_metric_families

from sandboxd import AsyncSandbox, Sandbox
from sandboxd.client import AsyncClient, Client, ExposedPort
from sandboxd.errors import (
    InvalidRequest,
    NameTaken,
    PortExposed,
    PortNotFound,
)
from tests.support.daemon import Daemon
from tests.support.previews import Visitor, ask, echoed, kind_of, start_service, websocket_frame
from tests.support.waiting import wait_until

pytestmark = pytest.mark.real


@pytest.fixture(scope="module")
def served(shared: Sandbox) -> Sandbox:
    start_service(shared, 8000)
    return shared


@pytest.fixture(scope="module")
def web(served: Sandbox) -> Iterator[ExposedPort]:
    yield served.expose_port(8000, name="web")
    served.unexpose_port(8000)


# --- the API -------------------------------------------------------------------------------------------------


def test_expose_list_unexpose(client: Client, sandbox: Sandbox) -> None:
    made = sandbox.expose_port(3000, name="app")
    assert re.fullmatch(rf"http://3000-{sandbox.id}-[a-z2-7]{{16}}\.localhost:\d+/", made.url)
    own = sandbox.expose_port(80, token="my_token_1")
    assert own.url.startswith(f"http://80-{sandbox.id}-my_token_1.localhost:")
    public = sandbox.expose_port(65535, public=True)
    assert public.token is None
    assert public.url.startswith(f"http://65535-{sandbox.id}.localhost:")
    assert sandbox.get_exposed_ports() == [own, made, public]
    sandbox.unexpose_port(80)
    assert [port.port for port in sandbox.get_exposed_ports()] == [3000, 65535]
    with pytest.raises(PortNotFound):
        sandbox.unexpose_port(80)
    assert client.info()["previews"].startswith("http://*.localhost:")


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"port": 0}, "port"),
        ({"port": 65536}, "port"),
        ({"port": -1}, "port"),
        ({"port": 1, "name": "no_label"}, "name"),
        ({"port": 1, "name": "-a"}, "name"),
        ({"port": 1, "name": "a" * 64}, "name"),
        ({"port": 1, "token": ""}, "token"),
        ({"port": 1, "token": "UPPER"}, "token"),
        ({"port": 1, "token": "a-b"}, "token"),
        ({"port": 1, "token": "a" * 17}, "token"),
        ({"port": 1, "token": "a\n"}, "token"),
        ({"port": 1, "token": "a", "public": True}, "token"),
    ],
)
def test_bad_input_is_refused_by_name(shared: Sandbox, options: dict[str, object], field: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        shared.expose_port(**options)  # type: ignore[arg-type]
    assert caught.value.field == field


def test_exposing_twice_and_a_name_twice(sandbox: Sandbox) -> None:
    sandbox.expose_port(3000, name="app")
    with pytest.raises(PortExposed):
        sandbox.expose_port(3000)
    with pytest.raises(NameTaken):
        sandbox.expose_port(3001, name="app")
    with pytest.raises(PortNotFound):
        sandbox.unexpose_port(3001)
    with pytest.raises(InvalidRequest):
        sandbox.unexpose_port(0)


async def test_async_sdk(daemon: Daemon) -> None:
    async with AsyncClient(daemon.url) as client, await AsyncSandbox.create(client=client) as sandbox:
        made = await sandbox.expose_port(1234)
        assert await sandbox.get_exposed_ports() == [made]
        assert "/.well-known/sandboxd-preview/" in await sandbox.create_preview_link(1234)
        await sandbox.unexpose_port(1234)
        assert await sandbox.get_exposed_ports() == []


def test_ports_outlive_the_daemon(own_daemon: Daemon) -> None:
    with own_daemon.client() as client:
        sandbox = Sandbox.create(client=client)
        made = sandbox.expose_port(8000, name="web")
        start_service(sandbox, 8000)
        link = sandbox.create_preview_link(8000)
        cookie = ask(link, urllib.parse.urlsplit(link).path)[1]["set-cookie"].split(";")[0]
        sandbox.update(labels={"a": "b"})  # writes the record anew
    own_daemon.stop()
    own_daemon.start()
    with own_daemon.client() as client:
        again = Sandbox.connect(sandbox.id, client=client)
        (found,) = again.get_exposed_ports()
        assert (found.token, found.name) == (made.token, "web")
        assert echoed(found, "/x")["body"] == "/x"
        plain = found.url.replace(f"-{found.token}", "")
        assert ask(plain, "/", f"Cookie: {cookie}")[0] == 200


def test_trailers_pass_but_for_those_that_may_not_follow_a_body(web: ExposedPort) -> None:
    with Visitor(web) as visitor:
        head = ["Transfer-Encoding: chunked", "Trailer: X-Sum", "Connection: TE", "TE: trailers, deflate"]
        visitor.ask("/trailers", "POST", b"", *head)
        visitor.send(b"3\r\nabc\r\n0\r\nX-Sum: 9\r\nHost: other\r\nContent-Length: 3\r\nX-Forwarded-For: 1.2.3.4\r\n")
        visitor.send(b"Cookie: a=b\r\nX-Sandboxd-Token: t\r\nAuthorization: x\r\nIf-Match: *\r\n\r\n")
        status, headers, body = visitor.answer()
        told = json.loads(body)
        assert (status, headers["trailer"]) == (200, "X-Sum")
        assert told["trailers"] == ["X-Sum: 9"]
        assert {"Trailer: X-Sum", "Connection: TE", "TE: trailers"} <= set(told["rows"])
        assert visitor.trailers == ["X-Sum: 7"]
        visitor.ask("/")  # the connection is good for another
        assert visitor.answer()[0] == 200
    with Visitor(web) as old:
        old.send(f"GET /trailers HTTP/1.0\r\nHost: {old.host}\r\n\r\n".encode())
        assert b"X-Sum: 7" not in old.rest()


# --- who may come in -----------------------------------------------------------------------------------------


def test_a_wrong_token_and_a_port_that_is_not_exposed_look_the_same(served: Sandbox, web: ExposedPort) -> None:
    assert web.token
    without = web.url.replace(f"-{web.token}", "")
    hosts = [
        without,
        web.url.replace(web.token, "wrong"),
        web.url.replace("//8000-", "//8001-"),
        web.url.replace(served.id, "a" * 20),
    ]
    seen = {(status, re.sub(rb'"(port|sandbox)": "?[a-z0-9]+"?', b"", body)) for status, _, body in map(ask, hosts)}
    assert len(seen) == 1, seen
    (status, body) = seen.pop()
    assert status == 404
    assert b"preview-not-found" in body
    for host in ("localhost", "127.0.0.1", f"{served.id}.localhost", f"x.8000-{served.id}.localhost", "[::1]:8080"):
        assert ask(web, host=host)[0] == 404


def test_the_token_may_come_in_a_header_that_the_service_never_sees(web: ExposedPort) -> None:
    without = web.url.replace(f"-{web.token}", "")
    told = echoed(without, "/", f"X-Sandboxd-Token: {web.token}", "X-Other: 1")
    assert "X-Other: 1" in told["rows"]
    assert not any("sandboxd-token" in row.lower() or str(web.token) in row for row in told["rows"])
    assert ask(without, "/", "X-Sandboxd-Token: wrong")[0] == 404
    assert ask(without, "/", "X-Sandboxd-Token: \xff")[0] == 404


def test_a_link_works_once_and_leaves_a_cookie(served: Sandbox, web: ExposedPort) -> None:
    link = served.create_preview_link(8000)
    assert str(web.token) not in link
    path = urllib.parse.urlsplit(link).path
    status, headers, _ = ask(link, path)
    assert (status, headers["location"]) == (303, "/")
    cookie, *flags = headers["set-cookie"].split("; ")
    assert set(flags) == {"Path=/", "HttpOnly", "SameSite=Lax"}
    assert ask(link, path)[0] == 404
    told = echoed(link, "/", f"Cookie: mine=1; {cookie}; other=2")
    assert "Cookie: mine=1; other=2" in told["rows"]
    told = echoed(link, "/", f"Cookie: sandboxd_preview=planted; {cookie}")
    assert not any(row.lower().startswith("cookie") for row in told["rows"])
    assert ask(link, "/", "Cookie: sandboxd_preview=planted")[0] == 404
    other = served.expose_port(8001)
    try:
        assert ask(other.url.replace(f"-{other.token}", ""), "/", f"Cookie: {cookie}")[0] == 404
    finally:
        served.unexpose_port(8001)


def test_a_public_port_needs_nothing(sandbox: Sandbox) -> None:
    public = sandbox.expose_port(8000, public=True)
    assert ask(public)[0] == 502
    assert ask(public.url.replace(".localhost", "-token.localhost"))[0] == 404
    with pytest.raises(InvalidRequest):
        sandbox.create_preview_link(8000)


def test_the_hosts_name_may_be_written_large(web: ExposedPort) -> None:
    assert ask(web, host=urllib.parse.urlsplit(web.url).netloc.upper())[0] == 200
    assert ask(web, host=urllib.parse.urlsplit(web.url).netloc.replace("localhost", "localhost."))[0] == 200


# --- HTTP/1.1 ------------------------------------------------------------------------------------------------


def test_requests_follow_each_other_on_one_connection(web: ExposedPort) -> None:
    with Visitor(web) as visitor:
        for n in range(5):
            visitor.ask(f"/{n}")
            assert json.loads(visitor.answer()[2])["body"] == f"/{n}"
        for n in range(5):  # pipelined
            visitor.ask(f"/{n}", "POST" if n % 2 else "GET", b"x" * n)
        assert [json.loads(visitor.answer()[2])["size"] for _ in range(5)] == [0, 1, 2, 3, 4]


def test_bodies_in_chunks_both_ways(web: ExposedPort) -> None:
    with Visitor(web) as visitor:
        visitor.ask("/", "POST", b"", "Transfer-Encoding: chunked")
        data = os.urandom(300_000)
        for start in range(0, len(data), 7_001):
            piece = data[start : start + 7_001]
            visitor.send(f"{len(piece):X};ext=1\r\n".encode() + piece + b"\r\n")
        visitor.send(b"0\r\nX-Trailer: 1\r\n\r\n")
        told = json.loads(visitor.answer()[2])
        assert told["sha256"] == hashlib.sha256(data).hexdigest()
        visitor.ask("/chunks?1")
        status, headers, body = visitor.answer()
        assert (status, headers["transfer-encoding"]) == (200, "chunked")
        assert body.startswith(b"data: 0 ")


@pytest.mark.parametrize("size", [1, 65_536, 65_537, 200_000, 50_000_000])
def test_bodies_of_any_size(web: ExposedPort, size: int) -> None:
    data = os.urandom(min(size, 1 << 20)) * (size // (1 << 20) + 1)
    data = data[:size]
    with Visitor(web, timeout=60) as visitor:
        visitor.ask("/", "PUT", data)
        told = json.loads(visitor.answer()[2])
        assert (told["size"], told["sha256"]) == (size, hashlib.sha256(data).hexdigest())
        visitor.ask(f"/large?{size}")
        _, headers = visitor.head()
        assert headers["content-length"] == str(size)
        body = visitor.take(size)
        block = bytes(range(256)) * 4096
        assert hashlib.sha256(body).digest() == hashlib.sha256((block * (size // len(block) + 1))[:size]).digest()
        visitor.ask("/after")
        assert json.loads(visitor.answer()[2])["body"] == "/after"


def test_head_expect_and_range(web: ExposedPort) -> None:
    with Visitor(web) as visitor:
        visitor.ask("/", "HEAD")
        status, headers, _ = visitor.answer(is_head=True)
        assert (status, headers["content-length"]) == (200, "12345")
        visitor.send(
            f"POST / HTTP/1.1\r\nHost: {visitor.host}\r\nExpect: 100-continue\r\nContent-Length: 3\r\n\r\n".encode()
        )
        assert visitor.head()[0] == 100
        visitor.send(b"abc")
        assert json.loads(visitor.answer()[2])["size"] == 3
        visitor.ask("/", "GET", b"", "Range: bytes=0-5")
        assert "Range: bytes=0-5" in json.loads(visitor.answer()[2])["rows"]
        visitor.send(
            f"POST /no HTTP/1.1\r\nHost: {visitor.host}\r\nExpect: 100-continue\r\n".encode()
            + b"Content-Length: 9999999\r\n\r\n"
        )
        status, headers, body = visitor.answer()
        assert (status, headers["connection"], body) == (417, "close", b"not wanted")
        assert visitor.is_closed()


def test_an_answer_that_only_its_end_tells(web: ExposedPort) -> None:
    with Visitor(web) as visitor:
        visitor.ask("/rest")
        assert visitor.answer()[2] == b"to the end"
        visitor.ask("/again")
        assert visitor.answer()[0] == 200
    with Visitor(web) as visitor:
        visitor.send(f"GET /rest HTTP/1.0\r\nHost: {visitor.host}\r\n\r\n".encode())
        assert visitor.rest().endswith(b"\r\n\r\nto the end")
    with Visitor(web) as visitor:
        visitor.send(f"GET /chunks?1 HTTP/1.0\r\nHost: {visitor.host}\r\n\r\n".encode())
        head, _, body = visitor.rest().partition(b"\r\n\r\n")
        assert b"chunked" not in head.lower()
        assert body.startswith(b"data: 0 ")


def test_events_come_as_they_happen(web: ExposedPort) -> None:
    with Visitor(web) as visitor:
        visitor.ask("/chunks?8")
        visitor.head()
        delays = []
        while piece := visitor.chunk():
            delays.append(time.time() - float(piece.split()[2]))
        assert len(delays) == 8
        assert delays[0] < 1.2, delays  # they are 0.2 s apart: the last is not written yet


def open_websocket(visitor: Visitor) -> None:
    visitor.ask(
        "/ws", "GET", b"", "Connection: keep-alive, Upgrade", "Upgrade: websocket", "Sec-WebSocket-Version: 13",
        "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
    )  # fmt: skip
    status, headers = visitor.head()
    assert (status, headers["upgrade"], headers["connection"]) == (101, "websocket", "Upgrade")
    assert headers["sec-websocket-accept"] == "s3pPLMBiTxaQ9kYGzzhZRbK+xOo="


def test_websockets_with_pings_and_close_codes(web: ExposedPort) -> None:
    with Visitor(web) as visitor:
        open_websocket(visitor)
        visitor.send(websocket_frame(1, b"hello") + websocket_frame(9, b"ping"))
        assert visitor.take(7) == b"\x81\x05hello"
        assert visitor.take(6) == b"\x8a\x04ping"
        binary = os.urandom(5_000)
        visitor.send(websocket_frame(2, binary))
        assert visitor.take(5_004) == b"\x82\x7e\x13\x88" + binary
        visitor.send(websocket_frame(8, struct.pack("!H", 4000)))
        assert visitor.take(7) == b"\x88\x05" + struct.pack("!H", 4001) + b"bye"
        assert visitor.is_closed()


def test_any_upgrade_passes_bytes_in_bulk_and_ends_each_way(web: ExposedPort) -> None:
    with Visitor(web) as visitor:
        visitor.ask("/upgrade", "GET", b"", "Connection: upgrade", "Upgrade: echo")
        visitor.send(b"early")
        assert visitor.head()[0] == 101
        assert visitor.take(5) == b"EARLY"
        data = b"abcdefgh" * 1_000_000
        writer = threading.Thread(target=lambda: (visitor.send(data), visitor.sock.shutdown(1)))
        writer.start()
        assert visitor.take(len(data)) == data.upper()
        writer.join()
        assert visitor.rest() == b"END"


def test_hop_by_hop_headers_stay_here(web: ExposedPort) -> None:
    told = echoed(
        web, "/", "Connection: keep-alive, X-Auth, Host, Content-Length", "X-Auth: 1", "Keep-Alive: timeout=5",
        "TE: trailers", "Proxy-Authorization: Basic eA==", "Proxy-Connection: keep-alive", "X-Kept: 1",
        "Authorization: Bearer own",
    )  # fmt: skip
    names = {row.partition(":")[0].lower() for row in told["rows"]}
    ours = {"x-forwarded-for", "x-forwarded-host", "x-forwarded-proto", "x-original-url", "x-sandbox-name"}
    assert names == {"host", "x-kept", "authorization"} | ours
    assert ask(web, "/cookie")[1]["set-cookie"] in ("a=1; Path=/", "b=2; HttpOnly")
    with Visitor(web) as visitor:
        visitor.ask("/cookie")
        head = visitor.until(b"\r\n\r\n")
        assert b"Set-Cookie: a=1; Path=/\r\n" in head + b"\r\n"


def test_forwarded_headers_of_a_stranger_are_not_believed(web: ExposedPort) -> None:
    rows = echoed(web, "/", "X-Forwarded-For: 1.2.3.4", "X-Forwarded-Proto: https", "Forwarded: for=1", "X-Real-IP: 1")[
        "rows"
    ]
    told = dict(row.split(": ", 1) for row in rows)
    assert (told["X-Forwarded-For"], told["X-Forwarded-Proto"]) == ("127.0.0.1", "http")
    assert not {"Forwarded", "X-Real-IP"} & set(told)


# --- services ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "0.0.0.0", "::"])
def test_services_that_listen_anywhere_and_start_late(sandbox: Sandbox, host: str) -> None:
    port = sandbox.expose_port(80)
    status, headers, body = ask(port)
    assert (status, kind_of(body)) == (502, "port-closed")
    status, headers, body = ask(port, "/", "Accept: text/html,*/*")
    assert headers["content-type"].startswith("text/html")
    assert b"80" in body
    assert sandbox.id.encode() in body
    process = start_service(sandbox, 80, host)
    assert echoed(port)["size"] == 0
    sandbox.kill_process(process)
    assert ask(port)[0] == 502
    start_service(sandbox, 80, host)
    assert echoed(port)["size"] == 0


def test_frozen_is_told_and_thawed_works(sandbox: Sandbox) -> None:
    start_service(sandbox, 8000)
    port = sandbox.expose_port(8000)
    with Visitor(port) as visitor:
        visitor.ask("/")
        assert visitor.answer()[0] == 200
        sandbox.freeze()
        visitor.ask("/")
        status, _, body = visitor.answer()
        assert (status, kind_of(body)) == (409, "sandbox-frozen")
        other = sandbox.expose_port(8001)
        assert ask(other)[0] == 409
        sandbox.thaw()
        visitor.ask("/")
        assert visitor.answer()[0] == 200


def test_destroyed_is_gone(client: Client) -> None:
    sandbox = Sandbox.create(client=client)
    start_service(sandbox, 8000)
    port = sandbox.expose_port(8000)
    with Visitor(port) as visitor:
        visitor.ask("/forever")
        visitor.head()
        assert visitor.chunk() == b"first"
        sandbox.destroy()
        assert visitor.is_closed()
    status, _, body = ask(port)
    assert (status, kind_of(body)) == (410, "preview-gone")
    assert ask(port.url.replace(str(port.token), "wrong"))[0] == 404


def test_destroyed_stays_gone_over_a_restart(own_daemon: Daemon) -> None:
    with own_daemon.client() as client:
        gone, dead, lives = (Sandbox.create(client=client) for _ in range(3))
        ports = [sandbox.expose_port(8000) for sandbox in (gone, dead, lives)]
        gone.destroy()
        init = int((own_daemon.cgroup() / dead.id / "init" / "cgroup.procs").read_text())
        own_daemon.signal(signal.SIGKILL)
        os.kill(init, signal.SIGKILL)
        for _ in range(2):
            own_daemon.start()
            where = client.info()["previews"].rpartition(":")[2].rstrip("/")
            urls = [re.sub(r":\d+/$", f":{where}/", port.url) for port in ports]
            assert [kind_of(ask(url)[2]) for url in urls] == ["preview-gone", "preview-gone", "port-closed"]
            assert ask(urls[0].replace(str(ports[0].token), "wrong"))[0] == 404
            own_daemon.stop()
    own_daemon.start()


def test_unexposing_cuts_what_is_open(sandbox: Sandbox) -> None:
    start_service(sandbox, 8000)
    port = sandbox.expose_port(8000)
    with Visitor(port) as stream, Visitor(port) as socket:
        stream.ask("/forever")
        stream.head()
        assert stream.chunk() == b"first"
        open_websocket(socket)
        (use,) = sandbox.stats().ports
        assert (use.active, use.requests) == (2, 2)
        sandbox.unexpose_port(8000)
        assert stream.is_closed()
        assert socket.is_closed()
    assert ask(port)[0] == 404
    assert sandbox.stats().ports == ()
    again = sandbox.expose_port(8000)
    assert again.token != port.token
    assert echoed(again)["size"] == 0
    assert ask(port)[0] == 404


def test_a_service_hears_that_its_visitor_left(sandbox: Sandbox) -> None:
    start_service(sandbox, 8000)
    port = sandbox.expose_port(8000)
    with Visitor(port) as visitor:
        visitor.ask("/forever")
        visitor.head()
        assert visitor.chunk() == b"first"
    wait_until(lambda: json.loads(ask(port, "/events")[2])["cut"] == 1)


def test_counters(sandbox: Sandbox, client: Client) -> None:
    start_service(sandbox, 8000)
    port = sandbox.expose_port(8000)
    ask(port, "/", method="POST", body=b"x" * 1000)
    ask(port, "/large?500000")
    with Visitor(port) as visitor:
        open_websocket(visitor)
        visitor.send(websocket_frame(1, b"hello"))
        visitor.take(7)
        (use,) = sandbox.stats().ports
        families = list(text_string_to_metric_families(client.metrics()))
    assert (use.port, use.requests, use.active) == (8000, 3, 1)
    assert 1 <= use.connections <= 3  # the socket's, and those that wait for a while
    assert use.bytes_in == 1000 + 11
    assert 500_000 + 7 < use.bytes_out < 501_500
    told = {
        sample.name.removeprefix("sandboxd_port_"): sample.value
        for family in families
        for sample in family.samples
        if sample.labels == {"sandbox": sandbox.id, "port": "8000"}
    }
    assert told.pop("dials_total") >= 1
    assert 1 <= told.pop("connections") <= 3
    assert told == {
        "requests_total": use.requests,
        "receive_bytes_total": use.bytes_in,
        "transmit_bytes_total": use.bytes_out,
        "active": 1,
    }


def test_connections_are_counted_while_they_are_open(sandbox: Sandbox, client: Client) -> None:
    start_service(sandbox, 8000)
    port = sandbox.expose_port(8000)
    with Visitor(port) as visitor:
        open_websocket(visitor)
        assert sandbox.stats().ports[0].connections == 1
        sandbox.unexpose_port(8000)
    sandbox.expose_port(8000)
    assert sandbox.stats().ports[0].connections == 0
    totals = [
        sample.value
        for family in text_string_to_metric_families(client.metrics(sandboxes=False))
        for sample in family.samples
        if sample.name == "sandboxd_preview_requests_total"
    ]
    assert totals[0] >= 1


@pytest.mark.parametrize(
    "said", [b"nonsense\r\n\r\n", b"", b"HTTP/1.1 200 OK\r\nContent-Length: x\r\n\r\n", b"HTTP/1.1 101 Now\r\n\r\n",
             b"HTTP/1.1 200 OK\r\nA: " + b"x" * 70_000, b"SSH-2.0-x\r\n"],
)  # fmt: skip
def test_a_service_that_is_none(sandbox: Sandbox, said: bytes) -> None:
    line = f"""
import socket
listener = socket.create_server(("127.0.0.1", 9))
print("up", flush=True)
while True:
    sock, _ = listener.accept()
    sock.recv(9999)
    sock.sendall({said!r})
    sock.close()
"""
    process = sandbox.start_process(["python3", "-c", line])
    assert sandbox.wait_for_log(process.id, "up", timeout=100).met
    port = sandbox.expose_port(9)
    status, _, body = ask(port)
    assert (status, kind_of(body)) == (502, "upstream-broken")


def test_an_answer_that_breaks_off_is_cut_and_never_mended(web: ExposedPort) -> None:
    import base64

    for said in (
        b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nabc",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n5\r\nx",
    ):
        with Visitor(web) as visitor:
            visitor.ask("/bad?" + base64.urlsafe_b64encode(said).decode())
            assert visitor.head()[0] == 200
            assert b"0\r\n\r\n" not in visitor.rest()
    # What comes after an answer is no answer to the next request.
    said = b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\naHTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nplant"
    with Visitor(web) as visitor:
        for _ in range(2):
            visitor.ask("/bad?" + base64.urlsafe_b64encode(said).decode())
            assert visitor.answer()[2] == b"a"
        visitor.ask("/own")
        assert json.loads(visitor.answer()[2])["body"] == "/own"
