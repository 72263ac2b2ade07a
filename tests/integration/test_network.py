"""Sandboxes' networks in a small world of network namespaces: who is reached, who is not, and what is left."""

from __future__ import annotations

import hashlib
import os
import pathlib
import signal
import subprocess
import sys

import msgpack
import pytest

from sandboxd.client import Sandbox
from sandboxd.errors import Conflict, GitUnreachable, InvalidRequest, NetworkUnavailable, SandboxdError
from tests.support.waiting import wait_until

from ..support.daemon import Daemon, children_of
from ..support.world import HOST, HOST_LAN, METADATA, NAMESERVER, NEIGHBOUR, OTHER, PRIVATE, SITE, SITE_6, World

LISTED = {"mode": "allowlist", "allow": ["site.example"]}
FETCH = """
import sys, urllib.request
try:
    print(urllib.request.urlopen(sys.argv[1], timeout=4).read().decode()[:60])
except OSError as error:
    print("refused", getattr(error, "reason", error))
"""


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    with World(tmp_path_factory.mktemp("world")) as found:
        yield found


@pytest.fixture(scope="module")
def daemon(world, tmp_path_factory):
    config = {"network_dns": [NAMESERVER], "previews": False}
    found = Daemon(tmp_path_factory.mktemp("network"), config=config)
    found.start()
    yield found
    found.close()
    assert not found.runtime_dir.exists()
    assert not tables(found)
    assert not [name for name in links() if name.startswith("sd")]


@pytest.fixture
def client(daemon):
    with daemon.client() as found:
        yield found


@pytest.fixture(scope="module")
def internet(daemon):
    with daemon.client() as client, Sandbox.create(network="internet", client=client) as found:
        yield found


def links():
    shown = subprocess.run(["ip", "-br", "link"], capture_output=True, text=True, check=True).stdout
    return [line.split("@")[0].split()[0] for line in shown.splitlines()]


def router_links(daemon):
    """Return the devices in the router's network namespace."""
    words = ["nsenter", f"--net={daemon.runtime_dir / 'router'}", "ip", "-br", "link"]
    shown = subprocess.run(words, capture_output=True, text=True, check=True).stdout
    return [line.split("@")[0].split()[0] for line in shown.splitlines()]


def fetch(sandbox, address, port=80):
    host = f"[{address}]" if ":" in address else address
    return sandbox.exec(["python3", "-c", FETCH, f"http://{host}:{port}/"]).check().stdout.strip()


def reaches(sandbox, address, port=80):
    found = fetch(sandbox, address, port)
    return not found.startswith("refused"), found


def test_the_internet_is_reached_under_the_hosts_address(internet) -> None:
    assert fetch(internet, SITE) == f"::ffff:{HOST}"
    assert fetch(internet, SITE_6) == "2001:db8::1"
    assert fetch(internet, "www.site.example") == f"::ffff:{HOST}"
    assert fetch(internet, "alias.example", 8080) == f"::ffff:{HOST}"


@pytest.mark.parametrize("address", [METADATA, PRIVATE, NEIGHBOUR, HOST_LAN, HOST, "203.0.113.2", "10.213.0.1"])
def test_private_host_and_neighbour_addresses_are_not(internet, address) -> None:
    assert reaches(internet, address) == (False, "refused [Errno 113] No route to host")


@pytest.mark.parametrize("name", ["rebind.example", "meta.example", "loop.example", "host.example", "near.example"])
def test_a_name_does_not_lead_to_a_private_address(internet, name) -> None:
    found = internet.exec(["python3", "-c", f"import socket; print(socket.gethostbyname('{name}'))"])
    assert found.exit_code == 1
    assert "gaierror" in found.stderr


