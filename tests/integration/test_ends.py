"""How a command's tree ends: asked or killed, through every door, by programs that take their time or heed nothing."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest

from sandboxd import ProcessNotFound, ProcessNotRunning, Sandbox
from sandboxd.client import ProcessInfo
from tests.support.cloudflare_client import Driver

pytestmark = pytest.mark.real

#: Says `up`; asked to end it takes a moment, says `bye` and ends with 3.
SLOW = "trap 'sleep 0.2; echo bye; exit 3' {0}; echo up; while :; do sleep 0.05; done"
#: Says `up`, and does not heed what asks it to end.
DEAF = "trap '' TERM HUP INT; echo up; while :; do sleep 0.05; done"


@pytest.fixture
def box(sandbox: Sandbox) -> Sandbox:
    for name, text in (("slow", SLOW.format("TERM HUP")), ("int", SLOW.format("INT")), ("deaf", DEAF)):
        sandbox.write_file(f"/workspace/{name}.sh", text + "\n")
    return sandbox


def up(box: Sandbox, process: ProcessInfo) -> ProcessInfo:
    """Return the process when its program says that it is there."""
    assert box.wait_for_log(process, "up", timeout=100).met
    return process


def nothing_is_left(box: Sandbox) -> None:
    """Whoever is told that a tree has ended finds none of it: at once, without a wait."""
    assert box.exec("pgrep -fa '(slow|int|deaf)[.]sh'").stdout == ""


def from_plain(box: Sandbox, line: str) -> ProcessInfo:
    return box.start_process(line)


def from_keeping(box: Sandbox, line: str) -> ProcessInfo:
    return box.start_process(line, keep_orphans=True)


def from_session(box: Sandbox, line: str) -> ProcessInfo:
    return box.create_session().start_process(line)


def from_sh_session(box: Sandbox, line: str) -> ProcessInfo:
    return box.create_session(shell="sh").start_process(line)


def from_restarting(box: Sandbox, line: str) -> ProcessInfo:
    return box.start_process(line, restart="on-failure")


#: Waits until one of them has said so.
UNTIL_UP = "until pgrep -fx 'sleep 0.05' >/dev/null; do sleep 0.02; done"
PLAIN = "true; bash slow.sh; true"


@pytest.mark.parametrize(
    ("begin", "line"),
    [
        (from_plain, PLAIN),
        (from_keeping, PLAIN),
        (from_session, PLAIN),
        (from_sh_session, PLAIN),
        (from_restarting, PLAIN),
        (from_plain, "bash slow.sh"),
        (from_keeping, "cd / && bash /workspace/slow.sh; true"),
        (from_session, "bash slow.sh & wait"),
        (from_keeping, "setsid -w bash slow.sh; true"),  # in a group and a session of its own
        (from_session, "(setsid bash slow.sh &); sleep 1000"),  # and without a parent of the tree
        (from_plain, f"bash slow.sh & {UNTIL_UP}; kill -STOP $!; kill -STOP $$"),
    ],
)
def test_a_tree_that_is_asked_to_end_ends_in_its_own_time(
    box: Sandbox, begin: Callable[[Sandbox, str], ProcessInfo], line: str
) -> None:
    process = up(box, begin(box, line))
    box.kill_process(process)
    assert box.wait_for_exit(process, timeout=100).met
    nothing_is_left(box)
    assert box.get_process_logs(process).stdout == "up\nbye\n"
    assert box.get_process(process).restarts == 0
    with pytest.raises(ProcessNotRunning):
        box.kill_process(process)


@pytest.mark.parametrize(
    "line", ["bash slow.sh", "cd / && exec bash /workspace/slow.sh", SLOW.format("TERM"), "hi=1 bash slow.sh"]
)
def test_a_session_hands_on_how_its_program_ended(box: Sandbox, line: str) -> None:
    process = up(box, from_session(box, line))
    box.kill_process(process)
    ended = box.wait_for_exit(process, timeout=100)
    assert (ended.exit_code, ended.signal) == (3, None)


def test_a_session_command_stands_until_its_tree_has_ended(box: Sandbox) -> None:
    """One of exec, which is waited for: its shell may go first."""
    session = box.create_session()
    data = b""
    with session.exec_stream("bash slow.sh; true") as stream:
        for chunk in stream:
            data += chunk.data if chunk.stream == "stdout" else b""  # bash tells of the sleep that it lost
            if data == b"up\n" and chunk.stream == "stdout":
                box.kill_process(stream.process_id)
        assert stream.wait().signal == "SIGTERM"
    assert data == b"up\nbye\n"
    nothing_is_left(box)
    assert session.exec("echo on").stdout == "on\n"


def test_another_signal_that_ends_is_its_groups(box: Sandbox) -> None:
    process = up(box, box.start_process("setsid sleep 1004 & sh -c 'true; bash int.sh; true'; true", keep_orphans=True))
    box.kill_process(process, "INT")
    assert box.wait_for_exit(process, timeout=100).signal == "SIGINT"
    nothing_is_left(box)
    assert box.get_process_logs(process).stdout == "up\nbye\n"
    assert box.exec("pkill -fx 'sleep 1004' && echo it went on").stdout == "it went on\n"


@pytest.mark.slow
@pytest.mark.parametrize("begin", [from_plain, from_session])
def test_what_does_not_heed_it_is_killed(box: Sandbox, begin: Callable[[Sandbox, str], ProcessInfo]) -> None:
    process = up(box, begin(box, "true; (setsid bash deaf.sh &); sleep 1000"))
    began = time.monotonic()
    box.kill_process(process)
    assert box.get_process(process).is_running
    ended = box.wait_for_exit(process, timeout=100)
    assert time.monotonic() - began > 4.5
    assert ended.signal == "SIGTERM"
    nothing_is_left(box)


@pytest.mark.parametrize("begin", [from_plain, from_keeping, from_session])
def test_a_kill_leaves_nothing(box: Sandbox, begin: Callable[[Sandbox, str], ProcessInfo]) -> None:
    process = up(box, begin(box, "true; bash deaf.sh; true"))
    box.kill_process(process)  # the shell goes, and what it waited for stays
    while box.get_process(process).pid is not None:
        pass
    box.kill_process(process, "KILL")
    assert box.wait_for_exit(process, timeout=100).met
    nothing_is_left(box)


@pytest.mark.parametrize("everything", [False, True])
def test_removing_ends_what_an_ended_process_has_left(box: Sandbox, everything: bool) -> None:
    process = up(box, from_keeping(box, f"setsid bash deaf.sh & {UNTIL_UP}; exit 4"))
    assert box.wait_for_exit(process, timeout=100).exit_code == 4
    assert box.exec("pgrep -fc deaf[.]sh").stdout == "1\n"
    if everything:
        box.kill_all_processes()
    else:
        box.remove_process(process)
    nothing_is_left(box)
    with pytest.raises(ProcessNotFound):
        box.get_process(process)


def test_a_timeout_leaves_nothing(box: Sandbox) -> None:
    result = box.exec("(setsid bash deaf.sh &); sleep 1000", timeout=0.5, keep_orphans=True)
    assert result.timed_out
    nothing_is_left(box)


def test_a_terminal_that_is_hung_up_has_time_to_end(box: Sandbox) -> None:
    with box.open_pty("true; bash slow.sh; true", linger=0.1) as pty:
        while b"up" not in pty.read():
            pass
    assert box.wait_for_exit(pty.process_id, timeout=100).met
    assert box.get_process(pty.process_id).reason == "hangup"
    assert "bye" in box.get_process_logs(pty.process_id).stdout
    nothing_is_left(box)


def test_deleting_a_session_ends_what_runs_with_its_state(box: Sandbox) -> None:
    session, other = box.create_session(), box.create_session()
    with session.open_pty("bash deaf.sh") as pty:
        pty.read()
    running = [
        up(box, session.start_process("bash deaf.sh")),
        up(box, session.start_process("bash deaf.sh; exit 1")),
        box.get_process(pty.process_id),
    ]
    stays = other.start_process("sleep 1005")
    ended = up(box, session.start_process("(setsid bash deaf.sh >/dev/null &); echo up"))
    assert box.wait_for_exit(ended, timeout=100).met
    session.delete()
    nothing_is_left(box)
    assert [box.get_process(process).signal for process in running] == ["SIGKILL"] * 3
    assert box.get_process(stays).is_running


# --- Cloudflare's client -----------------------------------------------------------------------------------


@pytest.fixture
def scripts(cf: Driver) -> Driver:
    for name, text in (("slow", SLOW.format("TERM")), ("deaf", DEAF)):
        cf.call("files.writeFile", f"/workspace/{name}.sh", text + "\n")
    return cf


def begin(cf: Driver, line: str, session: str | None, name: str) -> None:
    cf.call("processes.startProcess", line, session, {"processId": name})
    assert cf.stream("processes.streamProcessLogs", name, until="stdout")


def left(cf: Driver) -> str:
    found: str = cf.call("commands.execute", "pgrep -fa '(slow|deaf)[.]sh'", None)["stdout"]
    return found


@pytest.mark.parametrize("session", ["ends", None])
@pytest.mark.parametrize("every", [False, True])
def test_their_kill_waits_for_what_ends_by_itself(scripts: Driver, session: str | None, every: bool) -> None:
    name = f"slow-{session}-{every}"
    begin(scripts, "bash slow.sh", session, name)
    begin(scripts, PLAIN, session, name + "-in-a-shell")
    for args in [()] if every else [(name,), (name + "-in-a-shell",)]:
        scripts.call("processes.killAllProcesses" if every else "processes.killProcess", *args)
    assert left(scripts) == ""
    shown = scripts.call("processes.getProcess", name)["process"]
    assert (shown["status"], shown["exitCode"]) == ("failed", 3)
    for process in (name, name + "-in-a-shell"):
        assert scripts.call("processes.getProcessLogs", process)["stdout"] == "up\nbye\n"


@pytest.mark.slow
def test_their_kill_ends_what_does_not_heed_it(scripts: Driver) -> None:
    begin(scripts, "bash deaf.sh", "ends", "deaf")
    begin(scripts, "true; bash deaf.sh; true", "ends", "deaf-in-a-shell")
    scripts.call("processes.killAllProcesses")
    assert left(scripts) == ""
    assert scripts.call("processes.getProcess", "deaf")["process"]["status"] == "killed"


def test_deleting_their_session_ends_its_processes(scripts: Driver) -> None:
    begin(scripts, "bash deaf.sh", "to-go", "deaf-to-go")
    scripts.call("utils.deleteSession", "to-go")
    assert left(scripts) == ""
    assert scripts.call("processes.getProcess", "deaf-to-go")["process"]["status"] == "killed"
