"""What users run in sandboxes, run for real: apt, pip, npm, git, compilers, gdb; each against what it serves itself."""

from __future__ import annotations

import pathlib
import tempfile
from collections.abc import Iterator

import pytest

from sandboxd import Sandbox, images
from tests.support import workloads
from tests.support.daemon import Daemon

pytestmark = [pytest.mark.real, pytest.mark.slow]

RECIPES = pathlib.Path(__file__).parents[1] / "support" / "recipes"
#: Outlives a test run: a build takes most of a minute, and an unchanged recipe is not built again.
CACHE = pathlib.Path("/var/cache/sandboxd-tests/rootfs")


@pytest.fixture(scope="module")
def debugging() -> Iterator[Sandbox]:
    """A sandbox of a rootfs with gdb and strace."""
    images.build("debugging", CACHE, recipes=RECIPES)
    with tempfile.TemporaryDirectory(prefix="sandboxd-gdb-") as directory:
        daemon = Daemon(pathlib.Path(directory, "d"), rootfs_dir=str(CACHE))
        daemon.start()
        try:
            with daemon.client() as client, Sandbox.create(rootfs="debugging", client=client) as sandbox:
                sandbox.write_file("/workspace/bug.c", workloads.BUG_C)
                sandbox.exec("gcc -g -O0 -pthread -o bug bug.c").check()
                yield sandbox
        finally:
            daemon.close()


# --- package managers ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("scheme", ["http", "file"])
def test_apt_installs_upgrades_and_removes(sandbox: Sandbox, scheme: str) -> None:
    sandbox.write_file("/workspace/repository.py", workloads.APT_REPOSITORY)
    base = "http://127.0.0.1:8000" if scheme == "http" else "file:/srv/apt"
    sandbox.write_file("/etc/apt/only.list", f"deb [trusted=yes] {base} ./\n")
    sandbox.write_file("/workspace/apt.sh", workloads.APT)
    result = sandbox.exec(["bash", "apt.sh", scheme], timeout=240)
    assert result.exit_code == 0, result.stdout + result.stderr
    assert [line.removeprefix("== ") for line in result.stdout.splitlines() if line.startswith("== ")] == [
        "greet 1 from the library",
        "user greeter",
        "mode 4755",
        "greet 2 from the library",
        "kept: mine",
        "removed",
        "purged",
    ]
    for noise in ("Permission denied", "Operation not permitted", "not implemented", "seteuid", "unsandboxed"):
        assert noise not in result.stderr + result.stdout


@pytest.mark.parametrize("user", ["root", "user"])
def test_pip_installs_from_an_index_and_builds_an_extension(sandbox: Sandbox, user: str) -> None:
    sandbox.write_file("/srv/index.py", workloads.PIP_INDEX)
    sandbox.exec("mkdir -p /srv && chmod 777 /srv && chown -R user /workspace").check()
    result = sandbox.exec(
        workloads.PIP, user=user, timeout=240, env={"HOME": "/root" if user == "root" else "/home/user"}
    )
    assert result.exit_code == 0, result.stdout + result.stderr
    assert result.stdout.splitlines()[-4:] == ["wheel says 42", "extension says 42", "in a venv 42", "gone"]


def test_npm_installs_from_a_registry(sandbox: Sandbox) -> None:
    sandbox.write_file("/srv/registry.mjs", workloads.NPM_REGISTRY)
    result = sandbox.exec(workloads.NPM, timeout=240)
    assert result.exit_code == 0, result.stdout + result.stderr
    assert result.stdout.splitlines()[-4:] == ["required 42", "hook ran", "binary says 42", "tarball 42"]


# --- git -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("user", ["root", "user"])
def test_git_commits_clones_and_pushes(sandbox: Sandbox, user: str) -> None:
    sandbox.exec("mkdir -p /srv && chmod 777 /srv && chown -R user /workspace").check()
    home = "/root" if user == "root" else "/home/user"
    result = sandbox.exec(["bash", "-c", workloads.GIT], user=user, timeout=120, env={"HOME": home})
    assert result.exit_code == 0, result.stdout + result.stderr
    assert result.stdout.splitlines()[-6:] == ["file 3", "http 3", "git 3", "shallow 1", "pushed 4", "submodule 3"]


