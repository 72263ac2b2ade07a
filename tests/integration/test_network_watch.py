"""The host's table is made anew where somebody took it away, and not because of what making it tells.

In network namespaces of the test's own, which a child makes: rules are flushed there only.
"""

from __future__ import annotations

import subprocess
import sys

import pytest

pytestmark = pytest.mark.real

#: The process's own loop, but for the router's rules and time: each sandbox lists 200 addresses of its own.
LOOP = """
import os, select, socket, subprocess, sys
import msgpack
from sandboxd.linux.kernel import CLONE_NEWNET, Kernel
from sandboxd.netd.guard import Guard
from sandboxd.netd.veth import Places
from sandboxd.netd.netlink import Netlink
from sandboxd.netd.server import Server
from sandboxd.netd.state import Host

kernel, here, host_link = Kernel(), os.open("/proc/self/ns/net", os.O_RDONLY), Netlink()
kernel.unshare(CLONE_NEWNET)
there, router_link = os.open("/proc/self/ns/net", os.O_RDONLY), Netlink()
kernel.setns(here, CLONE_NEWNET)

class Remote:
    def run(self, commands):
        return ""

restored = []
restore = Guard.restore
def counted(self, facts, states):
    restored.append(1)
    found = restore(self, facts, states)
    if meddling:
        subprocess.run(["nft", meddling.pop()], check=True)
    return found
Guard.restore, meddling = counted, []

def settle():
    for _ in range(20):
        while select.select(server._watch.sockets, [], [], 0)[0]:
            server._look()
        if not server._healing.is_set:
            break
        server._healing.cancel()
        server._heal()
    found = len(restored)
    restored.clear()
    return found

server = Server(socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)[0])
server._loop.open()
server._places, server._remote = Places(host_link, router_link, there), Remote()
host = Host(table="sandboxd_t", prefix="sdt-", pool_4="10.213.0.0/16", pool_6=None, group=7, forbidden_4=(),
            forbidden_6=())
one = {"mode": "allowlist", "address_6": None, "receive_bytes_per_s": None, "send_bytes_per_s": None,
       "connections": None, "generation": 1}
states = [{**one, "id": f"s{at}", "index": at, "name": f"sdt-{at:x}", "address_4": f"10.213.0.{at + 1}",
           "networks": [(f"198.18.{at}.{count}/32", 443, 443) for count in range(200)]} for at in range(100)]
fd = os.memfd_create("states")
os.write(fd, msgpack.packb(states))
assert server._begin(host, fd) == []
print("begin", settle() in (1, 2))
subprocess.run(["nft", "flush ruleset"], check=True)
print("flush", settle() in (1, 2))
assert b"198.18.99.199" in subprocess.run(["nft", "list ruleset"], capture_output=True, check=True).stdout
meddling.append("flush ruleset")  # in the moment in which nothing is heard
subprocess.run(["nft", "flush ruleset"], check=True)
print("meanwhile", settle() in (2, 3))
assert b"198.18.99.199" in subprocess.run(["nft", "list ruleset"], capture_output=True, check=True).stdout
"""


def test_what_the_table_tells_of_itself_is_not_taken_for_harm() -> None:
    words = ["unshare", "-n", "sh", "-c", 'ip link set lo up && exec "$0" -c "$1"', sys.executable, LOOP]
    found = subprocess.run(words, check=False, capture_output=True, text=True, timeout=120)
    assert found.stdout.splitlines() == ["begin True", "flush True", "meanwhile True"], found.stderr