def test_an_allow_list_lets_through_what_it_names_and_nothing_else(world, client) -> None:
    allow = ["site.example:80", "198.18.0.11:8080", PRIVATE]
    with Sandbox.create(network={"mode": "allowlist", "allow": allow}, client=client) as sandbox:
        assert sandbox.info.raw["network"]["allow"] == allow
        assert not reaches(sandbox, SITE)[0]  # nobody has asked for the name yet
        assert reaches(sandbox, "site.example")[0]
        assert reaches(sandbox, SITE)[0]
        assert not reaches(sandbox, "site.example", 8080)[0]
        assert reaches(sandbox, OTHER, 8080)[0]
        assert not reaches(sandbox, OTHER)[0]
        assert reaches(sandbox, PRIVATE)[0]
        assert not reaches(sandbox, METADATA)[0]
        assert not reaches(sandbox, NAMESERVER, 80)[0]
        assert not reaches(sandbox, SITE_6)[0]
        assert not reaches(sandbox, "other.example", 8080)[0]
        sandbox.exec("getent hosts secret.attacker.example")
    assert not [line for line in world.names_asked() if "attacker" in line or "other" in line]


def test_a_wide_entry_opens_the_internet_and_nothing_special(client, internet) -> None:
    address = internet.exec("hostname -I").check().stdout.split()[0]
    allow = ["0.0.0.0/0", "192.168.0.0/16", address, "rebind.example", "site.example"]
    with Sandbox.create(network={"mode": "allowlist", "allow": allow}, client=client) as sandbox:
        assert reaches(sandbox, SITE)[0]
        assert reaches(sandbox, NEIGHBOUR)[0]
        for closed in (METADATA, PRIVATE, HOST, HOST_LAN, address):
            assert reaches(sandbox, closed) == (False, "refused [Errno 113] No route to host")
        assert sandbox.exec("getent ahostsv4 rebind.example").exit_code == 2


def test_an_allow_list_changes_under_a_sandbox_that_runs(client) -> None:
    with Sandbox.create(network={"mode": "allowlist", "allow": ["198.18.0.10"]}, client=client) as sandbox:
        assert reaches(sandbox, SITE)[0]
        info = sandbox.update(network={"allow": ["other.example"]})
        assert info.raw["network"]["allow"] == ["other.example"]
        assert not reaches(sandbox, SITE)[0]
        assert reaches(sandbox, "other.example")[0]
        sandbox.update(network={"mode": "internet", "allow": None})
        assert reaches(sandbox, SITE)[0]
        with pytest.raises(SandboxdError) as refused:
            sandbox.update(network={"mode": "none"})
        assert refused.value.kind in (Conflict.kind, InvalidRequest.kind)


def test_a_sandbox_without_a_network_has_none(client) -> None:
    with Sandbox.create(client=client) as sandbox:
        assert sandbox.info.network == "none"
        assert sandbox.exec("cat /etc/resolv.conf; ls /sys/class/net").check().stdout == "lo\n"


def test_sandboxes_do_not_reach_each_other(client, internet) -> None:
    with Sandbox.create(network="internet", client=client) as other:
        address = other.exec("hostname -I").check().stdout.split()[0]
        other.start_process(["python3", "-m", "http.server", "80"])
        other.exec("until python3 -c 'import urllib.request as u; u.urlopen(\"http://127.0.0.1\")'; do :; done").check()
        assert not reaches(internet, address)[0]


def test_a_daemon_that_is_killed_leaves_networks_that_go_on(daemon) -> None:
    with daemon.client() as client:
        sandbox = Sandbox.create(network={"mode": "allowlist", "allow": ["site.example"]}, client=client)
        gone = Sandbox.create(network="internet", client=client)
        assert reaches(sandbox, "site.example")[0]
    before = router_links(daemon)
    daemon.signal(signal.SIGKILL)
    os.kill(init_of(daemon, gone.id), signal.SIGKILL)
    daemon.start()
    with daemon.client() as client:
        again = Sandbox.connect(sandbox.id, client=client)
        assert again.info.raw["network"]["allow"] == ["site.example"]
        assert reaches(again, "site.example")[0]
        assert not reaches(again, OTHER)[0]
        assert len(router_links(daemon)) < len(before)
        again.destroy()


SQUAT = """
import os, socket, time
taken = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
while True:
    try:
        taken.bind(("127.0.0.53", 53))
        break
    except OSError:
        time.sleep(0.01)
open("/workspace/taken", "w").close()
while not os.path.exists("/workspace/let go"):
    time.sleep(0.01)
taken.close()
open("/workspace/done", "w").close()
"""


