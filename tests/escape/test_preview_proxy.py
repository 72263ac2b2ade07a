"""Hostile visitors, services and neighbours of the preview proxy; and what a service behind it can reach."""

from __future__ import annotations

import json
import pathlib
import socket
import threading
import time
import urllib.parse
from collections.abc import Iterator

import pytest

from sandboxd import Sandbox
from sandboxd.client import Client, ExposedPort
from tests.support.daemon import Daemon
from tests.support.previews import Visitor, ask, echoed, kind_of, start_service

pytestmark = [pytest.mark.real, pytest.mark.slow]

TOKEN = "the-api-token-of-this-daemon"


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    """A daemon with an API over TCP, whose token must never reach a sandbox."""
    directory = tmp_path_factory.mktemp("row33")
    token = directory / "token"
    token.write_text(TOKEN)
    daemon = Daemon(directory / "d", options=("--listen", "127.0.0.1:0", "--token-file", str(token)))
    daemon.start()
    yield daemon
    daemon.close()


@pytest.fixture(scope="module")
def pair(guarded: Daemon) -> Iterator[tuple[ExposedPort, ExposedPort, Sandbox, Sandbox]]:
    """Two tenants' previews and sandboxes."""
    with guarded.client() as client, Sandbox.create(client=client) as one, Sandbox.create(client=client) as two:
        for sandbox in (one, two):
            start_service(sandbox, 8000)
        yield one.expose_port(8000), two.expose_port(8000), one, two


def preview_port(port: ExposedPort) -> int:
    return urllib.parse.urlsplit(port.url).port or 0


def test_only_what_is_exposed_is_reached(pair: tuple[ExposedPort, ExposedPort, Sandbox, Sandbox]) -> None:
    port, _, one, _ = pair
    listener = preview_port(port)
    for host in (
        f"22-{one.id}.localhost",
        f"22-{one.id}-{port.token}.localhost",
        f"{listener}-{one.id}-{port.token}.localhost",
        f"8000-{one.id}.localhost",
        f"8000-{one.id}-{port.token}.localhost.example.com",
        "localhost",
        f"127.0.0.1:{listener}",
    ):
        assert ask(port, host=host)[0] == 404, host


def test_the_daemons_own_ports_are_the_sandboxs_own(pair: tuple[ExposedPort, ExposedPort, Sandbox, Sandbox]) -> None:
    """An exposed port of the proxy's own number, or the API's, is the sandbox's port, where nobody listens."""
    port, _, one, _ = pair
    found = []
    for line in pathlib.Path("/proc/net/tcp").read_text().splitlines()[1:]:
        row = line.split()
        if row[3] == "0A" and row[1].startswith("0100007F"):
            found.append(int(row[1].split(":")[1], 16))
    assert preview_port(port) in found
    for number in found[:40]:
        if number == 8000:
            continue
        own = one.expose_port(number)
        try:
            assert ask(own, "/v1/info")[0] == 502, number
        finally:
            one.unexpose_port(number)


