"""The composition root's part for previews: from the configuration to listeners, TLS and the proxy."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import socket
import ssl
import urllib.parse
from typing import TYPE_CHECKING, Final, Self

from .errors import ConfigError
from .proxy.server import BACKLOG, Proxy
from .runtime.preview_urls import PreviewUrls

if TYPE_CHECKING:
    from .config import Config
    from .runtime.previews import Previews

_DEFAULT: Final = ("127.0.0.1", 8080)


@dataclasses.dataclass(frozen=True, slots=True)
class PreviewListeners:
    """What is opened as root: the port may be below 1024, and the key root's alone to read."""

    sockets: list[socket.socket]
    tls: ssl.SSLContext | None = None

    @classmethod
    def open(cls, config: Config) -> Self:
        """Bind and load.

        Raises:
            ConfigError: the address cannot be had, or the certificate not be used.
        """
        if not config.previews:
            return cls([])
        tls = _load(config)
        if config.preview_listen is not None:
            return cls(_bind(config.preview_listen), tls)
        try:
            return cls(_bind(_DEFAULT), tls)
        except ConfigError as error:
            if error.facts.get("errno") != errno.EADDRINUSE:
                raise
        # Nobody asked for 8080: daemons live side by side, and every URL names its port.
        return cls(_bind((_DEFAULT[0], 0)), tls)

    @property
    def port(self) -> int:
        """The port that the kernel gave."""
        return int(self.sockets[0].getsockname()[1])


def _bind(address: tuple[str, int]) -> list[socket.socket]:
    """Listen on every address that a name has, all on one port; `localhost` is 127.0.0.1 and ::1."""
    host, port = address
    made: list[socket.socket] = []
    try:
        found = {row[4][:2]: row[0] for row in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)}
        for (name, _), family in found.items():
            sock = socket.socket(family, socket.SOCK_STREAM)
            made.append(sock)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            sock.bind((name, port))
            sock.listen(BACKLOG)
            sock.setblocking(False)
            port = port or sock.getsockname()[1]
    except OSError as error:
        for sock in made:
            with contextlib.suppress(OSError):
                sock.close()
        raise ConfigError(
            f"cannot serve previews on {host}:{port}: {error.strerror}", key="preview_listen", errno=error.errno
        ) from None
    return made


def _load(config: Config) -> ssl.SSLContext | None:
    if config.preview_cert is None or config.preview_key is None:
        return None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.set_alpn_protocols(["http/1.1"])
    try:
        context.load_cert_chain(config.preview_cert, config.preview_key)
    except (OSError, ssl.SSLError) as error:
        raise ConfigError(f"cannot use the certificate {config.preview_cert}: {error}", key="preview_cert") from None
    return context


def make_proxy(config: Config, previews: Previews, listeners: PreviewListeners, secret: str | None) -> Proxy | None:
    """Return the proxy, and tell `previews` where it is; None where previews are turned off."""
    if not listeners.sockets:
        return None
    previews.wake = config.preview_wake
    scheme = "http" if listeners.tls is None else "https"
    parts = urllib.parse.urlsplit(config.preview_url or f"{scheme}://localhost:{listeners.port}")
    default = 443 if parts.scheme == "https" else 80
    urls = previews.urls = PreviewUrls(parts.scheme, parts.hostname or "localhost", parts.port or default)
    return Proxy(previews, urls, listeners.sockets, tls=listeners.tls, secret=secret, trusted=config.preview_proxies)
