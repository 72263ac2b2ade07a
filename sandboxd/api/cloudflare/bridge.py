"""The bridge's REST API: what a caller of Cloudflare's bridge worker does over HTTP.

Ids, files' paths and archives are the workspace's. Keeping to /workspace is the bridge's own rule about what its
routes name, no boundary: a command may use every file of its sandbox.
"""

from __future__ import annotations

import base64
import contextlib
import posixpath
import re
import shlex
import signal
from typing import TYPE_CHECKING, Annotated, Any, Final, TypeVar

import msgspec
from msgspec import Meta
from quart_trio.wrappers import TrioResponse

from ...errors import (
    FileNotFound,
    InvalidRequest,
    NameTaken,
    NotAFile,
    PortExposed,
    PortNotFound,
    SandboxdError,
    SandboxNotFound,
    SessionNotFound,
)
from ...runtime.lifecycle import ALIVE
from ...runtime.logs import STREAMS
from ...spec import CommandSpec, SessionSpec, check_session_id
from ...wire import sse, utf8
from .. import jsontext
from ..bodies import Input
from ..call import answer, nothing, streamed
from ..v1.filedata import unpack_body
from ..v1.files import write_body
from ..v1.streams import SseBody
from . import bridge_openapi, names, problems, terminal
from .problems import Refusal

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ...runtime.execution import Execution, Exit
    from ...runtime.ports import Port
    from ...runtime.sandbox import Sandbox
    from ...wire.messages import Event
    from ..call import Call
    from ..socket_call import SocketCall

_T = TypeVar("_T")

WORKSPACE: Final = "/workspace"
SESSION_HEADER: Final = "Session-Id"
#: Theirs for a command whose time is over, as coreutils' timeout has it.
TIMED_OUT: Final = 124
_SESSION: Final = re.compile(r"[a-zA-Z0-9._-]{1,128}\Z")
_MAX_PORT_CHARS: Final = 5


class ExecIn(msgspec.Struct, frozen=True):
    """A command to run."""

    argv: list[str]
    timeout_ms: float | None = None
    cwd: str | None = None


class SessionIn(msgspec.Struct, frozen=True):
    """A session to begin."""

    id: str | None = None
    cwd: str | None = None
    env: dict[str, str] | None = None


class TunnelIn(msgspec.Struct, frozen=True):
    """A port to expose."""

    name: str | None = None


class TerminalQuery(terminal.SizedQuery, frozen=True):
    """Whose terminal is wanted."""

    session: Annotated[str | None, Meta(description="a session id")] = None


class PersistQuery(Input, frozen=True):
    """What of the workspace is wanted."""

    excludes: Annotated[str | None, Meta(description="workspace paths to leave out, separated by commas")] = None


async def _read(call: Call, model: type[_T]) -> _T:
    """Return the body as a model; fields that it does not have are ignored, as there."""
    body = await call.body.read_json()
    try:
        return msgspec.convert(jsontext.parse(body or b"{}"), model)
    except (msgspec.ValidationError, InvalidRequest) as error:
        raise Refusal("invalid_request", f"invalid JSON body: {str(error)[:200]}") from None


async def _reach(call: Call, name: str) -> Sandbox:
    return await names.reach(call.manager, names.check_bridge_id(name))


def _in_workspace(path: str) -> str:
    """Return a path as absolute, if it is in the workspace.

    Raises:
        Refusal: it is elsewhere, or no path.
    """
    if "\0" in path or len(path) > 4096:
        raise Refusal("invalid_request", "the path has a null byte or is too long")
    found = "/" + posixpath.normpath(posixpath.join(WORKSPACE, path)).lstrip("/")
    if found != WORKSPACE and not found.startswith(WORKSPACE + "/"):
        raise Refusal("forbidden", f"the path must be in {WORKSPACE}")
    return found


@contextlib.contextmanager
def _told_as(code: str) -> Iterator[None]:
    """Tell what the domain could not do by this code; what is the caller's fault keeps its own."""
    try:
        yield
    except (InvalidRequest, SandboxNotFound):
        raise
    except SandboxdError as error:
        if error.status in (413, 503):
            raise
        raise Refusal(code, error.message) from error


