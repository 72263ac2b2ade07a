"""Every field that the API takes is reached by the command line, or stands here with the reason why it is not."""

from __future__ import annotations

import dataclasses
import typing
from typing import TYPE_CHECKING, Any, Final

import msgspec
import pytest
from click.testing import CliRunner

from sandboxd.api.v1.context_models import ContextIn
from sandboxd.api.v1.models import ExecIn, SandboxIn
from sandboxd.api.v1.ports import PortIn
from sandboxd.api.v1.process_models import ProcessIn
from sandboxd.api.v1.sessions import SessionIn
from sandboxd.cli import main
from tests.support.canned import (
    Asked,
    CannedServer,
    exit_frame,
    json_answer,
    plain,
    sandbox_object,
    stream_answer,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

WHEN: Final = "2026-01-02T03:04:05.678Z"
#: What the daemon answers to a POST or GET of each collection.
ANSWERS: Final = {
    "processes": {"id": "p", "pid": 7, "status": "running", "command": "true", "started_at": WHEN},
    "sessions": {"id": "s", "shell": "sh", "user": "root", "created_at": WHEN, "commands": 0, "waiting": 0},
    "ports": {"port": 80, "url": "http://x", "name": None, "public": False},
    "contexts": {"id": "c", "language": "python", "state": "idle", "version": "3", "created_at": WHEN},
}


@dataclasses.dataclass(frozen=True)
class Verb:
    """A verb whose request has the fields of `model`.

    Attributes:
        words: the verb, before its options.
        arguments: what comes behind them.
        route: how the request's path ends.
        flags: for each field the options that set it, and the value that they set.
        without: the fields that no option sets, and why.
    """

    model: type[msgspec.Struct]
    words: tuple[str, ...]
    arguments: tuple[str, ...]
    route: str
    flags: Mapping[str, tuple[tuple[str, ...], Any]]
    without: Mapping[str, str] = dataclasses.field(default_factory=dict)


COMMAND: Final = {
    "command": ((), ["true"]),
    "cwd": (("--workdir", "/x"), "/x"),
    "env": (("--env", "A=b"), {"A": "b"}),
    "user": (("--user", "nobody"), "nobody"),
    "umask": (("--umask", "0027"), "0027"),
    "timeout_s": (("--timeout", "2.5"), 2.5),
    "orphans": (("--orphans", "keep"), "keep"),
}
SESSION: Final = {"session": (("--session", "s", "--orphans", "kill"), "s")}
ENCODING: Final = {"encoding": "belongs to JSON: the SDK chooses it"}
OWN_STDIN: Final = {"stdin": "it is the standard input of the command line"}
VERBS: Final = [
    Verb(ExecIn, ("exec",), ("a", "true"), "/exec", {
        **COMMAND, **SESSION, "detach": (("--detach",), True),
    }, {**OWN_STDIN, **ENCODING}),
    Verb(ExecIn, ("run",), ("true",), "/exec", COMMAND, {
        **OWN_STDIN, **ENCODING,
        "session": "a new sandbox has none",
        "detach": "the sandbox ends with the command",
    }),
    Verb(ProcessIn, ("process", "start"), ("a", "true"), "/processes", {
        **COMMAND, **SESSION,
        "id": (("--id", "web"), "web"),
        "restart": (("--restart",), "on-failure"),
    }, {
        **ENCODING,
        "stdin": "nothing is attached to a background process",
        "terminal.cols": "`sandboxd shell` opens terminals, in the size of its own",
        "terminal.rows": "`sandboxd shell` opens terminals, in the size of its own",
        "linger_s": "belongs to terminals: `sandboxd shell --linger`",
    }),
    Verb(SessionIn, ("session", "create"), ("a",), "/sessions", {
        "id": (("--id", "work"), "work"),
        "cwd": (("--workdir", "/x"), "/x"),
        "env": (("--env", "A=b"), {"A": "b"}),
        "user": (("--user", "nobody"), "nobody"),
        "umask": (("--umask", "0027"), "0027"),
        "shell": (("--shell", "sh"), "sh"),
    }),
    Verb(SandboxIn, ("create",), (), "/sandboxes", {
        "name": (("--name", "a"), "a"),
        "rootfs": (("--rootfs", "small"), "small"),
        "env": (("--env", "A=b"), {"A": "b"}),
        "cwd": (("--workdir", "/x"), "/x"),
        "user": (("--user", "nobody"), "nobody"),
        "labels": (("--label", "a=b"), {"a": "b"}),
        "seccomp": (("--seccomp", "strict"), "strict"),
        "limits.memory_bytes": (("--memory", "1M"), 1 << 20),
        "limits.cpus": (("--cpus", "1.5"), 1.5),
        "limits.pids": (("--pids", "9"), 9),
        "limits.disk_bytes": (("--disk", "1M"), 1 << 20),
        "limits.io.read_bytes_per_s": (("--io", "read=1M"), 1 << 20),
        "limits.io.write_bytes_per_s": (("--io", "write=1M"), 1 << 20),
        "limits.io.read_iops": (("--io", "read-iops=5"), 5),
        "limits.io.write_iops": (("--io", "write-iops=5"), 5),
        "network.mode": (("--network", "internet"), "internet"),
        "network.allow": (("--allow", "x.org"), ["x.org"]),
    }, {
        **dict.fromkeys(
            ("network.receive_bytes_per_s", "network.send_bytes_per_s", "network.connections"),
            "set through the API and the SDK only, so far",
        ),
        **dict.fromkeys(("idle_timeout_s", "max_lifetime_s", "snapshot"), "reserved: the daemon refuses them"),
    }),
    Verb(PortIn, ("expose",), ("a", "80"), "/ports", {
        "port": ((), 80),
        "name": (("--name", "web"), "web"),
        "token": (("--token", "abc"), "abc"),
        "public": (("--public",), True),
    }),
    Verb(ContextIn, ("contexts", "create"), ("a", "javascript"), "/contexts", {
        "language": ((), "javascript"),
        "cwd": (("--workdir", "/x"), "/x"),
        "env": (("--env", "A=b"), {"A": "b"}),
    }),
]  # fmt: skip


def answer(asked: Asked) -> bytes:
    """Answer whatever a verb asks for."""
    if asked.path[2:] == ["exec"]:
        return stream_answer(exit_frame())
    if asked.method == "DELETE":
        return plain(204)
    return json_answer(200, ANSWERS[asked.path[2]] if len(asked.path) > 2 else sandbox_object(1))


@pytest.fixture
def daemon(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[CannedServer]:
    with CannedServer(tmp_path / "d.sock", answer) as found:
        monkeypatch.setenv("SANDBOXD_URL", found.url)
        monkeypatch.delenv("SANDBOXD_TOKEN", raising=False)
        yield found


def fields(model: type[msgspec.Struct], prefix: str = "") -> Iterator[str]:
    """Yield the model's fields by their names in JSON, those of objects in it as `limits.pids`."""
    for field in msgspec.structs.fields(model):
        parts = typing.get_args(field.type) or (field.type,)
        inner = [part for part in parts if isinstance(part, type) and issubclass(part, msgspec.Struct)]
        if inner:
            yield from fields(inner[0], f"{prefix}{field.encode_name}.")
        else:
            yield prefix + field.encode_name


@pytest.mark.parametrize("verb", VERBS, ids=lambda verb: " ".join(verb.words))
def test_every_field_has_a_flag_or_a_reason(verb: Verb) -> None:
    assert sorted([*verb.flags, *verb.without]) == sorted(fields(verb.model))
    assert all(verb.without.values())


CASES: Final = [(verb, field) for verb in VERBS for field in verb.flags]


@pytest.mark.parametrize(("verb", "field"), CASES, ids=[f"{' '.join(verb.words)} {field}" for verb, field in CASES])
def test_a_flag_sets_its_field(daemon: CannedServer, verb: Verb, field: str) -> None:
    words, value = verb.flags[field]
    done = CliRunner().invoke(main.cli, [*verb.words, *words, *verb.arguments], prog_name="sandboxd")
    assert done.exit_code == 0, done.output
    found: Any = [one.json for one in daemon.requests if one.method == "POST" and one.target.endswith(verb.route)][-1]
    for name in field.split("."):
        found = found[name]
    assert found == value


@pytest.mark.parametrize("session", [(), ("-s", "s")], ids=["", "session"])
@pytest.mark.parametrize("verb", [("exec",), ("process", "start")], ids=" ".join)
@pytest.mark.parametrize("orphans", ["kill", "keep", None])
def test_orphans_default_to_what_the_daemon_does(
    daemon: CannedServer, verb: tuple[str, ...], session: tuple[str, ...], orphans: str | None
) -> None:
    words = () if orphans is None else ("--orphans", orphans)
    assert CliRunner().invoke(main.cli, [*verb, *session, *words, "a", "true"]).exit_code == 0
    default = "keep" if session else "kill"  # which the SDK may say, or leave to the daemon
    assert daemon.requests[-1].json.get("orphans", default) == (orphans or default)
    assert daemon.requests[-1].json["command"] == ("true" if session else ["true"])
