"""A program opens its own stdin, stdout and stderr by name, whoever it runs as; those of others stay closed to it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from sandboxd import Sandbox
from sandboxd.client import Client
from tests.support.daemon import Daemon

pytestmark = pytest.mark.real

#: Writes `out` and `err`, and reads what it is given, by the names that there are for it.
SHELL = "echo out > /dev/stdout; echo err > /dev/stderr; cat /dev/stdin"
LINES = [
    SHELL,
    "echo out > /proc/self/fd/1; echo err > /dev/fd/2; cat < /proc/self/fd/0",
    "exec 7>/dev/stdout 8>/dev/stderr; echo out >&7; echo err | tee /dev/fd/8 >/dev/null; cat /dev/fd/0",
    """python3 -c "print('out', file=open('/dev/stdout', 'w')); print('err', file=open('/dev/stderr', 'w'))
print(open('/dev/stdin').read(), end='')" """,
    """node -e "const fs = require('fs'); fs.writeFileSync('/dev/stdout', 'out\\n');
fs.writeFileSync('/dev/stderr', 'err\\n'); fs.writeFileSync('/dev/stdout', fs.readFileSync('/dev/stdin'))" """,
]


@pytest.fixture(scope="module")
def box(daemon: Daemon) -> Iterator[Sandbox]:
    """A sandbox whose commands run as its user."""
    with daemon.client() as client, Sandbox.create(client=client, user="user") as sandbox:
        yield sandbox


@pytest.mark.parametrize("user", ["root", 1000, 12345])
@pytest.mark.parametrize("line", LINES)
def test_a_command(shared: Sandbox, line: str, user: str | int) -> None:
    result = shared.exec(line, user=user, stdin="in")
    assert (result.exit_code, result.stdout, result.stderr) == (0, "out\nin", "err\n")


def test_with_and_without_a_standby(forking: Daemon, shared: Sandbox) -> None:
    """Commands that follow each other come to be in another way than one alone."""
    with forking.client() as client, Sandbox.create(client=client) as alone:
        for box in (alone, shared, shared, shared):
            assert box.exec(SHELL, user=1000, stdin="in").stdout == "out\nin"


def test_a_process_and_a_session(box: Sandbox) -> None:
    process = box.start_process(SHELL, stdin=True)
    box.write_stdin(process, "in")
    box.close_stdin(process)
    assert box.wait_for_exit(process, timeout=100).exit_code == 0
    logs = box.get_process_logs(process)
    assert (logs.stdout, logs.stderr) == ("out\nin", "err\n")
    with box.create_session() as session:
        result = session.exec(SHELL, stdin="in")
        assert (result.stdout, result.stderr) == ("out\nin", "err\n")
        beside = session.start_process("echo out > /dev/stdout")
        assert box.wait_for_exit(beside, timeout=100).exit_code == 0


def test_a_terminal(box: Sandbox) -> None:
    names = ("/dev/stdout", "/dev/stderr", "/dev/tty", "/proc/self/fd/1", "$(tty)")
    with box.open_pty("".join(f"echo to {name} > {name}; " for name in names)) as pty:
        shown = b"".join(pty).decode()
    assert shown.count("to /") == len(names), shown


@pytest.mark.parametrize("again", [False, True])  # a template's child, or a spare, may be there at the second
@pytest.mark.parametrize(
    ("language", "code"),
    [
        (
            "python",
            "!echo a > /dev/stdout\nimport os\nos.system('echo b > /dev/stderr')\nopen('/dev/stdout', 'w').write('c')",
        ),
        (
            "javascript",
            "require('child_process').spawnSync('echo a > /dev/stdout; echo b > /dev/stderr',"
            "{shell: true, stdio: 'inherit'}); require('fs').writeFileSync('/dev/stdout', 'c')",
        ),
    ],
)
def test_a_context(box: Sandbox, language: str, code: str, again: bool) -> None:
    context = box.create_code_context(language)
    result = box.run_code(code, context=context)
    assert (result.error, result.stdout, result.stderr) == (None, "a\nc", "b\n")


def test_those_of_others_stay_closed(client: Client, shared: Sandbox) -> None:
    """Neither another user's nor init's, which holds the other ends."""
    process = shared.start_process("echo up; exec sleep 1000", user=1000, stdin=True)
    assert shared.wait_for_log(process, "up", timeout=100).met
    for user in (1001, 12345):
        for pid in (process.pid, 1):
            for mode in (">", "<"):
                line = f"for fd in 0 1 2 3 4 5 6 7 8 9; do true {mode} /proc/{pid}/fd/$fd && echo open; done"
                assert shared.exec(line, user=user).stdout == ""
    assert shared.exec("for fd in /proc/1/fd/*; do true < $fd && echo open; done", user=1000).stdout == ""
    assert shared.exec(f"true < /proc/{process.pid}/fd/1 && echo open", user=1000).stdout == "open\n"  # the control
    shared.remove_process(process)