@pytest.mark.slow
@pytest.mark.parametrize("frozen", [False, True], ids=["running", "frozen"])
def test_who_takes_the_resolvers_place_loses_names_and_nothing_else(daemon, frozen) -> None:
    """While no daemon holds it, anybody in the sandbox may."""
    with daemon.client() as client:
        sandbox = Sandbox.create(network="internet", client=client)
        squatter = sandbox.start_process(["python3", "-c", SQUAT])
        assert sandbox.info.degraded == ()
    pid, taken = init_of(daemon, sandbox.id), False
    daemon.stop()
    while not taken:
        taken = "taken" in os.listdir(f"/proc/{pid}/root/workspace")
    if frozen:
        (daemon.cgroup() / sandbox.id / "cgroup.freeze").write_text("1")
    daemon.start()
    with daemon.client() as client:
        again = Sandbox.connect(sandbox.id, client=client)
        assert (again.info.state, len(again.info.degraded)) == ("frozen" if frozen else "running", 1)
        assert again.info.degraded[0].startswith("names: cannot create sockets")
        if frozen:
            again.thaw()
        assert again.get_process(squatter).is_running
        assert reaches(again, SITE)[0]
        asked = ["getent", "hosts", "site.example"]
        assert again.exec(asked, env={"RES_OPTIONS": "timeout:1 attempts:1"}).exit_code == 2
        again.exec("touch '/workspace/let go'; until test -e /workspace/done; do :; done").check()
        with client.events(sandbox=again.id, types="degraded") as stream:
            told = iter(stream)
            reasons = [next(told).facts["reason"] for _ in range(2)]
        assert (bool(reasons[0]), reasons[1]) == (True, None)
        assert again.refresh().degraded == ()
        assert reaches(again, "site.example")[0]
        again.destroy()


def init_of(daemon, sandbox_id):
    return msgpack.unpackb(pathlib.Path(daemon.state_dir, "records", sandbox_id).read_bytes())["pid"]


def test_a_link_is_as_fast_as_it_may_be(client) -> None:
    network = {"mode": "internet", "receive_bytes_per_s": 1_000_000, "send_bytes_per_s": 500_000}
    with Sandbox.create(network=network, client=client) as sandbox:
        program = (
            "import time, urllib.request as u; began = time.monotonic();"
            f"print(len(u.urlopen('http://{SITE}/bytes/2000000').read()), time.monotonic() - began)"
        )
        size, seconds = sandbox.exec(["python3", "-c", program]).check().stdout.split()
        assert int(size) == 2_000_000
        assert float(seconds) > 1.5
        use = sandbox.stats().network
        assert use is not None
        assert use.received_bytes > 2_000_000
        assert use.sent_packets > 100
        sandbox.update(network={"receive_bytes_per_s": None})
        assert float(sandbox.exec(["python3", "-c", program]).check().stdout.split()[1]) < float(seconds)


def test_connections_are_counted_and_bounded(client) -> None:
    with Sandbox.create(network={"mode": "internet", "connections": 5}, client=client) as sandbox:
        program = f"""
import socket
links, refused = [], 0
for _ in range(8):
    link = socket.socket()
    link.settimeout(3)
    try:
        link.connect(("{SITE}", 80))
        links.append(link)
    except OSError:
        refused += 1
print(len(links), refused)
"""
        assert sandbox.exec(["python3", "-c", program]).check().stdout == "5 3\n"


def test_a_host_that_forwards_nothing_gives_no_network(client) -> None:
    switch = pathlib.Path("/proc/sys/net/ipv4/ip_forward")
    switch.write_text("0")
    try:
        with pytest.raises(NetworkUnavailable) as refused:
            Sandbox.create(network="internet", client=client)
        assert "ip_forward" in refused.value.facts["remedy"]
    finally:
        switch.write_text("1")


