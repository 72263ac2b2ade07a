"""The route table: path, methods, handler and access in one place; the application and openapi.json read it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from ..access import Level
from ..call import Call, answer
from ..route import Route
from . import (
    commands,
    context_models,
    contexts,
    events,
    file_models,
    filebackup,
    filedata,
    files,
    filetree,
    git,
    git_models,
    logs,
    meta,
    models,
    openapi,
    patch,
    ports,
    processes,
    sandboxes,
    sessions,
    terminals,
)
from .process_models import LogsOut, ProcessIn, ProcessList, ProcessOut, SignalIn, WaitIn, WaitOut

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from quart_trio.wrappers import TrioResponse


async def describe(call: Call) -> TrioResponse:
    """Return this table as an OpenAPI document."""
    return answer(openapi.document(ROUTES, call.facts.version))


_SANDBOX: Final = "/v1/sandboxes/<ref>"
_PROCESS: Final = _SANDBOX + "/processes/<process>"
_GONE: Final = ("sandbox-not-found", "sandbox-failed", "sandbox-frozen", "sandbox-gone", "conflict")
_BODY: Final = ("unknown-field", "body-too-large")
_CREATE: Final = (
    "name-taken",
    "not-available",
    "rootfs-not-found",
    "profile-not-found",
    "limit-unenforceable",
    "launch-failed",
    "storage-full",
    "server-busy",
)
_IN_SESSION: Final = (*_GONE, "session-not-found")
_NO_PROCESS: Final = (*_GONE, "process-not-found")
#: A file is named by one of these.
_PATH: Final = ("path", "path_b64")
_FILE: Final = ("file-not-found", "not-a-file", "file-permission-denied", "limit-exceeded", "server-busy")
#: Where something comes to be.
_NEW: Final = ("file-exists", "directory-not-empty", "quota-exceeded")


def _file(  # noqa: PLR0913 - a row of a table
    name: str,
    method: str,
    path: str,
    handler: Callable[..., Awaitable[TrioResponse]],
    *,
    query: tuple[str, ...] = (),
    body: type[Any] | None = None,
    result: type[Any] | None = None,
    status: int = 200,
    kinds: tuple[str, ...] = (),
) -> Route:
    """Return a row of …/files, with the errors that each of them can give."""
    own = _BODY if body is not None and body is not bytes else ()
    return Route(
        name=name,
        method=method,
        path=f"{_SANDBOX}/files{path}",
        handler=handler,
        query=query,
        body=body,
        result=result,
        status=status,
        kinds=(*own, *_GONE, *_FILE, *kinds),
    )


_PORTS: Final = ("sandbox-not-found", "not-available")
_CONTEXT: Final = _SANDBOX + "/contexts/<context>"
_STARTS: Final = ("interpreter-missing", "context-exited", "limit-exceeded")
_IN_CONTEXT: Final = (*_GONE, "context-not-found")
_RUNS: Final = ("context-exited", "context-restarting", "server-busy")

_CLONE: Final = (
    "git-authentication",
    "git-repository-not-found",
    "git-ref-not-found",
    "git-refused",
    "git-unreachable",
    "git-timeout",
    "git-protocol-error",
    "file-not-found",
    "file-exists",
    "directory-not-empty",
    "file-permission-denied",
    "quota-exceeded",
    "limit-exceeded",
    "not-available",
    "launch-failed",
    "server-busy",
)

ROUTES: Final[tuple[Route, ...]] = (
    Route(
        method="GET", path="/v1/health", name="health", handler=meta.health, access=Level.PUBLIC, result=models.Health
    ),
    Route(method="GET", path="/v1/info", name="info", handler=meta.info, result=dict),
    Route(method="GET", path="/v1/metrics", name="metrics", handler=meta.metrics, query=("sandboxes",), result=str),
    Route(method="GET", path="/v1/openapi.json", name="openapi", handler=describe, result=dict),
    Route(
        method="GET", path="/v1/events", name="events", handler=events.show, query=events.QUERY, result=events.EventPage
    ),
    Route(
        method="POST",
        path="/v1/sandboxes",
        name="sandboxes.create",
        handler=sandboxes.create,
        body=models.SandboxIn,
        result=models.SandboxOut,
        status=201,
        kinds=(*_BODY, *_CREATE),
    ),
    Route(
        method="GET",
        path="/v1/sandboxes",
        name="sandboxes.list",
        handler=sandboxes.show_all,
        query=("cursor", "limit"),
        result=models.SandboxList,
    ),
    Route(
        method="GET",
        path=_SANDBOX,
        name="sandboxes.get",
        handler=sandboxes.show,
        result=models.SandboxOut,
        kinds=("sandbox-not-found",),
    ),
    Route(
        method="PATCH",
        path=_SANDBOX,
        name="sandboxes.update",
        handler=sandboxes.change,
        body=patch.SandboxPatch,
        result=models.SandboxOut,
        kinds=(*_BODY, *_GONE, "name-taken", "not-available", "limit-unenforceable", "cgroup-error"),
    ),
    Route(
        method="POST",
        path=_SANDBOX + "/freeze",
        name="sandboxes.freeze",
        handler=sandboxes.freeze,
        result=models.SandboxOut,
        kinds=(*_GONE, "cgroup-error"),
    ),
    Route(
        method="POST",
        path=_SANDBOX + "/thaw",
        name="sandboxes.thaw",
        handler=sandboxes.thaw,
        result=models.SandboxOut,
        kinds=(*_GONE, "cgroup-error"),
    ),
    Route(
        method="GET",
        path=_SANDBOX + "/stats",
        name="sandboxes.stats",
        handler=sandboxes.stats,
        result=models.StatsOut,
        kinds=_GONE,
    ),
    Route(
        method="DELETE",
        path=_SANDBOX,
        name="sandboxes.destroy",
        handler=sandboxes.destroy,
        status=204,
        kinds=("sandbox-not-found", "conflict", "launch-failed"),
    ),
    Route(
        method="POST",
        path=_SANDBOX + "/exec",
        name="exec",
        handler=commands.execute,
        body=models.ExecIn,
        result=models.ExecOut,
        kinds=(*_BODY, *_IN_SESSION, "not-available", "limit-exceeded", "server-busy"),
    ),
    Route(
        method="POST",
        path=_SANDBOX + "/processes",
        name="processes.start",
        handler=processes.start,
        body=ProcessIn,
        result=ProcessOut,
        status=201,
        kinds=(*_BODY, *_IN_SESSION, "name-taken", "not-available", "limit-exceeded", "server-busy"),
    ),
    Route(
        method="GET",
        path=_SANDBOX + "/processes",
        name="processes.list",
        handler=processes.show_all,
        query=("cursor", "limit"),
        result=ProcessList,
        kinds=_GONE,
    ),
    Route(
        method="DELETE",
        path=_SANDBOX + "/processes",
        name="processes.remove_all",
        handler=processes.remove_all,
        status=204,
        kinds=_GONE,
    ),
    Route(
        method="GET", path=_PROCESS, name="processes.get", handler=processes.show, result=ProcessOut, kinds=_NO_PROCESS
    ),
    Route(
        method="DELETE", path=_PROCESS, name="processes.remove", handler=processes.remove, status=204, kinds=_NO_PROCESS
    ),
    Route(
        method="POST",
        path=_PROCESS + "/signal",
        name="processes.signal",
        handler=processes.signal,
        body=SignalIn,
        status=204,
        kinds=(*_BODY, *_NO_PROCESS, "process-not-running"),
    ),
    Route(
        method="POST",
        path=_PROCESS + "/wait",
        name="processes.wait",
        handler=processes.wait,
        body=WaitIn,
        result=WaitOut,
        kinds=(*_BODY, *_NO_PROCESS, "limit-exceeded", "server-busy"),
    ),
    Route(
        method="GET",
        path=_PROCESS + "/logs",
        name="processes.logs",
        handler=logs.show,
        query=logs.QUERY,
        result=LogsOut,
        kinds=_NO_PROCESS,
    ),
    Route(
        method="GET",
        path=_SANDBOX + "/pty",
        name="pty",
        handler=terminals.open_terminal,
        query=terminals.QUERY,
        status=101,
        kinds=(*_NO_PROCESS, "session-not-found", "name-taken", "limit-exceeded", "server-busy", "unknown-field"),
        websocket=True,
    ),
    Route(
        method="POST",
        path=_PROCESS + "/stdin",
        name="processes.stdin",
        handler=commands.write_stdin,
        body=bytes,
        status=204,
        kinds=(*_GONE, "process-not-found", "process-not-running"),
    ),
    Route(
        method="POST",
        path=_PROCESS + "/stdin/close",
        name="processes.stdin_close",
        handler=commands.close_stdin,
        status=204,
        kinds=(*_GONE, "process-not-found", "process-not-running"),
    ),
    _file("files.read", "GET", "", files.read, query=_PATH, result=bytes, kinds=("range-not-satisfiable",)),
    _file(
        "files.write",
        "PUT",
        "",
        files.write,
        query=(*_PATH, "mode"),
        body=bytes,
        result=file_models.FileOut,
        kinds=_NEW,
    ),
    _file(
        "files.delete",
        "DELETE",
        "",
        filetree.delete,
        query=(*_PATH, "recursive"),
        status=204,
        kinds=("directory-not-empty",),
    ),
    _file(
        "files.list",
        "GET",
        "/list",
        filetree.listing,
        query=(*_PATH, "recursive", "hidden", "cursor", "limit"),
        result=file_models.FileList,
    ),
    _file("files.stat", "GET", "/stat", filetree.stat, query=(*_PATH, "follow"), result=file_models.FileInfo),
    _file("files.exists", "GET", "/exists", filetree.exists, query=_PATH, result=file_models.Exists),
    _file(
        "files.mkdir",
        "POST",
        "/mkdir",
        filetree.mkdir,
        body=filetree.MkdirIn,
        result=file_models.FileInfo,
        status=201,
        kinds=_NEW,
    ),
    _file(
        "files.rename",
        "POST",
        "/rename",
        filetree.rename,
        body=filetree.MoveIn,
        result=file_models.FileInfo,
        kinds=_NEW,
    ),
    _file(
        "files.copy",
        "POST",
        "/copy",
        filetree.copy,
        body=filetree.MoveIn,
        result=file_models.Copied,
        status=201,
        kinds=_NEW,
    ),
    _file(
        "files.symlink",
        "POST",
        "/symlink",
        filetree.symlink,
        body=filetree.SymlinkIn,
        result=file_models.FileInfo,
        status=201,
        kinds=_NEW,
    ),
    _file("files.search", "POST", "/search", filedata.search, body=filedata.SearchIn, result=file_models.Found),
    _file(
        "files.replace",
        "POST",
        "/replace",
        filedata.replace,
        body=filedata.ReplaceIn,
        result=file_models.Replaced,
        kinds=("quota-exceeded",),
    ),
    _file(
        "files.watch", "GET", "/watch", filedata.watch, query=(*_PATH, "recursive", "include", "exclude"), result=bytes
    ),
    _file(
        "files.changes",
        "POST",
        "/changes",
        filebackup.changes,
        body=filebackup.ChangesIn,
        result=file_models.ChangesOut,
    ),
    _file(
        "files.backup",
        "POST",
        "/backup",
        filebackup.backup,
        body=filebackup.BackupIn,
        result=file_models.BackupOut,
        status=201,
        kinds=("quota-exceeded",),
    ),
    _file(
        "files.restore",
        "POST",
        "/restore",
        filebackup.restore,
        body=filebackup.RestoreIn,
        result=file_models.BackupOut,
        kinds=("archive-refused", "quota-exceeded"),
    ),
    _file("files.archive", "GET", "/archive", filedata.pack, query=(*_PATH, "format"), result=bytes),
    _file(
        "files.unpack",
        "PUT",
        "/archive",
        filedata.unpack,
        query=(*_PATH, "format"),
        body=bytes,
        result=file_models.Unpacked,
        kinds=("archive-refused", "quota-exceeded"),
    ),
    _file("files.chmod", "POST", "/chmod", filetree.chmod, body=filetree.ChmodIn, result=file_models.Changed),
    _file("files.chown", "POST", "/chown", filetree.chown, body=filetree.ChownIn, result=file_models.Changed),
    Route(
        method="POST",
        path=_SANDBOX + "/sessions",
        name="sessions.create",
        handler=sessions.create,
        body=sessions.SessionIn,
        result=sessions.SessionOut,
        status=201,
        kinds=(*_BODY, *_GONE, "name-taken", "limit-exceeded"),
    ),
    Route(
        method="GET",
        path=_SANDBOX + "/sessions",
        name="sessions.list",
        handler=sessions.show_all,
        result=sessions.SessionList,
        kinds=_GONE,
    ),
    Route(
        method="GET",
        path=_SANDBOX + "/sessions/<session>",
        name="sessions.get",
        handler=sessions.show,
        result=sessions.SessionOut,
        kinds=_IN_SESSION,
    ),
    Route(
        method="DELETE",
        path=_SANDBOX + "/sessions/<session>",
        name="sessions.delete",
        handler=sessions.destroy,
        status=204,
        kinds=_IN_SESSION,
    ),
    Route(
        method="POST",
        path=_SANDBOX + "/git/clone",
        name="git.clone",
        handler=git.clone,
        body=git_models.CloneIn,
        result=git_models.CloneOut,
        kinds=(*_BODY, *_GONE, *_CLONE),
    ),
    Route(
        method="POST",
        path=_SANDBOX + "/ports",
        name="ports.expose",
        handler=ports.expose,
        body=ports.PortIn,
        result=ports.PortOut,
        status=201,
        kinds=(*_BODY, *_GONE, "not-available", "port-exposed", "name-taken", "limit-exceeded"),
    ),
    Route(
        method="GET",
        path=_SANDBOX + "/ports",
        name="ports.list",
        handler=ports.show_all,
        result=ports.PortList,
        kinds=_PORTS,
    ),
    Route(
        method="DELETE",
        path=_SANDBOX + "/ports/<port>",
        name="ports.unexpose",
        handler=ports.unexpose,
        status=204,
        kinds=("sandbox-not-found", "port-not-found"),
    ),
    Route(
        method="POST",
        path=_SANDBOX + "/ports/<port>/wait",
        name="ports.wait",
        handler=ports.wait,
        body=ports.PortWaitIn,
        result=ports.PortWaitOut,
        kinds=(*_BODY, *_NO_PROCESS, "server-busy"),
    ),
    Route(
        method="POST",
        path=_SANDBOX + "/ports/<port>/link",
        name="ports.link",
        handler=ports.link,
        result=ports.LinkOut,
        status=201,
        kinds=(*_PORTS, "port-not-found"),
    ),
    Route(
        method="POST",
        path=_SANDBOX + "/contexts",
        name="contexts.create",
        handler=contexts.create,
        body=context_models.ContextIn,
        result=context_models.ContextOut,
        status=201,
        kinds=(*_BODY, *_GONE, *_STARTS),
    ),
    Route(
        method="GET",
        path=_SANDBOX + "/contexts",
        name="contexts.list",
        handler=contexts.show_all,
        result=context_models.ContextList,
    ),
    Route(
        method="GET",
        path=_CONTEXT,
        name="contexts.get",
        handler=contexts.show,
        result=context_models.ContextOut,
        kinds=("context-not-found",),
    ),
    Route(
        method="DELETE", path=_CONTEXT, name="contexts.delete", handler=contexts.destroy, status=204, kinds=_IN_CONTEXT
    ),
    Route(
        method="POST",
        path=_CONTEXT + "/run",
        name="contexts.run",
        handler=contexts.run,
        body=context_models.RunIn,
        result=context_models.RunOut,
        kinds=(*_BODY, *_IN_CONTEXT, *_RUNS),
    ),
    Route(
        method="GET",
        path=_CONTEXT + "/runs/<run>",
        name="contexts.runs.follow",
        handler=contexts.follow,
        query=("from",),
        result=context_models.RunOut,
        kinds=(*_IN_CONTEXT, "run-not-found"),
    ),
    Route(
        method="POST",
        path=_CONTEXT + "/interrupt",
        name="contexts.interrupt",
        handler=contexts.interrupt,
        result=context_models.Interrupted,
        kinds=_IN_CONTEXT,
    ),
    Route(
        method="POST",
        path=_CONTEXT + "/restart",
        name="contexts.restart",
        handler=contexts.restart,
        result=context_models.ContextOut,
        kinds=(*_IN_CONTEXT, *_STARTS),
    ),
    Route(
        method="POST",
        path=_CONTEXT + "/complete",
        name="contexts.complete",
        handler=contexts.complete,
        body=context_models.CompleteIn,
        result=dict,
        kinds=(*_BODY, *_IN_CONTEXT, *_RUNS),
    ),
    Route(
        method="POST",
        path=_CONTEXT + "/inspect",
        name="contexts.inspect",
        handler=contexts.inspect,
        body=context_models.InspectIn,
        result=dict,
        kinds=(*_BODY, *_IN_CONTEXT, *_RUNS),
    ),
    Route(
        method="POST",
        path=_SANDBOX + "/run",
        name="run",
        handler=contexts.run_default,
        body=context_models.RunDefaultIn,
        result=context_models.RunOut,
        kinds=(*_BODY, *_GONE, *_STARTS, *_RUNS),
    ),
)
