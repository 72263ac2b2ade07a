"""Previews as an operator sets them up: TLS, a domain, a front proxy that is trusted, waking, several daemons, none."""

from __future__ import annotations

import contextlib
import json
import os
import pathlib
import shutil
import signal
import socket
import ssl
import subprocess
import threading
import urllib.parse
from collections.abc import Iterator

import pytest

from sandboxd import Sandbox
from sandboxd.client import ExposedPort
from sandboxd.errors import NotAvailable
from tests.support.daemon import Daemon
from tests.support.previews import Visitor, ask, echoed, start_service, websocket_frame

pytestmark = [pytest.mark.real, pytest.mark.slow]


@contextlib.contextmanager
def daemon_with(directory: pathlib.Path, lines: str = "", *options: str) -> Iterator[Daemon]:
    directory.mkdir(exist_ok=True)
    config = directory / "previews.toml"
    config.write_text(lines)
    daemon = Daemon(directory / "d", options=("--config", str(config), *options))
    daemon.start()
    try:
        yield daemon
    finally:
        daemon.close()


def certificate(directory: pathlib.Path, domain: str) -> tuple[pathlib.Path, pathlib.Path]:
    cert, key = directory / "cert.pem", directory / "key.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2"]
        + ["-subj", f"/CN={domain}", "-addext", f"subjectAltName=DNS:*.{domain}", "-keyout", key, "-out", cert],
        check=True,
        capture_output=True,
    )
    key.chmod(0o600)
    return cert, key


class TlsVisitor(Visitor):
    def __init__(self, port: ExposedPort, cert: pathlib.Path) -> None:
        super().__init__(port)
        context = ssl.create_default_context(cafile=str(cert))
        self.sock = context.wrap_socket(self.sock, server_hostname=self.host.partition(":")[0])


def test_tls_with_a_domain_of_ones_own(tmp_path: pathlib.Path) -> None:
    cert, key = certificate(tmp_path, "preview.example.com")
    with socket.create_server(("127.0.0.1", 0)) as free:
        listener = free.getsockname()[1]
    lines = f"""
preview_listen = "127.0.0.1:{listener}"
preview_url = "https://preview.example.com:{listener}"
preview_cert = "{cert}"
preview_key = "{key}"
"""
    with daemon_with(tmp_path, lines) as daemon, daemon.client() as client, Sandbox.create(client=client) as sandbox:
        start_service(sandbox, 8000)
        port = sandbox.expose_port(8000)
        assert port.url == f"https://8000-{sandbox.id}-{port.token}.preview.example.com:{listener}/"
        with TlsVisitor(port, cert) as visitor:
            visitor.ask("/", "PUT", b"x" * 500_000)
            told = visitor.answer()
            assert told[0] == 200
            assert b'"X-Forwarded-Proto: https"' in told[2]
            assert b'"size": 500000' in told[2]
            visitor.ask("/large?3000000")
            assert len(visitor.answer()[2]) == 3_000_000
            visitor.ask("/upgrade", "GET", b"", "Connection: upgrade", "Upgrade: echo")
            assert visitor.head()[0] == 101
            visitor.send(b"abc" * 100_000)
            assert visitor.take(300_000) == b"ABC" * 100_000
        with TlsVisitor(port, cert) as visitor:
            visitor.ask("/chunks?2")
            assert visitor.answer()[2].count(b"data: ") == 2
            visitor.ask("/", host="localhost")
            assert visitor.answer()[0] == 404
        link = urllib.parse.urlsplit(sandbox.create_preview_link(8000))
        with TlsVisitor(port, cert) as visitor:
            visitor.ask(link.path, host=link.netloc)
            assert "Secure" in visitor.answer()[1]["set-cookie"]
        with Visitor(port) as plain:
            plain.ask("/")
            assert not plain.rest().startswith(b"HTTP/1.1 200")
        with TlsVisitor(port, cert) as visitor:  # one that is cut by us, under TLS
            visitor.ask("/forever")
            visitor.head()
            sandbox.unexpose_port(8000)
            with contextlib.suppress(ssl.SSLEOFError):
                visitor.rest()


