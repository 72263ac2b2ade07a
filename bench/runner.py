"""The program inside a den: runs commands, times them, and answers one JSON line for each that it is sent.

It stands alone (standard library only) and is started as pid 1 of its den with the paths to cover as arguments.
Pid 1 forks: the parent reaps what is orphaned, the child serves until its standard input ends; then both go, and
the kernel ends everything else in the den.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from typing import Any

_BUFFER = bytearray(1024 * 1024)
_STDERR_BYTES = 2000


def _run(order: dict[str, Any]) -> dict[str, Any]:
    """Run a command to its end, and say when its first and its last output came."""
    with tempfile.TemporaryFile() as errors:
        keep = order.get("capture", True)
        began = time.perf_counter()
        first = last = None
        count = 0
        child = subprocess.Popen(
            order["argv"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE if keep else subprocess.DEVNULL,
            stderr=errors if keep else subprocess.DEVNULL,
            env={**os.environ, **order.get("env", {})},
            close_fds=False,
        )
        head = b""
        if child.stdout is not None:
            while size := os.readv(child.stdout.fileno(), [_BUFFER]):
                last = time.perf_counter()
                if first is None:
                    first, head = last, bytes(_BUFFER[: min(size, 4096)])
                count += size
        status = child.wait()
        ended = time.perf_counter()
        if child.stdout is not None:
            child.stdout.close()
        errors.seek(0)
        return {
            "status": status,
            "total_s": ended - began,
            "first_s": None if first is None else first - began,
            "stream_s": None if first is None or last is None else last - first,
            "bytes": count,
            "stdout": head.decode("utf-8", "replace"),
            "stderr": errors.read(_STDERR_BYTES).decode("utf-8", "replace"),
        }


class Runner:
    """Takes orders until its input ends."""

    def __init__(self) -> None:
        self._children: dict[int, subprocess.Popen[bytes]] = {}

    def spawn(self, order: dict[str, Any]) -> dict[str, Any]:
        """Start a program that stays; its output goes to a file."""
        with open(order["log"], "ab") as log:
            child = subprocess.Popen(
                order["argv"],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={**os.environ, **order.get("env", {})},
                start_new_session=True,
            )
        self._children[child.pid] = child
        return {"pid": child.pid}

    def ended(self, order: dict[str, Any]) -> dict[str, Any]:
        """Say whether a program that was to stay has ended."""
        return {"status": self._children[order["pid"]].poll()}

    def stop(self, order: dict[str, Any]) -> dict[str, Any]:
        """Ask a program to end, and insist after a while."""
        child = self._children.pop(order["pid"])
        child.terminate()
        try:
            child.wait(order.get("timeout_s", 10))
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()
        return {"status": child.returncode}

    def serve(self) -> None:
        """Answer line by line."""
        orders = {"run": _run, "spawn": self.spawn, "ended": self.ended, "stop": self.stop}
        for line in sys.stdin:
            order = json.loads(line)
            try:
                answer = orders[order["op"]](order)
            except FileNotFoundError as error:
                answer = {"error": f"{error.filename} is not installed"}
            except OSError as error:
                answer = {"error": str(error)}
            print(json.dumps(answer), flush=True)


def main(covers: list[str]) -> None:
    """Cover paths with empty file systems, then reap and serve."""
    for path in covers:
        subprocess.run(["mount", "-t", "tmpfs", "bench", path], check=True)
    child = os.fork()
    if child == 0:
        print(json.dumps({"ready": True}), flush=True)
        Runner().serve()
        return
    while os.wait()[0] != child:
        pass


if __name__ == "__main__":
    main(sys.argv[1:])
