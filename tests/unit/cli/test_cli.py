"""The command line, verb by verb: what it prints, what it refuses, and the pure parts."""

from __future__ import annotations

import datetime as dt
import gc
import json
import subprocess
import sys
from typing import TYPE_CHECKING

import click
import pytest
from click.testing import CliRunner, Result

from sandboxd.cli import cp, demo, main
from sandboxd.cli.attach import exit_code
from sandboxd.cli.info import flat
from sandboxd.cli.ls import age
from sandboxd.cli.params import Size
from sandboxd.client.models import ExitStatus
from tests.support.canned import PNG
from tests.support.local_daemon import LocalDaemon, local_daemon, recorded

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture
def daemon(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[LocalDaemon]:
    with local_daemon(tmp_path, monkeypatch) as found:
        yield found


@pytest.fixture
def refused_sockets() -> Iterator[None]:
    """Collect the sockets that httpcore leaves open when a connection is refused, in the test that made them."""
    yield
    gc.collect()


def sandboxd(*words: str) -> Result:
    return CliRunner().invoke(main.cli, list(words), prog_name="sandboxd")


def test_create_ls_info_rm(daemon: LocalDaemon, monkeypatch: pytest.MonkeyPatch) -> None:
    requests = recorded(monkeypatch)
    made = sandboxd("create", "--name", "a", "--label", "x=y", "--memory", "512M", "--cpus", "1.5", "-e", "A=b=c")
    assert made.exit_code == 0, made.output
    key = made.stdout.strip()
    fields = {"name": "a", "labels": {"x": "y"}, "env": {"A": "b=c"}}
    assert requests[-1].body == fields | {"limits": {"memory_bytes": 512 << 20, "cpus": 1.5}}
    assert json.loads(sandboxd("create", "--json").stdout)["state"] == "running"
    listed = sandboxd("ls").stdout.splitlines()
    assert listed[0].split() == ["ID", "NAME", "STATE", "ROOTFS", "AGE", "LABELS"]
    (row,) = [line for line in listed if line.startswith(key)]
    assert row.split()[:4] == [key, "a", "running", "default"]
    assert row.endswith("x=y")
    assert sorted(sandboxd("ls", "-q").stdout.split()) == sorted(daemon.sandboxes)
    assert sorted(item["id"] for item in json.loads(sandboxd("ls", "--json").stdout)) == sorted(daemon.sandboxes)
    assert ["id", key] in [line.split() for line in sandboxd("info", "a").stdout.splitlines()]
    assert json.loads(sandboxd("info", "--json").stdout)["version"] == "0"
    assert key in sandboxd("metrics").stdout
    assert key not in sandboxd("metrics", "--no-sandboxes").stdout
    missing = sandboxd("rm", "nobody", "a")
    assert missing.exit_code == 1
    assert missing.stderr.startswith("sandboxd: cannot find sandbox 'nobody'")
    assert missing.stderr.count("\n") == 1
    assert sandboxd("rm", "--all").exit_code == 0
    assert not daemon.sandboxes
    assert sandboxd("ls", "-q").stdout == ""


@pytest.mark.parametrize(
    "words",
    [
        ["nope"],
        ["run"],
        ["run", "--memory", "lots", "--", "true"],
        ["exec", "a"],
        ["exec"],
        ["rm"],
        ["rm", "--all", "a"],
        ["create", "--label", "x"],
        ["stop", "a"],
        ["process"],
        ["process", "start", "a"],
        ["process", "start", "-s", "work", "-u", "nobody", "a", "true"],
        ["exec", "--orphans", "eat", "a", "true"],
        ["cp", "a", "b"],
        ["cp", "a:/x", "b:/y"],
        ["cp", "a:x", "b"],
    ],
)
def test_usage_is_status_2(words: list[str]) -> None:
    result = sandboxd(*words)
    assert result.exit_code == 2
    assert "Usage:" in result.stderr


@pytest.mark.parametrize(("words", "status"), [(["ls"], 1), (["run", "--", "true"], 125), (["exec", "a", "true"], 125)])
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.usefixtures("refused_sockets")
def test_no_daemon_is_one_sentence(tmp_path: Path, words: list[str], status: int) -> None:
    result = sandboxd("--url", f"unix://{tmp_path}/none", *words)
    assert result.exit_code == status
    assert result.stderr.startswith("sandboxd: cannot reach the daemon at unix://")
    assert result.stderr.count("\n") == 1
    assert sandboxd("--url", "ftp://x", *words).exit_code == status


def test_version(daemon: LocalDaemon) -> None:
    assert sandboxd("version").stdout.split("\n")[1] == "daemon 0"
    over_tcp = ("--url", daemon.tcp_url)
    assert sandboxd(*over_tcp, "version").stdout.split("\n")[1] == "daemon not reachable"
    assert sandboxd(*over_tcp, "--token", daemon.token, "version").stdout.split("\n")[1] == "daemon 0"


def test_help_names_every_verb_and_loads_no_daemon() -> None:
    script = """
import sys
from click.testing import CliRunner
from sandboxd.cli import main
result = CliRunner().invoke(main.cli, ["-h"])
assert all(f"  {name} " in result.stdout for name in main.COMMANDS), result.stdout
for verb in set(main.COMMANDS) - main.DAEMON_VERBS:
    assert CliRunner().invoke(main.cli, [verb, "-h"]).exit_code == 0
for verb in ("start", "ls", "logs", "kill", "wait"):
    assert CliRunner().invoke(main.cli, ["process", verb, "-h"]).exit_code == 0
heavy = {"httpx", "trio", "hypercorn", "sandboxd.daemon", "sandboxd.runtime", "sandboxd.api"} & set(sys.modules)
assert not heavy, heavy
"""
    subprocess.run([sys.executable, "-c", script], check=True)


@pytest.mark.parametrize("old", main.RENAMED)
def test_a_renamed_verb_is_answered_with_what_to_type(monkeypatch: pytest.MonkeyPatch, old: str) -> None:
    requests = recorded(monkeypatch)
    now = main.RENAMED[old]
    assert old not in main.COMMANDS
    assert sandboxd(*now.split(), "-h").exit_code == 0
    for words in ([], ["-h"], ["--id", "web", "a", "--", "sh", "-c", "it's 1;\n\x1b[2J ü \\x", ""]):
        result = sandboxd(old, *words)
        assert (result.exit_code, result.stdout, result.stderr.count("\n")) == (2, "", 1)
        told, typed = result.stderr.strip("\n").split("; type: ", 1)
        assert told == f"sandboxd: `{old}` is now `sandboxd {now}`"
        assert "\x1b" not in typed
        read = subprocess.run(["bash", "-c", f"printf '%s\\0' {typed}"], capture_output=True, check=True, text=True)
        assert read.stdout.split("\0")[:-1] == ["sandboxd", *now.split(), *words]
    assert requests == []


def test_a_renamed_verb_keeps_the_address_and_hides_the_token(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SANDBOXD_TOKEN", "of-the-environment")
    result = sandboxd("--url", "http://h:1", "ps", "a")
    assert result.stderr.endswith("; type: sandboxd --url http://h:1 process ls a\n")
    assert sandboxd("--token", "hush", "ps", "a").stderr.endswith("; type: sandboxd --token TOKEN process ls a\n")


def test_cp_both_ways(daemon: LocalDaemon, tmp_path: Path) -> None:
    sandboxd("create", "--name", "a")
    source = tmp_path / "source.bin"
    source.write_bytes(bytes(range(256)) * 5000)
    assert sandboxd("cp", str(source), "a:/in/").exit_code == 0
    assert daemon.file("/in/source.bin").read_bytes() == source.read_bytes()
    assert sandboxd("cp", "a:/in/source.bin", str(tmp_path / "back")).exit_code == 0
    assert (tmp_path / "back").read_bytes() == source.read_bytes()
    directory = tmp_path / "folder"
    directory.mkdir()
    assert sandboxd("cp", "a:/in/source.bin", str(directory)).exit_code == 0
    assert [path.name for path in directory.iterdir()] == ["source.bin"]
    for words in (
        ["a:/none", str(directory / "x")],
        [str(tmp_path / "none"), "a:/x"],
        ["a:/in/source.bin", "/proc/no/x"],
    ):
        result = sandboxd("cp", *words)
        assert (result.exit_code, result.stderr.count("\n")) == (1, 1), result.output
    assert [path.name for path in directory.iterdir()] == ["source.bin"]


def test_save_is_whole_or_not_at_all(tmp_path: Path) -> None:
    target, link = tmp_path / "file", tmp_path / "link"
    target.write_text("before")
    target.chmod(0o640)
    link.symlink_to(target)

    def broken() -> Iterator[bytes]:
        yield b"half"
        raise LookupError

    with pytest.raises(LookupError):
        cp.save(link, broken())
    assert target.read_text() == "before"
    cp.save(link, [b"after"])
    assert link.is_symlink()
    assert (target.read_text(), target.stat().st_mode & 0o777) == ("after", 0o640)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "link"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a:/x", cp.Remote("a", "/x")),
        ("a:/x:y", cp.Remote("a", "/x:y")),
        ("./a:b", "./a:b"),
        ("/a:/b", "/a:/b"),
        ("file", "file"),
        ("-", "-"),
        (":x", ":x"),
    ],
)
def test_cp_tells_sandboxes_from_files(text: str, expected: object) -> None:
    assert cp.parse(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"), [("1", 1), ("512M", 512 << 20), ("1.5g", 3 << 29), ("2GiB", 2 << 30), ("4 kb", 4096)]
)
def test_sizes(text: str, expected: int) -> None:
    assert Size().convert(text, None, None) == expected