SMUGGLED = [
    b"POST / HTTP/1.1\r\nHost: %h\r\nContent-Length: 6\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\nG",
    b"POST / HTTP/1.1\r\nHost: %h\r\nTransfer-Encoding: chunked\r\nContent-Length: 3\r\n\r\n8\r\nSMUGGLED\r\n0\r\n\r\n",
    b"POST / HTTP/1.1\r\nHost: %h\r\nTransfer-Encoding: xchunked\r\n\r\n0\r\n\r\n",
    b"POST / HTTP/1.1\r\nHost: %h\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n\r\n0\r\n\r\n",
    b"POST / HTTP/1.1\r\nHost: %h\r\nTransfer-Encoding:\x0bchunked\r\n\r\n0\r\n\r\n",
    b"POST / HTTP/1.1\r\nHost: %h\r\nTransfer-Encoding : chunked\r\n\r\n0\r\n\r\n",
    b"POST / HTTP/1.1\r\nHost: %h\r\nContent-Length: 3\r\nContent-Length: 4\r\n\r\nabcd",
    b"POST / HTTP/1.1\r\nHost: %h\r\nContent-Length: 3, 4\r\n\r\nabcd",
    b"POST / HTTP/1.1\r\nHost: %h\r\nTransfer-Encoding: chunked\r\n\r\nZ\r\nabc\r\n0\r\n\r\n",
    b"POST / HTTP/1.1\r\nHost: %h\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabcdef\r\n0\r\n\r\n",
    b"POST / HTTP/1.1\r\nHost: %h\r\nTransfer-Encoding: chunked\r\n\r\n-3\r\nabc\r\n0\r\n\r\n",
    b"POST / HTTP/1.1\r\nHost: %h\r\nTransfer-Encoding: chunked\r\n\r\n0x3\r\nabc\r\n0\r\n\r\n",
    b"POST / HTTP/1.1\r\nHost: %h\r\nTransfer-Encoding: chunked\r\n\r\n3\nabc\n0\n\n" + b"\r\n" * 9,
    b"POST / HTTP/1.1\r\nHost: %h\r\nTransfer-Encoding: chunked\r\n\r\nffffffffffffffffffffff\r\nabc",
    b"GET http://%h/ HTTP/1.1\r\nHost: %h\r\n\r\n",
    b"GET http://127.0.0.1/v1/info HTTP/1.1\r\nHost: %h\r\n\r\n",
    b"GET @evil/ HTTP/1.1\r\nHost: %h\r\n\r\n",
    b"CONNECT 127.0.0.1:22 HTTP/1.1\r\nHost: %h\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: %h\r\nHost: localhost\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: %h, localhost\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: %h/\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: x@%h\r\n\r\n",
    b"GET / HTTP/1.1\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: %h\r\nA: b\rX: y\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: %h\r\nA: b\x00\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: %h\r\nA b: c\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: %h\r\n: c\r\n\r\n",
    b"GET /a b HTTP/1.1\r\nHost: %h\r\n\r\n",
    b"GET / HTTP/9.9\r\nHost: %h\r\n\r\n",
    b"GET / HTTP/1.1\r\n Host: %h\r\n\r\n",
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\x00" * 40 + b"\r\n\r\n",
]


@pytest.mark.parametrize("said", SMUGGLED, ids=range(len(SMUGGLED)))
def test_smuggling_is_refused(pair: tuple[ExposedPort, ExposedPort, Sandbox, Sandbox], said: bytes) -> None:
    """Refused with 400 and the connection closed, so that what was hidden behind it is never read as a request."""
    port, other, _, _ = pair
    hidden = b"GET /hidden HTTP/1.1\r\nHost: %b\r\n\r\n" % urllib.parse.urlsplit(other.url).netloc.encode()
    with Visitor(port) as visitor:
        visitor.send(said.replace(b"%h", visitor.host.encode()) + hidden)
        answer = visitor.rest()
    assert answer.startswith(b"HTTP/1.1 400 "), answer[:200]
    assert answer.count(b"\r\n\r\n") == 1, answer
    assert b"hidden" not in answer


def test_paths_are_passed_as_they_are_and_reach_the_service_only(
    pair: tuple[ExposedPort, ExposedPort, Sandbox, Sandbox],
) -> None:
    port = pair[0]
    for path in ("//127.0.0.1/v1/info", "/../../v1/info", "/%2e%2e/v1/info", "/v1/info", "/\\v1", "//@evil"):
        assert echoed(port, path)["line"] == f"GET {path} HTTP/1.1"


def test_requests_on_one_connection_never_cross(pair: tuple[ExposedPort, ExposedPort, Sandbox, Sandbox]) -> None:
    """A front proxy's reused connection: each request goes where its own Host says, pipelined or not."""
    one, two, *_ = pair
    hosts = [urllib.parse.urlsplit(port.url).netloc for port in (one, two)]
    with Visitor(one) as visitor:
        order = [n * 7 % 3 % 2 for n in range(60)]
        for chosen in order:
            visitor.ask(f"/{chosen}", host=hosts[chosen])
        for chosen in order:
            told = json.loads(visitor.answer()[2])
            assert f"Host: {hosts[chosen]}" in told["rows"]
            assert told["body"] == f"/{chosen}"
        visitor.ask("/", host=hosts[1].replace(str(two.token), str(one.token)))
        assert visitor.answer()[0] == 404


