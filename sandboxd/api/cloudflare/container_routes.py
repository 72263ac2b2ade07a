"""The container's API, below /cloudflare/sandboxes/<name>."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from ..bodies import Input
from ..route import Route
from . import container_backup as backup
from . import container_code as code
from . import container_exec as commands
from . import container_files as files
from . import container_git as git
from . import container_meta as meta
from . import container_ports as ports
from . import container_processes as processes
from . import container_sessions as sessions
from . import container_socket as socket
from . import container_watch as watch
from . import terminal, tokens
from .container import named

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

_SANDBOX: Final = "/cloudflare/sandboxes/<name>"
_PROCESS: Final = "/process/<process>"


def _route(
    method: str,
    path: str,
    handler: Callable[..., Awaitable[Any]],
    operation: str,
    *,
    query: type[Input] = Input,
) -> Route:
    """Return a row; `operation` is what its errors call it."""
    body = dict if method == "POST" else None
    return Route(
        name=f"cloudflare.{operation}",
        method=method,
        path=f"{_SANDBOX}/api{path}",
        handler=named(operation, handler),
        query=query,
        body=body,
    )


ROUTES: Final[tuple[Route, ...]] = (
    Route(method="GET", path=f"{_SANDBOX}/", name="cloudflare.root", handler=meta.root),
    Route(
        method="GET",
        path=f"{_SANDBOX}/ws",
        name="cloudflare.websocket",
        handler=socket.serve,
        query=tokens.SocketQuery,
        status=101,
        websocket=True,
    ),
    # Not built yet: a sentence instead of "no such route", which their client takes for a fault of the network.
    Route(
        method="GET",
        path=f"{_SANDBOX}/rpc",
        name="cloudflare.rpc",
        handler=named("rpc", meta.rpc),
        query=tokens.SocketQuery,
        status=101,
        websocket=True,
    ),
    Route(
        method="GET",
        path=f"{_SANDBOX}/ws/pty",
        name="cloudflare.terminal.open",
        handler=named("terminal.open", terminal.open_terminal),
        query=terminal.TerminalQuery,
        status=101,
        websocket=True,
    ),
    _route("POST", "/port-watch", ports.watch, "port.watch"),
    _route("GET", "/ping", meta.ping, "utility.ping"),
    _route("GET", "/version", meta.version, "utility.version"),
    _route("GET", "/commands", meta.commands, "utility.commands"),
    _route("POST", "/session/create", sessions.create, "session.create"),
    _route("GET", "/session/list", sessions.show_all, "session.list"),
    _route("POST", "/session/delete", sessions.delete, "session.delete"),
    _route("POST", "/execute", commands.execute, "command.execute"),
    _route("POST", "/execute/stream", commands.stream, "command.stream"),
    _route("POST", "/process/start", processes.start, "process.start"),
    _route("GET", "/process/list", processes.show_all, "process.list", query=processes.ListQuery),
    _route("DELETE", "/process/kill-all", processes.kill_all, "process.killAll"),
    _route("GET", _PROCESS, processes.show, "process.get"),
    _route("DELETE", _PROCESS, processes.kill, "process.kill", query=processes.KillQuery),
    _route("GET", _PROCESS + "/logs", processes.show_logs, "process.logs"),
    _route("GET", _PROCESS + "/stream", processes.stream_logs, "process.stream"),
    _route("POST", "/read", files.read, "file.read"),
    _route("POST", "/read/stream", files.read_stream, "file.readStream"),
    _route("POST", "/write", files.write, "file.write"),
    _route("POST", "/delete", files.delete, "file.delete"),
    _route("POST", "/rename", files.rename, "file.rename"),
    _route("POST", "/move", files.move, "file.move"),
    _route("POST", "/mkdir", files.mkdir, "directory.create"),
    _route("POST", "/list-files", files.list_files, "directory.list"),
    _route("POST", "/exists", files.exists, "file.exists"),
    _route("POST", "/watch", watch.watch, "file.watch"),
    _route("POST", "/watch/check", watch.check, "file.checkChanges"),
    _route("POST", "/backup/create", backup.create, "backup.create"),
    _route("POST", "/backup/restore", backup.restore, "backup.restore"),
    _route("POST", "/backup/upload-parts", backup.upload, "backup.uploadParts"),
    _route("POST", "/git/checkout", git.checkout, "git.checkout"),
    _route("GET", "/interpreter/health", code.health, "interpreter.health"),
    _route("POST", "/contexts", code.create, "code.context.create"),
    _route("GET", "/contexts", code.show_all, "code.context.list"),
    _route("DELETE", "/contexts/<context>", code.delete, "code.context.delete"),
    _route("POST", "/execute/code", code.run, "code.execute"),
)
