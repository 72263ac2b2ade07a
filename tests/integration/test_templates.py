"""Templates: what confines them, and that their children are what init's own are."""

from __future__ import annotations

import os
import pathlib
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from sandboxd import Sandbox, errors
from sandboxd.launcher.templates import NAMESPACES, PYTHON
from sandboxd.runtime import contexts
from sandboxd.templates import base
from tests.support.daemon import Daemon
from tests.support.templates import (
    is_template_child,
    load_template,
    pid_of,
    status_of,
    template_pid,
    templates_of,
)
from tests.support.waiting import wait_until

pytestmark = pytest.mark.real

CAPABILITIES = 1 << 18 | 1 << 21  # SYS_CHROOT, SYS_ADMIN
#: What differs between any two processes, or is a fact of memory and time.
OWN_STATUS = {"Name", "Pid", "Tgid", "NStgid", "NSpid", "NSpgid", "NSsid", "FDSize", "SigQ"}
OWN_STATUS |= {"voluntary_ctxt_switches", "nonvoluntary_ctxt_switches", "State", "Threads"}
#: A child runs under the template's two filters besides the sandbox's.
OWN_STATUS |= {"Seccomp_filters"}
#: C's library catches two signals of its own once it has made a thread.
PROGRAM_SIGNALS = (1 << 31) - 1
#: With this variable an interpreter starts as ever.
PLAIN = {"PYTHONSAFE": "1"}


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    """A daemon with a template of the default rootfs."""
    daemon = Daemon(tmp_path_factory.mktemp("templates"))
    daemon.start()
    load_template(daemon)
    yield daemon
    daemon.close()


@pytest.fixture
def sandbox(loaded: Daemon) -> Iterator[Sandbox]:
    with loaded.client() as client, Sandbox.create(client=client) as sandbox:
        yield sandbox


def links(pid: int, directory: str) -> dict[str, str]:
    return {name: os.readlink(f"/proc/{pid}/{directory}/{name}") for name in os.listdir(f"/proc/{pid}/{directory}")}


def test_both_sides_agree() -> None:
    assert tuple(name for name, _ in base.NAMESPACES) == NAMESPACES
    assert contexts._COMMANDS["python"] == PYTHON


# --- the template itself ---


def test_a_template_has_two_capabilities_a_user_of_its_own_and_a_filter(loaded: Daemon) -> None:
    pid = template_pid(loaded)
    status = status_of(pid)
    assert set(status["Uid"].split()) == {str(2_000_131_073 + pid)}
    assert set(status["Gid"].split()) == {"2000131072"}
    assert not status["Groups"]
    for name in ("CapPrm", "CapEff", "CapBnd"):
        assert int(status[name], 16) == CAPABILITIES, name
    assert int(status["CapAmb"], 16) == 0
    assert status["NoNewPrivs"] == "1"
    assert status["Seccomp"] == "2"
    assert status["Threads"] == "1"
    assert pathlib.Path(f"/proc/{pid}/oom_score_adj").read_text().strip() == "0"


def test_a_template_has_one_socket_and_sees_a_read_only_root_without_proc(loaded: Daemon) -> None:
    pid = template_pid(loaded)
    found = links(pid, "fd")
    assert {found.pop(name) for name in "012"} == {"/dev/null"}
    assert found.pop("3").startswith("socket:")
    assert "sandboxd-template" in found.pop("7")
    assert set(found.values()) == {"anon_inode:[pidfd]"} or not found, found  # its own
    mounts = [line.split() for line in pathlib.Path(f"/proc/{pid}/mountinfo").read_text().splitlines()]
    assert [mount[4] for mount in mounts] == ["/", "/dev"]
    for mount in mounts:
        assert {"ro", "nosuid"} <= set(mount[5].split(",")), mount
    assert pathlib.Path(f"/proc/{pid}/net/dev").read_text().count(":") == 1  # lo


def test_a_template_is_in_the_hosts_pids_and_users_and_in_nothing_else_of_it(loaded: Daemon) -> None:
    mine, its = links(os.getpid(), "ns"), links(template_pid(loaded), "ns")
    assert {name for name in its if its[name] == mine[name]} == {
        *("pid", "pid_for_children", "user", "cgroup"),
        *({"time", "time_for_children"} & set(its)),
    }


