"""`python -m bench.previews`: the preview proxy beside no proxy, nginx, haproxy and socat, interleaved in one run.

Each stands in front of the same C program: sandboxd's in a sandbox, the others' on the host's loopback.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import re
import socket
import statistics
import subprocess
import sys
import threading
import time
import urllib.parse
from collections.abc import Callable
from pathlib import Path
from typing import Final

from rich.console import Console
from rich.table import Table

from bench.contender import Unavailable
from bench.daemon import Daemon
from bench.previews import peers
from bench.previews.peers import Door
from bench.workspace import Workspace
from sandboxd import Sandbox
from sandboxd.config import Config

_LARGE: Final = 100 << 20
_UNITS: Final = {"us": 1e-3, "ms": 1.0, "s": 1e3}
_ECHOES: Final = 400


def requests(door: Door, seconds: int) -> dict[str, float]:
    """Return requests/s and the p99 in ms of GETs of 1 KiB over 32 connections."""
    argv = ["wrk", "-t1", "-c32", f"-d{seconds}s", "--latency", "-H", f"Host: {door.host}"]
    said = subprocess.run([*argv, f"http://127.0.0.1:{door.port}/small"], capture_output=True, text=True, check=True)
    if "Non-2xx" in said.stdout or "Socket errors" in said.stdout:
        raise Unavailable(said.stdout)
    rate, late = re.search(r"Requests/sec: *([\d.]+)", said.stdout), re.search(r"99% *([\d.]+)(us|ms|s)", said.stdout)
    if rate is None or late is None:
        raise Unavailable(said.stdout)
    return {"requests/s": float(rate[1]), "p99 ms": float(late[1]) * _UNITS[late[2]]}


def connect(door: Door) -> socket.socket:
    """Return a connection."""
    sock = socket.create_connection(("127.0.0.1", door.port), 30)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return sock


def download(door: Door, seconds: int) -> dict[str, float]:
    """Return the MB/s of 100 MiB, and of what else fits into a second."""
    buffer = bytearray(1 << 20)
    total, began = 0, time.perf_counter()
    while time.perf_counter() - began < min(seconds, 1):
        with connect(door) as sock:
            sock.sendall(f"GET /large HTTP/1.1\r\nHost: {door.host}\r\n\r\n".encode())
            had = 0
            while had < _LARGE:
                size = sock.recv_into(buffer)
                if not size:
                    raise Unavailable(f"ended after {had} bytes")
                had += size
            total += had
    return {"MB/s": total / (time.perf_counter() - began) / 1e6}


def echo(door: Door, seconds: int) -> dict[str, float]:
    """Return the round trips a second of a 64-byte WebSocket message on one connection, and on 16 at once."""

    def one(counts: list[int]) -> None:
        with connect(door) as sock:
            head = f"GET /ws HTTP/1.1\r\nHost: {door.host}\r\nConnection: Upgrade\r\nUpgrade: echo\r\n"
            sock.sendall(f"{head}\r\n".encode())
            said = b""
            while b"\r\n\r\n" not in said:
                said += sock.recv(4096) or b"\r\n\r\n"
            if not said.startswith(b"HTTP/1.1 101"):
                return
            message = b"\x82\xba" + b"m" * 62
            for _ in range(_ECHOES):
                sock.sendall(message)
                left = len(message)
                while left:
                    left -= len(sock.recv(left))
            counts.append(_ECHOES)

    found = {}
    for count in (1, 16):
        counts: list[int] = []
        threads = [threading.Thread(target=one, args=(counts,)) for _ in range(count)]
        began = time.perf_counter()
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if len(counts) != count:
            raise Unavailable("an echo failed")
        found[f"echoes/s x{count}"] = sum(counts) / (time.perf_counter() - began)
    return found


FIGURES: Final[dict[str, Callable[[Door, int], dict[str, float]]]] = {
    "requests": requests,
    "download": download,
    "echo": echo,
}


def measure(doors: dict[str, Door], rounds: int, seconds: int) -> dict[str, dict[str, list[float]]]:
    """Return the samples of each contender and figure, gathered round by round."""
    samples: dict[str, dict[str, list[float]]] = {name: {} for name in doors}
    for _ in range(rounds):
        for figure in FIGURES.values():
            for name, door in doors.items():
                print(f"{name}: {figure.__name__}", file=sys.stderr)
                for what, value in figure(door, seconds).items():
                    samples[name].setdefault(what, []).append(value)
    return samples


def show(samples: dict[str, dict[str, list[float]]]) -> None:
    """Print medians, and in parentheses what part of nginx's they are."""
    heads = list(next(iter(samples.values())))
    table = Table("", *heads, box=None)
    for name, found in samples.items():
        cells = []
        for head in heads:
            value = statistics.median(found[head])
            base = statistics.median(samples["nginx"][head]) if "nginx" in samples else 0.0
            cells.append(f"{value:,.{2 if value < 100 else 0}f}" + (f" ({value / base:.2f}x)" if base else ""))
        table.add_row(name, *cells)
    Console(width=160).print(table)


def main() -> int:
    """Run it."""
    parser = argparse.ArgumentParser("python -m bench.previews", description="Measure the preview proxy.")
    parser.add_argument("--quick", action="store_true", help="two short rounds")
    parser.add_argument("--profile", type=Path, metavar="FILE", help="run the daemon under cProfile")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every sample")
    parser.add_argument("--rootfs-dir", type=Path, default=Config().rootfs_path, metavar="DIR", help="[%(default)s]")
    chosen = parser.parse_args()
    with contextlib.ExitStack() as stack:
        workspace = stack.enter_context(Workspace(chosen.rootfs_dir, "default"))
        workspace.profile = chosen.profile.absolute() if chosen.profile else None
        directory, daemon = workspace.path, workspace.share(Daemon)
        sandbox = stack.enter_context(Sandbox.create(client=daemon.client))
        sandbox.write_file("/workspace/server.c", Path(__file__).with_name("server.c").read_bytes())
        sandbox.exec("gcc -O2 -static -o server server.c").check()
        program = directory / "server"
        program.write_bytes(sandbox.read_file("/workspace/server"))
        program.chmod(0o755)
        process = sandbox.start_process(["/workspace/server", "8000"])
        sandbox.wait_for_port(process.id, 8000, timeout=10)
        service = peers.free_port()
        doors = {"direct": stack.enter_context(peers.running([str(program), str(service)], service))}
        for peer in (peers.nginx, peers.haproxy, peers.socat):
            try:
                doors[peer.__name__] = stack.enter_context(peer(directory, service))
            except Unavailable as error:
                print(f"{peer.__name__}: {error}", file=sys.stderr)
        parts = urllib.parse.urlsplit(sandbox.expose_port(8000).url)
        doors["sandboxd"] = Door(parts.port or 80, parts.netloc)
        samples = measure(doors, *((2, 2) if chosen.quick else (5, 5)))
    show(samples)
    if chosen.json:
        chosen.json.write_text(json.dumps(samples, indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(main())
