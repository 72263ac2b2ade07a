"""Heads of requests and responses: what is refused, what is taken away, what is added. Pure.

Framing is decided here alone. A request that says two lengths, or whose target is not a path, is refused rather than
repaired: whoever sends one wants two readers to disagree.
"""

from __future__ import annotations

import dataclasses
import re
from typing import TYPE_CHECKING, Final

from ..errors import InvalidRequest
from .plain import Head

if TYPE_CHECKING:
    from collections.abc import Iterable

    import h11

#: The header that may carry the token, and the cookie that may stand for it. Neither reaches the service.
TOKEN_HEADER: Final = b"x-sandboxd-token"
COOKIE: Final = b"sandboxd_preview"

#: For one connection only (RFC 9110, 7.6.1), or written anew by us.
_HOP: Final = frozenset(
    {
        b"connection",
        b"keep-alive",
        b"proxy-authenticate",
        b"proxy-authentication-info",
        b"proxy-authorization",
        b"proxy-connection",
        b"te",
        b"transfer-encoding",
        b"upgrade",
    }
)
#: What says who asked: only a front proxy that is trusted may say it.
_FORWARDED: Final = frozenset(
    {
        b"forwarded",
        b"x-forwarded-for",
        b"x-forwarded-host",
        b"x-forwarded-port",
        b"x-forwarded-proto",
        b"x-forwarded-server",
        b"x-real-ip",
    }
)
#: What says where the request was meant to go: the proxy alone says it, as Cloudflare's does.
_TOLD: Final = frozenset({b"x-original-url", b"x-sandbox-name"})
_REQUEST_DROP: Final = _HOP | _FORWARDED | _TOLD | {TOKEN_HEADER, b"http2-settings"}
#: What may not come after a body (RFC 9110, 6.5.1): whoever read the head has decided by it already. Framing, routing,
#: who asks, how to read the content, and what a cache or a browser keeps.
_NO_TRAILER: Final = frozenset(
    {
        b"accept-ranges",
        b"age",
        b"allow",
        b"authorization",
        b"cache-control",
        b"content-encoding",
        b"content-length",
        b"content-range",
        b"content-type",
        b"cookie",
        b"date",
        b"expect",
        b"expires",
        b"host",
        b"http2-settings",
        b"location",
        b"max-forwards",
        b"pragma",
        b"range",
        b"retry-after",
        b"set-cookie",
        b"trailer",
        b"vary",
        b"www-authenticate",
        TOKEN_HEADER,
    }
)
#: A Connection header that names these wants the next reader to see another request than we did.
_PROTECTED: Final = frozenset({b"host", b"content-length", b"cookie", b"authorization", b"expect"})
#: What Connection usually says, when it names no other header.
_PLAIN_CONNECTIONS: Final[tuple[list[bytes], ...]] = ([], [b"keep-alive"], [b"close"])
_DOMAIN: Final = re.compile(rb";[ \t]*domain[ \t]*=[^;]*", re.IGNORECASE)


@dataclasses.dataclass(slots=True)
class Asked:
    """A request's head, checked.

    Attributes:
        length: bytes of its body; None when it is chunked.
        upgrade: the protocols that it asks to switch to.
        tokens: what Connection names, in lower case.
        takes_trailers: whether it says that trailer fields are of use ("TE: trailers").
    """

    method: bytes
    target: bytes
    host: bytes
    headers: list[tuple[bytes, bytes]]
    length: int | None
    upgrade: bytes | None
    keep_alive: bool
    old: bool
    tokens: frozenset[bytes]
    token: str | None
    wants_page: bool
    cookies: list[bytes]
    takes_trailers: bool = False

    @property
    def is_idempotent(self) -> bool:
        """Whether it may be sent again when a reused connection turns out to be closed."""
        return self.length == 0 and self.method in (b"GET", b"HEAD", b"OPTIONS") and self.upgrade is None


@dataclasses.dataclass(frozen=True, slots=True)
class Front:
    """Who sent a request, as the connection tells.

    Attributes:
        trusted: whether it is a front proxy whose X-Forwarded-* are believed.
        secret: the API's own token, which never reaches a sandbox.
    """

    address: bytes
    scheme: bytes
    trusted: bool
    secret: bytes | None


def _refuse(why: str) -> InvalidRequest:
    return InvalidRequest(f"cannot accept the request: {why}")


