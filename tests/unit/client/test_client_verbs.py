"""The SDK's methods that are made of one builder each: both kinds of code have the same ones, typed and documented."""

from __future__ import annotations

import inspect
import pydoc
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from sandboxd import client as sdk
from sandboxd.client import (
    code_calls,
    control_calls,
    exec_calls,
    file_calls,
    file_tree,
    git_calls,
    port_calls,
    process_calls,
    session_calls,
)
from sandboxd.client.calls import Call, nothing
from sandboxd.client.options import SandboxOptions
from sandboxd.client.verbs import async_verb, like, sync_verb

if TYPE_CHECKING:
    from collections.abc import Callable

TREE = Path(__file__).parents[3]
PAIRS = [
    (getattr(sdk, name.removeprefix("Async")), getattr(sdk, name))
    for name in sdk.__all__
    if name.startswith("Async") and name != "AsyncClient"
] + [(sdk.Client, sdk.AsyncClient)]
BOTH = [
    pytest.param(one, other, name, id=f"{one.__name__}.{name}")
    for one, other in PAIRS
    for name in sorted({*dir(one), *dir(other)})
    if not name.startswith("_") and inspect.isroutine(getattr(one, name, getattr(other, name, None)))
]
#: What only one kind has: a descriptor to wait for.
ALONE = {"Pty.fileno"}
#: What makes a stream, or the promise of a sandbox: nothing to wait for.
PLAIN = {
    "create",
    "events",
    "exec_stream",
    "follow_code",
    "iter_files",
    "open_pty",
    "read_archive",
    "read_file_stream",
    "run_code_stream",
    "stream_process_logs",
    "watch",
}


def words(annotation: object) -> str:
    """Return an annotation as both kinds of code would write it."""
    return str(annotation).replace("_Opening[Self]", "Self").replace("Async", "")


def shape(method: Callable[..., object]) -> list[tuple[str, Any, str, str]]:
    found = inspect.signature(method).parameters.values()
    # A default that is a function has an address of its own.
    return [
        (p.name, p.kind, p.default.__name__ if callable(p.default) else repr(p.default), words(p.annotation))
        for p in found
    ]


@pytest.mark.parametrize(("one", "other", "name"), BOTH)
def test_both_kinds_have_the_same_method(one: type, other: type, name: str) -> None:
    if f"{one.__name__}.{name}" in ALONE:
        assert not hasattr(other, name)
        return
    sync, asynchronous = getattr(one, name), getattr(other, name)
    assert shape(sync) == shape(asynchronous)
    assert words(inspect.signature(sync).return_annotation) == words(inspect.signature(asynchronous).return_annotation)
    for method in (sync, asynchronous):
        assert method.__name__ in (name, "rename_file")
        assert inspect.getdoc(method)
        assert not {"self", "key"} & method.__annotations__.keys()
    assert not inspect.iscoroutinefunction(sync)
    assert inspect.iscoroutinefunction(asynchronous) == (name not in PLAIN)


BUILDERS = [
    file_tree.stat_file,
    file_calls.replace_in_files,
    file_calls.watch,
    exec_calls.exec,
    exec_calls.exec_stream,
    code_calls.run_code,
    control_calls.update,
    git_calls.git_checkout,
    port_calls.watch_port,
    process_calls.start_process,
    process_calls.close_stdin,
]


@pytest.mark.parametrize("build", BUILDERS, ids=lambda build: build.__name__)
def test_a_method_has_its_builders_words(build: Callable[..., object]) -> None:
    for kind in (sdk.Sandbox, sdk.AsyncSandbox):
        method = getattr(kind, build.__name__)
        assert method.__doc__ == build.__doc__
        key, *rest = inspect.signature(build).parameters.values()
        first, *others = inspect.signature(method).parameters.values()
        assert (key.name, first.name, first.annotation) == ("key", "self", inspect.Parameter.empty)
        assert others == rest


def test_help_shows_the_method_as_it_is_called() -> None:
    text = pydoc.plain(pydoc.render_doc(sdk.Sandbox))
    assert "chmod(self, path: 'SandboxPath', mode: 'int', *, recursive: 'bool' = False) -> 'FileInfo'" in text
    assert "complete_code(self, context: 'CodeContext | str', code: 'str', cursor: 'int | None' = None)" in text
    assert "watch(self, path: 'SandboxPath'" in text
    assert "-> 'AsyncWatchStream'" in pydoc.plain(pydoc.render_doc(sdk.AsyncSandbox.watch))
    assert "-> 'dict[str, Any]'" in pydoc.plain(pydoc.render_doc(sdk.AsyncSandbox.complete_code))


def test_a_call_that_does_not_fit_names_the_method() -> None:
    box = sdk.Sandbox(sdk.SandboxInfo.__new__(sdk.SandboxInfo), sdk.Client("http://127.0.0.1:1"))
    object.__setattr__(box.info, "id", "abc")
    with box.client, pytest.raises(TypeError, match=r"^chmod\(\) missing 1 required positional argument: 'mode'$"):
        box.chmod("/a")  # type: ignore[call-arg]
    with pytest.raises(TypeError, match=r"^mkdir\(\) got .* argument 'key'$"):
        box.mkdir("/a", key="b")  # type: ignore[call-arg]


