"""/api/port-watch: tell when somebody answers on a port, or the process that should has ended."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Literal

from ...errors import InvalidRequest
from ...runtime import waiting
from ...spec import check_port, check_process_id
from . import container
from .container import Body, Events, about, event
from .container_exec import code_of
from .problems import Refusal

if TYPE_CHECKING:
    from collections.abc import Iterable

    from quart_trio.wrappers import TrioResponse

    from ...runtime.sandbox import Sandbox
    from ...runtime.waiting import Waited
    from ..call import Call

GOOD: Final = (200, 399)


class WatchIn(Body, frozen=True):
    """A port, and what an answer on it is. `interval` is not heeded: a listener is noticed at once."""

    port: int
    mode: Literal["http", "tcp"] | None = None
    path: str | None = None
    status_min: int | None = None
    status_max: int | None = None
    process_id: str | None = None
    interval: float | None = None


async def watch(call: Call, name: str) -> TrioResponse:
    """Watch a port until it is ready, or its process has ended."""
    sandbox = await container.reach(call, name)
    model = await container.read(call, WatchIn)
    low, high = model.status_min or GOOD[0], model.status_max or GOOD[1]
    try:
        check_port(model.port)
    except InvalidRequest as error:
        raise Refusal("INVALID_PORT", error.message, port=model.port) from None
    if not 100 <= low <= high <= 599:
        raise Refusal("VALIDATION_FAILED", "cannot accept the statuses: each must be 100 to 599", field="statusMin")
    path = None if model.mode == "tcp" else model.path or "/"
    if path is not None and not path.startswith("/"):
        path = "/" + path
    if model.process_id is not None:
        with about(processId=model.process_id):
            await sandbox.processes.get(check_process_id(model.process_id))
    return container.stream(_Port(sandbox, model, path, (low, high)))


class _Port(Events):
    """A port's events."""

    def __init__(self, sandbox: Sandbox, model: WatchIn, path: str | None, statuses: tuple[int, int]) -> None:
        self._sandbox = sandbox
        self._model = model
        self._path = path
        self._statuses = statuses
        self.first = event("watching", port=model.port)

    async def _next_pieces(self) -> tuple[Iterable[bytes], bool]:
        wanted = self._model.process_id, self._model.port, self._path, None, self._statuses
        return (self._told(await waiting.for_port(self._sandbox, *wanted)),), True

    def _told(self, found: Waited) -> bytes:
        port = self._model.port
        if not found.met:
            return event("process_exited", port=port, exitCode=None if found.exit is None else code_of(found.exit))
        return event("ready", port=port) if found.status is None else event("ready", port=port, statusCode=found.status)

    def _failed(self, error: Exception) -> bytes:
        return event("error", port=self._model.port, error=str(error))
