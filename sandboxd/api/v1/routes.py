"""The route table: path, methods, handler and access in one place; the application and openapi.json read it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from ..access import Level
from ..call import Call, answer
from ..route import Route
from . import (
    commands,
    context_models,
    contexts,
    events,
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
from .rows import BODY, GONE, SANDBOX

if TYPE_CHECKING:
    from quart_trio.wrappers import TrioResponse


async def describe(call: Call) -> TrioResponse:
    """Return this table as an OpenAPI document."""
    return answer(openapi.document(ROUTES, call.facts.version))


_PROCESS: Final = SANDBOX + "/processes/<process>"
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
_IN_SESSION: Final = (*GONE, "session-not-found")
_NO_PROCESS: Final = (*GONE, "process-not-found")


_PORTS: Final = ("sandbox-not-found", "not-available")
_CONTEXT: Final = SANDBOX + "/contexts/<context>"
_STARTS: Final = ("interpreter-missing", "context-exited", "limit-exceeded")
_IN_CONTEXT: Final = (*GONE, "context-not-found")
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
        kinds=(*BODY, *_CREATE),
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
        path=SANDBOX,
        name="sandboxes.get",
        handler=sandboxes.show,
        result=models.SandboxOut,
        kinds=("sandbox-not-found",),
    ),
    Route(
        method="PATCH",
        path=SANDBOX,
        name="sandboxes.update",
        handler=sandboxes.change,
        body=patch.SandboxPatch,
        result=models.SandboxOut,
        kinds=(*BODY, *GONE, "name-taken", "not-available", "limit-unenforceable", "cgroup-error"),
    ),
    Route(
        method="POST",
        path=SANDBOX + "/freeze",
        name="sandboxes.freeze",
        handler=sandboxes.freeze,
        result=models.SandboxOut,
        kinds=(*GONE, "cgroup-error"),
    ),
    Route(
        method="POST",
        path=SANDBOX + "/thaw",
        name="sandboxes.thaw",
        handler=sandboxes.thaw,
        result=models.SandboxOut,
        kinds=(*GONE, "cgroup-error"),
    ),
    Route(
        method="GET",
        path=SANDBOX + "/stats",
        name="sandboxes.stats",
        handler=sandboxes.stats,
        result=models.StatsOut,
        kinds=GONE,
    ),
    Route(
        method="DELETE",
        path=SANDBOX,
        name="sandboxes.destroy",
        handler=sandboxes.destroy,
        status=204,
        kinds=("sandbox-not-found", "conflict", "launch-failed"),
    ),
    Route(
        method="POST",
        path=SANDBOX + "/exec",
        name="exec",
        handler=commands.execute,
        body=models.ExecIn,
        result=models.ExecOut,
        kinds=(*BODY, *_IN_SESSION, "not-available", "limit-exceeded", "server-busy"),
    ),
    Route(
        method="POST",
        path=SANDBOX + "/processes",
        name="processes.start",
        handler=processes.start,
        body=ProcessIn,
        result=ProcessOut,
        status=201,
        kinds=(*BODY, *_IN_SESSION, "name-taken", "not-available", "limit-exceeded", "server-busy"),
    ),
    Route(
        method="GET",
        path=SANDBOX + "/processes",
        name="processes.list",
        handler=processes.show_all,
        query=("cursor", "limit"),
        result=ProcessList,
        kinds=GONE,
    ),
    Route(
        method="DELETE",
        path=SANDBOX + "/processes",
        name="processes.remove_all",
        handler=processes.remove_all,
        status=204,
        kinds=GONE,
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
        kinds=(*BODY, *_NO_PROCESS, "process-not-running"),
    ),
    Route(
        method="POST",
        path=_PROCESS + "/wait",
        name="processes.wait",
        handler=processes.wait,
        body=WaitIn,
        result=WaitOut,
        kinds=(*BODY, *_NO_PROCESS, "limit-exceeded", "server-busy"),
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
        path=SANDBOX + "/pty",
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
        kinds=(*GONE, "process-not-found", "process-not-running"),
    ),
    Route(
        method="POST",
        path=_PROCESS + "/stdin/close",
        name="processes.stdin_close",
        handler=commands.close_stdin,
        status=204,
        kinds=(*GONE, "process-not-found", "process-not-running"),
    ),
    *files.ROUTES,
    *filetree.ROUTES,
    *filedata.ROUTES,
    *filebackup.ROUTES,
    Route(
        method="POST",
        path=SANDBOX + "/sessions",
        name="sessions.create",
        handler=sessions.create,
        body=sessions.SessionIn,
        result=sessions.SessionOut,
        status=201,
        kinds=(*BODY, *GONE, "name-taken", "limit-exceeded"),
    ),
    Route(
        method="GET",
        path=SANDBOX + "/sessions",
        name="sessions.list",
        handler=sessions.show_all,
        result=sessions.SessionList,
        kinds=GONE,
    ),
    Route(
        method="GET",
        path=SANDBOX + "/sessions/<session>",
        name="sessions.get",
        handler=sessions.show,
        result=sessions.SessionOut,
        kinds=_IN_SESSION,
    ),
    Route(
        method="DELETE",
        path=SANDBOX + "/sessions/<session>",
        name="sessions.delete",
        handler=sessions.destroy,
        status=204,
        kinds=_IN_SESSION,
    ),
    Route(
        method="POST",
        path=SANDBOX + "/git/clone",
        name="git.clone",
        handler=git.clone,
        body=git_models.CloneIn,
        result=git_models.CloneOut,
        kinds=(*BODY, *GONE, *_CLONE),
    ),
    Route(
        method="POST",
        path=SANDBOX + "/ports",
        name="ports.expose",
        handler=ports.expose,
        body=ports.PortIn,
        result=ports.PortOut,
        status=201,
        kinds=(*BODY, *GONE, "not-available", "port-exposed", "name-taken", "limit-exceeded"),
    ),
    Route(
        method="GET",
        path=SANDBOX + "/ports",
        name="ports.list",
        handler=ports.show_all,
        result=ports.PortList,
        kinds=_PORTS,
    ),
    Route(
        method="DELETE",
        path=SANDBOX + "/ports/<port>",
        name="ports.unexpose",
        handler=ports.unexpose,
        status=204,
        kinds=("sandbox-not-found", "port-not-found"),
    ),
    Route(
        method="POST",
        path=SANDBOX + "/ports/<port>/wait",
        name="ports.wait",
        handler=ports.wait,
        body=ports.PortWaitIn,
        result=ports.PortWaitOut,
        kinds=(*BODY, *_NO_PROCESS, "server-busy"),
    ),
    Route(
        method="POST",
        path=SANDBOX + "/ports/<port>/link",
        name="ports.link",
        handler=ports.link,
        result=ports.LinkOut,
        status=201,
        kinds=(*_PORTS, "port-not-found"),
    ),
    Route(
        method="POST",
        path=SANDBOX + "/contexts",
        name="contexts.create",
        handler=contexts.create,
        body=context_models.ContextIn,
        result=context_models.ContextOut,
        status=201,
        kinds=(*BODY, *GONE, *_STARTS),
    ),
    Route(
        method="GET",
        path=SANDBOX + "/contexts",
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
        kinds=(*BODY, *_IN_CONTEXT, *_RUNS),
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
        kinds=(*BODY, *_IN_CONTEXT, *_RUNS),
    ),
    Route(
        method="POST",
        path=_CONTEXT + "/inspect",
        name="contexts.inspect",
        handler=contexts.inspect,
        body=context_models.InspectIn,
        result=dict,
        kinds=(*BODY, *_IN_CONTEXT, *_RUNS),
    ),
    Route(
        method="POST",
        path=SANDBOX + "/run",
        name="run",
        handler=contexts.run_default,
        body=context_models.RunDefaultIn,
        result=context_models.RunOut,
        kinds=(*BODY, *GONE, *_STARTS, *_RUNS),
    ),
)