NGINX = """
daemon off; worker_processes 1; pid {directory}/pid; error_log {directory}/error.log;
events {{ worker_connections 512; }}
http {{
  access_log off; client_body_temp_path {directory}/a; proxy_temp_path {directory}/b; fastcgi_temp_path {directory}/c;
  uwsgi_temp_path {directory}/d; scgi_temp_path {directory}/e;
  {server}
}}
"""
CADDY = """
{{
    admin off
    auto_https disable_redirects
    default_bind 127.0.0.1
}}
{site}
"""


def snippet(language: str, changes: dict[str, str]) -> str:
    """What the page on previews tells people to write, with this machine's ports and files in it."""
    readme = (pathlib.Path(__file__).parents[2] / "sandboxd/proxy/README.md").read_text()
    text = readme.split(f"```{language}\n", 1)[1].split("```", 1)[0]
    for old, new in changes.items():
        assert text.count(old) == 1, old
        text = text.replace(old, new)
    return text


@contextlib.contextmanager
def front_proxy(
    program: str, directory: pathlib.Path, cert: pathlib.Path, key: pathlib.Path, ports: tuple[int, int]
) -> Iterator[None]:
    listener, front = ports
    config = directory / f"{program}.conf"
    to = {"127.0.0.1:8080": f"127.0.0.1:{listener}"}
    if program == "nginx":
        to |= {
            "listen 443 ssl": f"listen 127.0.0.1:{front} ssl",
            "/etc/ssl/preview.pem": f"{cert}",
            "/etc/ssl/preview.key": f"{key}",
        }
        config.write_text(NGINX.format(directory=directory, server=snippet("nginx", to)))
        argv = ["nginx", "-c", str(config), "-p", str(directory)]
    else:
        to |= {
            "*.preview.example.com {": f"*.preview.example.com:{front} {{",
            "tls { dns <provider> }": f"tls {cert} {key}",
        }
        config.write_text(CADDY.format(site=snippet("caddyfile", to)))
        argv = ["caddy", "run", "--adapter", "caddyfile", "--config", str(config)]
    homes = {name: str(directory / "home") for name in ("HOME", "XDG_DATA_HOME", "XDG_CONFIG_HOME")}
    with (
        (directory / f"{program}.log").open("wb") as log,
        subprocess.Popen(argv, env={**os.environ, **homes}, stdout=log, stderr=log) as process,
    ):
        try:
            wait_for(front)
            yield
        finally:
            process.terminate()


@pytest.mark.parametrize("program", ["nginx", "caddy"])
def test_behind_a_front_proxy_as_the_readme_says(tmp_path: pathlib.Path, program: str) -> None:
    if shutil.which(program) is None:
        pytest.skip(f"needs {program} (Debian's package; CI installs it)")
    tmp_path.chmod(0o755)
    cert, key = certificate(tmp_path, "preview.example.com")
    with socket.create_server(("127.0.0.1", 0)) as one, socket.create_server(("127.0.0.1", 0)) as two:
        listener, front = one.getsockname()[1], two.getsockname()[1]
    lines = f"""
preview_listen = "127.0.0.1:{listener}"
preview_url = "https://preview.example.com:{front}"
preview_proxies = ["127.0.0.1"]
"""
    with (
        daemon_with(tmp_path, lines) as daemon,
        daemon.client() as client,
        Sandbox.create(client=client) as sandbox,
        front_proxy(program, tmp_path, cert, key, (listener, front)),
    ):
        start_service(sandbox, 8000)
        port = sandbox.expose_port(8000)
        assert port.url == f"https://8000-{sandbox.id}-{port.token}.preview.example.com:{front}/"
        with TlsVisitor(port, cert) as visitor:
            visitor.ask("/", "PUT", b"x" * 500_000, "X-Forwarded-For: 203.0.113.9")
            told = json.loads(visitor.answer()[2])
            rows = dict(row.split(": ", 1) for row in told["rows"])
            assert told["size"] == 500_000
            assert rows["X-Forwarded-Proto"] == "https"
            # nginx is told to pass on what it was told; Caddy believes nobody before it.
            before = "203.0.113.9, " if program == "nginx" else ""
            assert rows["X-Forwarded-For"] == f"{before}127.0.0.1, 127.0.0.1"
            assert rows["Host"].startswith(f"8000-{sandbox.id}-{port.token}.preview.example.com")
            visitor.ask("/large?3000000")
            assert len(visitor.answer()[2]) == 3_000_000
        with TlsVisitor(port, cert) as visitor:
            key_row = "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ=="
            visitor.ask(
                "/ws", "GET", b"", "Connection: upgrade", "Upgrade: websocket", "Sec-WebSocket-Version: 13", key_row
            )
            assert visitor.head()[0] == 101
            visitor.send(websocket_frame(1, b"hello"))
            assert visitor.take(7) == b"\x81\x05hello"
        with TlsVisitor(port, cert) as visitor:
            visitor.ask("/upgrade", "GET", b"", "Connection: upgrade", "Upgrade: echo")
            assert visitor.head()[0] == 101
            visitor.send(b"abc")
            assert visitor.take(3) == b"ABC"
        with TlsVisitor(port, cert) as visitor:
            visitor.ask("/chunks?2")
            visitor.head()
            assert visitor.chunk().startswith(b"data: 0")  # at once, not when all is there
        with TlsVisitor(port, cert) as visitor:
            visitor.ask("/", host=visitor.host.replace(str(port.token), "wrong"))
            assert visitor.answer()[0] == 404