def test_a_refused_upgrade_is_no_tunnel(pair: tuple[ExposedPort, ExposedPort, Sandbox, Sandbox]) -> None:
    """Reuse after an upgrade that the service did not take: what follows is a request, with a Host of its own."""
    one, two, *_ = pair
    with Visitor(one) as visitor:
        visitor.ask("/plain", "GET", b"", "Connection: Upgrade", "Upgrade: websocket", "Sec-WebSocket-Version: 777")
        assert visitor.answer()[0] == 200
        visitor.ask("/hidden", host=f"8000-{pair[3].id}.localhost")
        assert visitor.answer()[0] == 404
        visitor.ask("/next", host=urllib.parse.urlsplit(two.url).netloc)
        assert json.loads(visitor.answer()[2])["body"] == "/next"


def test_no_header_routes(pair: tuple[ExposedPort, ExposedPort, Sandbox, Sandbox]) -> None:
    one, two, _, other = pair
    netloc = urllib.parse.urlsplit(two.url).netloc
    rows = [f"{name}: {other.id}" for name in ("E2b-Sandbox-Id", "X-Sandbox-Id")]
    rows += [f"{name}: {netloc}" for name in ("X-Forwarded-Host", "X-Original-Host", "X-Host")]
    rows += [f"Forwarded: host={netloc}", f"X-Sandboxd-Token: {two.token}", "E2b-Sandbox-Port: 22"]
    told = echoed(one, "/", *rows)
    assert f"Host: {urllib.parse.urlsplit(one.url).netloc}" in told["rows"]
    assert f"X-Forwarded-Host: {netloc}" not in told["rows"]
    assert not any(str(two.token) in row for row in told["rows"] if row.startswith("X-Sandboxd"))


def test_connection_cannot_take_away_what_we_say(pair: tuple[ExposedPort, ExposedPort, Sandbox, Sandbox]) -> None:
    told = echoed(pair[0], "/", "Connection: X-Forwarded-For, X-Forwarded-Proto, Host, X-Auth, close", "X-Auth: 1")
    names = {row.partition(":")[0] for row in told["rows"]}
    ours = {"X-Forwarded-For", "X-Forwarded-Host", "X-Forwarded-Proto", "X-Original-URL", "X-Sandbox-Name"}
    assert names == {"Host"} | ours


def test_the_apis_token_never_reaches_a_sandbox(pair: tuple[ExposedPort, ExposedPort, Sandbox, Sandbox]) -> None:
    told = echoed(
        pair[0], "/", f"Authorization: Bearer {TOKEN}", f"X-API-Key: {TOKEN}", f"Cookie: key={TOKEN}", "X-Kept: 1"
    )
    assert TOKEN not in json.dumps(told)
    assert "X-Kept: 1" in told["rows"]
    told = echoed(pair[0], "/", "Authorization: Bearer of-the-app")
    assert "Authorization: Bearer of-the-app" in told["rows"]


def test_the_api_does_not_live_at_a_preview(pair: tuple[ExposedPort, ExposedPort, Sandbox, Sandbox]) -> None:
    for path in ("/v1/info", "/v1/sandboxes", "/v1/health"):
        status, headers, body = ask(pair[0], path, f"Authorization: Bearer {TOKEN}", host="localhost")
        assert (status, kind_of(body)) == (404, "preview-not-found")
        assert "set-cookie" not in headers