# --- its children ---


def test_a_child_is_in_every_way_what_a_worker_that_init_started_is(loaded: Daemon, sandbox: Sandbox) -> None:
    plain = pid_of(loaded, sandbox, sandbox.create_code_context("python", env=PLAIN))
    child = pid_of(loaded, sandbox, sandbox.create_code_context("python"))
    assert is_template_child(child)
    assert not is_template_child(plain)
    for directory in ("status", "limits"):
        texts = [pathlib.Path(f"/proc/{pid}/{directory}").read_text() for pid in (plain, child)]
        if directory == "status":
            rows = [status_of(pid) for pid in (plain, child)]
            names = [name for name in rows[0] if name not in OWN_STATUS and not name.startswith(("Vm", "Rss"))]
            for row in rows:
                row["SigCgt"] = hex(int(row["SigCgt"], 16) & PROGRAM_SIGNALS)
            assert {name: rows[1][name] for name in names} == {name: rows[0][name] for name in names}
        else:
            assert texts[0] == texts[1]
    assert links(child, "ns") == links(plain, "ns")
    for name in ("oom_score_adj", "personality", "timerslack_ns", "cmdline", "coredump_filter", "autogroup", "cpuset"):
        path = pathlib.Path(f"/proc/{child}/{name}")
        if path.exists() and name != "autogroup":
            assert path.read_bytes() == pathlib.Path(f"/proc/{plain}/{name}").read_bytes(), name
    assert os.sched_getscheduler(child) == os.sched_getscheduler(plain)
    assert os.getpriority(os.PRIO_PROCESS, child) == os.getpriority(os.PRIO_PROCESS, plain)
    kinds = [{name: target.split(":")[0] for name, target in links(pid, "fd").items()} for pid in (plain, child)]
    assert kinds[1] == kinds[0]
    assert os.readlink(f"/proc/{child}/root") == os.readlink(f"/proc/{plain}/root") == "/"
    leaves = [pathlib.Path(f"/proc/{pid}/cgroup").read_text().split()[-1].rpartition("/") for pid in (plain, child)]
    assert leaves[0][0] == leaves[1][0]
    assert leaves[0][2] != leaves[1][2]


def test_a_child_takes_its_user_folder_and_variables(loaded: Daemon) -> None:
    code = (
        "import os; print(os.getuid(), os.getgid(), os.getgroups(), os.getcwd(), os.environ['A'], os.environ['HOME'])"
    )
    for user in ("root", "nobody", 1234):
        with loaded.client() as client, Sandbox.create(client=client, user=user) as sandbox:
            told = []
            for env in (PLAIN, {}):
                context = sandbox.create_code_context("python", cwd="/tmp", env={"A": "b", **env})
                told.append(sandbox.run_code(code, context=context).stdout)
                assert is_template_child(pid_of(loaded, sandbox, context)) is not bool(env)
            assert told[0] == told[1]


def test_the_interpreter_sees_itself_as_a_started_one_does(sandbox: Sandbox) -> None:
    code = (
        "import sys, os; print(sys.argv, sys.path, sys.flags, sys.executable, sys.prefix, sys.stdin.encoding, "
        "sys.stdout.encoding, sys.stdout.errors, sys.stderr.errors, sys.stdout.line_buffering, os.getppid(), "
        "sorted(k for k in os.environ if not k.startswith('PYTHON')), __name__, sys.getrecursionlimit())"
    )
    told = [
        sandbox.run_code(code, context=sandbox.create_code_context("python", env=env)).stdout for env in (PLAIN, {})
    ]
    assert told[0] == told[1]


