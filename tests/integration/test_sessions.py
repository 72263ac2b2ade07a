"""Sessions against real sandboxes, with bash and with sh: what is kept, in which order, and that nothing hangs."""

from __future__ import annotations

import hashlib
import json
import os
import pathlib
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator

import pytest
import trio

from sandboxd import (
    AsyncClient,
    AsyncSandbox,
    InvalidRequest,
    LimitExceeded,
    NameTaken,
    Sandbox,
    Session,
    SessionNotFound,
)
from sandboxd.client import ExecResult
from sandboxd.spec import CommandSpec
from tests.support.daemon import Daemon
from tests.support.waiting import SOON_S, wait_until

pytestmark = pytest.mark.real

#: Far over what a command takes, far under what a hang would be.


@pytest.fixture(params=["bash", "sh"])
def session(shared: Sandbox, request: pytest.FixtureRequest) -> Iterator[Session]:
    with shared.create_session(shell=request.param) as session:
        yield session


@pytest.fixture
def bash(shared: Sandbox) -> Iterator[Session]:
    with shared.create_session() as session:
        yield session


def say(session: Session, line: str, **options: object) -> str:
    """Return what a line prints; it must end well."""
    result = session.exec(line, **options)  # type: ignore[arg-type]
    assert (result.exit_code, result.stderr) == (0, ""), (line, result)
    return result.stdout


def end(result: ExecResult) -> tuple[int | None, str | None]:
    return result.exit_code, result.signal


# --- what is kept ---------------------------------------------------------------------------------------------


def test_folder_variables_and_exports_are_kept(session: Session) -> None:
    assert say(session, "pwd") == "/workspace\n"
    say(session, "cd /usr/lib; export A=1; b=$(printf 'x\\ny \"'); export C=\"it's\"; unset HOME")
    assert say(session, 'pwd; echo "$A|$b|${HOME-none}"; sh -c \'echo "$C|$b"\'') == "/usr/lib\n1|x\ny \"|none\nit's|\n"
    assert session.refresh().cwd == "/usr/lib"
    assert say(session, "cd /; cd - >/dev/null; pwd; cd ..; echo $OLDPWD") == "/usr/lib\n/usr/lib\n"


def test_aliases_options_traps_and_umask_are_kept(session: Session) -> None:
    say(session, "alias greet='echo hello'; set -f; umask 027; trap 'echo heard' USR1")
    assert say(session, "greet; echo *; umask; kill -USR1 $$") == "hello\n*\n0027\nheard\n"
    say(session, "unalias greet; set +f; trap - USR1")
    assert end(session.exec("greet")) == (127, None)


def test_bash_keeps_all_that_it_can_print(bash: Session) -> None:
    say(bash, "f() { echo \"f $1\"; cat <<E\n$2\nE\n}; declare -A m=([a b]=1); l=(1 '2 3'); declare -i n=5")
    say(bash, "set -- p 'q r'; shopt -s nullglob; set -o pipefail; pushd /usr >/dev/null; export -f f; readonly R=1")
    say(bash, "declare -n ref=n")
    found = say(
        bash, 'f a b; echo ${m[a b]} "${l[1]}"; n+=2; echo $n $ref $# "$2" $R; dirs -p; false | true || echo piped'
    )
    assert found == "f a\nb\n1 2 3\n7 7 2 q r 1\n/usr\n/workspace\npiped\n"
    assert say(bash, "bash -c 'f exported x'; shopt nullglob | cat; popd >/dev/null; pwd") == (
        "f exported\nx\nnullglob       \ton\n/workspace\n"
    )


def test_sh_keeps_no_functions(shared: Sandbox) -> None:
    with shared.create_session(shell="sh") as session:
        assert say(session, "f() { echo f; }; f") == "f\n"
        assert session.exec("f").exit_code == 127