# --- life ---


async def health(call: Call) -> TrioResponse:
    """Say that the daemon answers."""
    del call
    return answer({"ok": True})


async def create(call: Call) -> TrioResponse:
    """Give an id; the sandbox comes to be when it is first used."""
    del call
    return answer({"id": names.new_bridge_id()})


async def destroy(call: Call, name: str) -> TrioResponse:
    """Destroy a sandbox; one that never came to be is gone already."""
    await names.remove(call.manager, names.check_bridge_id(name))
    return nothing()


async def running(call: Call, name: str) -> TrioResponse:
    """Tell whether there is such a sandbox; asking makes none, so that a caller learns that its state is gone."""
    sandbox = names.find(call.manager, names.check_bridge_id(name))
    return answer({"running": sandbox is not None and sandbox.state in ALIVE})


async def openapi(call: Call) -> TrioResponse:
    """Describe these routes as an OpenAPI document."""
    return answer(bridge_openapi.document(call.facts.version))


async def openapi_page(call: Call) -> TrioResponse:
    """Describe these routes as a page."""
    page = bridge_openapi.page(call.facts.version)
    headers = {"Content-Security-Policy": "default-src 'none'", "X-Content-Type-Options": "nosniff"}
    return TrioResponse(page, 200, headers, content_type="text/html; charset=utf-8")


# --- commands ---


async def execute(call: Call, name: str) -> TrioResponse:
    """Run a command, in a session where the header names one, and stream what it prints."""
    names.check_bridge_id(name)
    model = await _read(call, ExecIn)
    if not model.argv:
        raise Refusal("invalid_request", "argv must have at least one element")
    if model.timeout_ms is not None and not 0 < model.timeout_ms < 1e12:
        raise Refusal("invalid_request", "timeout_ms must be above 0")
    session = _session_of(call)
    command = CommandSpec(
        argv=tuple(model.argv) if session is None else CommandSpec.shell(shlex.join(model.argv)),
        cwd=None if model.cwd is None else _in_workspace(model.cwd),
        timeout_s=None if model.timeout_ms is None else model.timeout_ms / 1000,
        # What a command starts in the background, a server say, is there for the next one.
        keep_orphans=True,
        session=session,
    )
    sandbox = await _reach(call, name)
    if session is not None:
        await _ensure_session(sandbox, session)
    execution = await call.stack.enter_async_context(sandbox.execute(command))
    headers = {"Content-Type": "text/event-stream; charset=utf-8", "Cache-Control": "no-cache"}
    return streamed(_ExecBody(execution, command.timeout_s), 200, headers)


def _session_of(call: Call) -> str | None:
    value = call.request.headers.get(SESSION_HEADER)
    return None if value is None else _check_session(value)


def _check_session(value: str) -> str:
    if not _SESSION.match(value) or ".." in value:
        raise Refusal("invalid_request", "a session id is 1 to 128 letters, digits, dots, dashes and underscores")
    return check_session_id(value)


async def _ensure_session(sandbox: Sandbox, session: str) -> None:
    try:
        await sandbox.sessions.get(session)
    except SessionNotFound:
        with contextlib.suppress(NameTaken):
            await sandbox.sessions.create(SessionSpec(id=session))


