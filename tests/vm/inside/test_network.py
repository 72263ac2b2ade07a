"""The network's tests again, on the machine's own kernel and cgroups; and the shipped configuration's default."""

from __future__ import annotations

import pathlib

import pytest

from sandboxd import Sandbox
from sandboxd.client import Client
from tests.integration import test_network as shared
from tests.vm.inside.support import URL

# Its fixtures and tests, found here by their names.
globals().update({name: value for name, value in vars(shared).items() if name.startswith("test_")})


@pytest.fixture(scope="module", autouse=True)
def open_to_the_daemons_user(tmp_path_factory: pytest.TempPathFactory) -> None:
    """The daemon drops to a user here, who has to pass the directories above its own."""
    base = tmp_path_factory.getbasetemp()
    for directory in (base, base.parent):
        directory.chmod(0o755)


world, daemon, internet, client = shared.world, shared.daemon, shared.internet, shared.client


def test_a_sandbox_has_the_internet_where_nobody_says_otherwise(service: object) -> None:
    assert pathlib.Path("/proc/sys/net/ipv4/ip_forward").read_text() == "1\n"
    with Client(URL) as installed, Sandbox.create(client=installed) as sandbox:
        assert sandbox.info.network == "internet"
        assert sandbox.exec("cat /etc/resolv.conf; ls /sys/class/net").check().stdout.split()[-2:] == ["eth0", "lo"]
