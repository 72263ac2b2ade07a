"""The rows of wire/operations.py are what both ends do, as far as the code can be read, and what the README shows."""

from __future__ import annotations

import ast
import dataclasses
import pathlib

import pytest

from sandboxd.guest.init import JOBS, Init
from sandboxd.netd import state
from sandboxd.runtime.checks import INIT_KINDS
from sandboxd.wire.operations import COMMON, FILE_ERRORS, OPERATIONS, SHAPES, Channel, Operation, fields
from tests.support.reading import KINDS, PACKAGE, Call, Handler, Room, has_default, strings

GUEST = Room(*sorted((PACKAGE / "guest").glob("*.py")))
LAUNCHER = Room(*sorted((PACKAGE / "launcher").glob("*.py")))
DAEMON = Room(*sorted((PACKAGE / "runtime").rglob("*.py")), *sorted((PACKAGE / "api").rglob("*.py")))
#: How the daemon asks: the call's first argument is the operation. The second line's add a parameter of their own.
ASKS = ("ask", "ask_for_fd", "_ask", "_ask_fds", "request", "begin", "stream", "open_stream")
WRAPPERS = ("_info", "_quietly", "serve")
JOB_ASKS = ("job", "_job", "_run")
#: `Files` asks so for a job about the path that comes second.
PATH_SECOND = {"_job": "path", "_run": "path"}


def job_handlers() -> dict[str, Handler]:
    found = {}
    for name, function in JOBS.items():
        module = function.__module__.removeprefix("sandboxd.").replace(".", "/") + ".py"
        (found[name],) = GUEST.find(function.__name__, module)
    return found


HANDLERS: dict[Channel, dict[str, Handler]] = {
    Channel.LINK: GUEST.handlers("operations", "_operations"),
    Channel.JOB: job_handlers(),
    Channel.LAUNCHER: LAUNCHER.handlers("_table", "operations"),
}
ROWS = [(channel, row) for channel in HANDLERS for row in OPERATIONS[channel].values()]
each_row = pytest.mark.parametrize(("channel", "row"), ROWS, ids=lambda value: getattr(value, "name", None))


def names(text: str) -> set[str]:
    return {name.removesuffix("?") for name in fields(text)}


def needed(text: str) -> set[str]:
    return {name for name in fields(text) if not name.endswith("?")}


# --- the end that answers -------------------------------------------------------------------------------------


def test_init_has_these_operations() -> None:
    assert set(Init()._operations) == set(OPERATIONS[Channel.LINK]) == set(HANDLERS[Channel.LINK])


def test_the_file_jobs_are_these() -> None:
    assert set(JOBS) == set(OPERATIONS[Channel.JOB])


def test_the_launcher_has_these_operations() -> None:
    assert set(HANDLERS[Channel.LAUNCHER]) == set(OPERATIONS[Channel.LAUNCHER])


@each_row
def test_parameters_are_those_that_are_read(channel: Channel, row: Operation) -> None:
    """Init reads a key that may be absent by `params.get`, so that a daemon which lacks it may ask; and no other so."""
    handler = HANDLERS[channel][row.name]
    room = LAUNCHER if channel is Channel.LAUNCHER else GUEST
    read = room.reads(handler) - {"credit"}
    if channel is not Channel.LAUNCHER:
        assert read == set(fields(row.request))
        return
    # It checks what it reads, one by one, and refuses what it does not know.
    assert {name.removesuffix("?") for name in read} == names(row.request)
    accepted = room.accepts(handler)
    assert accepted is None or accepted == names(row.request)


@each_row
def test_answers_have_these_fields(channel: Channel, row: Operation) -> None:
    room = LAUNCHER if channel is Channel.LAUNCHER else GUEST
    answered = set().union(*(room.answers(one) for one in room.reached(HANDLERS[channel][row.name])))
    assert answered <= names(row.answer)


@each_row
def test_errors_are_of_these_kinds(channel: Channel, row: Operation) -> None:
    room = LAUNCHER if channel is Channel.LAUNCHER else GUEST
    raised = set().union(*(room.raises(one) for one in room.reached(HANDLERS[channel][row.name])))
    assert raised <= {*row.errors, *COMMON[channel]}
    assert not set(row.errors) & set(COMMON[channel]), "it stands among the common ones"