def test_busybox_keeps_what_sh_keeps(sandbox: Sandbox) -> None:
    busybox = shutil.which("busybox")
    if busybox is None:
        pytest.skip("this machine has no busybox")
    sandbox.write_file("/bin/busybox", pathlib.Path(busybox).read_bytes(), mode=0o755)
    sandbox.exec("/bin/busybox true && rm /bin/bash && ln -sf busybox /bin/sh").check()
    session = sandbox.create_session()
    assert session.info.shell == "/bin/sh"
    say(session, "cd /usr; export A=1; alias greet='echo hello'; set -f")
    assert say(session, "pwd; sh -c 'echo $A'; greet; echo *") == "/usr\n1\nhello\n*\n"
    assert end(session.exec("cd /var; exit 3")) == (3, None)
    assert say(session, "pwd") == "/var\n"


def test_env_and_cwd_of_one_command_are_for_it_alone(session: Session) -> None:
    say(session, "export A=1; cd /usr")
    assert say(session, "echo $A $B; pwd; A=3; cd /", env={"A": "2 '", "B": "b"}, cwd="/tmp") == "2 ' b\n/tmp\n"
    assert say(session, "echo $A ${B-none}; pwd") == "1 none\n/usr\n"


def test_words_are_quoted_for_the_shell(session: Session) -> None:
    result = session.exec(["echo", "$HOME", "a  b", "it's"])
    assert result.stdout == "$HOME a  b it's\n"
    say(session, "alias x=echo; cd /")
    assert session.exec(["cd", "/usr"]).exit_code == 0
    assert say(session, "pwd") == "/usr\n"


def test_a_session_begins_as_asked(shared: Sandbox) -> None:
    with shared.create_session(id="own.One-1", cwd="/usr", env={"A": "x", "PATH": "/bin"}, user="nobody") as session:
        assert say(session, "pwd; echo $A $PATH; id -un; touch /tmp/of-nobody; stat -c %U /tmp/of-nobody").split() == [
            "/usr", "x", "/bin", "nobody", "nobody",
        ]  # fmt: skip
        assert say(session, "cd /tmp; B=2; id -u") == "65534\n"
        assert say(session, "pwd; echo $B") == "/tmp\n2\n"
        assert shared.get_session("own.One-1").info.user == "nobody"
        with pytest.raises(NameTaken):
            shared.create_session(id="own.One-1")
        assert [one.id for one in shared.list_sessions()] == ["own.One-1"]
    with pytest.raises(SessionNotFound):
        shared.get_session("own.One-1")
    with pytest.raises(SessionNotFound):
        session.exec("true")


@pytest.mark.parametrize(
    "fields", [{"id": "../x"}, {"id": "a b"}, {"cwd": "rel"}, {"cwd": "/none"}, {"shell": "zsh"}, {"env": {"1": ""}},
               {"user": "nobody-here"}],
)  # fmt: skip
def test_bad_sessions(shared: Sandbox, fields: dict[str, object]) -> None:
    with pytest.raises(InvalidRequest):
        shared.create_session(**fields)  # type: ignore[arg-type]


# --- nothing hangs, nothing is lost ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "code"),
    [
        ("exit 3", 3),
        ("exec true", 0),
        ("exec sh -c 'exit 4'", 4),
        ('echo "unterminated', 2),
        ("if then fi (", 2),
        ("set -e; false; echo no", 1),
        ("cat <<E\nheredoc $$\nE\nread x; exit 5", 5),
        ("cat; read line; exit 6", 6),
        ("trap 'echo bye' EXIT; exit 7", 7),
        ("no-such-program", 127),
        ("f() { exit 8; }; f", 8),
        ("set -eu; (exit 9); echo no", 9),
        ("cat <<E", 0),
        ("return 0 2>/dev/null; true", 0),
        ("exec 0<&- 1>&- 2>&-; exit 10", 10),
        ("exec >/dev/null; echo lost; exit 11", 11),
        ("set -n; exit 12", 0),
        ("-x", 127),
        ("unset PATH; exit 13", 13),
        ("ulimit -n 20; true", 0),
    ],
)
def test_whatever_ends_a_command_the_session_goes_on(session: Session, line: str, code: int) -> None:
    say(session, "KEPT=yes; PATH=/usr/bin:/bin; set +eu")
    began = time.monotonic()
    assert session.exec(line).exit_code in (code, 1 if code == 2 else code)
    assert time.monotonic() - began < SOON_S
    assert session.exec("set +eu; echo $KEPT").stdout == "yes\n"


