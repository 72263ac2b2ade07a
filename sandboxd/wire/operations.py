"""Every operation that one process of sandboxd asks of another: its parameters, its answer, and how it can fail.

Nobody imports this at run time: each end has a table of its own functions, and init should not pay for a description.
tests/unit/wire/test_operations.py holds both ends against these rows, and wire/README.md shows them.

Fields are written as a signature: `path: bytes, mode?: int | null` is a field `path`, and a field `mode` that may be
absent or null. The types are msgpack's: null, bool, int, number (int or float), text, bytes, list, map. A field that
may be absent has a default, which is what its absence meant before there was the field. `...Name` stands for the fields
of one of `SHAPES`; `...CommandSpec` for those of that class, so that one more field of a command is no change here. A
stream's request has `credit: int` too.
"""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Mapping
from typing import Final

from ..spec import CommandSpec

#: msgpack's types by those of a dataclass.
_TYPES: Final = {
    "str": "text",
    "bytes": "bytes",
    "bool": "bool",
    "int": "int",
    "float": "number",
    "None": "null",
    "dict[str, str]": "map",
    "tuple[str, ...]": "list",
    "tuple[int, int]": "list",
}


class Channel(enum.Enum):
    """Where an operation is asked for; the value is what the README calls it."""

    LINK = "daemon → init"
    JOB = "daemon → init, as the file job that `errand` names"
    LAUNCHER = "daemon → launcher"
    NETWORK = "launcher → network process"
    TEMPLATE = "launcher → template"
    CHILD = "init → child of a template"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Operation:
    """One row.

    Attributes:
        name: what a request names it by.
        request: its parameters.
        answer: the fields of its result.
        errors: the kinds that it can fail with beside `COMMON` of its channel.
        events: what a stream gives, by type, until the answer ends it; None is no stream. Of a file job, its rows.
        fds_in: how many descriptors go with the request, at most.
        fds_out: how many come with the answer, at most.
    """

    name: str
    request: str = ""
    answer: str = ""
    errors: tuple[str, ...] = ()
    events: str | None = None
    fds_in: int = 0
    fds_out: int = 0


def fields(text: str) -> dict[str, str]:
    """Return the types of fields by their names; that of one that may be absent ends with `?`."""
    found: dict[str, str] = {}
    for part in filter(None, text.split(", ")):
        if part == "...CommandSpec":
            found |= _of_command()
        elif part.startswith("..."):
            found |= fields(SHAPES[part.removeprefix("...")])
        else:
            name, _, kind = part.partition(": ")
            found[name] = kind
    return found


def _of_command() -> dict[str, str]:
    found = {}
    for field in dataclasses.fields(CommandSpec):
        is_needed = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        kind = " | ".join(_TYPES[part] for part in str(field.type).split(" | "))
        found[field.name if is_needed else f"{field.name}?"] = kind
    return found


# --- fields that several operations share -----------------------------------------------------------------------------

_PROCESS: Final = "process: text"
_SESSION: Final = "session: text"
_CONTEXT: Final = "context: text"
_ID: Final = "id: text"
_PATH: Final = "path: bytes"
_PICKED: Final = "include?: list | null, exclude?: list | null"
#: Shapes that a row names as `...Name`.
SHAPES: Final[Mapping[str, str]] = {
    "File": "path: bytes, type: text, size: int, mode: int, uid: int, gid: int, mtime: number, target: bytes | null",
    "Result": (
        "exit_code: int | null, signal: text | null, duration_s: number, timed_out: bool, oom_killed: bool, "
        "usage: map, reason: text"
    ),
    "Process": (
        "id: text, pid: int | null, running: bool, argv: list, cwd: text, user: text, started_at: number, "
        "ended_at: number | null, restarts: int, terminal: bool, result: map | null, usage: map | null, next: int"
    ),
    "Session": (
        "session: text, shell: text, user: text, cwd: text | null, created_at: number, commands: int, "
        "running: text | null, waiting: int"
    ),
    "Output": "start: map, stdout: bytes, stderr: bytes, truncated: map, restart: map, exit: map",
    "Worker": (
        "start: map, expecting: map, declined: map, absent: map, stdout: bytes, stderr: bytes, frame: bytes, exit: map"
    ),
    "Sandbox": (
        "id: text, pid: int, rootfs: text, seccomp: text, devices: list, limits: map, unenforced: list, network: map"
    ),
    "Network": (
        "id: text, index: int, name: text, mode: text, address_4: text, address_6: text | null, networks: list, "
        "receive_bytes_per_s?: int | null, send_bytes_per_s?: int | null, connections?: int | null, "
        "generation?: int"
    ),
}

