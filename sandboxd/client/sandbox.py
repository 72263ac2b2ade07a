"""`Sandbox`: one sandbox, for synchronous code."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Self, Unpack

from sandboxd.errors import SandboxGone, SandboxNotFound

from . import calls, control_calls, exec_calls, git_calls, port_calls
from .client import Client
from .code import CodeMethods
from .files import FilesPart
from .options import SandboxOptions, takes
from .processes import ExecStream, ProcessPart
from .sessions import SessionPart
from .stream import Ending
from .verbs import stream_verb, sync_info_verb, sync_verb

if TYPE_CHECKING:
    import builtins
    from collections.abc import Sequence

    from .events import EventStream
    from .models import SandboxInfo


class Sandbox(Ending, CodeMethods, FilesPart, ProcessPart, SessionPart):
    """A sandbox. Get one from `create`, `connect` or `list`; do not call the constructor.

    As a context manager it destroys the sandbox at the end of the block. Without `client=` each sandbox opens its own
    connections, using SANDBOXD_URL and SANDBOXD_TOKEN, and closes them in `destroy` or `close`.

    Every method raises a subclass of `SandboxdError`: `SandboxNotFound` when the sandbox is gone,
    `DaemonUnavailable` when no daemon answers, and the errors listed for the method.
    """

    def __init__(self, info: SandboxInfo, client: Client | None) -> None:
        self.info = info
        self._owns_client = client is None
        self._client = client

    def __repr__(self) -> str:
        name = f" {self.info.name!r}" if self.info.name else ""
        return f"<Sandbox {self.id}{name} {self.info.state}>"

    def _end(self) -> None:
        self.destroy()

    @classmethod
    @takes(SandboxOptions, SandboxOptions)
    def create(cls, *, client: Client | None = None, **options: Unpack[SandboxOptions]) -> Self:
        """Create a sandbox; options not given take the daemon's defaults.

        Args:
            client: connections to share; by default the sandbox opens its own.
            options: those of `SandboxOptions`.

        Raises:
            InvalidRequest: a value is wrong; `field` names it. RootfsNotFound, ProfileNotFound and LimitUnenforceable
                are subclasses.
            NameTaken: another sandbox has that name.
            LaunchFailed: the host could not create it; see `step`, `syscall`, `errno` and `hint`.
        """
        call = calls.create(options)
        return cls._open(call, client)

    @classmethod
    def connect(cls, id_or_name: str, *, client: Client | None = None) -> Self:
        """Return the sandbox with that id or name.

        Raises:
            SandboxNotFound: no such sandbox.
        """
        return cls._open(calls.get(id_or_name), client)

    @classmethod
    def list(cls, *, client: Client | None = None) -> builtins.list[Self]:
        """Return every sandbox of the daemon."""
        infos: builtins.list[SandboxInfo] = []
        with contextlib.nullcontext(client) if client is not None else Client() as connection:
            cursor: str | None = None
            while True:
                found, cursor = connection.send(calls.page(cursor))
                infos += found
                if cursor is None:
                    return [cls(info, client) for info in infos]

    @classmethod
    def _open(cls, call: calls.Call[SandboxInfo], client: Client | None) -> Self:
        if client is not None:
            return cls(client.send(call), client)
        own = Client()
        try:
            sandbox = cls(own.send(call), None)
        except BaseException:
            own.close()
            raise
        sandbox._client = own
        return sandbox

    @property
    def name(self) -> str | None:
        """The sandbox's name, or None."""
        return self.info.name

    @property
    def client(self) -> Client:
        """The client whose connections it uses."""
        if self._client is None:
            self._client = Client()
        return self._client

    refresh = sync_info_verb(calls.refresh)
    update = sync_info_verb(control_calls.update)
    set_env_vars = sync_info_verb(control_calls.set_env_vars)
    freeze = sync_info_verb(control_calls.freeze)
    thaw = sync_info_verb(control_calls.thaw)
    stats = sync_verb(control_calls.stats)

    exec = sync_verb(exec_calls.exec)
    exec_stream = stream_verb(exec_calls.exec_stream, ExecStream)
    git_checkout = sync_verb(git_calls.git_checkout)

    expose_port = sync_verb(port_calls.expose_port)
    unexpose_port = sync_verb(port_calls.unexpose_port)
    get_exposed_ports = sync_verb(port_calls.get_exposed_ports)
    watch_port = sync_verb(port_calls.watch_port)
    create_preview_link = sync_verb(port_calls.create_preview_link)

    def events(self, *, types: str | Sequence[str] | None = None, start: int | None = None) -> EventStream:
        """Return a stream of this sandbox's events; see `Client.events`."""
        return self.client.events(sandbox=self.id, types=types, start=start)

    def destroy(self) -> None:
        """Kill everything in the sandbox and free its resources. Does nothing if it is already gone."""
        try:
            with contextlib.suppress(SandboxNotFound, SandboxGone):
                self.client.send(calls.destroy(self.id))
        finally:
            self.close()

    def close(self) -> None:
        """Close the sandbox's own connections without touching the sandbox; a shared client stays open."""
        if self._owns_client and self._client is not None:
            self._client.close()
            self._client = None
