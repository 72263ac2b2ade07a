"""Templates as tests see them: wait for one, find its process and its children on the host."""

from __future__ import annotations

import contextlib
import pathlib
from typing import Any

from sandboxd import Sandbox
from sandboxd.client.code_models import CodeContext
from tests.support.daemon import Daemon, children_of
from tests.support.waiting import wait_until


def templates_of(daemon: Daemon) -> list[dict[str, Any]]:
    with daemon.client() as client:
        found: list[dict[str, Any]] = client.info()["launcher"]["templates"]
    return found


def is_ready(daemon: Daemon) -> bool:
    return any(item["ready"] for item in templates_of(daemon) if item["template"] == "python")


def load_template(daemon: Daemon) -> int:
    """Return the pid of the default rootfs's template, loaded."""
    with daemon.client() as client, Sandbox.create(client=client) as sandbox:

        def ask() -> bool:
            if not any(item["template"] == "python" for item in templates_of(daemon)):  # after a failure, a few seconds
                sandbox.delete_code_context(sandbox.create_code_context("python"))
            return is_ready(daemon)

        wait_until(ask)
    return template_pid(daemon)


def template_pid(daemon: Daemon) -> int:
    found = [pid for pid in children_of(daemon.launcher_pid()) if user_of(pid) > 2_000_131_072]
    # The template `git` is the host's own Python, with a module of ours.
    (pid,) = [pid for pid in found if b"sandboxd.templates" not in pathlib.Path(f"/proc/{pid}/cmdline").read_bytes()]
    return pid


def user_of(pid: int) -> int:
    try:
        return int(status_of(pid)["Uid"].split()[0])
    except FileNotFoundError:
        return -1


def pid_of(daemon: Daemon, sandbox: Sandbox, context: CodeContext) -> int:
    """Return the pid of a context's interpreter, as the host sees it."""
    work = daemon.cgroup() / sandbox.id / "work"
    pids: list[int] = []

    def only_one() -> bool:
        """A child that declined, and what forked it, end at once, but they may not have ended yet."""
        pids.clear()
        for leaf in work.glob(f"{context.id}*"):
            with contextlib.suppress(OSError):
                pids.extend(map(int, (leaf / "cgroup.procs").read_text().split()))
        return len(pids) == 1

    wait_until(only_one)
    return pids[0]


def status_of(pid: int) -> dict[str, str]:
    lines = pathlib.Path(f"/proc/{pid}/status").read_text().splitlines()
    return {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}


def is_template_child(pid: int) -> bool:
    """Tell whether an interpreter is a child of a template: it runs under the template's filters too."""
    return status_of(pid)["Seccomp_filters"] == "5"