@pytest.mark.parametrize("signal", ["KILL", "TERM", "SEGV"])
def test_a_shell_that_is_killed_leaves_the_state_before(session: Session, signal: str) -> None:
    say(session, "cd /usr")
    assert end(session.exec(f"cd /tmp; kill -{signal} $$; sleep 5")) == (None, f"SIG{signal}")
    assert say(session, "pwd") in ("/usr\n", "/usr\n" if signal == "KILL" else "/tmp\n")


def test_a_timeout_kills_the_tree_and_not_the_session(session: Session) -> None:
    say(session, "cd /usr; A=1")
    began = time.monotonic()
    result = session.exec("A=2; (trap '' TERM; sleep 1001 & sleep 1002) & sleep 1003", timeout=0.3)
    assert (result.timed_out, result.signal) == (True, "SIGKILL")
    assert time.monotonic() - began < SOON_S
    assert say(session, "pwd; echo $A; ps ax -o args | grep -c '^sleep 100[123]' || true") == "/usr\n1\n0\n"


def test_a_child_that_keeps_the_output_open_holds_nobody(session: Session) -> None:
    began = time.monotonic()
    assert say(session, "sleep 1000 & echo $! >/tmp/child; echo started") == "started\n"
    assert say(session, "kill -0 $(cat /tmp/child) && echo alive") == "alive\n"
    assert time.monotonic() - began < SOON_S
    assert session.exec("sleep 1000 & echo $! >/tmp/child", keep_orphans=False).exit_code == 0
    assert session.exec("kill -0 $(cat /tmp/child)").exit_code == 1


def test_every_byte_survives(session: Session) -> None:
    data = os.urandom(2_000_000) + bytes(range(256)) * 8
    result = session.exec("cat; printf '\\377\\000end'", stdin=data)
    assert hashlib.sha256(result.stdout_bytes).digest() == hashlib.sha256(data + b"\xff\x00end").digest()
    big = session.exec("head -c 30000000 /dev/zero; echo err >&2")
    assert (len(big.stdout_bytes), big.stderr) == (30_000_000, "err\n")


def test_state_that_is_large_or_odd(bash: Session) -> None:
    say(bash, "big=$(head -c 3000000 /dev/zero | tr '\\0' x); odd=$'\\001\\x80\\xff\\n end'; IFS=,")
    found = say(bash, 'printf %s "$big" | wc -c; printf %s "$odd" | od -An -tx1; set -- $(echo a,b); echo $#')
    assert found.split() == [
        "3000000", "01", "80", "ff", "0a", "20", "65", "6e", "64", "2",
    ]  # fmt: skip


def test_tracing_shows_the_commands_alone(session: Session) -> None:
    traced = session.exec("set -x; : one")
    assert traced.stderr.replace("++", "+") == "+ : one\n"
    assert session.exec(": two").stderr.replace("++", "+") == "+ : two\n"
    assert session.exec("set +x").stderr.replace("++", "+") == "+ set +x\n"
    assert session.exec("false | true; set -v; true").stderr == ""


def test_users_names_do_not_break_the_carrying(bash: Session) -> None:
    say(bash, "printf() { echo mine; }; alias cd=false; declare() { :; }; unset() { :; }; A=1; \\cd /usr; set -o posix")
    assert say(bash, "\\builtin printf '%s ' $A; pwd; printf") == "1 /usr\nmine\n"
    say(bash, "set -u; set -o noclobber; trap 'false' ERR; trap ':' DEBUG")
    assert say(bash, "echo $A; set +u") == "1\n"


