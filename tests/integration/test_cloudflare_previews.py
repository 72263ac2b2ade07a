"""Previews as proxyToSandbox gives them: a wrong token, a stale URL, redirects, what the service is told."""

from __future__ import annotations

import json

import pytest

from sandboxd import Sandbox
from tests.support.cloudflare_client import Driver
from tests.support.daemon import Daemon
from tests.support.previews import Visitor, ask, echoed, start_service, websocket_frame

pytestmark = pytest.mark.real


def test_a_preview_of_a_sandbox_that_their_client_made(cf: Driver, served: tuple[Daemon, str]) -> None:
    name = "shows-a-page"
    assert cf.call("utils.ping", sandbox=name) == "pong"
    with served[0].client() as client:
        sandbox = Sandbox.connect(name, client=client)
        start_service(sandbox, 8080)
        port = sandbox.expose_port(8080, token="abc_123")
        label = f"8080-{sandbox.id}-abc_123"
        assert port.url.startswith(f"http://{label}.localhost:")
        host = port.url.removeprefix("http://").rstrip("/")

        told = dict(row.split(": ", 1) for row in echoed(port, "/a/b?c=1", "X-Sandbox-Name: forged")["rows"])
        assert told["X-Original-URL"] == f"http://{host}/a/b?c=1"
        assert (told["X-Forwarded-Host"], told["X-Forwarded-Proto"], told["X-Sandbox-Name"]) == (host, "http", name)

        for url in (port.url.replace("abc_123", "abc_124"), port.url.replace("8080-", "8081-")):
            status, _, body = ask(url)
            assert (status, json.loads(body)["code"]) == (404, "INVALID_TOKEN")
            assert json.loads(body)["error"]

        with Visitor(port) as visitor:
            rows = ("Connection: Upgrade", "Upgrade: websocket", "Sec-WebSocket-Version: 13")
            visitor.ask("/ws", "GET", b"", *rows, "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==")
            assert visitor.head()[0] == 101
            visitor.send(websocket_frame(1, b"hi"))
            assert b"hi" in visitor.take(4)

        sandbox.destroy()
        status, _, body = ask(port.url)
        assert (status, json.loads(body)["code"]) == (410, "STALE_PREVIEW_URL")


def test_a_redirect_is_the_visitors_to_follow(cf: Driver, served: tuple[Daemon, str]) -> None:
    cf.call("files.mkdir", "/workspace/site/folder", None, {"recursive": True})
    cf.call("processes.startProcess", "python3 -m http.server 8090 --directory /workspace/site", None)
    assert cf.stream("ports.watchPort", {"port": 8090})[-1]["type"] == "ready"
    with served[0].client() as client:
        port = Sandbox.connect("cloudflare-previews", client=client).expose_port(8090)
        status, headers, _ = ask(port, "/folder")
    assert status == 301
    assert headers["location"].endswith("/folder/")
