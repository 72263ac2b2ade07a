"""The route table: path, methods, handler and access in one place; the application and openapi.json read it."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any, Final

from . import commands, files, meta, models, openapi, sandboxes
from .access import Level
from .call import Call, answer

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from quart_trio.wrappers import TrioResponse


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Route:
    """One row.

    Attributes:
        body: the model of the JSON body; bytes for any bytes; None for none.
        result: the model of the answer; bytes for bytes; None for no content.
        kinds: the error kinds of its own, beside those that any route can give.
    """

    method: str
    path: str
    handler: Callable[..., Awaitable[TrioResponse]]
    access: Level = Level.CALLER
    query: tuple[str, ...] = ()
    body: type[Any] | None = None
    result: type[Any] | None = None
    status: int = 200
    kinds: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """The endpoint's name."""
        return f"{self.handler.__module__.rsplit('.', 1)[-1]}.{self.handler.__name__}"


async def describe(call: Call) -> TrioResponse:
    """Return this table as an OpenAPI document."""
    return answer(openapi.document(ROUTES, call.facts.version))


_SANDBOX: Final = "/v1/sandboxes/<ref>"
_PROCESS: Final = _SANDBOX + "/processes/<process>"
_GONE: Final = ("sandbox-not-found", "sandbox-failed", "sandbox-gone", "conflict")
_BODY: Final = ("unknown-field", "body-too-large")
_BIRTH: Final = (
    "name-taken",
    "not-available",
    "rootfs-not-found",
    "profile-not-found",
    "limit-unenforceable",
    "launch-failed",
    "storage-full",
    "server-busy",
)
_FILE: Final = ("file-not-found", "not-a-file", "file-permission-denied")

ROUTES: Final[tuple[Route, ...]] = (
    Route(method="GET", path="/v1/health", handler=meta.health, access=Level.PUBLIC, result=models.Health),
    Route(method="GET", path="/v1/info", handler=meta.info, result=dict),
    Route(method="GET", path="/v1/openapi.json", handler=describe, result=dict),
    Route(
        method="POST",
        path="/v1/sandboxes",
        handler=sandboxes.create,
        body=models.SandboxIn,
        result=models.SandboxOut,
        status=201,
        kinds=(*_BODY, *_BIRTH),
    ),
    Route(
        method="GET",
        path="/v1/sandboxes",
        handler=sandboxes.show_all,
        query=("cursor", "limit"),
        result=models.SandboxList,
    ),
    Route(method="GET", path=_SANDBOX, handler=sandboxes.show, result=models.SandboxOut, kinds=("sandbox-not-found",)),
    Route(
        method="DELETE",
        path=_SANDBOX,
        handler=sandboxes.destroy,
        status=204,
        kinds=("sandbox-not-found", "conflict", "launch-failed"),
    ),
    Route(
        method="POST",
        path=_SANDBOX + "/exec",
        handler=commands.execute,
        body=models.ExecIn,
        result=models.ExecOut,
        kinds=(*_BODY, *_GONE, "not-available", "limit-exceeded", "server-busy"),
    ),
    Route(
        method="POST",
        path=_PROCESS + "/stdin",
        handler=commands.write_stdin,
        body=bytes,
        status=204,
        kinds=(*_GONE, "process-not-found", "process-not-running"),
    ),
    Route(
        method="POST",
        path=_PROCESS + "/stdin/close",
        handler=commands.close_stdin,
        status=204,
        kinds=(*_GONE, "process-not-found", "process-not-running"),
    ),
    Route(
        method="GET",
        path=_SANDBOX + "/files",
        handler=files.read,
        query=("path",),
        result=bytes,
        kinds=(*_GONE, *_FILE, "range-not-satisfiable"),
    ),
    Route(
        method="PUT",
        path=_SANDBOX + "/files",
        handler=files.write,
        query=("path",),
        body=bytes,
        result=models.FileOut,
        kinds=(*_GONE, "not-a-file", "file-permission-denied", "quota-exceeded"),
    ),
)