def test_children_of_one_template_differ_in_every_random_state(sandbox: Sandbox) -> None:
    code = (
        "import random, ssl, uuid, secrets, tempfile, numpy as np\n"
        "print(random.random(), np.random.rand(), np.random.default_rng().random(), ssl.RAND_bytes(8).hex(), "
        "uuid.uuid4(), secrets.token_hex(8), next(tempfile._get_candidate_names()), sep='|')"
    )
    told = [
        sandbox.run_code(code, context=sandbox.create_code_context("python")).stdout.strip().split("|")
        for _ in range(3)
    ]
    for values in zip(*told, strict=True):
        assert len(set(values)) == 3, values


def test_init_waits_for_a_child_and_kills_it(loaded: Daemon, sandbox: Sandbox) -> None:
    context = sandbox.create_code_context("python")
    pid = pid_of(loaded, sandbox, context)
    ended = os.pidfd_open(pid)
    result = sandbox.run_code("import os; os._exit(7)", context=context)
    assert result.status == "exited"
    assert not os.path.exists(f"/proc/{pid}")
    os.close(ended)
    context = sandbox.create_code_context("python")
    pid = pid_of(loaded, sandbox, context)
    sandbox.run_code("import subprocess; p = subprocess.Popen(['sleep', '1000'])", context=context)
    sandbox.delete_code_context(context)
    wait_until(lambda: not os.path.exists(f"/proc/{pid}"))
    wait_until(lambda: not list((loaded.cgroup() / sandbox.id / "work").glob("*/")))


def test_a_restarted_context_is_a_child_too(loaded: Daemon, sandbox: Sandbox) -> None:
    context = sandbox.create_code_context("python")
    sandbox.run_code("x = 1", context=context)
    sandbox.restart_code_context(context)
    assert sandbox.run_code("x", context=context).status == "error"
    assert is_template_child(pid_of(loaded, sandbox, context))


def test_many_contexts_at_once(loaded: Daemon, sandbox: Sandbox) -> None:
    def start(number: int) -> str:
        context = sandbox.create_code_context("python")
        return sandbox.run_code(f"import numpy; print(numpy.arange({number}).sum())", context=context).stdout

    with ThreadPoolExecutor(8) as pool:
        told = list(pool.map(start, range(10)))
    assert [int(text) for text in told] == [sum(range(number)) for number in range(10)]


# --- when there is none ---


def test_a_template_that_dies_is_started_again_and_nothing_needs_it(loaded: Daemon, sandbox: Sandbox) -> None:
    pid = template_pid(loaded)
    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: not templates_of(loaded))
    assert sandbox.run_code("1 + 1", context=sandbox.create_code_context("python")).text == "2"
    assert not list(loaded.cgroup().glob("template-*")) or templates_of(loaded)
    assert load_template(loaded) != pid


def test_a_template_that_hangs_between_the_order_and_the_fork(loaded: Daemon, sandbox: Sandbox) -> None:
    """Stopped, it takes no order: the launcher ends it, and init starts an interpreter."""
    pid = load_template(loaded)
    os.kill(pid, signal.SIGSTOP)
    try:
        context = sandbox.create_code_context("python")
        assert sandbox.run_code("1 + 1", context=context).text == "2"
        assert not is_template_child(pid_of(loaded, sandbox, context))
    finally:
        if os.path.exists(f"/proc/{pid}"):
            os.kill(pid, signal.SIGCONT)
    wait_until(lambda: not os.path.exists(f"/proc/{pid}"))


def test_a_sandbox_destroyed_while_a_child_is_on_its_way(loaded: Daemon) -> None:
    load_template(loaded)
    for _ in range(5):
        with loaded.client() as client:
            sandbox = Sandbox.create(client=client)
            with ThreadPoolExecutor(1) as pool:
                started = pool.submit(sandbox.create_code_context, "python")
                sandbox.destroy()
                with pytest.raises(errors.SandboxdError):
                    sandbox.run_code("1", context=started.result())
    assert not [path for path in loaded.leftovers() if "template" not in path]


def test_templates_can_be_turned_off(tmp_path: pathlib.Path) -> None:
    daemon = Daemon(tmp_path, config={"templates": False})
    daemon.start()
    try:
        with daemon.client() as client, Sandbox.create(client=client) as sandbox:
            assert sandbox.run_code("1 + 1").text == "2"
        assert templates_of(daemon) == []
    finally:
        daemon.close()
