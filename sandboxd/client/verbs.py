"""How a request that is written once becomes a method of both `Sandbox` and `AsyncSandbox`.

A builder is a function of the `*_calls` modules whose name, arguments and docstring are the method's. In the place of
`self` it takes the key of what it is about: a sandbox's id, or a session's (`SessionKey`). These functions make the
method of it; the type checker sees the builder's own arguments, and so do `inspect.signature` and `help`:

    stat_file = sync_verb(file_calls.stat_file)                   # Call[FileInfo]: def stat_file(…) -> FileInfo
    stat_file = async_verb(file_calls.stat_file)                  # async def stat_file(…) -> FileInfo
    watch = stream_verb(file_calls.watch, WatchStream)           # def watch(…) -> WatchStream
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec, Protocol, TypeAlias, TypeVar

from . import async_stream, stream
from .calls import Call, Streamed

if TYPE_CHECKING:
    from .async_client import AsyncClient
    from .client import Client
    from .models import SandboxInfo

P = ParamSpec("P")
T = TypeVar("T")
M = TypeVar("M", bound=Callable[..., object])
S = TypeVar("S")
K = TypeVar("K")
K_co = TypeVar("K_co", covariant=True)
C_co = TypeVar("C_co", covariant=True)

Request: TypeAlias = Call[T] | Streamed[Any, T]


class Owner(Protocol[K_co, C_co]):
    """What has verbs: its key, and the client that sends them."""

    @property
    def _key(self) -> K_co: ...

    @property
    def client(self) -> C_co:
        """The connections that it uses."""


class _Sandbox:
    """What every part of a sandbox has."""

    info: SandboxInfo

    @property
    def id(self) -> str:
        """The sandbox's id."""
        return self.info.id

    @property
    def _key(self) -> str:
        return self.id


class Part(_Sandbox):
    """The base of the parts of `Sandbox`."""

    @property
    def client(self) -> Client:
        """The connections that it uses."""
        raise NotImplementedError


class AsyncPart(_Sandbox):
    """The base of the parts of `AsyncSandbox`."""

    @property
    def client(self) -> AsyncClient:
        """The connections that it uses."""
        raise NotImplementedError


def sync_verb(build: Callable[Concatenate[K, P], Request[T]]) -> Callable[Concatenate[Owner[K, Client], P], T]:
    """Return the method that sends what `build` makes and returns the answer."""

    def method(owner: Owner[K, Client], /, *args: P.args, **kwargs: P.kwargs) -> T:
        request = build(owner._key, *args, **kwargs)
        return owner.client.send(request) if isinstance(request, Call) else stream.follow(owner.client, request)

    return like(method, build)


def async_verb(
    build: Callable[Concatenate[K, P], Request[T]],
) -> Callable[Concatenate[Owner[K, AsyncClient], P], Coroutine[Any, Any, T]]:
    """Return the coroutine method that sends what `build` makes and returns the answer."""

    async def method(owner: Owner[K, AsyncClient], /, *args: P.args, **kwargs: P.kwargs) -> T:
        request = build(owner._key, *args, **kwargs)
        if isinstance(request, Call):
            return await owner.client.send(request)
        return await async_stream.follow(owner.client, request)

    return like(method, build)


def sync_info_verb(
    build: Callable[Concatenate[str, P], Call[SandboxInfo]],
) -> Callable[Concatenate[Part, P], SandboxInfo]:
    """Return the method of a verb that is answered with the sandbox as it is now: kept in `info`, and returned."""

    def method(part: Part, /, *args: P.args, **kwargs: P.kwargs) -> SandboxInfo:
        part.info = part.client.send(build(part.id, *args, **kwargs))
        return part.info

    return like(method, build)


def async_info_verb(
    build: Callable[Concatenate[str, P], Call[SandboxInfo]],
) -> Callable[Concatenate[AsyncPart, P], Coroutine[Any, Any, SandboxInfo]]:
    """Return the coroutine method of a verb that is answered with the sandbox: kept in `info`, and returned."""

    async def method(part: AsyncPart, /, *args: P.args, **kwargs: P.kwargs) -> SandboxInfo:
        part.info = await part.client.send(build(part.id, *args, **kwargs))
        return part.info

    return like(method, build)


def stream_verb(
    build: Callable[Concatenate[K, P], S], kind: Callable[[C_co, S], T]
) -> Callable[Concatenate[Owner[K, C_co], P], T]:
    """Return the method that makes a stream, sync or async, of what `build` says about it."""

    def method(owner: Owner[K, C_co], /, *args: P.args, **kwargs: P.kwargs) -> T:
        return kind(owner.client, build(owner._key, *args, **kwargs))

    return like(method, build, kind.__name__)


def like(method: M, build: Callable[..., object], answer: str | None = None) -> M:
    """Give a method its builder's name, docstring and arguments.

    `answer` says in an annotation's words what the method returns; else it is the X of the builder's own `Call[X]`.
    """
    functools.update_wrapper(method, build)
    key, *rest = inspect.signature(build).parameters.values()
    given = {parameter.name: parameter.annotation for parameter in rest}
    answer = answer or build.__annotations__["return"].partition("[")[2].removesuffix("]")
    method.__annotations__ = {**given, "return": answer}
    parameters = [key.replace(name="self", annotation=inspect.Parameter.empty), *rest]
    vars(method)["__signature__"] = inspect.Signature(parameters, return_annotation=answer)
    return method
