"""`AsyncSandbox`: one sandbox, for code on trio or asyncio."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any, Generic, Self, TypeVar

from sandboxd.errors import SandboxdError, SandboxGone, SandboxNotFound

from . import calls
from .async_client import AsyncClient
from .async_code import AsyncCodeMethods
from .async_control import AsyncControlPart
from .async_files import AsyncFilesPart
from .async_git import AsyncGitPart
from .async_ports import AsyncPortPart
from .async_processes import AsyncProcessPart
from .async_sessions import AsyncSessionPart
from .async_stream import AsyncExecStream
from .models import ExecResult, with_output
from .shield import cleanup_scope, owned

if TYPE_CHECKING:
    import builtins
    from collections.abc import Callable, Coroutine, Generator, Mapping, Sequence
    from types import TracebackType

    from sandboxd.spec import Limits

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


class AsyncSandbox(
    AsyncCodeMethods, AsyncControlPart, AsyncFilesPart, AsyncGitPart, AsyncPortPart, AsyncProcessPart, AsyncSessionPart
):
    """A sandbox on a daemon. Made by `create`, `connect` and `list`, never directly.

    As a context manager it destroys the sandbox at the end of the block, also when the task is cancelled:
    `async with AsyncSandbox.create() as sandbox`. Without `client=` each sandbox makes connections of its own, from
    SANDBOXD_URL and SANDBOXD_TOKEN, and closes them with `destroy` or `close`.

    Every method raises a subclass of `SandboxdError`: `SandboxNotFound` when the sandbox is gone,
    `DaemonUnavailable` when no daemon answers, and what is said beside the method.
    """

    def __init__(self, info: SandboxInfo, client: AsyncClient | None) -> None:
        self.info = info
        self._owns_client = client is None
        self._client = client

    def __repr__(self) -> str:
        name = f" {self.info.name!r}" if self.info.name else ""
        return f"<AsyncSandbox {self.id}{name} {self.info.state}>"

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            with cleanup_scope():
                await self.destroy()
        except SandboxdError as failure:
            if error is None:
                raise
            error.add_note(f"and the sandbox {self.id} could not be destroyed: {failure}")

    @classmethod
    def create(  # noqa: PLR0913 - the fields of a sandbox, all by keyword
        cls,
        *,
        name: str | None = None,
        rootfs: str | None = None,
        env: Mapping[str, str] | None = None,
        cwd: str | None = None,
        user: str | int | None = None,
        limits: Limits | Mapping[str, Any] | None = None,
        labels: Mapping[str, str] | None = None,
        network: str | Mapping[str, Any] | None = None,
        seccomp: str | None = None,
        client: AsyncClient | None = None,
    ) -> _Opening[Self]:
        """Create a sandbox, with `await` or `async with`; what is not given is the daemon's default.

        A cancellation meanwhile waits for the daemon's answer, so that no sandbox is left that nobody knows.

        Args:
            name: a unique name of your own, 1 to 63 of a-z, 0-9 and inner dashes.
            rootfs: the name of a rootfs.
            env: variables of every command.
            cwd: where commands start, absolute.
            user: name or uid that commands run as.
            limits: `Limits(memory_bytes=, cpus=, pids=, disk_bytes=, io=IoLimits(…))` or the same as a mapping.
            labels: your own notes on it.
            network: "none", "internet", or `{"mode": "allowlist", "allow": ["pypi.org:443", "10.1.0.0/16"]}` with, if
                you like, `receive_bytes_per_s`, `send_bytes_per_s` and `connections`.
            seccomp: the name of a system call profile: "default", "strict", or one of the operator's.
            client: connections to share; else the sandbox has its own.

        Raises:
            InvalidRequest: a value is wrong; `field` names it. RootfsNotFound, ProfileNotFound and LimitUnenforceable
                are of its kind.
            NameTaken: another sandbox has that name.
            LaunchFailed: the host could not do it; `step`, `syscall`, `errno`, `hint`.
        """
        call = calls.create(
            name=name,
            rootfs=rootfs,
            env=env,
            cwd=cwd,
            user=user,
            limits=limits,
            labels=labels,
            network=network,
            seccomp=seccomp,
        )

        async def make() -> Self:
            return await owned(lambda: cls._open(call, client), lambda sandbox: sandbox.destroy())

        return _Opening(make)

    @classmethod
    async def connect(cls, id_or_name: str, *, client: AsyncClient | None = None) -> Self:
        """Return the sandbox with that id or name.

        Raises:
            SandboxNotFound: there is none.
        """
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
        """The caller's own name for it."""
        return self.info.name

    @property
    def client(self) -> AsyncClient:
        """The connections that it uses."""
        if self._client is None:
            self._client = AsyncClient()
        return self._client

    async def refresh(self) -> SandboxInfo:
        """Ask the daemon how the sandbox is, keep the answer in `info` and return it."""
        self.info = await self.client.send(calls.get(self.id))
        return self.info

    async def exec(
        self,
        command: str | Sequence[str],
        *,
        cwd: str | None = None,
        env: Mapping[str, str] | None = None,
        user: str | int | None = None,
        stdin: bytes | str | None = None,
        timeout: float | None = None,  # noqa: ASYNC109 - the daemon holds it, not this task
        keep_orphans: bool = False,
    ) -> ExecResult:
        """Run a command to its end and return how it ended and all that it printed.

        A program that fails, or cannot be found (exit code 127), is a result, not an error. The output is held in
        memory whole; for output without a bound use `exec_stream`.

        Args:
            command: a string for `sh -c`, or a list of program and arguments.
            cwd: where it starts, absolute; else the sandbox's.
            env: variables on top of the sandbox's.
            user: name or uid; else the sandbox's.
            stdin: what it reads, up to 4 MiB of JSON; else nothing (/dev/null).
            timeout: seconds after which it is killed with all its children; else never.
            keep_orphans: whether processes that it leaves behind go on.

        Raises:
            InvalidRequest: a value is wrong; `field` names it.
        """
        async with self.exec_stream(
            command, cwd=cwd, env=env, user=user, stdin=stdin, timeout=timeout, keep_orphans=keep_orphans
        ) as stream:
            output: dict[str, builtins.list[bytes]] = {"stdout": [], "stderr": []}
            async for chunk in stream:
                output[chunk.stream].append(chunk.data)
            return with_output(await stream.wait(), b"".join(output["stdout"]), b"".join(output["stderr"]))

    def exec_stream(  # noqa: PLR0913 - the fields of a command, all by keyword
        self,
        command: str | Sequence[str],
        *,
        on_stdout: Callable[[str], object] | None = None,
        on_stderr: Callable[[str], object] | None = None,
        cwd: str | None = None,
        env: Mapping[str, str] | None = None,
        user: str | int | None = None,
        stdin: bytes | str | bool | None = None,
        timeout: float | None = None,
        detach: bool = False,
        keep_orphans: bool = False,
    ) -> AsyncExecStream:
        """Return a command's stream: `async with` starts it, then iterate over it or `await wait()`.

        Args as of `exec`, and:
            on_stdout: called with each piece of standard output as text, while somebody iterates or waits; what it
                returns is awaited if it can be.
            on_stderr: the same for standard error.
            stdin: True leaves it open for the stream's `write_stdin` and `close_stdin`.
            detach: whether the command goes on when the stream is closed before its end.
        """
        call = calls.exec_raw(
            self.id,
            command,
            cwd=cwd,
            env=env,
            user=user,
            stdin=stdin,
            timeout=timeout,
            detach=detach,
            keep_orphans=keep_orphans,
        )
        return AsyncExecStream(self.client, self.id, call, on_stdout, on_stderr)

    def events(self, *, types: str | Sequence[str] | None = None, start: int | None = None) -> AsyncEventStream:
        """Return what happened and happens to this sandbox: see `AsyncClient.events`."""
        return self.client.events(sandbox=self.id, types=types, start=start)

    async def destroy(self) -> None:
        """End everything in the sandbox and give back what it used; one that is gone already is no error."""
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