def test_what_is_refused_is_counted(client, internet) -> None:
    def denied():
        text = client.metrics(sandboxes=True)
        return float(
            next(line for line in text.splitlines() if line.startswith("sandboxd_network_denied_total")).split()[1]
        )

    before = denied()
    fetch(internet, "10.77.0.1")
    internet.exec("getent hosts rebind.example")
    wait_until(lambda: denied() >= before + 2)


def test_what_is_denied_is_an_event(daemon, client) -> None:
    network = {"mode": "allowlist", "allow": ["site.example"]}
    with Sandbox.create(name="denied", network=network, client=client) as sandbox:
        sandbox.exec("getent hosts secret.attacker.example")
        assert not reaches(sandbox, METADATA)[0]
        with sandbox.events(types="network-denied") as stream:
            facts = []
            for event in stream:
                assert (event.sandbox, event.sandbox_name) == (sandbox.id, "denied")
                facts.append(event.facts)
                if any("address" in one for one in facts) and any("name" in one for one in facts):
                    break
    assert {"name": "secret.attacker.example", "reason": "it is not on the allow list"} in facts
    assert {"address": METADATA, "protocol": "tcp", "port": 80} in facts
    words = [sys.executable, "-m", "sandboxd", "--url", daemon.url, "events", "--sandbox", "denied"]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as command:
        assert command.stdout
        lines = [command.stdout.readline()]
        while "destroyed" not in lines[-1]:
            lines.append(command.stdout.readline())
            assert lines[-1]
        command.send_signal(signal.SIGINT)
    assert command.returncode == 130
    assert lines[0].split()[1:] == ["created", "denied"]
    assert any(f"address={METADATA} protocol=tcp port=80" in line for line in lines)


def test_a_network_is_made_right_after_the_last_one_went(world, tmp_path) -> None:
    daemon = Daemon(tmp_path, config={"network_dns": [NAMESERVER], "previews": False, "network_ipv4": "10.214.0.0/16"})
    daemon.start()
    try:
        with daemon.client() as client:
            for _ in range(3):
                Sandbox.create(network="internet", client=client).destroy()
    finally:
        daemon.close()


@pytest.mark.parametrize(
    "network", ["internet", {"mode": "allowlist", "allow": ["site.example"]}], ids=["internet", "allowlist"]
)
def test_a_clone_is_not_led_to_a_metadata_service(client, network) -> None:
    with Sandbox.create(network=network, client=client) as sandbox:
        with pytest.raises(GitUnreachable):
            sandbox.git_checkout("http://site.example/away.git", timeout=20)
        with pytest.raises(GitUnreachable):
            sandbox.git_checkout(f"git://{METADATA}/x.git", timeout=20)


def test_the_table_goes_with_the_last_sandbox_and_comes_with_the_next(world, tmp_path_factory) -> None:
    daemon = Daemon(tmp_path_factory.mktemp("own"), config={"network_dns": [NAMESERVER], "previews": False})
    daemon.start()
    try:
        with daemon.client() as client:
            for _ in range(3):
                with Sandbox.create(network="internet", client=client) as sandbox:
                    assert reaches(sandbox, SITE)[0]
                    assert tables(daemon)
                wait_until(lambda: not tables(daemon))
    finally:
        daemon.close()


def tables(daemon):
    shown = subprocess.run(["nft", "list", "tables"], capture_output=True, text=True, check=True).stdout
    return table_of(daemon) in shown


def table_of(daemon):
    return f"sandboxd_{hashlib.sha256(str(daemon.state_dir).encode()).hexdigest()[:12]}"


def test_a_network_process_that_dies_is_told_everything_again(daemon, client) -> None:
    with Sandbox.create(network={"mode": "allowlist", "allow": ["site.example"]}, client=client) as sandbox:
        assert reaches(sandbox, "site.example")[0]
        process = next(pid for pid in children_of(daemon.launcher_pid()) if is_network_process(pid))
        os.kill(process, signal.SIGKILL)
        wait_until(lambda: any(is_network_process(pid) for pid in children_of(daemon.launcher_pid()) if pid != process))
        assert reaches(sandbox, "site.example")[0]
        assert not reaches(sandbox, OTHER)[0]


