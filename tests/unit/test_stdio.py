"""Programs that are started with a standard stream closed or full: no descriptor of ours takes its place."""

from __future__ import annotations

import os
import pathlib
import signal
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from sandboxd import Client, Sandbox
from tests.support.fake_peer import exit_data
from tests.support.local_daemon import LocalDaemon, local_daemon

if TYPE_CHECKING:
    from collections.abc import Iterator

SANDBOXD = [sys.executable, "-m", "sandboxd"]
#: How a shell starts a program: `>&-`, `>/dev/full`.
CLOSED_OUT, FULL_OUT, CLOSED_ERR, FULL_ERR, CLOSED_IN = ">&-", ">/dev/full", "2>&-", "2>/dev/full", "<&-"
REQUEST = "DELETE /v1/sandboxes/victim HTTP/1.1\\r\\nHost: x\\r\\n\\r\\n"


@pytest.fixture
def daemon(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[LocalDaemon]:
    with local_daemon(tmp_path, monkeypatch) as found:
        found.scripts["@both"] = ([("stdout", b"out\n"), ("stderr", b"err\n")], exit_data(3))
        with Client(found.url) as client:
            demo = Sandbox.create(name="demo", client=client)
            demo.write_file("/f", b"content\n")
            Sandbox.create(name="victim", client=client)
            yield found


def file_of(daemon: LocalDaemon, path: str) -> pathlib.Path:
    """Return where a file of the sandbox `demo` lies here."""
    return daemon.inside.fake.inits[daemon.created[0]["id"]].tree / path.lstrip("/")


def run(*words: str, how: str = "") -> subprocess.CompletedProcess[str]:
    """Run the CLI as a shell does, with its streams redirected by `how`."""
    return subprocess.run(
        ["/bin/sh", "-c", f'exec "$@" {how}', "sh", *SANDBOXD, *words],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


#: Every way of printing: click's echo, a table, JSON, raw bytes, the help before any verb runs.
PRINTING = [
    ["--help"],
    ["--version"],
    ["ls"],
    ["ls", "--json"],
    ["info"],
    ["info", "demo", "--json"],
    ["metrics"],
    ["exec", "demo", "--", "echo", "out"],
    ["run", "--", "echo", "out"],
    ["exec", "-d", "demo", "--", "true"],
    ["cp", "demo:/f", "-"],
    ["files", "cat", "demo", "/f"],
]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("how", "why"), [(CLOSED_OUT, "Bad file descriptor"), (FULL_OUT, "No space left on device")], ids=["closed", "full"]
)
def test_output_that_cannot_be_written_is_one_sentence(daemon: LocalDaemon, how: str, why: str) -> None:
    for words in PRINTING:
        done = run(*words, how=how)
        told = (done.returncode, done.stderr)
        assert told == (125, f"sandboxd: cannot write to standard output: {why}\n"), words
    assert set(daemon.names()) <= {"demo", "victim", None}


@pytest.mark.parametrize("how", [CLOSED_OUT, CLOSED_ERR, "<&- >&- 2>&-"])
@pytest.mark.parametrize("verb", [["exec", "demo"], ["run"]], ids=["exec", "run"])
def test_what_a_sandbox_prints_is_no_request(daemon: LocalDaemon, verb: list[str], how: str) -> None:
    for command in (["printf", REQUEST], ["sh", "-c", f"printf '{REQUEST}' >&2"]):
        run(*verb, "--", *command, how=how)
    assert sorted(map(str, daemon.names())) == ["demo", "victim"]


@pytest.mark.parametrize(
    ("how", "status", "out"),
    [
        (CLOSED_ERR, 3, "out\n"),  # whoever closes it does not want it
        (FULL_ERR, 125, "out\n"),
        (FULL_OUT, 125, ""),
        (CLOSED_OUT, 125, ""),
        (CLOSED_IN, 3, "out\n"),
    ],
)
def test_the_status_of_a_command_that_prints_on_both(daemon: LocalDaemon, how: str, status: int, out: str) -> None:
    done = run("exec", "demo", "@both", how=how)
    assert (done.returncode, done.stdout) == (status, out)


def test_what_needs_no_output_does_not_miss_it(daemon: LocalDaemon) -> None:
    assert run("exec", "demo", "--", "true", how=">&-").returncode == 0
    assert run("exec", "demo", "--", "sh", "-c", "exit 7", how="<&- >&- 2>&-").returncode == 7
    assert run("nope", how="2>&-").returncode == 2
    assert run("rm", "nobody", how="2>&-").returncode == 1
    assert run("rm", "nobody", how="2>/dev/full").returncode == 125


def test_closed_input_is_at_its_end(daemon: LocalDaemon) -> None:
    done = run("exec", "demo", "--", "cat", how=CLOSED_IN)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert run("cp", "-", "demo:/new", how=CLOSED_IN).returncode == 0
    assert file_of(daemon, "/new").read_bytes() == b""


def test_a_reader_that_has_enough_ends_it_quietly(daemon: LocalDaemon) -> None:
    file_of(daemon, "/f").write_bytes(bytes(1_000_000))
    for words in (["ls"], ["ls", "--json"], ["--help"], ["cp", "demo:/f", "-"], ["files", "cat", "demo", "/f"]):
        read, write = os.pipe()
        os.close(read)
        with os.fdopen(write, "wb") as gone:
            done = subprocess.run([*SANDBOXD, *words], stdout=gone, stderr=subprocess.PIPE, timeout=60, check=False)
        assert (done.returncode, done.stderr) == (128 + signal.SIGPIPE, b""), words


PROGRAMS = [
    "sandboxd.cli.main",
    "sandboxd.launcher.__main__",
    "sandboxd.templates.__main__",
    "sandboxd.netd.__main__",
    "sandboxd.netd.nft",
    "sandboxd.images.unpack_child",
]


@pytest.mark.parametrize("module", PROGRAMS)
def test_every_program_opens_them_before_anything_else(module: str, tmp_path: pathlib.Path) -> None:
    """Importing it leaves the numbers free, and the first thing that its `main` does is to take them."""
    program = f"""
import os, sys
import {module} as module
free = [fd for fd in (0, 1, 2) if not os.path.exists(f"/proc/self/fd/{{fd}}")]

def see(frame, event, argument):
    name = frame.f_code.co_name
    if event == "return" and name == "open_standard":
        held = [os.readlink(f"/proc/self/fd/{{fd}}") for fd in (0, 1, 2)]
        end(0, repr((free, held, [os.get_inheritable(fd) for fd in (0, 1, 2)])))
    if event == "call" and name != "main" and frame.f_code.co_filename.startswith(os.path.dirname(module.__file__)):
        end(1, "too late: " + name)

def end(status, text):
    with open(sys.argv[1], "w") as report:
        report.write(text)
    os._exit(status)

sys.setprofile(see)
module.main()
"""
    report = tmp_path / "report"
    subprocess.run(
        ["/bin/sh", "-c", 'exec "$@" <&- >&- 2>&-', "sh", sys.executable, "-c", program, str(report)],
        timeout=60,
        check=False,
    )
    assert report.read_text() == repr(([0, 1, 2], ["/dev/null"] * 3, [True] * 3))


def test_the_list_of_programs_is_whole() -> None:
    package = pathlib.Path(__file__).parents[2] / "sandboxd"
    stand_alone = {"workers/python_worker.py", "templates/python_program.py"}  # a sandbox's own interpreter runs them
    found = {
        str(path.relative_to(package))
        for path in package.rglob("*.py")
        if '\nif __name__ == "__main__":' in path.read_text() or path.name == "__main__.py"
    }
    listed = {module.removeprefix("sandboxd.").replace(".", "/") + ".py" for module in PROGRAMS}
    assert found - stand_alone - {"__main__.py"} == listed