def test_a_slow_head_and_idle_connections_stop_nobody(guarded: Daemon, client: Client) -> None:
    """A slowloris of 300, and 2,000 connections that say nothing: others are answered as before."""
    with guarded.client() as client_, Sandbox.create(client=client_) as sandbox:
        start_service(sandbox, 8000)
        port = sandbox.expose_port(8000)
        listener = preview_port(port)
        idle = [socket.create_connection(("127.0.0.1", listener)) for _ in range(2000)]
        slow = [socket.create_connection(("127.0.0.1", listener)) for _ in range(300)]
        stop = threading.Event()

        def drip() -> None:
            while not stop.wait(0.5):
                for sock in slow:
                    try:
                        sock.send(b"G" if sock is slow[0] else b"A")
                    except OSError:
                        continue

        for sock in slow:
            sock.send(b"GET / HTTP/1.1\r\nHost: x\r\n")
        dripping = threading.Thread(target=drip)
        dripping.start()
        try:
            times = []
            for _ in range(50):
                began = time.monotonic()
                assert echoed(port)["size"] == 0
                times.append(time.monotonic() - began)
            assert sorted(times)[25] < 0.5, sorted(times)[25]
            # A head has 20 s, however often something of it comes.
            end = time.monotonic() + 40
            slow[-1].settimeout(40)
            heard = slow[-1].recv(9999)
            assert time.monotonic() < end
            assert heard == b"" or heard.startswith(b"HTTP/1.1 408 "), heard
        finally:
            stop.set()
            dripping.join()
            for sock in (*idle, *slow):
                sock.close()


def test_a_large_head_is_refused(pair: tuple[ExposedPort, ExposedPort, Sandbox, Sandbox]) -> None:
    with Visitor(pair[0]) as visitor:
        visitor.send(f"GET / HTTP/1.1\r\nHost: {visitor.host}\r\n".encode() + b"A: " + b"x" * 80_000)
        status, _, body = visitor.answer()
        assert (status, kind_of(body)) == (431, "header-too-large")


def test_one_sandbox_cannot_take_every_connection(pair: tuple[ExposedPort, ExposedPort, Sandbox, Sandbox]) -> None:
    one, two, *_ = pair
    held = []
    try:
        for _ in range(512):
            visitor = Visitor(one)
            held.append(visitor)
            visitor.ask("/forever")
        for visitor in held:
            assert visitor.head()[0] == 200
        status, headers, body = ask(one)
        assert (status, kind_of(body), headers["retry-after"]) == (503, "server-busy", "1")
        assert echoed(two)["size"] == 0
    finally:
        for visitor in held:
            visitor.sock.close()


def test_memory_stays_bounded_by_a_reader_that_stops(
    guarded: Daemon, pair: tuple[ExposedPort, ExposedPort, Sandbox, Sandbox]
) -> None:
    assert guarded.process
    status = pathlib.Path(f"/proc/{guarded.process.pid}/status")

    def resident() -> int:
        return int(status.read_text().split("VmRSS:")[1].split()[0])

    before = resident()
    held = [Visitor(pair[0]) for _ in range(20)]
    try:
        for n, visitor in enumerate(held):
            visitor.ask(
                "/large?1000000000" if n % 2 else "/",
                "GET" if n % 2 else "PUT",
                b"",
                *([] if n % 2 else ["Transfer-Encoding: chunked"]),
            )
        for visitor in held[::2]:
            visitor.send(b"100000\r\n" + b"x" * 0x100000 + b"\r\n")
        end = time.monotonic() + 3
        while time.monotonic() < end:
            assert echoed(pair[1])["size"] == 0
        assert resident() - before < 40_000, (before, resident())
    finally:
        for visitor in held:
            visitor.sock.close()


# --- what a service can reach --------------------------------------------------------------------------------


def test_a_socket_from_the_launcher_is_of_the_sandboxs_network(
    pair: tuple[ExposedPort, ExposedPort, Sandbox, Sandbox],
) -> None:
    """What the proxy's connections look like from inside: loopback, both ends, and no route to anywhere else."""
    one = pair[2]
    assert echoed(pair[0])["size"] == 0
    rows = one.exec("cat /proc/net/tcp /proc/net/tcp6").check().stdout.splitlines()
    peers = {row.split()[2].split(":")[0] for row in rows if ":1F40 " in row.split()[1] + " "}
    assert peers <= {"0100007F", "00000000"}
    for host in ("169.254.169.254", "10.0.0.1", "192.168.0.1", "8.8.8.8"):
        result = one.exec(["python3", "-c", f"import socket;socket.create_connection(({host!r},80),2)"])
        assert "Network is unreachable" in result.stderr