# --- kinds of errors --------------------------------------------------------------------------------------------------

#: What any operation of a channel can fail with: no such operation, parameters that cannot be, a limit of the sandbox
#: or of the host, a fault of ours.
COMMON: Final[Mapping[Channel, tuple[str, ...]]] = {
    Channel.LINK: ("invalid-request", "internal-error", "limit-exceeded", "quota-exceeded"),
    Channel.JOB: ("invalid-request", "internal-error", "limit-exceeded", "quota-exceeded", "server-busy"),
    Channel.LAUNCHER: ("invalid-request", "internal-error", "conflict"),
    Channel.NETWORK: (),
    Channel.TEMPLATE: (),
    Channel.CHILD: (),
}
#: What looking up a path and changing what is there can meet.
FILE_ERRORS: Final = (
    "conflict",
    "directory-not-empty",
    "file-exists",
    "file-not-found",
    "file-permission-denied",
    "not-a-file",
)
_START: Final = ("name-taken", "not-available", "server-busy", "session-not-found")
_NO_PROCESS: Final = ("process-not-found", "process-not-running")
_NO_SANDBOX: Final = ("sandbox-not-found",)

# --- the rows ---------------------------------------------------------------------------------------------------------

_LINK: Final = (
    Operation(name="configure", request="env: map, cwd: text, user: text | int, standby_s?: number"),
    Operation(name="ping"),
    # commands
    Operation(name="exec", request=f"{_PROCESS}, ...CommandSpec, detach?: bool", errors=_START, events="...Output"),
    Operation(name="start", request=f"{_PROCESS}, ...CommandSpec", answer="...Process", errors=_START),
    Operation(name="list", request="after?: int, limit?: int", answer="items: list, next: int | null"),
    Operation(name="info", request=_PROCESS, answer="...Process", errors=("process-not-found",)),
    Operation(name="remove", request=_PROCESS, errors=("process-not-found",)),
    Operation(name="remove_all"),
    Operation(
        name="follow",
        request=f"{_PROCESS}, from: int, snapshot?: bool, seen_bytes?: int",
        errors=("process-not-found",),
        events="...Output",
    ),
    Operation(name="view", request=f"{_PROCESS}, from: int", errors=("process-not-found",), events="...Output"),
    Operation(name="await_exit", request=_PROCESS, answer="...Result", errors=("process-not-found",)),
    Operation(
        name="await_port",
        request="process?: text | null, port: int, path?: text | null, statuses?: list | null",
        answer="met: bool, result: map | null, status?: int | null",
        errors=("process-not-found", "server-busy"),
    ),
    Operation(name="stdin", request=f"{_PROCESS}, data: bytes", errors=(*_NO_PROCESS, "server-busy")),
    Operation(name="stdin_close", request=_PROCESS, errors=_NO_PROCESS),
    Operation(name="signal", request=f"{_PROCESS}, signal: int", errors=_NO_PROCESS),
    Operation(name="resize", request=f"{_PROCESS}, cols: int, rows: int", errors=_NO_PROCESS),
    Operation(name="redraw", request=_PROCESS, errors=_NO_PROCESS),
    # sessions
    Operation(
        name="session_create",
        request=f"{_SESSION}, env: map, cwd?: text | null, user?: text | int | null, shell?: text | null",
        answer="...Session",
        errors=("name-taken",),
    ),
    Operation(name="session_list", answer="items: list"),
    Operation(name="session_info", request=_SESSION, answer="...Session", errors=("session-not-found",)),
    Operation(name="session_delete", request=_SESSION, errors=("session-not-found",)),
    # code contexts
    Operation(name="context_source", request="name: text, data: bytes"),
    Operation(
        name="context_start",
        request=(
            f"{_CONTEXT}, source: text, argv: list, env: map, cwd: text | null, user?: text | int | null, "
            f"note: map, begin?: bytes, spare?: map | null, entrant?: bool"
        ),
        errors=("name-taken",),
        events="...Worker",
        fds_in=1,
    ),
    Operation(name="context_follow", request=f"{_CONTEXT}", errors=("context-not-found",), events="...Worker"),
    Operation(name="context_list", request="after?: int", answer="items: list, next: int | null"),
    Operation(
        name="context_send",
        request=f"{_CONTEXT}, data: bytes",
        errors=("context-not-found", "process-not-running", "server-busy"),
    ),
    Operation(name="context_interrupt", request=f"{_CONTEXT}, run: int", errors=("context-not-found",)),
    Operation(
        name="context_mute", request=f"{_CONTEXT}, on: bool", answer="dropped_bytes: int", errors=("context-not-found",)
    ),
    Operation(name="context_kill", request=_CONTEXT, errors=("context-not-found",)),
    Operation(name="context_forget", request=_CONTEXT, errors=("context-not-found",)),
    Operation(name="context_drop_spare"),
    # clones of git repositories
    Operation(
        name="clone",
        request="order: map, timeout_s: number",
        errors=("server-busy",),
        events="expecting: map",
        fds_in=2,
    ),
    Operation(name="clone_stop", request="name: text"),
    # files
    Operation(
        name="open_read", request=_PATH, answer="size: int, mtime: number, mode: int", errors=FILE_ERRORS, fds_out=1
    ),
    Operation(
        name="open_write",
        request=f"{_PATH}, mode?: int | null",
        answer="ticket: int",
        errors=(*FILE_ERRORS, "server-busy"),
        fds_out=1,
    ),
    Operation(name="commit_write", request="ticket: int", answer="created: bool", errors=FILE_ERRORS),
    Operation(name="abort_write", request="ticket: int"),
    Operation(name="stat", request=f"{_PATH}, follow?: bool", answer="...File", errors=FILE_ERRORS),
    Operation(
        name="errand",
        request="do: text, with: map, feed: bool, timeout_s?: number | null",
        errors=("server-busy",),
        events="",
        fds_in=2,
    ),
)

