"""Previews, for code on trio or asyncio: a part of `AsyncSandbox`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from . import port_calls
from .process_calls import process_id

if TYPE_CHECKING:
    from .async_client import AsyncClient
    from .models import SandboxInfo
    from .port_calls import ExposedPort
    from .process_calls import ProcessInfo, WaitResult


class AsyncPortPart:
    """Methods of `AsyncSandbox`."""

    info: SandboxInfo

    @property
    def id(self) -> str:
        """The sandbox's id."""
        return self.info.id

    @property
    def client(self) -> AsyncClient:
        """The connections that it uses."""
        raise NotImplementedError

    async def expose_port(
        self, port: int, *, name: str | None = None, token: str | None = None, public: bool = False
    ) -> ExposedPort:
        """Make what listens at a TCP port of the sandbox open in a browser, and return its URL.

        What listens may start later and anew, at the sandbox's 127.0.0.1, ::1 or all addresses.

        Args:
            port: 1 to 65535.
            name: your own name for it, unique in the sandbox.
            token: 1 to 16 of a-z, 0-9 and _; without one a token is made that nobody guesses.
            public: whether no token is needed.

        Raises:
            InvalidRequest: a value is wrong; `field` names it.
            PortExposed: the port is exposed already.
        """
        return await self.client.send(port_calls.expose(self.id, port, name=name, token=token, public=public))

    async def unexpose_port(self, port: int) -> None:
        """Take a port back; open connections are cut.

        Raises:
            PortNotFound: it is not exposed.
        """
        await self.client.send(port_calls.unexpose(self.id, port))

    async def get_exposed_ports(self) -> list[ExposedPort]:
        """Return the exposed ports, by number."""
        return await self.client.send(port_calls.show_all(self.id))

    async def watch_port(
        self,
        port: int,
        *,
        path: str | None = None,
        status: tuple[int, int] | None = None,
        process: str | ProcessInfo | None = None,
        timeout: float | None = None,  # noqa: ASYNC109 - the daemon holds it, not this task
    ) -> WaitResult:
        """Wait until something in the sandbox listens at a TCP port, or answers a GET there; it need not be exposed.

        Args:
            port: 1 to 65535, on any of the sandbox's addresses, IPv4 or IPv6.
            path: where a GET must be answered, such as "/health"; else a listener is enough.
            status: the lowest and the highest status that is a good answer; else 200 to 399.
            process: whose end ends the wait too.
            timeout: seconds, else for ever.

        Raises:
            InvalidRequest: a value is wrong; `field` names it.
            ProcessNotFound: there is none.
        """
        name = None if process is None else process_id(process)
        call = port_calls.wait(self.id, port, process=name, path=path, status=status, timeout=timeout)
        return await self.client.send(call)

    async def create_preview_link(self, port: int) -> str:
        """Return a link that opens an exposed port once, within five minutes, and leaves a cookie in the browser.

        The token is neither in it nor in the address that the browser then shows.

        Raises:
            PortNotFound: it is not exposed.
        """
        return await self.client.send(port_calls.link(self.id, port))