def test_no_part_of_the_carrying_is_in_a_command_s_way(session: Session) -> None:
    assert say(session, "env | grep -c sandboxd || true") == "0\n"
    assert say(session, "set -a; true") == ""
    assert say(session, "env | grep -c sandboxd_save || true") == "0\n"
    # Asked by another shell: while one makes a pipeline or redirects, it holds more itself.
    held = "exec 9>/tmp/lock; flock 9; sh -c \"ls /proc/$$/fd >/tmp/held\"; sort -n /tmp/held | tr '\\n' ' '"
    assert say(session, held) == "0 1 2 9 60 61 62 "
    assert say(session, "cat /tmp/lock") == ""


def test_a_folder_that_is_gone_is_not_silently_another(session: Session) -> None:
    say(session, "mkdir -p /tmp/gone/below; cd /tmp/gone/below; rm -r /tmp/gone")
    lost = session.exec("touch here")
    assert lost.exit_code == 126
    assert "/tmp/gone/below" in lost.stderr
    assert "/workspace" in lost.stderr
    assert say(session, "pwd; ls here 2>/dev/null || true") == "/workspace\n"
    say(session, "mkdir /tmp/gone; cd /tmp/gone; rmdir /tmp/gone")
    assert say(session, "pwd", cwd="/usr") == "/usr\n"
    with pytest.raises(InvalidRequest):
        session.exec("pwd", cwd="/none")


# --- order ----------------------------------------------------------------------------------------------------


def test_one_session_in_order_and_others_beside_it(sandbox: Sandbox) -> None:
    first, second = sandbox.create_session(id="first"), sandbox.create_session(id="second")
    sandbox.exec("mkfifo /tmp/gate").check()
    lines: list[str] = []

    def run(number: int) -> None:
        lines.append(first.exec(f"read x </tmp/gate; N=${{N}}{number}; echo $N").stdout if number == 1 else
                     first.exec(f"N=${{N}}{number}; echo $N").stdout)  # fmt: skip

    threads = []
    for number in (1, 2, 3):
        threads.append(threading.Thread(target=run, args=(number,)))
        threads[-1].start()
        while first.refresh().waiting != number - 1 or first.info.running is None:
            pass
    assert say(second, "echo free") == "free\n"
    assert first.info.waiting == 2
    say(second, "echo go >/tmp/gate")
    for thread in threads:
        thread.join(SOON_S)
    assert lines == ["1\n", "12\n", "123\n"]
    assert (first.refresh().commands, first.info.running, first.info.waiting) == (3, None, 0)


def test_a_caller_that_leaves_takes_its_command_back(daemon: Daemon, sandbox: Sandbox) -> None:
    async def main() -> None:
        async with AsyncClient(daemon.url) as client:
            there = await AsyncSandbox.connect(sandbox.id, client=client)
            session = await there.create_session(id="s")
            async with session.exec_stream("read x </tmp/gate"):
                with trio.move_on_after(0.3):
                    await session.exec("touch /tmp/never")
                while (await session.refresh()).waiting:
                    pass
                await there.exec("echo >/tmp/gate")
            assert (await session.exec("ls /tmp/never")).exit_code != 0
            # Leaving one that runs kills it, as any command.
            with trio.move_on_after(0.3):
                await session.exec("sleep 1000")
            assert (await session.exec("echo on")).stdout == "on\n"
            await session.delete()

    sandbox.exec("mkfifo /tmp/gate").check()
    trio.run(main)


