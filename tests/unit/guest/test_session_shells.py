"""The programs that carry a session's state, run by real shells of this machine."""

from __future__ import annotations

import os
import pathlib
import shutil
import subprocess

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sandboxd.guest import lines, session_shells

SHELLS = [
    pytest.param("/bin/bash", marks=pytest.mark.skipif(not os.path.exists("/bin/bash"), reason="no bash")),
    pytest.param("/bin/dash", marks=pytest.mark.skipif(not os.path.exists("/bin/dash"), reason="no dash")),
]
VALUES = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=12)
ENV = {"PATH": os.environ["PATH"], "HOME": "/", "LANG": "C.UTF-8"}


class Session:
    """A session without init: its state is text that one shell leaves to the next."""

    def __init__(self, shell: str, cwd: str = "/", home: str = "/") -> None:
        self.shell = shell
        self.home = home
        self.state = session_shells.first_state(shell, ENV, cwd).encode()
        self.cwd: str | None = cwd

    def run(
        self,
        line: str,
        env: dict[str, str] | None = None,
        cwd: str | None = None,
        *,
        saves: bool = True,
        is_long: bool = False,
    ) -> tuple[int, str, str]:
        """Run a command as init does; return its status, output and errors."""
        words = line
        variables: dict[str, str] = {}
        if is_long:
            words = lines.beginning(line) if saves else lines.EVAL + lines.beginning(line)
        prelude = session_shells.prelude(
            self.shell, env or {}, cwd, self.home, saves=saves, line=line if is_long else None
        )
        if saves:
            argv = session_shells.argv(self.shell, words)
        else:
            argv, variables = session_shells.beside(self.shell, words)
        fds = [os.memfd_create("x") for _ in range(5)]
        try:
            os.write(fds[0], prelude.encode())
            os.write(fds[1], self.state)
            targets = (60, 61, 62, 1, 2)
            actions: list[tuple[int, ...]] = [
                (os.POSIX_SPAWN_DUP2, fd, target) for fd, target in zip(fds, targets, strict=True)
            ]
            pid = os.posix_spawn(self.shell, argv, variables, file_actions=actions)
            status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
            new, out, err = (os.pread(fd, 1 << 20, 0) for fd in fds[2:])
        finally:
            for fd in fds:
                os.close(fd)
        is_whole, where = session_shells.read_end(new[-5000:])
        assert saves or not new
        if is_whole:
            self.state, self.cwd = new, where
        return status, out.decode(), err.decode()


@pytest.fixture(params=SHELLS)
def session(request: pytest.FixtureRequest, tmp_path: pathlib.Path) -> Session:
    return Session(request.param, str(tmp_path))


# --- what is kept ------------------------------------------------------------------------------------------


def test_variables_directory_umask_and_arguments_are_kept(session: Session, tmp_path: pathlib.Path) -> None:
    (tmp_path / "d").mkdir()
    assert session.run("cd d; a=1; export b='two words'; umask 027; set -- x y") == (0, "", "")
    assert session.cwd == str(tmp_path / "d")
    assert session.run('echo "$PWD $OLDPWD $a $b $(umask)"; env | grep ^b=; env | grep ^a=') == (
        1, f"{tmp_path}/d {tmp_path} 1 two words 0027\nb=two words\n", "",
    )  # fmt: skip
    if session_shells.is_bash(session.shell):
        assert session.run('echo "$# $1 $2"') == (0, "2 x y\n", "")


def test_aliases_options_and_traps_are_kept(session: Session) -> None:
    session.run("alias hi='echo hello there'; set -f; trap 'echo interrupted' INT")
    assert session.run("hi; echo *; trap")[1].splitlines()[:2] == ["hello there", "*"]
    assert "interrupted" in session.run("trap")[1]
    session.run("unalias hi; set +f; trap - INT")
    _, out, _ = session.run("hi 2>/dev/null; trap")
    assert "hello" not in out
    assert "interrupted" not in out