_LISTED: Final = f"{_PATH}, recursive: bool"
_BOTH: Final = f"{_PATH}, new_path: bytes, overwrite: bool"
_SEARCHED: Final = (
    f"{_PATH}, name: text | null, hidden: bool, gitignore: bool, ignore_case: bool, limit: int, timeout_s: number"
)
_CHANGED: Final = "file: map, entries: int"

_JOB: Final = (
    Operation(
        name="list",
        request=f"{_LISTED}, hidden: bool, after: bytes | null, limit: int",
        answer="next: bytes | null",
        errors=FILE_ERRORS,
        events="...File",
    ),
    Operation(name="delete", request=_LISTED, errors=FILE_ERRORS),
    Operation(
        name="mkdir",
        request=f"{_PATH}, mode: int | null, parents: bool",
        answer="created: bool, file: map",
        errors=FILE_ERRORS,
    ),
    Operation(name="symlink", request=f"{_PATH}, target: bytes", answer="file: map", errors=FILE_ERRORS),
    Operation(name="rename", request=_BOTH, answer="file: map", errors=FILE_ERRORS),
    Operation(
        name="copy", request=_BOTH, answer="file: map, entries: int, bytes: int, skipped: int", errors=FILE_ERRORS
    ),
    Operation(name="chmod", request=f"{_LISTED}, mode: int", answer=_CHANGED, errors=FILE_ERRORS),
    Operation(
        name="chown",
        request=f"{_LISTED}, user: text | int | null, group: text | int | null",
        answer=_CHANGED,
        errors=FILE_ERRORS,
    ),
    Operation(
        name="search",
        request=f"{_SEARCHED}, content: text | null",
        answer="truncated: text | null, files: int",
        errors=FILE_ERRORS,
        events="path: bytes, type?: text, line?: int, column?: int, text?: text",
    ),
    Operation(
        name="replace",
        request=f"{_SEARCHED}, pattern: text, replacement: text, regex: bool",
        answer="truncated: text | null, files: int, count: int",
        errors=FILE_ERRORS,
        events="path: bytes, count: int",
    ),
    Operation(
        name="pack",
        request=f"{_PATH}, format: text, gitignore?: bool, {_PICKED}",
        answer="entries: int, skipped: int",
        errors=FILE_ERRORS,
        events="",
    ),
    Operation(
        name="unpack",
        request=f"{_PATH}, format: text | null, max_bytes: int",
        answer="entries: int, bytes: int",
        errors=(*FILE_ERRORS, "archive-refused"),
    ),
    Operation(
        name="watch",
        request=f"{_LISTED}, {_PICKED}",
        answer="reason: text",
        errors=FILE_ERRORS,
        events="type: text, path: bytes, is_folder: bool, from: bytes | null",
    ),
    Operation(
        name="changes", request=f"{_LISTED}, {_PICKED}", answer="version: text, entries: int", errors=FILE_ERRORS
    ),
)

