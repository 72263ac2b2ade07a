"""A world for network tests: this process becomes the host of a small internet, in network namespaces of its own.

    the host (here) ── up0 203.0.113.1 ──▶ the internet: 203.0.113.2, 198.18.0.10, .11, .53 (DNS), 2001:db8:1::10,
                    │                      and what must not be reached: 169.254.169.254, 10.9.9.9
                    └─ lan0 192.168.77.1 ──▶ a neighbour on the host's own network: 192.168.77.2

Nothing of the machine's own network is touched: the namespaces go with the processes that are in them.
"""

from __future__ import annotations

import os
import pathlib
import subprocess
import sys
from types import TracebackType

from sandboxd.linux.kernel import CLONE_NEWNET, Kernel

SERVER = pathlib.Path(__file__).with_name("world_server.py")
SITE, OTHER, NAMESERVER, SITE_6 = "198.18.0.10", "198.18.0.11", "198.18.0.53", "2001:db8:1::10"
METADATA, PRIVATE, NEIGHBOUR, HOST_LAN, HOST = (
    "169.254.169.254",
    "10.9.9.9",
    "192.168.77.2",
    "192.168.77.1",
    "203.0.113.1",
)


def run(*words: str) -> None:
    subprocess.run(words, check=True, capture_output=True, text=True)


class World:
    """Enter it, and daemons that are started meanwhile live in it."""

    def __init__(self, directory: pathlib.Path, *, forwarding: bool = True) -> None:
        self.asked = directory / "asked"
        self._neighbour_log = directory / "asked-neighbour"
        self._forwarding = forwarding
        self._processes: list[subprocess.Popen[bytes]] = []
        self._own = os.open("/proc/self/ns/net", os.O_RDONLY)

    def __enter__(self) -> World:
        kernel = Kernel()
        kernel.unshare(CLONE_NEWNET)
        try:
            self._build()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        for process in self._processes:
            assert process.stdin
            process.stdin.close()
            process.wait(10)
            assert process.stdout
            process.stdout.close()
        Kernel().setns(self._own, CLONE_NEWNET)
        os.close(self._own)

    def _build(self) -> None:
        on = "1" if self._forwarding else "0"
        pathlib.Path("/proc/sys/net/ipv4/ip_forward").write_text(on)
        pathlib.Path("/proc/sys/net/ipv6/conf/all/forwarding").write_text(on)
        run("ip", "link", "set", "lo", "up")
        internet = self._place(self.asked)
        self._link("up0", internet, ("203.0.113.1/24", "203.0.113.2/24"), ("2001:db8::1/64", "2001:db8::2/64"))
        for address in (SITE, OTHER, NAMESERVER, METADATA, PRIVATE):
            self._inside(internet, "ip", "addr", "add", f"{address}/32", "dev", "lo")
        self._inside(internet, "ip", "addr", "add", f"{SITE_6}/128", "dev", "lo", "nodad")
        run("ip", "route", "add", "default", "via", "203.0.113.2")
        run("ip", "-6", "route", "add", "default", "via", "2001:db8::2")
        neighbour = self._place(self._neighbour_log)
        self._link("lan0", neighbour, ("192.168.77.1/24", "192.168.77.2/24"), None)

    def _place(self, log: pathlib.Path) -> int:
        """Start a server in a namespace of its own; return its pid."""
        process = subprocess.Popen(
            ["unshare", "-n", sys.executable, str(SERVER), str(log)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        self._processes.append(process)
        assert process.stdout
        assert process.stdout.readline() == b"ready\n"
        return process.pid

    def _link(self, name: str, pid: int, four: tuple[str, str], six: tuple[str, str] | None) -> None:
        run("ip", "link", "add", name, "type", "veth", "peer", "name", "eth0", "netns", str(pid))
        self._inside(pid, "ip", "link", "set", "lo", "up")
        for pair in (four, six):
            if pair is not None:
                run("ip", "addr", "add", pair[0], "dev", name, *(("nodad",) if ":" in pair[0] else ()))
                nodad = ("nodad",) if ":" in pair[1] else ()
                self._inside(pid, "ip", "addr", "add", pair[1], "dev", "eth0", *nodad)
        run("ip", "link", "set", name, "up")
        self._inside(pid, "ip", "link", "set", "eth0", "up")

    def flush_rules(self) -> None:
        """Do what a firewall does that is started anew, on the host (here)."""
        here = os.stat("/proc/thread-self/ns/net")
        assert here.st_ino != os.fstat(self._own).st_ino, "never the machine's own rules"
        run("nft", "flush", "ruleset")

    @property
    def receivers(self) -> list[str]:
        """Paths of the network namespaces of the internet and of the neighbour."""
        return [f"/proc/{process.pid}/ns/net" for process in self._processes]

    def _inside(self, pid: int, *words: str) -> None:
        run("nsenter", "-t", str(pid), "-n", *words)

    def names_asked(self) -> list[str]:
        """Return what the nameserver was asked for, as "name. TYPE"."""
        return self.asked.read_text().splitlines()