@pytest.mark.skipif(not os.path.exists("/bin/bash"), reason="no bash")
def test_bash_keeps_functions_arrays_and_attributes() -> None:
    session = Session("/bin/bash")
    session.run("f() { echo f $1; }; declare -A m=([k]='v w'); l=(1 '2 3'); declare -i n=4; readonly r=5; pushd /tmp")
    assert session.run('f x; echo "${m[k]} ${#l[@]} ${l[1]}"; n=n+1; echo $n; (r=1) 2>/dev/null || echo no; dirs')[
        1
    ].splitlines() == ["f x", "v w 2 2 3", "5", "no", "/tmp /"]


@settings(max_examples=25)
@given(
    st.dictionaries(st.sampled_from(["a", "b", "_c"]), VALUES, min_size=1), st.sampled_from(["/bin/bash", "/bin/dash"])
)
def test_values_come_back_byte_for_byte(values: dict[str, str], shell: str) -> None:
    if not os.path.exists(shell):
        return
    session = Session(shell)
    session.run("; ".join(f"export {name}={session_shells.quote(value)}" for name, value in values.items()))
    for name, value in values.items():
        assert session.run(f'printf %s "${name}"') == (0, value, "")
    session.run("unset " + " ".join(values))
    assert session.run('echo "${a-}${b-}${_c-}"') == (0, "\n", "")


# --- what is left as it was --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "status"),
    [("a=2; kill -KILL $$", -9), ("a=2; exec true", 0), ("a=2; exec sh -c 'exit 3'", 3)],
)
def test_a_command_that_is_killed_or_becomes_another_leaves_the_state(session: Session, line: str, status: int) -> None:
    session.run("a=1")
    assert session.run(line)[0] == status
    assert session.run("echo $a") == (0, "1\n", "")


@pytest.mark.parametrize("line", ["a=2; exit 7", "set -e; a=2; false; a=3", "a=2; trap 'a=4' EXIT; exit 7"])
def test_a_command_that_exits_saves_its_state(session: Session, line: str) -> None:
    assert session.run(line)[0] != 0
    assert session.cwd is not None
    if "trap" not in line:
        assert session.run("set +e; echo $a") == (0, "2\n", "")


@pytest.mark.parametrize("line", ["if", "(", "echo 'x"])
def test_a_syntax_error_hangs_nothing(session: Session, line: str) -> None:
    session.run("a=1")
    status, _, err = session.run(line)
    assert status != 0
    assert "yntax error" in err or "nterminated" in err or "unexpected" in err
    assert session.run("echo $a") == (0, "1\n", "")


def test_nothing_of_ours_is_seen(session: Session) -> None:
    session.run("a=1")
    status, out, err = session.run("set | grep -c '^_sandboxd_[a-z]*=' ; env | grep -i sandboxd; exit 0", {"x": "y"})
    assert (status, err) == (0, "")
    assert session.run('x=1; echo "$x$a"; echo $?') == (0, "11\n0\n", "")
    assert int(out) < 8
    assert session.run("env | grep -i sandboxd") == (1, "", "")


# --- what holds for one command ----------------------------------------------------------------------------


def test_a_commands_own_variables_are_put_back(session: Session) -> None:
    session.run("export a=old; plain=p")
    own = {"a": "it's new", "b": "$b `b`", "plain": "q"}
    assert session.run('echo "$a|$b|$plain"; sh -c \'echo "$a|$b|$plain"\'', own) == (
        0, "it's new|$b `b`|q\n" * 2, "",
    )  # fmt: skip
    assert session.run('echo "$a|${b-unset}|$plain"') == (0, "old|unset|p\n", "")


def test_a_commands_own_directory(session: Session, tmp_path: pathlib.Path) -> None:
    (tmp_path / "it's d").mkdir()
    assert session.run("pwd", cwd=str(tmp_path / "it's d"))[1] == f"{tmp_path}/it's d\n"
    assert session.run("pwd")[1] == f"{tmp_path}\n"
    status, out, err = session.run("pwd", cwd=str(tmp_path / "nowhere"))
    assert (status, out) == (126, "")
    assert f"cannot enter {tmp_path}/nowhere" in err
    assert session.run("pwd")[1] == f"{tmp_path}\n"


def test_a_directory_that_is_gone_becomes_no_other_one_silently(session: Session, tmp_path: pathlib.Path) -> None:
    (tmp_path / "d").mkdir()
    (tmp_path / "home").mkdir()
    session.home = str(tmp_path / "home")
    session.run("cd d")
    (tmp_path / "d").rmdir()
    status, out, err = session.run("echo the command ran; pwd")
    assert (status, out) == (126, "")
    assert f"cannot enter {tmp_path}/d" in err
    assert session.run("pwd") == (0, f"{tmp_path}/home\n", "")


