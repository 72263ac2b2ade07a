"""Where the daemon is: `unix:///path` or `http://host:port`, from an argument or the environment."""

from __future__ import annotations

import dataclasses
import os
import socket
from typing import TYPE_CHECKING, Final
from urllib.parse import unquote, urlsplit

from sandboxd.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Mapping

DEFAULT_URL: Final = "unix:///run/sandboxd/sandboxd.sock"
#: What requests over a unix socket say as their host; nothing resolves it.
_UNIX_HOST: Final = "http://localhost"


@dataclasses.dataclass(frozen=True, slots=True)
class Address:
    """A daemon's address.

    Attributes:
        url: as the user gave it, for messages.
        base_url: what HTTP requests are made against.
        socket_path: the unix socket, or None for TCP.
        token: sent as `Authorization: Bearer`; None sends nothing.
    """

    url: str
    base_url: str
    socket_path: str | None = None
    token: str | None = dataclasses.field(default=None, repr=False)

    def may_answer(self) -> bool:
        """Return whether a connection could be made just now; only a unix socket is tried, which takes no time.

        For those who try again and again: httpcore does not close the socket of a failed connect.
        """
        if self.socket_path is None:
            return True
        with socket.socket(socket.AF_UNIX) as sock:
            return sock.connect_ex(self.socket_path) == 0

    @classmethod
    def find(cls, url: str | None = None, token: str | None = None, env: Mapping[str, str] | None = None) -> Address:
        """Return the address from the arguments, else SANDBOXD_URL and SANDBOXD_TOKEN, else the default socket.

        Raises:
            ConfigError: the address is neither `unix:///path` nor `http://host:port`, or the token is not ASCII.
        """
        env = os.environ if env is None else env
        url = url or env.get("SANDBOXD_URL") or DEFAULT_URL
        token = token or env.get("SANDBOXD_TOKEN") or None
        if token is not None and not (token.isascii() and token.isprintable()):
            raise ConfigError("cannot use the token: it must be printable ASCII", key="SANDBOXD_TOKEN")
        try:
            parts = urlsplit(url)
            _ = parts.port  # raises on a port that is no number
        except ValueError as error:
            raise _bad(url, str(error)) from error
        if parts.scheme == "unix":
            path = unquote(parts.path)
            if parts.netloc or not path.startswith("/"):
                raise _bad(url, "the socket's path must be absolute, as in unix:///run/sandboxd/sandboxd.sock")
            if not hasattr(socket, "AF_UNIX"):
                raise _bad(url, "this system has no unix sockets; give the daemon's http://host:port")
            return cls(url, _UNIX_HOST, path, token)
        if parts.scheme in ("http", "https") and parts.hostname and parts.path in ("", "/"):
            return cls(url, url.rstrip("/"), None, token)
        raise _bad(url, "it must be unix:///path or http://host:port")


def _bad(url: str, why: str) -> ConfigError:
    return ConfigError(f"cannot use the address {url!r}: {why}", key="SANDBOXD_URL")