def test_what_init_may_fail_with_is_what_the_daemon_takes_from_it() -> None:
    told = {kind for channel, row in ROWS if channel is not Channel.LAUNCHER for kind in row.errors}
    assert told | set(COMMON[Channel.LINK]) | set(COMMON[Channel.JOB]) == INIT_KINDS


def test_every_kind_of_the_launcher_is_known() -> None:
    told = {kind for row in OPERATIONS[Channel.LAUNCHER].values() for kind in row.errors}
    assert told <= set(KINDS.values())


@each_row
def test_descriptors_that_are_taken_and_given(channel: Channel, row: Operation) -> None:
    if channel is not Channel.LINK:
        return
    taken = given = 0
    for one in GUEST.reached(HANDLERS[channel][row.name]):
        for node in ast.walk(one.function):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
                if node.func.attr == "take_fds":
                    constants = [inner.value for inner in ast.walk(node) if isinstance(inner, ast.Constant)]
                    taken = max(number for number in constants if isinstance(number, int))
                elif node.func.attr == "reply" and len(node.args) == 3:
                    given = 1
    assert (taken, given) == (row.fds_in, row.fds_out)


# --- the end that asks ----------------------------------------------------------------------------------------


def channel_of(call: Call) -> Channel:
    if call.via in JOB_ASKS:
        return Channel.JOB
    return Channel.LAUNCHER if call.where.startswith("runtime/launcher.py") else Channel.LINK


ASKED = DAEMON.calls(*ASKS, *WRAPPERS, *JOB_ASKS, second=PATH_SECOND)
CALLS = [call for call in ASKED if call.where.startswith(("runtime/", "api/"))]


def test_the_calls_are_found() -> None:
    """A new way to ask must be told to this test: it would see less and less."""
    asked = {(channel_of(call), call.op) for call in CALLS}
    spelled = set().union(*(strings(PACKAGE / module) for module in DAEMON.trees))
    for channel, row in ROWS:
        assert row.name in spelled, f"nobody asks for {row.name}"
        if channel is not Channel.JOB:
            assert (channel, row.name) in asked, f"no call of {row.name} is found"


@pytest.mark.parametrize("call", CALLS, ids=lambda call: f"{call.op} {call.where}")
def test_callers_send_what_is_read(call: Call) -> None:
    row = OPERATIONS[channel_of(call)].get(call.op)
    assert row is not None, f"{call.where}: no such operation"
    if call.keys is not None:
        assert call.keys <= names(row.request), call.where
        if call.via not in WRAPPERS:
            assert call.keys >= needed(row.request), call.where
    if call.fds is not None:
        assert call.fds == row.fds_out, call.where


# --- streams with closed lists of their own -------------------------------------------------------------------