class _ExecBody(SseBody):
    """A command's output as their events: base64 of the very bytes, each ending at a character; then its exit code."""

    def __init__(self, execution: Execution, timeout_s: float | None) -> None:
        super().__init__(execution, "base64")
        self._timeout_s = timeout_s
        self._characters = utf8.Pieces(STREAMS)

    def _parts(self, event: Event) -> list[bytes]:
        if isinstance(event.data, bytes):
            data = self._characters.feed(event.type, event.data)
            return [_output(event.type, data)] if data else []
        if event.type == "exit" and self._source.exit is not None:
            return [*self._left(), *self._exit(self._source.exit)]
        return []

    def _left(self) -> list[bytes]:
        """Return what was held back as the beginning of a character, and was none."""
        rest = [(name, self._characters.rest(name)) for name in STREAMS]
        return [_output(name, data) for name, data in rest if data]

    def _exit(self, ended: Exit) -> list[bytes]:
        shown = sse.encode(msgspec.json.encode({"exit_code": exit_code(ended)}), event="exit")
        if not ended.timed_out:
            return [shown]
        note = f"the command timed out after {1000 * (self._timeout_s or 0):.0f} ms\n"
        return [_output("stderr", note.encode()), shown]

    def _problem(self, error: SandboxdError) -> bytes:
        shown = {"error": error.message, "code": "exec_transport_error"}
        return b"".join(self._left()) + sse.encode(jsontext.encode(shown), event="error")


def _output(stream: str, data: bytes) -> bytes:
    return sse.encode(base64.b64encode(data), event=stream)


def exit_code(ended: Exit) -> int:
    """Return how a command ended as a shell's number: 124 for a timeout, 128+N for signal N."""
    if ended.timed_out:
        return TIMED_OUT
    if ended.exit_code is not None:
        return ended.exit_code
    number = getattr(signal, ended.signal or "", signal.SIGKILL)
    return 128 + int(number)


async def open_terminal(call: SocketCall, name: str, query: TerminalQuery) -> None:
    """Open a terminal: a session's, which all its clients share, or the client's own."""
    sandbox = await _reach(call, name)
    session = query.session or _session_of(call)
    await terminal.serve(call, sandbox, None if session is None else _check_session(session), query)


# --- files ---


async def read_file(call: Call, name: str, path: str) -> TrioResponse:
    """Send a file's bytes."""
    where = _in_workspace("/" + path)
    sandbox = await _reach(call, name)
    try:
        reader = await call.stack.enter_async_context(await sandbox.files.open_read(where))
    except FileNotFound as error:
        raise Refusal("workspace_read_not_found", error.message) from error
    except NotAFile as error:
        raise Refusal("invalid_request", error.message) from error
    headers = {
        "Content-Type": "application/octet-stream",
        "Content-Length": str(reader.size),
        "X-Content-Type-Options": "nosniff",
    }
    return streamed(reader.pieces(0, reader.size), 200, headers)


async def write_file(call: Call, name: str, path: str) -> TrioResponse:
    """Put the body in a file's place: whole or not at all, directories above it made."""
    where = _in_workspace("/" + path)
    sandbox = await _reach(call, name)
    with _told_as("workspace_archive_write_error"):
        await write_body(call, sandbox, where)
    return answer({"ok": True})


async def persist(call: Call, name: str, query: PersistQuery) -> TrioResponse:
    """Send the workspace as a tar."""
    excludes = []
    for part in (query.excludes or "").split(","):
        if part:
            relative = _in_workspace(part).removeprefix(WORKSPACE)
            if not relative:
                raise Refusal("invalid_request", "cannot exclude the whole workspace")
            excludes.append(_escaped(relative))
    sandbox = await _reach(call, name)
    with _told_as("workspace_archive_read_error"):
        archive = await call.stack.enter_async_context(sandbox.files.pack(WORKSPACE, "tar", exclude=excludes))
    return streamed(archive.pieces(), 200, {"Content-Type": "application/x-tar"})


def _escaped(path: str) -> str:
    """Return a pattern that means this path alone."""
    return re.sub(r"([\\*?\[\]!# ])", r"\\\1", path)


async def hydrate(call: Call, name: str) -> TrioResponse:
    """Unpack a tar into the workspace, over what is there."""
    names.check_bridge_id(name)
    if call.request.content_length == 0 or (call.body.is_complete and not call.body.received):
        raise Refusal("invalid_request", "the body is empty: it must be a tar archive")
    sandbox = await _reach(call, name)
    with _told_as("workspace_archive_write_error"):
        await unpack_body(call, sandbox, WORKSPACE, "tar")
    return answer({"ok": True})


