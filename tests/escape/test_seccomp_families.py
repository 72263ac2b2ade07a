"""What each profile answers to each family, told from what the kernel itself says."""

from __future__ import annotations

import json
import pathlib
import platform
import subprocess
import sys
from collections.abc import Callable

import pytest

from sandboxd import Sandbox
from tests.escape.conftest import PROBES
from tests.support.daemon import Daemon
from tests.support.syscalls import FAMILIES, KERNEL, Row

pytestmark = [
    pytest.mark.real,
    pytest.mark.skipif(platform.machine() != "x86_64", reason="the table has x86-64's numbers"),
]

SOURCE = (PROBES / "answers.py").read_text()
LOADING = (PROBES / "load_modules.py").read_text()
CALLS = json.dumps(
    {f"{family}: {row.name}": [row.number, *row.arguments] for family, rows in FAMILIES.items() for row in rows}
)
Answers = dict[str, str]


@pytest.fixture(scope="module")
def control() -> Answers:
    """What the kernel answers without a filter; every call is made so that it does nothing."""
    done = subprocess.run([sys.executable, "-I", "-c", SOURCE], input=CALLS, capture_output=True, text=True, check=True)
    answers: Answers = json.loads(done.stdout)
    return answers


@pytest.fixture(scope="module")
def under(daemon: Daemon) -> Callable[[str], Answers]:
    """Return what a profile answers, to the sandbox's root and to a user alike."""
    found: dict[str, Answers] = {}

    def ask(profile: str) -> Answers:
        if profile not in found:
            with daemon.client() as client, Sandbox.create(client=client, seccomp=profile) as sandbox:
                asked = [
                    json.loads(sandbox.exec(["python3", "-c", SOURCE], stdin=CALLS, user=user).check().stdout)
                    for user in ("root", 1000)
                ]
            # Where the kernel has the word it may tell root from a user; a filter must not.
            found[profile] = {
                name: a if a == asked[1][name] else f"{a}|{asked[1][name]}" for name, a in asked[0].items()
            }
        return found[profile]

    return ask


def wanted(row: Row, profile: str, kernel: str) -> str:
    answer = row.default if profile == "default" else row.strict
    return kernel if answer == KERNEL else answer


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("profile", ["default", "strict"])
def test_family(under: Callable[[str], Answers], control: Answers, profile: str, family: str) -> None:
    answers = under(profile)
    rows = {row.name: row for row in FAMILIES[family]}
    got = {name: answers[f"{family}: {name}"] for name in rows}
    assert got == {name: wanted(row, profile, control[f"{family}: {name}"]) for name, row in rows.items()}


def test_each_answer_is_the_filters(control: Answers) -> None:
    """A row whose answer the kernel would give as well proves nothing, unless the kernel lacks the call."""
    alike = [
        (family, row.name, answer)
        for family, rows in FAMILIES.items()
        for row in rows
        for answer in {row.default, row.strict} - {KERNEL}
        if control[f"{family}: {row.name}"] == answer != "ENOSYS"
    ]
    assert alike == []


def test_nothing_of_the_table_did_anything_unfiltered(control: Answers) -> None:
    """The calls are harmless: those that may succeed are the ones on the caller alone."""
    allowed = {name for name, answer in control.items() if answer == "allowed"}
    assert {name.partition(":")[0] for name in allowed} <= {
        "namespaces by unshare",
        "personalities",
        "what acts on neighbours",
        "memory policy and LSM",  # modify_ldt reads
    }


# --- the host's modules --------------------------------------------------------------------------------------

DIAG = """
import errno, socket
try:
    print('opened', socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 4))
except OSError as error:
    print(errno.errorcode[error.errno])
"""


@pytest.mark.parametrize("profile", ["default", "strict"])
def test_what_runs_in_a_sandbox_loads_no_module_by_sock_diag(daemon: Daemon, profile: str) -> None:
    """By whatever door it came; init itself, which tells of ports, has it still."""
    with daemon.client() as client, Sandbox.create(client=client, seccomp=profile) as sandbox:
        said = [sandbox.exec(["python3", "-c", DIAG], user=user).stdout for user in ("root", 1000)]
        with sandbox.create_session() as session:
            said.append(session.exec(["python3", "-c", DIAG]).stdout)
        said.append(sandbox.run_code(DIAG).stdout)
        said += [sandbox.run_code(DIAG, context=sandbox.create_code_context("python")).stdout for _ in range(2)]
        process = sandbox.start_process(["python3", "-c", DIAG])
        sandbox.wait_for_exit(process)
        said.append(sandbox.get_process_logs(process).stdout)
        assert said == ["EPROTONOSUPPORT\n"] * len(said)
        server = sandbox.start_process("python3 -m http.server 8000")
        assert sandbox.wait_for_port(server, 8000, timeout=20)
        shown = sandbox.exec("ss -tln; ss -tlnp")
        assert shown.stdout.count(":8000") == 2, shown.stderr  # from /proc/net


def test_modules_of_the_host_are_as_they_were(daemon: Daemon, control: Answers) -> None:
    """Every call of the table, tried under both profiles, on a kernel that has modules and on one that has none."""

    def loaded() -> set[str]:
        return {path.name for path in pathlib.Path("/sys/module").iterdir()}

    before = loaded()
    for profile in ("default", "strict"):
        with daemon.client() as client, Sandbox.create(client=client, seccomp=profile) as sandbox:
            sandbox.exec(["python3", "-c", SOURCE], stdin=CALLS).check()
            sandbox.exec(["python3", "-c", LOADING]).check()
    assert loaded() == before