def in_router(daemon, *words):
    """Run a program in the router's network namespace and return what it prints."""
    enter = ["nsenter", f"--net={daemon.runtime_dir / 'router'}"]
    return subprocess.run([*enter, *words], capture_output=True, text=True, check=True).stdout


def test_a_flush_of_the_hosts_rules_is_healed_and_opens_nothing(world, daemon, client, internet) -> None:
    world.flush_rules()
    for closed in (PRIVATE, HOST, NEIGHBOUR):
        assert not reaches(internet, closed)[0]
    wait_until(lambda: tables(daemon))
    assert reaches(internet, SITE)[0]
    with Sandbox.create(network={"mode": "allowlist", "allow": [HOST]}, client=client) as sandbox:
        world.flush_rules()  # and right then other addresses of the host are to be let through
        sandbox.update(network={"allow": [HOST, HOST_LAN]})
        wait_until(lambda: tables(daemon))
        assert fetch(sandbox, HOST_LAN) == "refused [Errno 111] Connection refused"  # nobody listens, but it is reached
        assert fetch(sandbox, HOST) == "refused [Errno 111] Connection refused"
        assert not reaches(sandbox, NEIGHBOUR)[0]


@pytest.mark.parametrize("words", ["link del", "link set down", "route flush dev"])
def test_what_the_host_takes_away_of_the_uplink_comes_back(daemon, internet, words) -> None:
    (uplink,) = [name for name in links() if name.startswith("sd")]
    words = words.replace(" down", f" {uplink} down") if "down" in words else f"{words} {uplink}"
    subprocess.run(["ip", *words.split()], check=True, capture_output=True)

    def heals():
        shown = subprocess.run(["ip", "route"], capture_output=True, text=True, check=True).stdout
        return any(f"dev {uplink}" in line for line in shown.splitlines())

    wait_until(heals)
    assert reaches(internet, SITE)[0]
    assert not reaches(internet, PRIVATE)[0]


@pytest.mark.parametrize(("address", "version"), [("198.18.0.10/32", 4), ("2001:db8:1::10/128", 6)])
def test_an_address_that_the_host_gets_is_the_hosts(daemon, internet, address, version) -> None:
    """A public one: until it is known, the host's own table keeps it back."""
    plain = address.partition("/")[0]
    assert reaches(internet, plain)[0]
    subprocess.run(["ip", "addr", "add", address, "dev", "lan0", *(["nodad"] if version == 6 else [])], check=True)
    try:
        assert not reaches(internet, plain)[0]
        shown = ["nft", "list", "set", "inet", table_of(daemon), f"own_{version}"]
        wait_until(lambda: plain in in_router(daemon, *shown))
        assert not reaches(internet, plain)[0]
    finally:
        subprocess.run(["ip", "addr", "del", address, "dev", "lan0"], check=True)
    wait_until(lambda: plain not in in_router(daemon, *shown))
    assert reaches(internet, plain)[0]


def test_neighbours_on_a_network_that_the_host_joins_are_not_reached(daemon, internet) -> None:
    """The networks of the host's links, IPv6 too, whatever they are: public ones are not in any list of ours."""
    assert reaches(internet, SITE_6)[0]
    assert not reaches(internet, "2001:db8::2")[0]
    subprocess.run(["ip", "route", "add", "2001:db8:1::/64", "dev", "lan0"], check=True)
    try:
        wait_until(
            lambda: "2001:db8:1::" in in_router(daemon, "nft", "list", "set", "inet", table_of(daemon), "near_6")
        )
        assert not reaches(internet, SITE_6)[0]
    finally:
        subprocess.run(["ip", "route", "del", "2001:db8:1::/64", "dev", "lan0"], check=True)
    wait_until(lambda: reaches(internet, SITE_6)[0])


