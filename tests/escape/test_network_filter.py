"""Sandboxes that send all the time meet no moment in which the network's filter is open.

The whole of it, the daemon too, lives in network namespaces of the test's own: rules are flushed there only.
Packets are counted where they would arrive: in the internet's, at a neighbour's, on the host itself and on the uplink.
"""

from __future__ import annotations

import concurrent.futures
import os
import signal

import pytest

from sandboxd.client import Sandbox

from ..support.daemon import Daemon
from ..support.nonstop import PORT, SENDER, WAIT_S, Receivers, kill, network_processes
from ..support.waiting import wait_until
from ..support.world import HOST, HOST_LAN, METADATA, NAMESERVER, NEIGHBOUR, OTHER, PRIVATE, World

pytestmark = [pytest.mark.real, pytest.mark.slow]

#: What no list names: a private network, a metadata service, a neighbour, the host by three of its addresses.
CLOSED = (PRIVATE, METADATA, NEIGHBOUR, HOST, HOST_LAN, "2001:db8::1")
ENTRIES = [f"{OTHER}:{PORT}", *(f"198.51.{at // 100}.{at % 100}:{1000 + at}-{1100 + at}" for at in range(199))]


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    with World(tmp_path_factory.mktemp("world")) as found:
        yield found


@pytest.fixture(scope="module")
def daemon(world, tmp_path_factory):
    found = Daemon(tmp_path_factory.mktemp("filter"), config={"network_dns": [NAMESERVER], "previews": False})
    found.start()
    yield found
    found.close()


@pytest.fixture
def receivers(world):
    found = Receivers(world)
    yield found
    found.close()


def start_senders(daemon, count):
    def start(client):
        sandbox = Sandbox.create(network={"mode": "allowlist", "allow": ENTRIES}, client=client)
        sandbox.start_process(["python3", "-c", SENDER, OTHER, *CLOSED])
        return sandbox.id

    with daemon.client() as client, concurrent.futures.ThreadPoolExecutor(4) as pool:
        return list(pool.map(start, [client] * count))


def kill_daemon(daemon):
    daemon.signal(signal.SIGKILL)
    daemon.start()


def kill_launcher(daemon):
    os.kill(daemon.launcher_pid(), signal.SIGKILL)
    daemon.process.wait(30)
    daemon.start()


def kill_network(daemon):
    kill(network_processes(daemon.launcher_pid()))


def disturb(world, daemon, receivers, rounds):
    """Do each of these in turn, and go on when packets arrive that may: until then nothing else was noticed."""
    for _ in range(rounds):
        for act in (kill_network, lambda _: world.flush_rules(), kill_daemon, kill_launcher):
            before = receivers.allowed()
            act(daemon)
            wait_until(lambda before=before: receivers.allowed() > before + 20)  # type: ignore[misc]


def destroy_all(daemon, ids):
    """Destroy all while what makes links dies again and again; none of that may fail."""
    with daemon.client() as client, concurrent.futures.ThreadPoolExecutor(4) as pool:
        ending = [pool.submit(Sandbox.connect(one, client=client).destroy) for one in ids]
        launcher = daemon.launcher_pid()
        kill(network_processes(launcher))
        done, _ = concurrent.futures.wait(ending, WAIT_S, concurrent.futures.FIRST_COMPLETED)
        assert done
        kill(network_processes(launcher))
        for one in ending:
            one.result(WAIT_S)


def test_not_one_packet_through_kills_and_flushes(world, daemon, receivers) -> None:
    ids = start_senders(daemon, 20)
    wait_until(lambda: receivers.allowed() > 100)
    disturb(world, daemon, receivers, 3)
    assert receivers.let_through() == {}
    destroy_all(daemon, ids)


@pytest.mark.long
@pytest.mark.timeout(3000)
def test_130_sandboxes_20_kills_and_flushes(world, daemon, receivers) -> None:
    ids = start_senders(daemon, 130)
    wait_until(lambda: receivers.allowed() > 1000)
    disturb(world, daemon, receivers, 20)
    assert receivers.let_through() == {}
    destroy_all(daemon, ids)
