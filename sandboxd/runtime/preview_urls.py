"""Where previews are: their URLs, and which port of which sandbox a Host header names. No I/O."""

from __future__ import annotations

import dataclasses
import re
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from .ports import PortSpec

#: What a Host header may hold at all (RFC 3986 reg-name and IP literals, as far as anybody uses them).
_HOST: Final = re.compile(rb"[A-Za-z0-9._-]+(?::[0-9]{1,5})?\Z|\[[0-9A-Fa-f:.]+\](?::[0-9]{1,5})?\Z")
_LABEL: Final = rb"([1-9][0-9]{0,4})-([a-z0-9]{20,26})(?:-([a-z0-9_]{1,16}))?"
#: The path of one-time links; the only one that never reaches a service.
LINK_PATH: Final = "/.well-known/sandboxd-preview/"
_DEFAULT_PORTS: Final = {"http": 80, "https": 443}


@dataclasses.dataclass(frozen=True, slots=True)
class Target:
    """What a host name asks for."""

    port: int
    sandbox_id: str
    token: str | None


class PreviewUrls:
    """The previews' common origin: `scheme://<label>.<domain>:<port>`."""

    def __init__(self, scheme: str, domain: str, port: int) -> None:
        self.scheme = scheme
        self.domain = domain.lower()
        self.port = port
        self._host = re.compile(_LABEL + rb"\." + re.escape(self.domain.encode()) + rb"\.?(?::[0-9]{1,5})?\Z")

    def __repr__(self) -> str:
        return f"<Site {self._origin('*')}>"

    def _origin(self, label: str) -> str:
        port = "" if _DEFAULT_PORTS.get(self.scheme) == self.port else f":{self.port}"
        return f"{self.scheme}://{label}.{self.domain}{port}"

    @property
    def pattern(self) -> str:
        """The URLs' common shape."""
        return self._origin("*")

    def url(self, sandbox_id: str, spec: PortSpec) -> str:
        """Return the URL that opens a port, its token included."""
        token = "" if spec.token is None else f"-{spec.token}"
        return f"{self._origin(f'{spec.port}-{sandbox_id}{token}')}/"

    def link(self, sandbox_id: str, spec: PortSpec, code: str) -> str:
        """Return the one-time link that sets a browser's cookie and then shows the port, no token in its name."""
        return f"{self._origin(f'{spec.port}-{sandbox_id}')}{LINK_PATH}{code}"

    def parse(self, host: bytes) -> Target | None:
        """Return what a Host header names; None is no preview of ours.

        Raises:
            ValueError: it is not a host at all.
        """
        match = self._host.match(host) or self._host.match(host.lower())
        if match is None:
            if not _HOST.match(host):
                raise ValueError("it is not a host")
            return None
        port, sandbox_id, token = match.groups()
        if int(port) > 65535:
            return None
        return Target(int(port), sandbox_id.decode(), None if token is None else token.decode())
