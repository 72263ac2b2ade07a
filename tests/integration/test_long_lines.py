"""Command lines that are longer than an argument may be: they run as short ones do, through every door."""

from __future__ import annotations

import shlex

import pytest

from sandboxd import InvalidRequest, Sandbox
from sandboxd.spec import MAX_ARG_BYTES, MAX_LINE_BYTES

pytestmark = pytest.mark.real

#: What is put behind a line so that it is long, and does nothing.
PADDING = "\n: " + "x" * MAX_ARG_BYTES


def padded(line: str) -> str:
    """Return a line that does the same, too long for an argument."""
    return line + PADDING + "\n"


#: What a shell tells of itself and does; each must be the same for a long line.
LINES = (
    'echo "$0|$-|$#|$*|$$" | sed s/[0-9][0-9]*$//; exit 7',
    "false",
    "echo a; exit 3",
    "kill -TERM $$",
    "set -e; false; echo not reached",
    "trap 'echo bye' EXIT; exit 5",
    "nosuchprogram",
    "cat; echo end >&2",
    "echo \"'a' \\\"b\\\" $((1 + 1)) \\$HOME\"; exec sh -c 'exit 9'",
    "f() { return 4; }; f",
    "if",
    "ls /proc/self/fd | wc -l; env | grep -c sandboxd; set | grep -c ^_sandboxd_command; true",
    "cat <<'E'\n'\nE\necho \u20ac",
)


@pytest.mark.parametrize("shell", ["/bin/sh", "/bin/bash"])
@pytest.mark.parametrize("line", LINES)
def test_a_long_line_does_what_a_short_one_does(shared: Sandbox, line: str, shell: str) -> None:
    short = shared.exec([shell, "-c", "--", f": {'x' * 9}; {line}"], stdin=b"in\n")
    long = shared.exec([shell, "-c", "--", f": {'x' * MAX_ARG_BYTES}; {line}"], stdin=b"in\n")
    assert (long.exit_code, long.signal, long.stdout) == (short.exit_code, short.signal, short.stdout)
    # dash and bash say where they had read what they do not understand.
    assert long.stderr.replace("eval: ", "") == short.stderr.replace("-c: ", "")


@pytest.mark.parametrize("shell", ["bash", "sh"])
def test_in_a_session(shared: Sandbox, shell: str) -> None:
    with shared.create_session(shell=shell) as session:
        session.exec(padded("x=1; cd /tmp")).check()
        result = session.exec(padded("echo $x $PWD; false"))
        assert (result.exit_code, result.stdout) == (0, "1 /tmp\n")
        assert session.exec(": " + "x" * MAX_ARG_BYTES + "; echo $0 $#; exit 6").exit_code == 6
        words = ["printf", "%s|", *["'" * 100_000] * 3]  # a list becomes a line there, and printf is the shell's own
        assert session.exec(words).stdout == "".join(word + "|" for word in words[2:])


def test_as_large_as_a_request_may_be(shared: Sandbox) -> None:
    data = "'" * (MAX_LINE_BYTES // 8)
    result = shared.exec(f"printf %s {shlex.quote(data)} | wc -c")
    assert result.stdout.strip() == str(len(data))
    assert shared.exec(f"cat <<'E' | wc -c\n{'a' * (MAX_LINE_BYTES - 1000)}\nE").stdout.strip() == "4193305"


def test_as_another_user_and_with_a_terminal(shared: Sandbox) -> None:
    assert shared.exec(padded("id -u"), user=65534).stdout == "65534\n"
    with shared.open_pty(padded("test -t 0 && echo yes; exit 4")) as pty:
        shown = b"".join(pty)
    assert b"yes" in shown
    assert pty.result is not None
    assert pty.result.exit_code == 4


def test_a_process_that_is_restarted_has_it_again(shared: Sandbox) -> None:
    shared.exec("rm -f /tmp/count").check()
    line = f": {'x' * MAX_ARG_BYTES}; echo x >> /tmp/count; test $(wc -l < /tmp/count) -ge 3"
    process = shared.start_process(line, restart="on-failure")
    assert shared.wait_for_exit(process, timeout=60).exit_code == 0
    assert shared.exec("wc -l < /tmp/count").stdout.strip() == "3"


def test_what_is_seen_of_it(shared: Sandbox) -> None:
    process = shared.start_process(f"sleep 600 # {'x' * MAX_ARG_BYTES}\ntrue")
    try:
        line = shared.exec(f"tr '\\0' ' ' < /proc/{process.pid}/cmdline").stdout
        assert line.startswith("/bin/sh -c -- ")
        assert "# sleep 600 # xxx" in line
        shown = shared.get_process(process).command
        assert isinstance(shown, str)
        assert shown.startswith("sleep 600 # xxx")
        assert shown.endswith("\u2026")
    finally:
        shared.remove_process(process)


def test_a_list_is_refused_with_the_way_out(shared: Sandbox) -> None:
    with pytest.raises(InvalidRequest, match="pass the command as one string") as caught:
        shared.exec(["printf", "%s", "x" * MAX_ARG_BYTES])
    assert caught.value.facts["limit_bytes"] == MAX_ARG_BYTES - 1
    assert shared.exec(["sh", "-c", "printf %s $1 | wc -c", "sh", "x" * (MAX_ARG_BYTES - 1)]).stdout.strip() == "131071"
