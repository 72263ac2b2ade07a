"""How a request that is written once becomes a method of both `Sandbox` and `AsyncSandbox`.

A builder is a function of the `*_calls` modules whose name, arguments and docstring are the method's. In the place of
`self` it takes the key of what it is about: a sandbox's id, a session's `SessionKey`, a command's `ProcessKey`, or None
for the daemon. These functions make the method of it; type checkers, `inspect.signature` and `help` see the builder's
own arguments:

    stat_file = sync_verb(file_tree.stat_file)          # of Call[FileInfo]: def stat_file(…) -> FileInfo
    stat_file = async_verb(file_tree.stat_file)         # async def stat_file(…) -> FileInfo
    watch = stream_verb(file_calls.watch, WatchStream)  # def watch(…) -> WatchStream
"""

from __future__ import annotations

import contextlib
import functools
import inspect
from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec, Protocol, TypeVar

from . import async_stream, stream
from .calls import Call

if TYPE_CHECKING:
    from .async_client import AsyncClient
    from .calls import Request, Steps
    from .client import Client
    from .models import SandboxInfo

P = ParamSpec("P")
T = TypeVar("T")
M = TypeVar("M", bound=Callable[..., object])
S = TypeVar("S")
K = TypeVar("K")
K_co = TypeVar("K_co", covariant=True)
C_co = TypeVar("C_co", covariant=True)


class Owner(Protocol[C_co, K_co]):
    """An object that has verbs: the client that sends them, and the key of the object in the API."""

    @property
    def _target(self) -> tuple[C_co, K_co]: ...


class InfoOwner(Owner[C_co, K_co], Protocol[C_co, K_co, T]):
    """An owner that keeps in `info` the daemon's latest description of it."""

    info: T


class _Sandbox:
    """What every part of a sandbox has."""

    info: SandboxInfo

    @property
    def id(self) -> str:
        """The sandbox's id."""
        return self.info.id


class Part(_Sandbox):
    """The base of the parts of `Sandbox`."""

    @property
    def client(self) -> Client:
        """The client whose connections it uses."""
        raise NotImplementedError

    @property
    def _target(self) -> tuple[Client, str]:
        return self.client, self.id


class AsyncPart(_Sandbox):
    """The base of the parts of `AsyncSandbox`."""

    @property
    def client(self) -> AsyncClient:
        """The client whose connections it uses."""
        raise NotImplementedError

    @property
    def _target(self) -> tuple[AsyncClient, str]:
        return self.client, self.id


def sync_verb(build: Callable[Concatenate[K, P], Request[T]]) -> Callable[Concatenate[Owner[Client, K], P], T]:
    """Return the method that sends what `build` makes and returns the answer."""

    def method(owner: Owner[Client, K], /, *args: P.args, **kwargs: P.kwargs) -> T:
        client, key = owner._target
        request = build(key, *args, **kwargs)
        return client.send(request) if isinstance(request, Call) else stream.follow(client, request)

    return like(method, build)


def async_verb(
    build: Callable[Concatenate[K, P], Request[T]],
) -> Callable[Concatenate[Owner[AsyncClient, K], P], Coroutine[Any, Any, T]]:
    """Return the coroutine method that sends what `build` makes and returns the answer."""

    async def method(owner: Owner[AsyncClient, K], /, *args: P.args, **kwargs: P.kwargs) -> T:
        client, key = owner._target
        request = build(key, *args, **kwargs)
        if isinstance(request, Call):
            return await client.send(request)
        return await async_stream.follow(client, request)

    return like(method, build)


def sync_info_verb(
    build: Callable[Concatenate[K, P], Call[T]],
) -> Callable[Concatenate[InfoOwner[Client, K, T], P], T]:
    """Return the method of a verb whose answer is its owner's new state: stored in `info`, and returned."""

    def method(owner: InfoOwner[Client, K, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
        client, key = owner._target
        owner.info = client.send(build(key, *args, **kwargs))
        return owner.info

    return like(method, build)


def async_info_verb(
    build: Callable[Concatenate[K, P], Call[T]],
) -> Callable[Concatenate[InfoOwner[AsyncClient, K, T], P], Coroutine[Any, Any, T]]:
    """Return the coroutine method of a verb whose answer is its owner's new state: stored in `info`, and returned."""

    async def method(owner: InfoOwner[AsyncClient, K, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
        client, key = owner._target
        owner.info = await client.send(build(key, *args, **kwargs))
        return owner.info

    return like(method, build)


def sync_steps(build: Callable[Concatenate[K, P], Steps]) -> Callable[Concatenate[Owner[Client, K], P], None]:
    """Return the method that sends each request of what `build` makes."""

    def method(owner: Owner[Client, K], /, *args: P.args, **kwargs: P.kwargs) -> None:
        client, key = owner._target
        steps = build(key, *args, **kwargs)
        with contextlib.suppress(*steps.ignored):
            for call in steps.calls:
                client.send(call)

    return like(method, build, "None")


def async_steps(
    build: Callable[Concatenate[K, P], Steps],
) -> Callable[Concatenate[Owner[AsyncClient, K], P], Coroutine[Any, Any, None]]:
    """Return the coroutine method that sends each request of what `build` makes."""

    async def method(owner: Owner[AsyncClient, K], /, *args: P.args, **kwargs: P.kwargs) -> None:
        client, key = owner._target
        steps = build(key, *args, **kwargs)
        with contextlib.suppress(*steps.ignored):
            for call in steps.calls:
                await client.send(call)

    return like(method, build, "None")


def stream_verb(
    build: Callable[Concatenate[K, P], S], kind: Callable[[C_co, S], T]
) -> Callable[Concatenate[Owner[C_co, K], P], T]:
    """Return the method that makes a stream, sync or async, of what `build` says about it."""

    def method(owner: Owner[C_co, K], /, *args: P.args, **kwargs: P.kwargs) -> T:
        client, key = owner._target
        return kind(client, build(key, *args, **kwargs))

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


def documented(source: Callable[..., object]) -> Callable[[M], M]:
    """Decorate an asynchronous method with its synchronous twin's docstring."""

    def decorate(method: M) -> M:
        method.__doc__ = source.__doc__
        return method

    return decorate