# --- beside, and long --------------------------------------------------------------------------------------


def test_a_command_beside_sees_the_state_and_leaves_none(session: Session, tmp_path: pathlib.Path) -> None:
    (tmp_path / "d").mkdir()
    session.run("cd d; export a=1; alias hi='echo hello'")
    assert session.run('echo "$a $b $PWD"\nhi\na=2; cd /', {"b": "own"}, saves=False) == (
        0, f"1 own {tmp_path}/d\nhello\n", "",
    )  # fmt: skip
    assert session.run('echo "$a ${b-unset}"') == (0, "1 unset\n", "")
    assert session.run("exit 9", saves=False)[0] == 9


@pytest.mark.parametrize("saves", [False, True])
@pytest.mark.parametrize("is_long", [False, True])
def test_no_command_runs_where_the_directory_is_gone(
    session: Session, tmp_path: pathlib.Path, saves: bool, is_long: bool
) -> None:
    (tmp_path / "d").mkdir()
    session.run("cd d; set -x")
    (tmp_path / "d").rmdir()
    status, out, err = session.run("echo the command ran", saves=saves, is_long=is_long)
    assert (status, out) == (126, "")
    assert "the command was not run" in err


@pytest.mark.parametrize("saves", [False, True])
def test_a_long_line_is_traced_as_others_are(session: Session, saves: bool) -> None:
    session.run("set -x")
    status, out, err = session.run("echo one", saves=saves, is_long=True)
    assert (status, out) == (0, "one\n")
    assert "echo one" in err
    if not session_shells.is_bash(session.shell) and not saves:
        assert "_sandboxd_command=" not in err


@pytest.mark.parametrize("saves", [False, True])
def test_a_long_line_is_run_whole(session: Session, saves: bool) -> None:
    content = "it's $long `x` ü\n" * 10_000
    line = f"printf %s {session_shells.quote(content)}; a=$((a+1))"
    assert session.run(line, saves=saves, is_long=True) == (0, content, "")
    assert session.run("echo ${a-0}") == (0, f"{int(saves)}\n", "")


# --- ends and quotes ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("tail", "end"),
    [
        (b"", (False, None)), (b"#end\n", (False, None)), (b"x\n#cwd /a\n#en", (False, None)),
        (b"x\n#cwd /a b\n#end\n", (True, "/a b")), (b"\n#end\n", (True, None)), (b"\n#cwd a\n#end\n", (True, None)),
        (b"\n#cwd /a\n#cwd /b\n#end\n", (True, "/b")), (b"\n#cwd /\xff\n#end\n", (True, None)),
        (b"\n#cwd /a\x1b[2J\n#end\n", (True, None)), (b"\n#cwd /a\nb\n#end\n", (True, None)),
        (b"\n#cwd /a\n#end\nmore", (False, None)),
    ],
)  # fmt: skip
def test_the_end_of_a_state_is_a_strangers_word(tail: bytes, end: tuple[bool, str | None]) -> None:
    assert session_shells.read_end(tail) == end


@given(st.binary(max_size=60), st.booleans())
def test_any_end_at_all(noise: bytes, ends: bool) -> None:
    is_whole, cwd = session_shells.read_end(noise + session_shells.END_MARK * ends)
    assert is_whole or cwd is None
    assert cwd is None or (cwd.startswith("/") and cwd.isprintable())


def test_the_first_state_is_whole() -> None:
    for shell in ("/bin/bash", "/bin/sh"):
        text = session_shells.first_state(shell, {"a": "it's"}, "/workspace")
        assert session_shells.read_end(text.encode()) == (True, "/workspace")


@settings(max_examples=30)
@given(VALUES)
def test_a_quoted_word_is_one_word(text: str) -> None:
    shell = shutil.which("sh")
    assert shell
    done = subprocess.run(
        [shell, "-c", f"printf %s {session_shells.quote(text)}"], capture_output=True, check=True, timeout=30
    )
    assert done.stdout.decode() == text