def test_deleting_ends_what_runs_waits_and_was_left(sandbox: Sandbox) -> None:
    session = sandbox.create_session()
    say(session, "sleep 1111 >/dev/null 2>&1 &")
    ends: list[object] = []

    def run(line: str) -> None:
        try:
            ends.append(end(session.exec(line)))
        except SessionNotFound as error:
            ends.append(error.kind)

    threads = [threading.Thread(target=run, args=(line,)) for line in ("sleep 2222", "true")]
    for count, thread in enumerate(threads):
        thread.start()
        while session.refresh().waiting != count or session.info.running is None:
            pass
    session.delete()
    for thread in threads:
        thread.join(SOON_S)
    assert sorted(map(str, ends)) == ["(None, 'SIGKILL')", "session-not-found"]
    wait_until(lambda: sandbox.exec("ps ax -o args | grep '^sleep [12]'").exit_code)
    assert sandbox.list_sessions() == []


def test_there_are_bounds(sandbox: Sandbox) -> None:
    for _ in range(64):
        sandbox.create_session()
    with pytest.raises(LimitExceeded):
        sandbox.create_session()
    assert len(sandbox.list_sessions()) == 64


# --- processes and logs ---------------------------------------------------------------------------------------


def test_a_command_is_a_process_with_a_log(bash: Session, shared: Sandbox) -> None:
    with bash.exec_stream("echo one; echo two >&2", detach=True) as stream:
        name = stream.process_id
        assert stream.wait().exit_code == 0
    info = shared.get_process(name)
    assert info is not None
    assert (info.command, info.exit_code) == ("echo one; echo two >&2", 0)
    logs = shared.get_process_logs(name)
    assert (logs.stdout, logs.stderr) == ("one\n", "two\n")


def test_a_process_begins_with_the_state_and_leaves_none(session: Session, shared: Sandbox) -> None:
    say(session, "cd /usr; A=kept; alias greet='echo hello'")
    process = session.start_process("pwd; echo $A $B; greet; A=changed; cd /; exec sleep 0.1", env={"B": "2"})
    assert shared.wait_for_exit(process, timeout=SOON_S).exit_code == 0
    assert shared.get_process_logs(process).stdout == "/usr\nkept 2\nhello\n"
    assert say(session, "pwd; echo $A ${B-none}") == "/usr\nkept none\n"


def test_a_terminal_begins_with_the_state_too(session: Session, shared: Sandbox) -> None:
    say(session, "cd /usr; export A=kept")
    with session.open_pty("pwd; echo $A $TERM; stty size; A=lost", cols=91, rows=17) as pty:
        shown = b"".join(pty)
        assert pty.wait().exit_code == 0
    assert shown.split() == [b"/usr", b"kept", b"xterm-256color", b"17", b"91"]
    assert say(session, "echo $A; env | grep ^TERM || true") == "kept\n"


def test_a_process_does_not_wait_for_the_session(session: Session, sandbox: Sandbox) -> None:
    with session.exec_stream("sleep 1000"):
        process = session.start_process("echo beside")
        assert session._sandbox.client is not None
        assert session.refresh().running is not None
        assert process.id


def test_the_api_says_what_is_wrong(daemon: Daemon, shared: Sandbox) -> None:
    path = f"/v1/sandboxes/{shared.id}"
    with daemon.client() as client:
        http = client._http
        missing = http.post(f"{path}/exec", json={"command": "true", "session": "none"})
        assert (missing.status_code, missing.json()["kind"]) == (404, "session-not-found")
        for body in ({"session": "a b"}, {"session": "none", "user": "root"}):
            refused = http.post(f"{path}/exec", json={"command": "true", **body})
            assert (refused.status_code, refused.json()["kind"]) == (400, "invalid-request")
        assert http.delete(f"{path}/sessions/none").status_code == 404
        made = http.post(f"{path}/sessions", json={})
        assert made.headers["location"] == f"{path}/sessions/{made.json()['id']}"
        events = http.post(
            f"{path}/exec",
            json={"command": "echo a; exit 3", "session": made.json()["id"]},
            headers={"Accept": "text/event-stream"},
        ).text
        assert [line for line in events.splitlines() if line.startswith("event:")] == [
            "event: start", "event: stdout", "event: exit",
        ]  # fmt: skip
        assert http.delete(f"{path}/sessions/{made.json()['id']}").status_code == 204