def _check(head: Head, host: bytes, length_too: int | None, *, chunked: bool, old: bool) -> None:
    """Refuse what two readers could take for two things; `length_too` is a length beside chunks."""
    if chunked and (length_too is not None or old):
        raise _refuse("its body has two different lengths" if length_too is not None else "HTTP/1.0 has no chunks")
    if not old and head.version != b"1.1":
        raise _refuse("it is neither HTTP/1.1 nor HTTP/1.0")
    method, target = head.first, head.second
    if method in {b"CONNECT", b"TRACE"}:
        raise _refuse(f"{method.decode()} is not supported by previews")
    if not target.startswith(b"/") and not (target == b"*" and method == b"OPTIONS"):
        raise _refuse("its target is not a path")
    if not host:
        raise _refuse("it has no Host header")


def read(head: Head) -> Asked:
    """Return the head, checked.

    Raises:
        InvalidRequest: it is ambiguous, or nothing that a preview answers.
    """
    host, length, chunked, old = b"", None, False, head.version == b"1.0"
    connection: list[bytes] = []
    cookies: list[bytes] = []
    upgrade = token = None
    page = trailers = False
    headers = head.headers
    for name, value in headers:
        match name.lower():
            case b"host":
                host = value
            case b"content-length":
                length = int(value)
            case b"transfer-encoding":
                chunked = True
            case b"connection":
                connection += [part.strip().lower() for part in value.split(b",")]
            case b"te":
                trailers = b"trailers" in value.lower()
            case b"upgrade":
                upgrade = value
            case b"accept":
                page = b"text/html" in value
            case b"cookie":
                cookies.append(value)
            case b"x-sandboxd-token":
                token = value.decode("latin-1")
    _check(head, host, length if chunked else None, chunked=chunked, old=old)
    tokens = frozenset(connection)
    asks = upgrade is not None and b"upgrade" in tokens and not old
    if asks and (chunked or length):
        raise _refuse("an upgrade request must not have a body")
    return Asked(
        method=head.first,
        target=head.second,
        host=host,
        headers=headers,
        length=None if chunked else length or 0,
        upgrade=upgrade if asks else None,
        keep_alive=not old and b"close" not in tokens,
        old=old,
        tokens=tokens,
        token=token,
        wants_page=page,
        cookies=cookies,
        takes_trailers=trailers and b"te" in tokens,
    )


def our_cookies(asked: Asked) -> list[bytes]:
    """Return the values of our cookie: a neighbour under the same domain may have set another of that name."""
    found = []
    for header in asked.cookies:
        for part in header.split(b";"):
            name, _, value = part.strip().partition(b"=")
            if name == COOKIE:
                found.append(value)
    return found


def _without_ours(cookie: bytes) -> bytes:
    parts = [part.strip() for part in cookie.split(b";")]
    return b"; ".join(part for part in parts if part.partition(b"=")[0] != COOKIE)


def forward(asked: Asked, front: Front, sandbox: str | None = None) -> bytes:
    """Return the head that goes to the service; `sandbox` is what the service is told that its sandbox is called."""
    drop = _REQUEST_DROP
    if asked.tokens - {b"keep-alive", b"close", b"upgrade", b"te"}:
        drop |= asked.tokens - _PROTECTED
    parts = [asked.method, b" ", asked.target, b" HTTP/1.1\r\n"]
    secret = front.secret
    for name, value in asked.headers:
        lower = name.lower()
        if lower in drop or (secret is not None and secret in value):
            continue
        kept = value
        if lower == b"cookie" and COOKIE in value:
            kept = _without_ours(value)
            if not kept:
                continue
        parts += (name, b": ", kept, b"\r\n")
    parts += _told(asked, front, sandbox)
    if asked.length is None:
        parts.append(b"Transfer-Encoding: chunked\r\n")
    if asked.upgrade is not None:
        parts += (b"Connection: Upgrade\r\nUpgrade: ", asked.upgrade, b"\r\n")
    elif asked.takes_trailers:
        parts.append(b"Connection: TE\r\nTE: trailers\r\n")
    parts.append(b"\r\n")
    return b"".join(parts)