def test_a_link_that_an_earlier_version_made_moves_into_the_router(daemon, client) -> None:
    network = {"mode": "allowlist", "allow": [f"{SITE}:80"], "receive_bytes_per_s": 1_000_000}
    with Sandbox.create(network=network, client=client) as sandbox:
        assert reaches(sandbox, SITE)[0]
        index = msgpack.unpackb(pathlib.Path(daemon.state_dir, "records", sandbox.id).read_bytes())["range_index"]
        name = next(one for one in router_links(daemon) if one.endswith(f"-{index:x}"))
        daemon.signal(signal.SIGKILL)
        in_router(daemon, "ip", "link", "set", name, "netns", str(os.getpid()))
        subprocess.run(["ip", "link", "set", name, "up"], check=True)
        assert name in links()
        daemon.start()
        with daemon.client() as again:
            found = Sandbox.connect(sandbox.id, client=again)
            wait_until(lambda: name in router_links(daemon))
            wait_until(lambda: reaches(found, SITE)[0])
            assert name not in links()
            assert not reaches(found, PRIVATE)[0]
            assert "tbf" in in_router(daemon, "tc", "qdisc", "show", "dev", name)


def test_where_only_a_translation_of_the_hosts_leads_is_not_reached(daemon, client, internet) -> None:
    """As Docker's published ports and Kubernetes' services: the router sees the address before it is translated."""
    rules = f"""
        table ip test_dnat {{
            chain before {{
                type nat hook prerouting priority dstnat
                ip daddr 198.18.0.99 dnat to {PRIVATE}
                ip daddr 198.18.0.98 dnat to {OTHER}
                ip daddr 198.18.0.97 redirect
            }}
        }}
    """
    subprocess.run(["nft", "-f", "-"], input=rules, text=True, check=True)
    try:
        for closed in ("198.18.0.99", "198.18.0.97"):
            assert not reaches(internet, closed)[0]
        assert reaches(internet, "198.18.0.98")[0]
    finally:
        subprocess.run(["nft", "delete", "table", "ip", "test_dnat"], check=True)


def test_a_way_that_takes_smaller_packets_is_found(internet) -> None:
    subprocess.run(["ip", "link", "set", "up0", "mtu", "1300"], check=True)
    try:
        program = (
            "import socket; link = socket.create_connection(('198.18.0.10', 80), 10);"
            "link.sendall(b'GET / HTTP/1.1\\r\\nHost: x\\r\\nX: ' + b'a' * 60000 + b'\\r\\n\\r\\n');"
            "print(link.recv(12))"
        )
        assert "HTTP/1." in internet.exec(["python3", "-c", program]).check().stdout
    finally:
        subprocess.run(["ip", "link", "set", "up0", "mtu", "1500"], check=True)


def test_what_a_killed_daemon_left_of_its_networks_goes_at_the_next_start(world, tmp_path_factory) -> None:
    daemon = Daemon(tmp_path_factory.mktemp("left"), config={"network_dns": [NAMESERVER], "previews": False})
    daemon.start()
    try:
        with daemon.client() as client:
            sandbox = Sandbox.create(network="internet", client=client)
        init = init_of(daemon, sandbox.id)
        daemon.signal(signal.SIGKILL)
        os.kill(init, signal.SIGKILL)
        assert tables(daemon)
        assert (daemon.runtime_dir / "router").exists()
        daemon.start()
        wait_until(lambda: not (daemon.runtime_dir / "router").exists())
        assert not tables(daemon)
    finally:
        daemon.close()
    assert not daemon.runtime_dir.exists()


def test_two_daemons_of_one_host_have_routers_of_their_own(daemon, internet, tmp_path_factory) -> None:
    other = Daemon(tmp_path_factory.mktemp("other"), config={"network_dns": [NAMESERVER], "previews": False})
    other.start()
    try:
        with other.client() as client, Sandbox.create(network="internet", client=client) as sandbox:
            address = internet.exec("hostname -I").check().stdout.split()[0]
            listed = {"mode": "allowlist", "allow": [address]}
            assert reaches(sandbox, SITE)[0]
            assert reaches(internet, SITE)[0]
            with Sandbox.create(network=listed, client=client) as third:
                assert not reaches(third, address)[0]
            assert len([name for name in links() if name.endswith("-router")]) == 2
    finally:
        other.close()
    assert reaches(internet, SITE)[0]


def is_network_process(pid):
    try:
        return b"sandboxd.netd" in pathlib.Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return False