def compared(path: pathlib.Path, variable: str) -> set[str]:
    """Return the texts that a module compares a variable with."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Compare) and isinstance(node.left, ast.Name) and node.left.id == variable:
            found |= {str(inner.value) for inner in ast.walk(node) if isinstance(inner, ast.Constant)}
    return found


def test_the_network_processes_operations() -> None:
    rows = OPERATIONS[Channel.NETWORK]
    asked = [call for call in LAUNCHER.calls("ask", "_NetworkRequest") if call.op]
    assert {call.op for call in asked} == set(rows)
    assert compared(PACKAGE / "netd" / "server.py", "operation") == set(rows)
    for call in asked:
        assert call.keys is None or call.keys == names(rows[call.op].request), call.where
    for cls, op in ((state.Host, "begin"), (state.State, "attach"), (state.State, "change")):
        known = {f"{field.name}?" if has_default(field) else field.name for field in dataclasses.fields(cls)}
        # A list's addresses have a default in the class, and are always sent.
        assert {*known} - {"networks?"} == set(fields(rows[op].request)) - {"networks"}, op


def subscripts(path: pathlib.Path, *of: str) -> set[str]:
    """Return the keys by which a module reads one of these dicts."""
    return {
        str(node.slice.value)
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Subscript) and ast.unparse(node.value) in of and isinstance(node.slice, ast.Constant)
    }


def dicts(path: pathlib.Path) -> list[set[str]]:
    """Return the keys of each dict that a module spells out."""
    found = (node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Dict) and all(node.keys))
    return [{str(key.value) for key in node.keys if isinstance(key, ast.Constant)} for node in found]


def test_what_a_template_and_its_child_are_told() -> None:
    base, rows = PACKAGE / "templates" / "base.py", OPERATIONS[Channel.TEMPLATE]
    assert subscripts(base, "self._settings") == names(rows["settings"].request)
    assert names(rows["settings"].request) in dicts(PACKAGE / "launcher" / "templates.py")
    assert subscripts(base, "order") == names(rows["enter"].request)
    assert names(rows["enter"].request) in dicts(PACKAGE / "launcher" / "templates.py")
    job = names(OPERATIONS[Channel.CHILD]["job"].request)
    assert subscripts(base, "job") <= job
    assert job in dicts(PACKAGE / "guest" / "incoming.py")


SHAPED = {
    "File": "guest/file_operations.py",
    "Result": "guest/processes.py",
    "Process": "guest/processes.py",
    "Session": "guest/sessions.py",
    "Sandbox": "launcher/server.py",
    "Network": "launcher/veth.py",
}


@pytest.mark.parametrize("name", SHAPED)
def test_shapes_are_what_is_spelled_out(name: str) -> None:
    assert names(SHAPES[name]) in dicts(PACKAGE / SHAPED[name])


@pytest.mark.parametrize(("name", "module"), [("Output", "runtime/execution.py"), ("Worker", "runtime/worker.py")])
def test_the_daemon_knows_the_events(name: str, module: str) -> None:
    assert names(SHAPES[name]) <= strings(PACKAGE / module)


# --- the page -------------------------------------------------------------------------------------------------


def shown(channel: Channel) -> str:
    """Return the README's table of one channel."""
    lines = ["| operation | parameters | answer | fails with |", "|---|---|---|---|"]
    for row in OPERATIONS[channel].values():
        answer = code(row.answer)
        if row.events is not None:
            rows = "rows" if channel is Channel.JOB else "events"
            answer = "; ".join(filter(None, (f"{rows} {code(row.events)}".strip() if row.events else "bytes", answer)))
        cells = [
            f"`{row.name}`",
            ", ".join(filter(None, (code(row.request), count(row.fds_in)))),
            ", ".join(filter(None, (answer, count(row.fds_out)))),
            kinds(row),
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(line.replace("|  |", "| |").replace("|  |", "| |") for line in lines)


def kinds(row: Operation) -> str:
    if not set(FILE_ERRORS) <= set(row.errors):
        return ", ".join(row.errors)
    return ", ".join(["a file's", *(kind for kind in row.errors if kind not in FILE_ERRORS)])


def code(text: str) -> str:
    return f"`{text.replace('|', chr(92) + '|')}`" if text else ""


def count(fds: int) -> str:
    return f"{fds} descriptor{'s' if fds > 1 else ''}" if fds else ""


def shapes() -> str:
    """Return the README's table of shapes."""
    return "\n".join(
        ["| shape | fields |", "|---|---|", *(f"| `...{name}` | {code(SHAPES[name])} |" for name in SHAPES)]
    )


def test_the_page_shows_the_shapes() -> None:
    assert f"\n{shapes()}\n" in (PACKAGE / "wire" / "README.md").read_text()


@pytest.mark.parametrize("channel", Channel, ids=lambda channel: channel.name)
def test_the_page_shows_the_rows(channel: Channel) -> None:
    page = (PACKAGE / "wire" / "README.md").read_text()
    section = page.partition(f"\n### {channel.value}\n")[2].partition("\n#")[0]
    table = "\n".join(line for line in section.splitlines() if line.startswith("|"))
    assert table == shown(channel)
    for kind in COMMON[channel]:
        assert f"`{kind}`" in section
    for kind in FILE_ERRORS if "a file's" in table else ():
        assert f"`{kind}`" in page
