"""Try this tree in the machine: `python -m tests.vm run 'pytest -x tests/vm/inside -k oom'`.

    build           make the drives
    run LINE        boot, copy this tree, install it, run LINE with `bash -c` in the tree, be gone; LINE's status
    shell           the same with a shell on this terminal
    up              boot and stay; `run` and `shell` then use that machine, and copy the tree anew each time
    down            end it

`pytest` in a LINE is the machine's own (with the plugins that the tests need). The service `sandboxd` runs before LINE
begins. Options: --no-install leaves the installed sandboxd as it is (the tree is copied all the same).
One machine a tree; `up` ends by itself after two hours.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import hashlib
import json
import os
import pathlib
import select
import shutil
import signal
import struct
import subprocess
import sys
import termios
import time
import tty
from collections.abc import Iterator

from . import drives
from .channel import MachineGone, write_all
from .machine import ENVIRONMENT, PYTHON, TREE, Machine, boot, directory

STAYING = pathlib.Path("/var/tmp") / f"sandboxd-vm-up-{hashlib.sha256(str(drives.SOURCE).encode()).hexdigest()[:8]}"
UP_S = 7200
RUN_S = 7200.0
_begun = time.monotonic()


def say(text: str) -> None:
    """Tell what is being done, and when it began."""
    print(f"[vm {time.monotonic() - _begun:5.1f} s] {text}", file=sys.stderr, flush=True)


def attach() -> Machine | None:
    """Return the machine that `up` left, if it is there."""
    try:
        pid = int((STAYING / "pid").read_text())
        if b"agent.sock" not in pathlib.Path(f"/proc/{pid}/cmdline").read_bytes():
            return None
        machine = Machine(STAYING, None, pid, "")
    except (OSError, ValueError):
        return None
    machine.connect(30)
    return machine


@contextlib.contextmanager
def machine_with_tree(*, install: bool) -> Iterator[Machine]:
    """Give a machine with this tree in it: the one that stays, or a new one that ends here."""
    with contextlib.ExitStack() as stack:
        machine = attach()
        if machine is None:
            files = drives.get(say)
            say("Boot")
            machine = boot(stack.enter_context(directory()), files, say)
            stack.callback(machine.kill)
        else:
            stack.callback(machine.channel.close)
        machine.sync()
        if install:
            say("Install")
            machine.install(drives.project(drives.get(say)))
        yield machine


def run(line: str, *, install: bool) -> int:
    """Run one line; return its status."""
    with machine_with_tree(install=install) as machine:
        say(line)
        machine.channel.start(["bash", "-c", line], cwd=TREE, env=_environment())
        try:
            status = _follow(machine)
        except KeyboardInterrupt:
            machine.channel.signal(signal.SIGINT)
            status = _follow(machine)
        say(f"status {status}")
        return status


def _environment() -> dict[str, str]:
    path = f"{pathlib.Path(PYTHON).parent}:{ENVIRONMENT['PATH']}"
    return {**ENVIRONMENT, "PATH": path, "TERM": os.environ.get("TERM", "dumb")}


def _follow(machine: Machine) -> int:
    for kind, payload in machine.channel.events(time.monotonic() + RUN_S):
        if kind == b"O":
            write_all(1, payload)
        elif kind == b"X":
            return _status(payload)
    return 1


def _status(payload: bytes) -> int:
    status = int(json.loads(payload)["status"])
    return status if status >= 0 else 128 - status


def shell(*, install: bool) -> int:
    """A shell on this terminal; return its status."""
    if not sys.stdin.isatty():
        print("a shell needs a terminal; use `run`", file=sys.stderr)
        return 2
    with machine_with_tree(install=install) as machine:
        rows, columns, _, _ = struct.unpack("HHHH", fcntl.ioctl(0, termios.TIOCGWINSZ, bytes(8)))
        channel = machine.channel
        channel.start(["bash"], cwd=TREE, env=_environment(), stdin=None, terminal=(rows, columns))
        before = termios.tcgetattr(0)
        tty.setraw(0)
        try:
            while True:
                kind, payload = channel.frame(time.monotonic() + RUN_S, also=0)
                if kind == b"O":
                    write_all(1, payload)
                elif kind == b"X":
                    return _status(payload)
                elif not kind and select.select([0], [], [], 0)[0]:
                    channel.feed(os.read(0, 4096))
        finally:
            termios.tcsetattr(0, termios.TCSADRAIN, before)


def up() -> int:
    """Boot a machine that stays."""
    if attach() is not None:
        say("it is up already")
        return 0
    shutil.rmtree(STAYING, ignore_errors=True)
    STAYING.mkdir()
    machine = boot(STAYING, drives.get(say), say, bound=False)
    # Ends it after a while whatever happens; `down` ends both.
    guard = f'sleep {UP_S}; kill -9 {machine.pid}; rm -rf "$1"'
    none = subprocess.DEVNULL
    watch = subprocess.Popen(
        ["sh", "-c", guard, "sh", STAYING], start_new_session=True, stdin=none, stdout=none, stderr=none
    )
    (STAYING / "guard").write_text(str(watch.pid))
    (STAYING / "pid").write_text(str(machine.pid))
    say(f"up, after {machine.uptime_s:.0f} s of its own time")
    return 0


def down() -> int:
    """End the machine that stays."""
    for name in ("guard", "pid"):
        with contextlib.suppress(OSError, ValueError):
            pid = int((STAYING / name).read_text())
            if str(STAYING).encode() in pathlib.Path(f"/proc/{pid}/cmdline").read_bytes():
                # The guard is a shell with a sleeping child, in a session of its own.
                (os.killpg if name == "guard" else os.kill)(pid, signal.SIGKILL)
    shutil.rmtree(STAYING, ignore_errors=True)
    return 0


def main() -> int:
    """Do what the command line says."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.vm", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("verb", choices=("build", "run", "shell", "up", "down"))
    parser.add_argument("line", nargs="?", help="what to run")
    parser.add_argument("--no-install", action="store_true", help="copy the tree, leave the installed sandboxd")
    given = parser.parse_intermixed_args()
    if (given.verb == "run") != (given.line is not None):
        parser.error("run takes one LINE, the others none")
    try:
        if given.verb == "run":
            return run(given.line, install=not given.no_install)
        if given.verb == "shell":
            return shell(install=not given.no_install)
        if given.verb == "build":
            say(drives.sizes(drives.get(say)))
            return 0
        return up() if given.verb == "up" else down()
    except MachineGone as error:
        print(f"sandboxd: the test machine failed: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main())
