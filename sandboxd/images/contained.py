"""Run a program of a build so that it cannot outlive the build: streamed, in namespaces of its own, killed as one.

The program is pid 1 of a new pid namespace, with a new mount namespace (so its mounts are nowhere else) and, if
told so, a new network namespace with nothing in it. `setpriv --pdeathsig` ties unshare to this process and
`--kill-child` ties the namespace to unshare: SIGKILL to the builder ends everything.
"""

from __future__ import annotations

import os
import subprocess
from collections import deque
from collections.abc import Callable, Mapping, Sequence

from sandboxd.errors import RootfsError

__all__ = ["ENVIRONMENT", "run"]

# How much of a failed program's output goes into the error: enough for apt's or pip's reason, short enough to read.
_TAIL_LINES = 20

ENVIRONMENT: Mapping[str, str] = {
    "HOME": "/root",
    "LANG": "C.UTF-8",
    "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "TERM": "dumb",
}

# The child that unshare forks is pid 1 of the new namespace: a shell that mounts, then becomes the program.
_UNSHARE = (
    ["setpriv", "--pdeathsig", "KILL", "unshare", "--mount", "--propagation", "private"]
    + ["--pid", "--fork", "--kill-child", "--mount-proc"]
)  # fmt: skip


def run(
    argv: Sequence[str],
    *,
    verb: str,
    report: Callable[[str], None],
    mounts: str = "",
    environment: Mapping[str, str] | None = None,
    network: bool = False,
) -> None:
    """Run `argv` to its end, reporting each line that it prints.

    Args:
        argv: the program and its arguments.
        verb: completes "cannot …" in an error.
        report: called with each line of stdout and stderr.
        mounts: shell commands to run first in the new namespaces.
        environment: all of the program's environment; None keeps this process's.
        network: whether it shares the host's network.

    Raises:
        RootfsError: the program is missing or failed; its last lines are in `output`.
    """
    command = [*_UNSHARE, *([] if network else ["--net"])]
    command += ["sh", "-euc", f'{mounts}\nexec "$@"', "sh", *argv]
    try:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=os.environ if environment is None else environment,
            # Not in the terminal's foreground group: a Ctrl-C reaches the builder alone, which then ends this at once.
            start_new_session=True,
        )
    except FileNotFoundError as error:
        raise RootfsError(f"cannot {verb}: {error.filename} is not installed", program=error.filename) from None
    tail: deque[str] = deque(maxlen=_TAIL_LINES)
    with process:
        try:
            _follow(process, tail, report)
        except BaseException:
            process.kill()
            _drain(process)
            raise
    if process.returncode != 0:
        why = f"{argv[0]} ended with status {process.returncode}" + (f" ({tail[-1]})" if tail else "")
        raise RootfsError(f"cannot {verb}: {why}", program=argv[0], output="\n".join(tail))


def _follow(process: subprocess.Popen[bytes], tail: deque[str], report: Callable[[str], None]) -> None:
    assert process.stdout is not None  # noqa: S101
    for raw in process.stdout:
        line = raw.decode("utf-8", "replace").rstrip()
        if line:
            tail.append(line)
            report(line)


def _drain(process: subprocess.Popen[bytes]) -> None:
    # The pipe's end of file says that the last process of the namespace is gone, and with it the last writer.
    assert process.stdout is not None  # noqa: S101
    process.stdout.read()
