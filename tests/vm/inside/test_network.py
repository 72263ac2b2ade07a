"""The network's tests again, on the machine's own kernel and cgroups; and the shipped configuration's default."""

from __future__ import annotations

import pathlib

from sandboxd import Sandbox
from sandboxd.client import Client
from tests.integration import test_network as shared
from tests.vm.inside.support import URL

# Its fixtures and tests, found here by their names.
globals().update({name: value for name, value in vars(shared).items() if name.startswith("test_")})
world, daemon, internet, client = shared.world, shared.daemon, shared.internet, shared.client


def test_a_sandbox_has_the_internet_where_nobody_says_otherwise(service: object) -> None:
    assert pathlib.Path("/proc/sys/net/ipv4/ip_forward").read_text() == "1\n"
    with Client(URL) as installed, Sandbox.create(client=installed) as sandbox:
        assert sandbox.info.network == "internet"
        assert sandbox.exec("cat /etc/resolv.conf; ls /sys/class/net").check().stdout.split()[-2:] == ["eth0", "lo"]