async def mount(call: Call, name: str) -> TrioResponse:
    """Refuse to mount a bucket: a sandbox may mount nothing."""
    del call
    names.check_bridge_id(name)
    raise Refusal("mount_unsupported", "cannot mount a bucket: sandboxd does not mount buckets; copy the files in")


async def unmount(call: Call, name: str) -> TrioResponse:
    """Refuse to unmount: there is no mount."""
    del call
    names.check_bridge_id(name)
    raise Refusal("unmount_unsupported", "cannot unmount: sandboxd does not mount buckets")


# --- sessions ---


async def create_session(call: Call, name: str) -> TrioResponse:
    """Begin a session."""
    names.check_bridge_id(name)
    model = await _read(call, SessionIn)
    spec = SessionSpec(
        id=None if model.id is None else _check_session(model.id),
        cwd=None if model.cwd is None else _in_workspace(model.cwd),
        env=model.env or {},
    )
    sandbox = await _reach(call, name)
    try:
        with _told_as("session_error"):
            return answer({"id": (await sandbox.sessions.create(spec)).id})
    except Refusal as error:
        if isinstance(error.__cause__, NameTaken):
            raise Refusal("session_exists", error.message) from error
        raise


async def delete_session(call: Call, name: str, session: str) -> TrioResponse:
    """End a session."""
    _check_session(session)
    sandbox = names.find(call.manager, names.check_bridge_id(name))
    try:
        if sandbox is None:
            raise SessionNotFound(f"cannot find session {session}")
        await sandbox.sessions.delete(session)
    except SessionNotFound as error:
        raise Refusal("session_missing", error.message) from error
    return answer({"success": True, "sessionId": session, "timestamp": problems.timestamp()})


# --- tunnels: previews, which is what a port's public URL is here ---


def _port(text: str) -> int:
    if not text.isascii() or not text.isdigit() or len(text) > _MAX_PORT_CHARS:
        raise Refusal("invalid_request", "a port is 1 to 65535")
    return int(text)


async def open_tunnel(call: Call, name: str, port: str) -> TrioResponse:
    """Make a port open in a browser; one that is open already keeps its URL."""
    number = _port(port)
    model = await _read(call, TunnelIn)
    urls = call.manager.previews.urls
    if urls is None:
        raise Refusal("tunnel_error", "cannot open a tunnel: the daemon's configuration turns previews off")
    sandbox = await _reach(call, name)
    with _told_as("tunnel_error"):
        try:
            exposed = await call.manager.previews.expose(sandbox.id, number, name=model.name)
        except PortExposed:
            exposed = sandbox.ports.find(number)
    return answer(_tunnel(exposed, urls.url(sandbox.id, exposed.spec)))


def _tunnel(port: Port, url: str) -> dict[str, Any]:
    shown = {
        "id": f"{port.sandbox_id}-{port.spec.port}",
        "port": port.spec.port,
        "url": url,
        "hostname": url.partition("://")[2].partition("/")[0],
        "createdAt": problems.timestamp(),
    }
    return shown if port.spec.name is None else {**shown, "name": port.spec.name}


async def close_tunnel(call: Call, name: str, port: str) -> TrioResponse:
    """Take a port back."""
    number = _port(port)
    sandbox = names.find(call.manager, names.check_bridge_id(name))
    if sandbox is not None:
        with _told_as("tunnel_error"), contextlib.suppress(PortNotFound):
            await call.manager.previews.unexpose(sandbox.id, number)
    return nothing()


# --- the pool: there is none, creations take milliseconds ---


async def pool_stats(call: Call) -> TrioResponse:
    """Tell how many sandboxes there are in the form of a pool that keeps none warm."""
    count = len(call.manager.registry)
    config = {"warmTarget": 0, "refreshInterval": 10_000, "maxInstances": 0, "scaleBatchSize": 5}
    return answer({"warm": 0, "assigned": count, "total": count, "config": config, "maxInstances": 0})


async def pool_nothing(call: Call) -> TrioResponse:
    """Do nothing: no sandbox is kept warm."""
    del call
    return answer({"ok": True})