_LAUNCHER: Final = (
    Operation(
        name="create",
        request=f"{_ID}, rootfs: text, limits: map, network: map, seccomp: text",
        answer="...Sandbox, timings: map",
        errors=(
            "cgroup-error",
            "launch-failed",
            "limit-exceeded",
            "limit-unenforceable",
            "name-taken",
            "network-unavailable",
            "profile-not-found",
            "rootfs-not-found",
            "sandbox-gone",
            "storage-full",
        ),
    ),
    Operation(name="prepare", request=_ID, errors=("name-taken",)),
    Operation(name="destroy", request=_ID),
    Operation(name="kill", request=_ID),
    Operation(name="list", answer="sandboxes: list"),
    Operation(name="watch", events="ended: map, denied: map"),
    Operation(name="rootfs", answer="items: list"),
    Operation(
        name="info",
        answer=(
            "pid: int, kernel: text, storage: text, pool: map, profiles: list, enforceable: list, missing: list, "
            "sandboxes: int, newborn: text | null, templates: list"
        ),
    ),
    Operation(
        name="limit",
        request=f"{_ID}, limits: map",
        answer="limits: map, unenforced: list",
        errors=(*_NO_SANDBOX, "cgroup-error", "limit-unenforceable", "sandbox-gone"),
    ),
    Operation(name="freeze", request=_ID, answer="frozen: bool", errors=(*_NO_SANDBOX, "cgroup-error")),
    Operation(name="thaw", request=_ID, errors=(*_NO_SANDBOX, "cgroup-error")),
    Operation(
        name="stats",
        request=_ID,
        answer=(
            "cpu_s: number | null, cpu_user_s: number | null, cpu_system_s: number | null, "
            "cpu_throttled_s: number | null, memory_bytes: int | null, memory_peak_bytes: int | null, "
            "oom_kills: int | null, pids: int | null, io: map | null, disk_bytes: int | null, network: map | null"
        ),
        errors=_NO_SANDBOX,
    ),
    Operation(
        name="sockets", request=f"{_ID}, family: int, count: int", errors=(*_NO_SANDBOX, "limit-exceeded"), fds_out=8
    ),
    Operation(name="resolver", request=_ID, errors=(*_NO_SANDBOX, "limit-exceeded"), fds_out=2),
    Operation(
        name="network",
        request=f"{_ID}, network: map",
        answer="network: map",
        errors=(*_NO_SANDBOX, "network-unavailable", "storage-full"),
    ),
    Operation(name="permit", request=f"{_ID}, items: list", errors=(*_NO_SANDBOX, "network-unavailable")),
    Operation(
        name="enter",
        request=f"{_ID}, template: text, leaf: text, wait: bool",
        errors=(*_NO_SANDBOX, "template-unavailable"),
        fds_in=1,
    ),
)

_NETWORK: Final = (
    Operation(name="router", fds_in=4),
    Operation(
        name="begin",
        request=(
            "table: text, prefix: text, pool_4: text, pool_6: text | null, group: int, forbidden_4: list, "
            "forbidden_6: list"
        ),
        fds_in=1,
    ),
    Operation(name="end"),
    Operation(name="attach", request="...Network", fds_in=2),
    Operation(name="change", request="...Network", fds_in=2),
    Operation(name="detach", request=f"{_ID}, name: text, addresses: list"),
    Operation(name="permit", request=f"{_ID}, items: list"),
)

_TEMPLATE: Final = (
    Operation(name="settings", request="capabilities: int, last_capability: int, filters: map, command_filter: text"),
    Operation(name="enter", request="profile: text", fds_in=10),
)

_CHILD: Final = (
    Operation(
        name="job",
        request="uid: int, gid: int, groups: list, home: text, cwd: text, env: map, rlimits: map, with: map",
        fds_in=16,
    ),
)

OPERATIONS: Final[Mapping[Channel, Mapping[str, Operation]]] = {
    channel: {row.name: row for row in rows}
    for channel, rows in {
        Channel.LINK: _LINK,
        Channel.JOB: _JOB,
        Channel.LAUNCHER: _LAUNCHER,
        Channel.NETWORK: _NETWORK,
        Channel.TEMPLATE: _TEMPLATE,
        Channel.CHILD: _CHILD,
    }.items()
}