@pytest.mark.parametrize("text", ["", "-1", "1X", "M", "1e3", "1,5G"])
def test_sizes_that_are_none(text: str) -> None:
    with pytest.raises(click.BadParameter):
        Size().convert(text, None, None)


@pytest.mark.parametrize(
    ("status", "expected"),
    [
        (ExitStatus(id="p", exit_code=3), 3),
        (ExitStatus(id="p", signal="SIGTERM"), 143),
        (ExitStatus(id="p", signal="SIGRTMIN+3"), 137),
        (ExitStatus(id="p", signal="SIGKILL", timed_out=True), 124),
        (ExitStatus(id="p"), 1),
    ],
)
def test_exit_codes(status: ExitStatus, expected: int) -> None:
    assert exit_code(status) == expected


@pytest.mark.parametrize(("seconds", "expected"), [(-5, "0s"), (59, "59s"), (60, "1m"), (7200, "2h"), (999_999, "11d")])
def test_ages(seconds: int, expected: str) -> None:
    now = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)
    assert age(now - dt.timedelta(seconds=seconds), now) == expected


def test_flat() -> None:
    value = {"a": {"b": 1, "c": {}}, "d": [1, "x"], "e": None}
    assert list(flat(value)) == [("a.b", "1"), ("a.c", "-"), ("d", "1, x"), ("e", "-")]


@pytest.mark.parametrize("data", [b"", PNG[:-1], PNG[1:], b"GIF89a" * 9])
def test_a_png_is_told_from_what_is_none(data: bytes) -> None:
    assert demo.png_size(PNG) == (800, 600)
    assert demo.png_size(data) is None


def test_the_demo_destroys_its_sandbox_and_fails_when_things_are_wrong(daemon: LocalDaemon, tmp_path: Path) -> None:
    result = sandboxd("demo", "--output", str(tmp_path / "x.png"))  # here, nothing is a sandbox: much is wrong
    assert result.exit_code == 1
    assert "unexpected" in result.output or "cannot" in result.output
    assert daemon.count >= 1
    assert not daemon.sandboxes


def test_the_shim_of_a_foreign_client_is_printed() -> None:
    done = CliRunner().invoke(main.cli, ["shim", "cloudflare"])
    assert done.exit_code == 0
    assert done.stdout.startswith("// node --import ./shim.mjs")
    assert done.stdout.endswith("\n")
    assert CliRunner().invoke(main.cli, ["shim", "nobody"]).exit_code == 2