COMMAND = {"cwd", "env", "user", "umask", "timeout", "keep_orphans"}
OPTIONS = [
    (sdk.Sandbox.exec, {"stdin", *COMMAND}, False),
    (sdk.Sandbox.exec_stream, {"on_stdout", "on_stderr", "stdin", "detach", *COMMAND}, False),
    (sdk.Sandbox.start_process, {"id", "stdin", "restart", *COMMAND}, False),
    (sdk.Session.exec, {"stdin", *COMMAND} - {"user", "umask"}, True),
    (sdk.Session.start_process, {"id", "stdin", "restart", *COMMAND} - {"user", "umask"}, True),
]


@pytest.mark.parametrize(("method", "names", "keeps"), OPTIONS)
def test_a_commands_options_are_arguments_of_their_own(
    method: Callable[..., Any], names: set[str], keeps: bool
) -> None:
    _, _, *options = inspect.signature(method).parameters.values()
    assert {option.name for option in options} == names
    assert {option.kind for option in options} == {inspect.Parameter.KEYWORD_ONLY}
    defaults = {option.name: option.default for option in options if option.default is not None}
    assert defaults.pop("keep_orphans") is keeps
    assert not any(defaults.values())


@pytest.mark.parametrize("build", [exec_calls.exec, process_calls.open_pty, session_calls.exec], ids=repr)
def test_a_commands_options_are_documented(build: Callable[..., Any]) -> None:
    text = inspect.getdoc(build) or ""
    assert "options" not in text
    for name in list(inspect.signature(build).parameters)[1:]:
        assert f"\n    {name}: " in text
    assert "env: 'Mapping[str, str] | None' = None" in pydoc.plain(pydoc.render_doc(build))


def test_a_commands_options_are_no_others() -> None:
    with pytest.raises(TypeError, match=r"^exec\(\) got an unexpected keyword argument 'user'$"):
        session_calls.exec(("a", "b"), "true", user="root")  # type: ignore[call-arg]
    with pytest.raises(TypeError, match=r"^start_process\(\) got an unexpected keyword argument 'options'$"):
        process_calls.start_process("a", "true", options={})  # type: ignore[call-arg]


class Sender:
    """A client that keeps what it would send."""

    def __init__(self) -> None:
        self.sent: list[Any] = []

    def send(self, call: Any) -> str:
        self.sent.append(call)
        return "answer"


class AsyncSender(Sender):
    async def send(self, call: Any) -> str:  # type: ignore[override]
        return super().send(call)


def poke(key: str, client: str, owner: int = 3) -> Call[None]:
    """Poke it."""
    return Call("POST", f"/{key}/{client}/{owner}", what="poke", parse=nothing)


class Owner:
    poke = sync_verb(poke)

    def __init__(self, client: Any) -> None:
        self._target = (client, "k")


class AsyncOwner(Owner):
    poke = async_verb(poke)  # type: ignore[assignment]


async def test_arguments_may_be_called_as_the_wrappers_own() -> None:
    sender, other = Sender(), AsyncSender()
    assert Owner(sender).poke(client="a", owner=4) == "answer"
    assert await AsyncOwner(other).poke("b") == "answer"
    assert [call.path for call in sender.sent + other.sent] == ["/k/a/4", "/k/b/3"]


def test_what_a_method_returns_is_read_off_its_builder() -> None:
    def build(key: str) -> Call[dict[str, list[int]]]:
        raise NotImplementedError

    assert inspect.signature(like(lambda self: None, build)).return_annotation == "dict[str, list[int]]"
    assert inspect.signature(like(lambda self: None, build, "Stream")).return_annotation == "Stream"


@pytest.mark.slow
def test_a_type_checker_sees_the_types_at_call_sites() -> None:
    found = subprocess.run(
        [sys.executable, "-m", "mypy", "--strict", "--no-error-summary", "tests/support/sdk_types.py"],
        check=False,
        cwd=TREE,
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert (found.returncode, found.stdout, found.stderr) == (0, "", "")


@pytest.mark.parametrize("cls", [sdk.Sandbox, sdk.AsyncSandbox])
def test_a_sandboxs_options_are_arguments_of_their_own(cls: Any) -> None:
    client, *options = inspect.signature(cls.create).parameters.values()
    assert client.name == "client"
    assert {option.name for option in options} == set(SandboxOptions.__annotations__)
    text = inspect.getdoc(cls.create) or ""
    for option in options:
        assert option.default is None
        assert f"\n    {option.name}: " in text
    assert "\n        you like, `receive_bytes_per_s`" in text
    with pytest.raises(TypeError, match=r"^create\(\) got an unexpected keyword argument 'colour'$"):
        cls.create(colour="x")


def test_an_asynchronous_method_says_what_its_twin_says() -> None:
    for name in ("read_file", "copy_in", "copy_out", "connect"):
        assert getattr(sdk.AsyncSandbox, name).__doc__ == getattr(sdk.Sandbox, name).__doc__