def wait_for(port: int) -> None:
    for _ in range(200):
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port)):
            return
        threading.Event().wait(0.05)
    raise AssertionError(f"nobody listens on {port}")


def test_a_request_wakes_a_frozen_sandbox_where_configured(tmp_path: pathlib.Path) -> None:
    with (
        daemon_with(tmp_path, "preview_wake = true\n") as daemon,
        daemon.client() as client,
        Sandbox.create(client=client) as sandbox,
    ):
        start_service(sandbox, 8000)
        port = sandbox.expose_port(8000)
        assert echoed(port)["size"] == 0
        sandbox.freeze()
        assert ask(port.url.replace(str(port.token), "wrong"))[0] == 404
        assert sandbox.refresh().state == "frozen"
        assert echoed(port)["size"] == 0
        assert sandbox.refresh().state == "running"


def test_two_daemons_and_none(tmp_path: pathlib.Path) -> None:
    """Where 8080 is taken and nobody asked for it, another port is used; the URLs name it."""
    with daemon_with(tmp_path / "a") as one, daemon_with(tmp_path / "b", "previews = false\n") as two:
        with socket.socket() as sock:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            with contextlib.suppress(OSError):
                sock.bind(("127.0.0.1", 8080))
                sock.listen()
            with (
                daemon_with(tmp_path / "c") as three,
                three.client() as client,
                Sandbox.create(client=client) as sandbox,
            ):
                assert not sandbox.expose_port(1).url.endswith(":8080/")
        with one.client() as client, Sandbox.create(client=client) as sandbox:
            assert ask(sandbox.expose_port(1))[0] == 502
        with two.client() as client, Sandbox.create(client=client) as sandbox:
            with pytest.raises(NotAvailable):
                sandbox.expose_port(1)
            assert client.info()["previews"] is None


def test_an_address_that_was_asked_for_and_is_taken_ends_the_start(tmp_path: pathlib.Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        daemon = Daemon(tmp_path / "d", options=("--preview-listen", address))
        with pytest.raises(AssertionError, match="cannot serve previews on"):
            daemon.start()
    assert daemon.process
    assert daemon.process.wait(10) != 0


def test_a_restart_ends_open_previews_and_a_kill_leaves_no_sockets(tmp_path: pathlib.Path) -> None:
    with daemon_with(tmp_path) as daemon:
        with daemon.client() as client:
            sandbox = Sandbox.create(client=client)
            start_service(sandbox, 8000)
            port = sandbox.expose_port(8000)
        with Visitor(port) as visitor:
            visitor.ask("/forever")
            visitor.head()
            assert visitor.chunk() == b"first"
            daemon.stop()
            assert visitor.is_closed()
        daemon.start()
        with daemon.client() as client:
            (again,) = Sandbox.connect(sandbox.id, client=client).get_exposed_ports()
        with Visitor(again) as visitor:
            visitor.ask("/forever")
            visitor.head()
            daemon.signal(signal.SIGKILL)
            visitor.rest()
        daemon.start()
        with daemon.client() as client:
            (again,) = Sandbox.connect(sandbox.id, client=client).get_exposed_ports()
            assert echoed(again)["size"] == 0