# --- a new daemon ---------------------------------------------------------------------------------------------


def test_sessions_outlive_the_daemon(own_daemon: Daemon) -> None:
    with own_daemon.client() as client:
        sandbox = Sandbox.create(client=client)
        session = sandbox.create_session(id="kept")
        say(session, "cd /usr; export A=1; f() { echo f; }")
        with session.exec_stream("sleep 0.2; B=2", detach=True):
            pass
    own_daemon.stop()
    own_daemon.start()
    with own_daemon.client() as client:
        session = Sandbox.connect(sandbox.id, client=client).get_session("kept")
        assert say(session, "pwd; echo $A $B; f") == "/usr\n1 2\nf\n"


# --- SDK and command line -------------------------------------------------------------------------------------


def test_the_asynchronous_twin(daemon: Daemon, shared: Sandbox) -> None:
    async def main() -> None:
        async with AsyncClient(daemon.url) as client:
            sandbox = await AsyncSandbox.connect(shared.id, client=client)
            async with await sandbox.create_session(cwd="/usr", env={"A": "1"}) as session:
                assert (await session.exec("pwd; echo $A; cd /")).stdout == "/usr\n1\n"
                heard: list[str] = []
                async with session.exec_stream("pwd", on_stdout=heard.append) as stream:
                    await stream.wait()
                assert heard == ["/\n"]
                async with session.open_pty("pwd") as pty:
                    assert b"".join([data async for data in pty]).strip() == b"/"
                process = await session.start_process("pwd")
                assert (await sandbox.wait_for_exit(process)).exit_code == 0
                assert [one.id for one in await sandbox.list_sessions()] == [session.id]
                assert (await sandbox.get_session(session.id)).info.cwd == "/"
            with pytest.raises(SessionNotFound):
                await sandbox.delete_session(session.id)

    trio.run(main)


def test_the_command_line(daemon: Daemon, sandbox: Sandbox) -> None:
    def cli(*words: str) -> subprocess.CompletedProcess[str]:
        environment = {**os.environ, "SANDBOXD_URL": daemon.url}
        return subprocess.run(
            [sys.executable, "-m", "sandboxd", *words], env=environment, capture_output=True, text=True, timeout=60,
            check=False, stdin=subprocess.DEVNULL,
        )  # fmt: skip

    assert cli("session", "create", "--id", "work", "-e", "A=1", "-w", "/usr", sandbox.id).stdout == "work\n"
    assert cli("exec", "-s", "work", sandbox.id, "B=2; cd lib").returncode == 0
    assert cli("exec", "-s", "work", sandbox.id, "pwd; echo $A $B; exit 4").stdout == "/usr/lib\n1 2\n"
    assert cli("exec", "--session", "work", sandbox.id, "--", "echo", "a b", "$A").stdout == "a b $A\n"
    (shown,) = json.loads(cli("session", "ls", "--json", sandbox.id).stdout)
    assert (shown["id"], shown["cwd"], shown["commands"]) == ("work", "/usr/lib", 3)
    assert "work" in cli("session", "ls", sandbox.id).stdout
    assert cli("exec", "-s", "work", "-u", "nobody", sandbox.id, "true").returncode == 2
    assert "/usr/lib" in cli("shell", "-s", "work", sandbox.id, "pwd").stdout
    assert cli("session", "rm", sandbox.id, "work").returncode == 0
    gone = cli("exec", "-s", "work", sandbox.id, "true")
    assert gone.returncode == 125
    assert "work" in gone.stderr


def test_a_command_of_a_session_is_a_line() -> None:
    with pytest.raises(InvalidRequest):
        CommandSpec(argv=("ls",), session="s")
    with pytest.raises(InvalidRequest):
        CommandSpec(argv=CommandSpec.shell("ls"), session="s", user="root")


# --- a hostile sandbox ----------------------------------------------------------------------------------------


