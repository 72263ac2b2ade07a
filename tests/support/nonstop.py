"""Sandboxes that send all the time where they may not, and hosts that count what comes: for the network's filter."""

from __future__ import annotations

import contextlib
import fnmatch
import os
import pathlib
import signal
import socket
import struct
import threading

from sandboxd.linux.kernel import CLONE_NEWNET, Kernel
from tests.support.world import OTHER, World

#: Sends a datagram to each address every 50 ms, from a port of its own; says so once it has.
SENDER = """
import socket, sys, time
link = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
six = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
count = 0
while True:
    for address in sys.argv[1:]:
        try:
            (six if ":" in address else link).sendto(b"nonstop", (address, 4051))
        except OSError:
            pass
    count += 1
    if count == 1:
        print("sending", flush=True)
    time.sleep(0.05)
"""
#: How long something may take to come to be.
WAIT_S = 60.0
#: Of the port that the senders send to.
PORT = 4051
_ETH_P_ALL = 3


class Counter:
    """Counts the packets of senders that come in on any device of a network namespace, by their destination."""

    def __init__(self, namespace: str, devices: str) -> None:
        """Watch what comes in on devices called so (a pattern of fnmatch) in the namespace behind that path."""
        self.seen: dict[str, int] = {}
        self._devices = devices
        self._link = socket_in(namespace, socket.SOCK_DGRAM, _ETH_P_ALL)
        self._link.settimeout(0.2)
        self._thread = threading.Thread(target=self._count, daemon=True)
        self._thread.start()

    def _count(self) -> None:
        while True:
            try:
                packet, address = self._link.recvfrom(2048)
            except TimeoutError:
                continue
            except OSError:
                return  # closed
            if address[2] == socket.PACKET_OUTGOING or not fnmatch.fnmatch(address[0], self._devices):
                continue
            if (to := destination(packet)) is not None:
                self.seen[to] = self.seen.get(to, 0) + 1

    def close(self) -> dict[str, int]:
        """Stop, and return how many came for each destination."""
        self._link.close()
        self._thread.join()
        return self.seen


def socket_in(namespace: str, kind: int, protocol: int) -> socket.socket:
    """Return a packet socket of the network namespace behind a path."""
    made: list[socket.socket] = []

    def enter() -> None:  # the namespace is this thread's alone
        fd = os.open(namespace, os.O_RDONLY)
        Kernel().setns(fd, CLONE_NEWNET)
        os.close(fd)
        made.append(socket.socket(socket.AF_PACKET, kind, socket.htons(protocol)))

    thread = threading.Thread(target=enter)
    thread.start()
    thread.join()
    return made[0]


def frame(macs: tuple[str, str], source: str, to: str, options: bytes = b"", vlan: int = 0) -> bytes:
    """Return an Ethernet frame (to, from) with a datagram to PORT; `options` are IPv4's, `vlan` tags it."""
    six = ":" in to
    tag = struct.pack(">HH", 0x8100, vlan) if vlan else b""
    ethernet = b"".join(bytes.fromhex(mac.replace(":", "")) for mac in macs) + tag + (b"\x86\xdd" if six else b"\x08\0")
    datagram = struct.pack(">HHHH", PORT, PORT, 15, 0) + b"nonstop"
    if six:
        addresses = socket.inet_pton(socket.AF_INET6, source) + socket.inet_pton(socket.AF_INET6, to)
        return ethernet + struct.pack(">IHBB", 6 << 28, len(datagram), 17, 64) + addresses + datagram
    words = 5 + len(options) // 4
    head = struct.pack(">BBHHHBBH", 4 << 4 | words, 0, words * 4 + len(datagram), 1, 0, 64, 17, 0)
    head += socket.inet_aton(source) + socket.inet_aton(to) + options
    total = sum(struct.unpack(f">{words * 2}H", head))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ethernet + head[:10] + struct.pack(">H", ~total & 0xFFFF) + head[12:] + datagram


def destination(packet: bytes) -> str | None:
    """Return where a sender's packet goes to; None of any other packet."""
    if len(packet) >= 28 and packet[0] >> 4 == 4 and packet[9] == 17:
        head = (packet[0] & 15) * 4
        to, port = socket.inet_ntop(socket.AF_INET, packet[16:20]), packet[head + 2 : head + 4]
    elif len(packet) >= 48 and packet[0] >> 4 == 6 and packet[6] == 17:
        to, port = socket.inet_ntop(socket.AF_INET6, packet[24:40]), packet[42:44]
    else:
        return None
    return to if port == struct.pack(">H", PORT) else None


def kill(pids: list[int]) -> None:
    """Kill processes that the test's own daemon started."""
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def network_processes(launcher: int) -> list[int]:
    """Return the pids of the launcher's processes that make links and rules."""
    found = []
    for pid in pathlib.Path(f"/proc/{launcher}/task/{launcher}/children").read_text().split():
        try:
            if b"sandboxd.netd" in pathlib.Path(f"/proc/{pid}/cmdline").read_bytes():
                found.append(int(pid))
        except OSError:
            continue
    return found


class Receivers:
    """All places where a packet could arrive."""

    def __init__(self, world: World) -> None:
        self.counters = [Counter(path, "eth0") for path in world.receivers]
        self.counters.append(Counter("/proc/thread-self/ns/net", "sd*-router"))
        self.host = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        self.host.bind(("::", PORT))

    def let_through(self) -> dict[str, int]:
        """Return how many packets came to each address that is on no list."""
        found: dict[str, int] = {}
        for counter in self.counters:
            for address, count in list(counter.seen.items()):
                if address != OTHER:
                    found[address] = found.get(address, 0) + count
        with contextlib.suppress(BlockingIOError):
            while self.host.recv(100):
                found["the host"] = found.get("the host", 0) + 1
        return found

    def allowed(self) -> int:
        """Return how many packets came to the address that is listed."""
        return self.counters[0].seen.get(OTHER, 0)

    def close(self) -> None:
        for counter in self.counters:
            counter.close()
        self.host.close()
