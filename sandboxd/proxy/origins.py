"""Whether the page that made a browser send a request is one of the preview's own. No I/O.

A browser sends a preview's cookie along with whatever any page has it ask of that preview: SameSite=Lax keeps it from
other sites' POSTs, but a neighbour's preview under the same domain is the same site, and WebSockets know no such rule
everywhere. So what a cookie alone lets in, and what opens a WebSocket or changes something, must not come from a page
of another origin. Who shows the token has it by other means, and a public port has nothing to guard.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from ..runtime.preview_urls import PreviewUrls
    from .heads import Asked, Front

_SAFE: Final = frozenset({b"GET", b"HEAD", b"OPTIONS"})
#: What Sec-Fetch-Site says of the preview's own pages, and of what a person typed (W3C Fetch Metadata, 2.4).
_OWN_SITES: Final = frozenset({b"same-origin", b"none"})
_DEFAULT_PORTS: Final = {b"http": 80, b"https": 443}
_ORIGIN: Final = re.compile(rb"(https?)://([a-z0-9._-]+)(?::([0-9]{1,5}))?\Z")

_Origin = tuple[bytes, bytes, int]


def is_foreign(asked: Asked, front: Front, urls: PreviewUrls) -> bool:
    """Whether the request opens a WebSocket or changes something, and a page of another origin sent it.

    A request that says nothing of where it comes from is no page's: browsers do.
    """
    if asked.upgrade is None and asked.method in _SAFE:
        return False
    if any(value.lower() not in _OWN_SITES for value in _values(asked, b"sec-fetch-site")):
        return True
    said = _values(asked, b"origin")
    own = _own(asked, front, urls) if said else frozenset()
    return any(_parse(value) not in own for value in said)


def _values(asked: Asked, name: bytes) -> list[bytes]:
    return [value for found, value in asked.headers if found.lower() == name]


def _own(asked: Asked, front: Front, urls: PreviewUrls) -> frozenset[_Origin]:
    """Return the origins of the preview's own pages.

    The port is that of the Host header or of the previews' URL: front proxies pass on either. A front proxy that is
    trusted may say the name and the scheme that the browser sees.
    """
    hosts, schemes = [asked.host], {urls.scheme.encode()}
    if front.scheme == b"https":
        schemes.add(front.scheme)
    if front.trusted:
        hosts += [value.split(b",")[0].strip() for value in _values(asked, b"x-forwarded-host")]
        schemes |= {value.split(b",")[0].strip().lower() for value in _values(asked, b"x-forwarded-proto")}
    own: set[_Origin] = set()
    for scheme in schemes & set(_DEFAULT_PORTS):
        for host in hosts:
            found = _parse(scheme + b"://" + host)
            if found is not None:
                own |= {found, (scheme, found[1], urls.port)}
    return frozenset(own)


def _parse(origin: bytes) -> _Origin | None:
    """Return scheme, host and port; None for "null" and for what no page of ours has."""
    match = _ORIGIN.match(origin.lower())
    if match is None:
        return None
    scheme, host, port = match.groups()
    return scheme, host.rstrip(b"."), int(port) if port else _DEFAULT_PORTS[scheme]