def last_chunk(trailers: Iterable[tuple[bytes, bytes]], secret: bytes | None = None) -> bytes:
    """Return the end of a body in chunks, with those of its trailer fields that may follow one."""
    parts = [b"0\r\n"]
    for name, value in trailers:
        lower = name.lower()
        if lower in _HOP or lower in _FORWARDED or lower in _NO_TRAILER or lower.startswith(b"if-"):
            continue
        if secret is None or secret not in value:
            parts += (name, b": ", value, b"\r\n")
    parts.append(b"\r\n")
    return b"".join(parts)


def _told(asked: Asked, front: Front, sandbox: str | None) -> tuple[bytes, ...]:
    """Return the X-Forwarded-* that say who asked, for what name, by which scheme; and the address as it was asked."""
    chain, host, scheme = front.address, asked.host, front.scheme
    if front.trusted:
        said = {name: value for name, value in ((raw.lower(), v) for raw, v in asked.headers) if name in _FORWARDED}
        before = [value for name, value in asked.headers if name.lower() == b"x-forwarded-for"]
        chain = b", ".join([*before, chain])
        host = said.get(b"x-forwarded-host", host)
        scheme = said.get(b"x-forwarded-proto", scheme)
    told = (
        *(b"X-Forwarded-For: ", chain, b"\r\nX-Forwarded-Host: ", host),
        *(b"\r\nX-Forwarded-Proto: ", scheme, b"\r\n"),
    )
    if sandbox is None:
        return told
    path = b"/" if asked.target == b"*" else asked.target
    address = (b"X-Original-URL: ", scheme, b"://", host, path, b"\r\n")
    return (*told, *address, b"X-Sandbox-Name: ", sandbox.encode(), b"\r\n")


@dataclasses.dataclass(slots=True)
class Answered:
    """A response's head, checked.

    Attributes:
        length: bytes of its body; None when only its end tells.
        chunked: whether it comes in chunks.
        reusable: whether the connection may be used again when the body has been read.
    """

    length: int | None
    chunked: bool
    reusable: bool
    status: int


def measure(head: Head, method: bytes) -> Answered:
    """Return how a response is framed.

    Raises:
        ValueError: its length is none.
    """
    status, length, chunked, close = int(head.first), None, False, head.version == b"1.0"
    for raw, value in head.headers:
        name = raw.lower()
        if name == b"content-length":
            length = int(value)
        elif name == b"transfer-encoding":
            chunked = True
        elif name == b"connection":
            close = close or b"close" in value.lower()
    if method == b"HEAD" or status in (204, 304):
        return Answered(0, False, not close, status)
    if chunked:
        return Answered(None, True, not close, status)
    return Answered(length, False, length is not None and not close, status)


def backward(head: Head, answered: Answered | None, *, old: bool, close: bool) -> bytes:
    """Return the head that goes to the client; `answered` is None for an informational response."""
    drop = _HOP
    reframed = answered is not None and answered.length is None
    parts = [b"HTTP/1.1 ", head.first, b" ", head.second, b"\r\n"]
    rows = [(raw.lower(), raw, value) for raw, value in head.headers]
    named = [value.lower() for name, _, value in rows if name == b"connection"]
    if named not in _PLAIN_CONNECTIONS:
        tokens = {part.strip() for value in named for part in value.split(b",")}
        drop |= tokens - {b"content-length", b"set-cookie", b"date"}
    for name, raw, value in rows:
        if name in drop or (reframed and name == b"content-length"):
            continue
        # A cookie for the common domain would reach every other sandbox's preview.
        parts += (raw, b": ", _DOMAIN.sub(b"", value) if name == b"set-cookie" else value, b"\r\n")
    if reframed and not old:
        parts.append(b"Transfer-Encoding: chunked\r\n")
    if head.first == b"101":
        upgrade = b", ".join(value for name, _, value in rows if name == b"upgrade")
        parts += (b"Connection: Upgrade\r\nUpgrade: ", upgrade, b"\r\n")
    elif close:
        parts.append(b"Connection: close\r\n")
    parts.append(b"\r\n")
    return b"".join(parts)


def of_request(event: h11.Request) -> Head:
    """Return what h11 read."""
    return Head(event.method, event.target, event.http_version, event.headers.raw_items())


def of_response(event: h11.Response | h11.InformationalResponse) -> Head:
    """Return what h11 read."""
    return Head(b"%d" % event.status_code, event.reason, event.http_version, event.headers.raw_items())
