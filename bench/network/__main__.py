"""`python -m bench.network`: a sandbox's link beside a plain veth pair with NAT, interleaved in one run; and adoption.

All of it is in network namespaces of the benchmark's own: the machine's rules and links are not touched. A server in
one stands for the internet; this process is the host between.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import statistics
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from rich.console import Console
from rich.table import Table

from bench.daemon import Daemon
from bench.network import adoption
from bench.workspace import Workspace
from sandboxd import Sandbox
from sandboxd.config import Config
from sandboxd.linux.kernel import CLONE_NEWNET, Kernel

PROGRAM: Final = Path(__file__).with_name("program.py")
_SITE: Final = "198.18.0.10"
_PORT: Final = 5001
_PATH: Final = "/usr/sbin:/usr/bin:/sbin:/bin"
_NAT: Final = """
table ip plain {
    chain after { type nat hook postrouting priority srcnat; ip saddr 10.99.0.0/24 masquerade; }
}
"""


def run(*words: str, given: str | None = None) -> None:
    """Run a program that has to succeed."""
    subprocess.run(words, check=True, input=given, text=True, capture_output=True)


@contextlib.contextmanager
def place(*words: str) -> Iterator[subprocess.Popen[str]]:
    """Run a program in a network namespace of its own; it says a line when it is there."""
    argv = ["unshare", "-n", *words]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        process.stdout.readline()
        try:
            yield process
        finally:
            process.kill()


def link(name: str, pid: int, ours: str, theirs: str) -> None:
    """Make a veth pair to a process's namespace, with an address on each end."""
    inside = ("nsenter", "-t", str(pid), "-n", "ip")
    run("ip", "link", "add", name, "type", "veth", "peer", "name", "eth0", "netns", str(pid))
    run("ip", "addr", "add", ours, "dev", name)
    run("ip", "link", "set", name, "up")
    run(*inside, "addr", "add", theirs, "dev", "eth0")
    run(*inside, "link", "set", "eth0", "up")
    run(*inside, "link", "set", "lo", "up")


def main() -> int:
    """Run it."""
    parser = argparse.ArgumentParser("python -m bench.network", description="Measure a sandbox's link.")
    parser.add_argument("--quick", action="store_true", help="three short rounds")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every sample")
    parser.add_argument("--rootfs-dir", type=Path, default=Config().rootfs_path, metavar="DIR", help="[%(default)s]")
    chosen = parser.parse_args()
    rounds, seconds = (3, "0.5") if chosen.quick else (7, "1.5")
    Kernel().unshare(CLONE_NEWNET)
    Path("/proc/sys/net/ipv4/ip_forward").write_text("1")
    run("ip", "link", "set", "lo", "up")
    samples: dict[str, dict[str, list[float]]] = {"sandboxd": {}, "veth and NAT": {}}
    with contextlib.ExitStack() as stack:
        site = stack.enter_context(place(sys.executable, str(PROGRAM), "serve", str(_PORT)))
        link("up0", site.pid, "203.0.113.1/24", "203.0.113.2/24")
        run("nsenter", "-t", str(site.pid), "-n", "ip", "addr", "add", f"{_SITE}/32", "dev", "lo")
        run("ip", "route", "add", "default", "via", "203.0.113.2")
        workspace = stack.enter_context(Workspace(chosen.rootfs_dir, "default"))
        sandbox = stack.enter_context(Sandbox.create(network="internet", client=workspace.share(Daemon).client))
        sandbox.write_file("/workspace/program.py", PROGRAM.read_bytes())
        plain = stack.enter_context(place("sh", "-c", "echo; exec sleep infinity"))
        link("plain0", plain.pid, "10.99.0.1/24", "10.99.0.2/24")
        run("nsenter", "-t", str(plain.pid), "-n", "ip", "route", "add", "default", "via", "10.99.0.1")
        run("nft", "-f", "-", given=_NAT)
        words = ["measure", _SITE, str(_PORT), seconds]
        tree = str(workspace.tree)
        for _ in range(rounds):
            said = sandbox.exec(["python3", "/workspace/program.py", *words]).check().stdout
            gather(samples["sandboxd"], json.loads(said))
            enter = ["nsenter", "-t", str(plain.pid), "-n", "chroot", tree, "python3", "-c", PROGRAM.read_text()]
            done = subprocess.run([*enter, *words], check=True, capture_output=True, text=True, env={"PATH": _PATH})
            gather(samples["veth and NAT"], json.loads(done.stdout))
    show(samples)
    samples["adoption s"] = take_over()
    if chosen.json:
        chosen.json.write_text(json.dumps(samples, indent=2))
    return 0


def take_over() -> dict[str, list[float]]:
    """Print and return how long it takes until many links are filtered, after a start of what does so."""
    found = {}
    for count, entries, links in ((0, 0, False), (1000, 5, True), (130, 200, False)):
        name = f"{count} sandboxes with {entries} entries"
        found[name] = list(adoption.measure(count, entries, links=links).values())
        first, first_cpu, again, again_cpu = found[name]
        Console(width=120).print(
            f"{name}: all filtered after {first:.2f} s ({first_cpu:.2f} s of a processor), "
            f"after a kill {again:.2f} s ({again_cpu:.2f} s)"
        )
    return found


def gather(samples: dict[str, list[float]], found: dict[str, float]) -> None:
    """Put one round's figures to the others."""
    for name, value in found.items():
        samples.setdefault(name, []).append(value)


def show(samples: dict[str, dict[str, list[float]]]) -> None:
    """Print medians, and in parentheses what part of the plain link's they are."""
    base = samples["veth and NAT"]
    table = Table("", *base, box=None)
    for name, found in samples.items():
        medians = {head: statistics.median(values) for head, values in found.items()}
        cells = [f"{value:,.1f} ({value / statistics.median(base[head]):.2f}x)" for head, value in medians.items()]
        table.add_row(name, *cells)
    Console(width=120).print(table)


if __name__ == "__main__":
    sys.exit(main())