# --- compilers -----------------------------------------------------------------------------------------------


def test_gcc_and_make(sandbox: Sandbox) -> None:
    for name, text in workloads.C_PROJECT.items():
        sandbox.write_file(f"/workspace/{name}", text)
    result = sandbox.exec("make -j4 -s all && ./main && ./many && ./fixed", timeout=120)
    assert result.exit_code == 0, result.stdout + result.stderr
    assert result.stdout.splitlines() == ["library 42", "caught 8 of 8", "static 42"]
    assert sandbox.exec("make -s all && make -s -q all").exit_code == 0  # the clock and the times of files agree


def test_a_sanitizer_finds_the_bug(sandbox: Sandbox) -> None:
    """AddressSanitizer maps terabytes and turns address randomization off for itself where it must."""
    sandbox.write_file("/workspace/a.c", workloads.OVERFLOW_C)
    sandbox.exec("gcc -g -fsanitize=address,undefined -o a a.c").check()
    result = sandbox.exec("./a 5", timeout=30)
    assert "heap-buffer-overflow" in result.stderr
    assert sandbox.exec("./a 1").exit_code == 0


# --- the data stack ------------------------------------------------------------------------------------------


def test_numpy_pandas_and_matplotlib(sandbox: Sandbox) -> None:
    sandbox.write_file("/workspace/data.py", workloads.DATA)
    result = sandbox.exec(["python3", "data.py"], timeout=120)
    assert (result.stdout, result.exit_code) == ("fine\n", 0), result.stderr
    assert sandbox.read_file("/workspace/plot.png").startswith(b"\x89PNG")


# --- debuggers -----------------------------------------------------------------------------------------------


def gdb(sandbox: Sandbox, *commands: str, line: str = "") -> str:
    options = " ".join(f'-ex "{command}"' for command in ("set pagination off", *commands))
    result = sandbox.exec(f"{line} gdb -q -nx -batch {options}", timeout=60)
    return result.stdout + result.stderr


def test_gdb_breaks_prints_and_steps(debugging: Sandbox) -> None:
    said = gdb(
        debugging, "file bug", "break add", "run", "print a", "backtrace", "finish", "watch total", "continue",
        "info threads", "kill",
    )  # fmt: skip
    assert "Breakpoint 1, add (a=1, b=2)" in said
    assert "$1 = 1" in said
    assert "#1  0x" in said
    assert "Value returned is $2 = 3" in said
    assert "atchpoint" in said
    for trouble in ("Error disabling", "Couldn't", "ptrace", "not permitted", "Cannot"):
        assert trouble not in said


def test_gdb_without_randomization_sees_the_same_addresses(debugging: Sandbox) -> None:
    first, second = (
        [
            line
            for line in gdb(debugging, "file bug", "break add", "run", "print \\$sp").splitlines()
            if line.startswith("$1 = ")
        ]
        for _ in range(2)
    )
    assert first == second != []


def test_gdb_finds_where_a_program_crashed(debugging: Sandbox) -> None:
    said = gdb(debugging, "file bug", "run crash", "backtrace")
    assert "SIGSEGV" in said
    assert "crash" in said


def test_gdb_attaches_to_a_child_of_its_shell(debugging: Sandbox) -> None:
    """A tracee that allows it: without CAP_SYS_PTRACE, Yama's ptrace_scope 1 (many hosts have it) wants that."""
    said = gdb(
        debugging, "attach $pid", "backtrace", "print total", "detach",
        line="./bug wait & pid=$!; sleep 0.3;",
    ).replace("\n", " ")  # fmt: skip
    assert "waits" in said, said


def test_strace_follows_children(debugging: Sandbox) -> None:
    result = debugging.exec(
        "strace -f -e trace=execve,openat -o t sh -c 'cat /etc/hostname; true' && cat t", timeout=30
    )
    assert 'openat(AT_FDCWD, "/etc/hostname"' in result.stdout
    assert result.exit_code == 0, result.stderr


def test_a_debugger_cannot_touch_init(debugging: Sandbox) -> None:
    said = gdb(debugging, "attach 1")
    assert "Operation not permitted" in said
