"""A preview's cookie is not enough for what a page of another origin makes a browser ask."""

from __future__ import annotations

from typing import Any

import pytest
import trio

from sandboxd.runtime.ports import PortSpec
from tests.support.previews.local import ID, previews

TOKEN = "tok"
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
UPGRADE = "Upgrade: websocket\r\nConnection: Upgrade\r\n"
HTTPS = ("https", "p.example.com", 443)


@pytest.fixture(scope="module", autouse=True)
def unharmed() -> None:
    """Nothing here runs in a sandbox."""


async def ask(
    method: str, rows: str, *, token: str | None = TOKEN, cookie: bool = True, host: str = "OWN", **options: Any
) -> int:
    """Ask a preview with its cookie; in the rows HOST is its name and PORT the port of its URL."""
    async with previews(OK, token=token, **options) as (address, named):
        name = named.decode().split()[1]
        number = int(name.partition("-")[0])
        if cookie:
            rows += f"Cookie: a=b; sandboxd_preview={PortSpec(port=number, token=token).cookie(ID)}\r\n"
        rows = rows.replace("HOST", name).replace("PORT", str(address[1])).replace("OTHER", f"{number + 1}-{ID}")
        host = host.replace("OWN", name).replace("PORT", str(address[1]))
        if token is not None:
            host = host.replace("TOKENED", name.replace(".", f"-{token}.", 1))
        async with await trio.open_tcp_stream(*address) as stream:
            await stream.send_all(f"{method} / HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n{rows}\r\n".encode())
            with trio.fail_after(30):
                answer = b""
                while b"\r\n" not in answer:
                    answer += await stream.receive_some(65536)
    return int(answer.split()[1])


OWN = "Origin: http://HOST:PORT\r\n"
EVIL = "Origin: https://evil.example\r\n"


@pytest.mark.parametrize("method", ["GET", "HEAD", "OPTIONS"])
@pytest.mark.parametrize("rows", ["", OWN, EVIL, "Origin: null\r\n", "Sec-Fetch-Site: cross-site\r\n"])
async def test_what_changes_nothing_passes(method: str, rows: str) -> None:
    """A link on another site opens the preview; what it shows, that site's pages cannot read."""
    assert await ask(method, rows) == 200


@pytest.mark.parametrize("request_", ["POST", "PUT", "PATCH", "DELETE", "PURGE", "WebSocket", "h2c"])
@pytest.mark.parametrize(
    ("rows", "status"),
    [
        ("", 200),  # no browser
        (OWN, 200),
        (OWN + "Sec-Fetch-Site: same-origin\r\n", 200),
        ("Origin: HTTP://HOST.:PORT\r\n".replace("HTTP", "Http"), 200),
        ("Sec-Fetch-Site: none\r\n", 200),
        (EVIL, 403),
        ("Origin: null\r\n", 403),
        ("Origin:\r\n", 403),
        ("Origin: http://HOST\r\n", 200),  # its port is the Host header's
        ("Origin: https://HOST:PORT\r\n", 403),
        ("Origin: http://HOST:1\r\n", 403),
        ("Origin: http://OTHER.localhost:PORT\r\n", 403),
        ("Origin: http://localhost:PORT\r\n", 403),
        ("Origin: http://HOST.evil.example:PORT\r\n", 403),
        ("Origin: http://x@HOST:PORT\r\n", 403),
        ("Origin: http://HOST:PORT, https://evil.example\r\n", 403),
        (OWN + EVIL, 403),
        ("Sec-Fetch-Site: same-site\r\n", 403),
        ("Sec-Fetch-Site: cross-site\r\n", 403),
        (OWN + "Sec-Fetch-Site: cross-site\r\n", 403),
        ("oRIGIN: https://evil.example\r\n", 403),
    ],
)
async def test_what_changes_something_must_be_its_own(request_: str, rows: str, status: int) -> None:
    upgrade = {"WebSocket": UPGRADE, "h2c": UPGRADE.replace("websocket", "h2c")}.get(request_)
    if upgrade is not None:
        # A row of its own: what the other rows add is not for one connection only.
        assert await ask("GET", upgrade + rows) == status
    else:
        assert await ask(request_, rows) == status


@pytest.mark.parametrize("method", ["POST", "GET"])
async def test_who_shows_the_token_or_needs_none_comes_from_anywhere(method: str) -> None:
    rows = EVIL + (UPGRADE if method == "GET" else "")
    assert await ask(method, rows + f"X-Sandboxd-Token: {TOKEN}\r\n") == 200
    assert await ask(method, rows, host="TOKENED", cookie=False) == 200
    assert await ask(method, rows, token=None, cookie=False) == 200
    assert await ask(method, rows, cookie=False) == 404  # and who shows nothing hears nothing


@pytest.mark.parametrize(
    ("trusted", "host", "rows", "status"),
    [
        (False, "OWN", "Origin: https://HOST\r\n", 200),
        (False, "OWN:443", "Origin: https://HOST\r\n", 200),
        (False, "OWN:8080", "Origin: https://HOST\r\n", 200),  # a front proxy that names its own port
        (False, "OWN", "Origin: http://HOST\r\n", 403),
        (False, "OWN", "X-Forwarded-Proto: http\r\nOrigin: http://HOST\r\n", 403),
        (True, "OWN", "X-Forwarded-Proto: http\r\nOrigin: http://HOST\r\n", 200),
        (False, "OWN", "X-Forwarded-Host: my.example\r\nOrigin: https://my.example\r\n", 403),
        (True, "OWN", "X-Forwarded-Host: my.example\r\nOrigin: https://my.example\r\n", 200),
        (True, "OWN", "X-Forwarded-Host: my.example\r\nOrigin: https://evil.example\r\n", 403),
    ],
)
async def test_behind_a_front_proxy_the_url_counts(trusted: bool, host: str, rows: str, status: int) -> None:
    networks = ("127.0.0.0/8",) if trusted else ()
    assert await ask("POST", rows, host=host, url=HTTPS, trusted=networks) == status
