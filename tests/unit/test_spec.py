"""How specs go over the link: inits outlive daemons, so either side may be older than the other."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from sandboxd.errors import InvalidRequest
from sandboxd.spec import CommandSpec, SessionSpec, StartSpec

PLAIN = CommandSpec(argv=("a", "b"))
FULL = CommandSpec(
    argv=CommandSpec.shell("x"),
    env={"A": "ü"},
    cwd="/tmp",
    user=5,
    umask="0027",
    stdin=b"\xff",
    timeout_s=2.5,
    keep_orphans=True,
    restart=True,
    terminal=(80, 24),
    linger_s=3.0,
)
#: What the first daemon sent, and the first init read.
FIRST: dict[str, Any] = {
    "argv": ["a", "b"],
    "env": {},
    "cwd": None,
    "user": None,
    "stdin": None,
    "timeout_s": None,
    "keep_orphans": False,
    "session": None,
}


def test_a_plain_command_goes_as_it_always_did() -> None:
    assert PLAIN.to_message() == FIRST


def test_what_is_not_always_there_goes_where_it_says_something() -> None:
    assert FULL.to_message() == {
        **dataclasses.asdict(FULL),
        "argv": ["/bin/sh", "-c", "--", "x"],
        "terminal": [80, 24],
    }
    assert SessionSpec(shell="sh").to_message() == {"cwd": None, "env": {}, "user": None, "shell": "sh"}


@pytest.mark.parametrize(
    "spec",
    [PLAIN, FULL, CommandSpec(argv=CommandSpec.shell("x"), session="s", stdin=True), SessionSpec(id="s", user="me")],
)
def test_a_message_is_read_as_what_was_sent(spec: StartSpec) -> None:
    assert type(spec).from_message(spec.to_message()) == spec


@pytest.mark.parametrize("spec", [FULL, SessionSpec(id="s", env={"A": "b"})])
def test_a_key_of_a_newer_side_is_ignored(spec: StartSpec) -> None:
    message = {**spec.to_message(), "later": 1, "credit": 2, "process": "p", "OPTIONAL": None}
    assert type(spec).from_message(message) == spec


@pytest.mark.parametrize("name", [field.name for field in dataclasses.fields(FULL) if field.name != "argv"])
def test_a_key_that_an_older_side_lacks_has_its_default(name: str) -> None:
    default = getattr(PLAIN, name)
    message = FULL.to_message()
    for lacking in ({**message, name: None}, {key: value for key, value in message.items() if key != name}):
        assert CommandSpec.from_message(lacking) == dataclasses.replace(FULL, **{name: default})


def test_nothing_but_the_program_has_to_be_there() -> None:
    assert CommandSpec.from_message({"argv": ["a", "b"]}) == PLAIN
    assert SessionSpec.from_message({}) == SessionSpec()
    with pytest.raises(TypeError, match="argv"):
        CommandSpec.from_message({"env": {}})


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"argv": []}, "command"),
        ({"env": {"A-B": ""}}, "env.A-B"),
        ({"cwd": "tmp"}, "cwd"),
        ({"user": -1}, "user"),
        ({"umask": "1777"}, "umask"),
        ({"timeout_s": 0}, "timeout_s"),
        ({"terminal": [0, 1]}, "cols"),
    ],
)
def test_what_comes_is_checked(change: dict[str, Any], field: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        CommandSpec.from_message({**FIRST, **change})
    assert caught.value.facts["field"] == field
