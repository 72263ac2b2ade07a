"""How long it takes until the links of many sandboxes are filtered again after the processes that do so were started.

The real processes and the real kernel, in a router of the benchmark's own; its links are veth pairs that nobody is in.
"""

from __future__ import annotations

import os
import resource
import subprocess
import tempfile
import time
from typing import Any

from sandboxd.allow import FORBIDDEN_4, FORBIDDEN_6
from sandboxd.launcher.network_process import Deps, NetworkProcess
from sandboxd.launcher.router import Router
from sandboxd.linux.eventloop import EventLoop
from sandboxd.linux.kernel import Kernel

_PREFIX = "sdbench-"


def measure(sandboxes: int, entries: int, *, links: bool) -> dict[str, float]:
    """Return seconds: until all is filtered after a first start, and after a kill; and what that took of a processor.

    All of it with what starting the processes takes.
    """
    with tempfile.TemporaryDirectory(prefix="bench-network-") as directory:
        stage = f"{directory}/stage"
        os.mkdir(stage)
        router = Router(Kernel(), f"{directory}/router", os.open("/proc/self/ns/mnt", os.O_RDONLY))
        states = [_state(index, entries) for index in range(1, sandboxes + 1)]
        began: list[float] = []
        forward = router.forward

        def opened(on: bool) -> None:
            forward(on)
            if on:
                began.append(time.perf_counter())

        router.open()
        router.forward = opened  # type: ignore[method-assign]
        if links:
            _make_links(f"{directory}/router", sandboxes)
        loop = EventLoop()
        loop.open()
        deps = Deps(stage, router, lambda: True, lambda: (_host(), states), lambda _: None)
        process = NetworkProcess(loop, Kernel(), deps)
        found = {}
        try:
            for name in ("first", "again"):
                process._started_at = -1.0
                since, used = time.perf_counter(), _used()
                process.start()
                while not began:
                    loop.turn()
                found[name] = began.pop() - since
                process._drop("killed")
                found[f"{name}, processor"] = _used() - used
        finally:
            process.close()
            loop.close()
            router.forget()
            router.close()
        return found


def _used() -> float:
    """Return the processor time of all processes that were started here and have ended."""
    found = resource.getrusage(resource.RUSAGE_CHILDREN)
    return found.ru_utime + found.ru_stime


def _make_links(path: str, count: int) -> None:
    lines = "".join(f"link add {_PREFIX}{index:x} type veth peer name p{index:x}\n" for index in range(1, count + 1))
    lines += "".join(f"link set {_PREFIX}{index:x} up\n" for index in range(1, count + 1))
    subprocess.run(["nsenter", f"--net={path}", "ip", "-batch", "-"], input=lines, text=True, check=True)


def _host() -> dict[str, Any]:
    return {
        "table": "sandboxd_bench",
        "prefix": _PREFIX,
        "pool_4": "10.213.0.0/16",
        "pool_6": "fd73:6264:73::/64",
        "group": 7,
        "forbidden_4": [str(network) for network in FORBIDDEN_4],
        "forbidden_6": [str(network) for network in FORBIDDEN_6],
    }


def _state(index: int, entries: int) -> dict[str, Any]:
    return {
        "id": f"bench-{index}",
        "index": index,
        "name": f"{_PREFIX}{index:x}",
        "mode": "allowlist",
        "address_4": f"10.213.{index >> 8}.{index & 255}",
        "address_6": f"fd73:6264:73::{index:x}",
        "networks": [
            (
                f"198.{18 + at % 2}.{at}.{index % 250}/32" if at % 2 else f"{20 + at}.{index % 250}.0.0/16",
                80 + at,
                443 + at,
            )
            for at in range(entries)
        ],
        "receive_bytes_per_s": None,
        "send_bytes_per_s": None,
        "connections": 4096,
        "generation": index,
    }