def init_descriptors(daemon: Daemon, sandbox: Sandbox) -> int:
    pid = (daemon.cgroup() / sandbox.id / "init" / "cgroup.procs").read_text().split()[0]
    return len(os.listdir(f"/proc/{pid}/fd"))


def test_pid_1_holds_one_descriptor_a_session(forking: Daemon) -> None:
    with forking.client() as client, Sandbox.create(client=client) as sandbox:
        check_descriptors_of_sessions(forking, sandbox)


def check_descriptors_of_sessions(daemon: Daemon, sandbox: Sandbox) -> None:
    def settle() -> int:
        sandbox.exec("true")
        return init_descriptors(daemon, sandbox)

    before = settle()
    session = sandbox.create_session()
    taken = session.start_process("sleep 1000", id="taken")
    for line in ("cd /usr; A=1", "exit 3", "exec true", "kill -9 $$", "sleep 5 & true", "'", "exec 60<&- 61<&- 62<&-"):
        session.exec(line)
        session.exec("sleep 10", timeout=0.05)
        with pytest.raises(NameTaken):
            session.start_process("true", id="taken")
        with pytest.raises(InvalidRequest):
            session.exec("true", cwd="/none")
        with pytest.raises(InvalidRequest):
            sandbox.create_session(cwd="/none")
    sandbox.remove_process(taken)
    assert session.exec("pwd").stdout == "/usr\n"
    wait_until(lambda: settle() <= before + 1)
    session.delete()
    wait_until(lambda: settle() <= before)


@pytest.mark.parametrize(
    ("tail", "cwd"),
    [
        (r"\n#cwd /said\n#end\n", "/said"),
        (r"\n#cwd relative\n#end\n", None),
        (r"\n#cwd /\001\n#end\n", None),
        (r"\n#cwd /\377\n#end\n", None),
        (r"\n#end\n", None),
        (r"\n#cwd /a\n#cwd /b\n#end\n", "/b"),
    ],
)
def test_a_state_of_the_sandboxs_own_making(sandbox: Sandbox, tail: str, cwd: str | None) -> None:
    """Whoever runs inside may write any state: it is run inside, and nothing but a plain path comes out of it."""
    session = sandbox.create_session()
    session.exec(f"printf 'echo forged; A=1{tail}' >/proc/self/fd/62; kill -9 $$")
    assert session.refresh().cwd == cwd
    assert session.exec("echo $A").exit_code in (0, 126)
    session.delete()
    assert sandbox.exec("echo fine").stdout == "fine\n"


def test_a_state_that_is_not_whole_or_huge_is_the_sandboxs_own_trouble(sandbox: Sandbox) -> None:
    session = sandbox.create_session()
    assert say(session, "A=kept") == ""
    session.exec("printf 'A=lost' >/proc/self/fd/62; kill -9 $$")
    assert say(session, "echo $A") == "kept\n"
    session.exec("truncate -s 1T /proc/self/fd/62; printf '\\n#end\\n' >>/proc/self/fd/62; kill -9 $$")
    session.exec("echo on", timeout=5)
    session.delete()
    assert say(sandbox.create_session(), "echo fine") == "fine\n"


def test_a_session_of_another_user_keeps_to_it(sandbox: Sandbox) -> None:
    session = sandbox.create_session(user="nobody")
    assert session.exec("id -u; umask").stdout == "65534\n0022\n"
    assert session.exec("echo x >/etc/forbidden").exit_code != 0
    assert session.start_process("id -u").id
    # A descriptor of the state opens nothing of pid 1's.
    assert session.exec("cat /proc/1/fd/60").exit_code != 0
    assert session.exec("ls -l /proc/1/fd").exit_code != 0


def test_a_frozen_sandbox_goes_on_where_its_session_was(sandbox: Sandbox) -> None:
    session = sandbox.create_session()
    say(session, "cd /usr; A=1")
    sandbox.freeze()
    sandbox.thaw()
    assert say(session, "pwd; echo $A") == "/usr\n1\n"
