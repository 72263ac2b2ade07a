"""`AsyncSandbox`: one sandbox, for code on trio or asyncio."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any, Generic, Self, TypeVar, Unpack

from sandboxd.errors import SandboxGone, SandboxNotFound

from . import calls, control_calls, exec_calls, git_calls, port_calls
from .async_client import AsyncClient
from .async_code import AsyncCodeMethods
from .async_files import AsyncFilesPart
from .async_processes import AsyncExecStream, AsyncProcessPart
from .async_sessions import AsyncSessionPart
from .async_stream import AsyncEnding
from .options import SandboxOptions, takes
from .sandbox import Sandbox
from .shield import owned
from .verbs import async_info_verb, async_verb, documented, stream_verb

if TYPE_CHECKING:
    import builtins
    from collections.abc import Callable, Coroutine, Generator, Sequence
    from types import TracebackType

    from .events import AsyncEventStream
    from .models import SandboxInfo


S = TypeVar("S", bound="AsyncSandbox")


class _Opening(Generic[S]):
    """A sandbox that is about to be made: `await` it to have it, or `async with` it to have it destroyed again."""

    def __init__(self, make: Callable[[], Coroutine[Any, Any, S]]) -> None:
        self._make = make
        self._made: S | None = None

    def __await__(self) -> Generator[Any, Any, S]:
        return self._make().__await__()

    async def __aenter__(self) -> S:
        self._made = await self._make()
        return self._made

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._made is not None:
            await self._made.__aexit__(kind, error, trace)


class AsyncSandbox(AsyncEnding, AsyncCodeMethods, AsyncFilesPart, AsyncProcessPart, AsyncSessionPart):
    """A sandbox. Get one from `create`, `connect` or `list`; do not call the constructor.

    As a context manager it destroys the sandbox at the end of the block, even when the task is cancelled:
    `async with AsyncSandbox.create() as sandbox`. Without `client=` each sandbox opens its own connections, using
    SANDBOXD_URL and SANDBOXD_TOKEN, and closes them in `destroy` or `close`.

    Every method raises a subclass of `SandboxdError`: `SandboxNotFound` when the sandbox is gone,
    `DaemonUnavailable` when no daemon answers, and the errors listed for the method.
    """

    def __init__(self, info: SandboxInfo, client: AsyncClient | None) -> None:
        self.info = info
        self._owns_client = client is None
        self._client = client

    def __repr__(self) -> str:
        name = f" {self.info.name!r}" if self.info.name else ""
        return f"<AsyncSandbox {self.id}{name} {self.info.state}>"

    async def _end(self) -> None:
        await self.destroy()

    @classmethod
    @takes(SandboxOptions, SandboxOptions)
    def create(cls, *, client: AsyncClient | None = None, **options: Unpack[SandboxOptions]) -> _Opening[Self]:
        """Create a sandbox, with `await` or `async with`; options not given take the daemon's defaults.

        If cancelled, it still waits for the daemon's answer, so that no unknown sandbox is left behind.

        Args:
            client: connections to share; by default the sandbox opens its own.
            options: those of `SandboxOptions`.

        Raises the same errors as `Sandbox.create`.
        """
        call = calls.create(options)

        async def make() -> Self:
            return await owned(lambda: cls._open(call, client), lambda sandbox: sandbox.destroy())

        return _Opening(make)

    @classmethod
    @documented(Sandbox.connect)
    async def connect(cls, id_or_name: str, *, client: AsyncClient | None = None) -> Self:
        return await cls._open(calls.get(id_or_name), client)

    @classmethod
    async def list(cls, *, client: AsyncClient | None = None) -> builtins.list[Self]:
        """Return every sandbox of the daemon."""
        infos: builtins.list[SandboxInfo] = []
        async with contextlib.nullcontext(client) if client is not None else AsyncClient() as connection:
            cursor: str | None = None
            while True:
                found, cursor = await connection.send(calls.page(cursor))
                infos += found
                if cursor is None:
                    return [cls(info, client) for info in infos]

    @classmethod
    async def _open(cls, call: calls.Call[SandboxInfo], client: AsyncClient | None) -> Self:
        if client is not None:
            return cls(await client.send(call), client)
        own = AsyncClient()
        try:
            sandbox = cls(await own.send(call), None)
        except BaseException:
            await own.close()
            raise
        sandbox._client = own
        return sandbox

    @property
    def name(self) -> str | None:
        """The sandbox's name, or None."""
        return self.info.name

    @property
    def client(self) -> AsyncClient:
        """The client whose connections it uses."""
        if self._client is None:
            self._client = AsyncClient()
        return self._client

    refresh = async_info_verb(calls.refresh)
    update = async_info_verb(control_calls.update)
    set_env_vars = async_info_verb(control_calls.set_env_vars)
    freeze = async_info_verb(control_calls.freeze)
    thaw = async_info_verb(control_calls.thaw)
    stats = async_verb(control_calls.stats)

    exec = async_verb(exec_calls.exec)
    exec_stream = stream_verb(exec_calls.exec_stream, AsyncExecStream)
    git_checkout = async_verb(git_calls.git_checkout)

    expose_port = async_verb(port_calls.expose_port)
    unexpose_port = async_verb(port_calls.unexpose_port)
    get_exposed_ports = async_verb(port_calls.get_exposed_ports)
    watch_port = async_verb(port_calls.watch_port)
    create_preview_link = async_verb(port_calls.create_preview_link)

    def events(self, *, types: str | Sequence[str] | None = None, start: int | None = None) -> AsyncEventStream:
        """Return a stream of this sandbox's events; see `AsyncClient.events`."""
        return self.client.events(sandbox=self.id, types=types, start=start)

    async def destroy(self) -> None:
        """Kill everything in the sandbox and free its resources. Does nothing if it is already gone."""
        try:
            with contextlib.suppress(SandboxNotFound, SandboxGone):
                await self.client.send(calls.destroy(self.id))
        finally:
            await self.close()

    async def close(self) -> None:
        """Close the sandbox's own connections without touching the sandbox; a shared client stays open."""
        if self._owns_client and self._client is not None:
            await self._client.close()
            self._client = None
