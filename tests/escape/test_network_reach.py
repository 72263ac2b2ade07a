"""A sandbox with a network tries to get where it may not, in a world of namespaces."""

from __future__ import annotations

import json
import os
import socket
import subprocess

import pytest

from sandboxd.client import Sandbox
from sandboxd.errors import SandboxdError

from ..integration.test_network import FETCH, daemon, reaches, router_links, world  # noqa: F401 - fixtures
from ..support.netns import init_pid
from ..support.nonstop import Counter, frame, socket_in
from ..support.waiting import wait_until
from ..support.world import (
    HOST,
    HOST_LAN,
    METADATA,
    NAMESERVER,
    NEIGHBOUR,
    OTHER,
    PRIVATE,
    SITE,
    SITE_6,
)

#: For each of a list: sends one datagram or opens one connection, and says how that ended.
TRY = """
import json, socket, sys
def attempt(kind, address, port, data):
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    try:
        kinds = {"tcp": socket.SOCK_STREAM, "udp": socket.SOCK_DGRAM, "raw": socket.SOCK_RAW}
        with socket.socket(family, kinds[kind], 1 if kind == "raw" else 0) as link:
            link.settimeout(1)
            link.connect((address, port))
            if kind == "tcp":
                return "connected"
            link.send(bytes.fromhex(data) or b"x")
            return link.recv(2000).hex()
    except OSError as error:
        return f"{type(error).__name__} {error.errno}"
print(json.dumps([attempt(*words) for words in json.loads(sys.argv[1])]))
"""
#: A question for attacker.example, A.
QUESTION = "1234010000010000000000000861747461636b6572076578616d706c650000010001"
BLOCKED = {"OSError 113", "PermissionError 13", "OSError 101", "TimeoutError None", "ConnectionRefusedError 111"}


@pytest.fixture(scope="module")
def client(daemon):  # noqa: F811
    with daemon.client() as found:
        yield found


@pytest.fixture(scope="module")
def internet(client):
    with Sandbox.create(network="internet", client=client) as found:
        yield found


@pytest.fixture(scope="module")
def listed(client):
    allow = ["site.example:80", f"{OTHER}:80"]
    with Sandbox.create(network={"mode": "allowlist", "allow": allow}, client=client) as found:
        yield found


def attempts(sandbox, *wanted):
    """Return how each (kind, address, port, data as hex) ended."""
    return json.loads(sandbox.exec(["python3", "-c", TRY, json.dumps(wanted)]).check().stdout)


def attempt(sandbox, kind, address, port, data=""):
    return attempts(sandbox, (kind, address, port, data))[0]


def test_the_rules_cannot_be_asked_for(internet) -> None:
    program = "import socket; socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 12)"
    assert internet.exec(["python3", "-c", program]).exit_code != 0
    assert internet.exec(["python3", "-c", "import socket; socket.socket(socket.AF_PACKET, socket.SOCK_RAW)"]).exit_code
    for words in (["ip", "addr", "add", "10.213.9.9/32", "dev", "eth0"], ["ip", "link", "set", "eth0", "down"]):
        assert internet.exec(words).exit_code != 0


@pytest.mark.parametrize("mode", ["internet", "listed"])
@pytest.mark.parametrize(
    "address", [HOST, HOST_LAN, NEIGHBOUR, METADATA, PRIVATE, "203.0.113.2", "10.213.0.1", "255.255.255.255", "0.0.0.0"]
)
def test_what_is_not_the_internets(request, mode, address) -> None:
    sandbox = request.getfixturevalue(mode)
    wanted = [(kind, address, port, QUESTION) for kind in ("tcp", "udp") for port in (22, 53, 80)]
    assert set(attempts(sandbox, *wanted)) <= BLOCKED


def test_ipv6_and_ipv4_inside_of_it(internet) -> None:
    assert reaches(internet, SITE_6)[0]
    inside = (
        "::1",
        "::ffff:169.254.169.254",
        "64:ff9b::a09:909",
        "fe80::1",
        "2002:a09:909::1",
        "ff02::1",
        "2001:db8::1",
    )
    found = attempts(internet, *(("tcp", address, 80, "") for address in inside))
    assert set(found) <= BLOCKED | {"OSError 22"}


@pytest.mark.parametrize(
    "entry",
    [
        "evil.example\0.site.example",
        "site.example.",
        "user@site.example",
        "http://site.example",
        "2130706433",
        "0x7f000001",
        "0177.0.0.1",
        "127.1",
        "10.0.0.1/8",
        "*",
        "a..b",
        "sité.example",
        "-a.example",
        "site.example:0",
        "site.example:http",
        "[::1",
        "",
        " site.example",
        "site.example\n",
    ],
)
def test_entries_that_two_parsers_read_differently(client, entry) -> None:
    with pytest.raises(Exception, match=r"cannot accept network\.allow") as refused:
        Sandbox.create(network={"mode": "allowlist", "allow": [entry]}, client=client)
    assert isinstance(refused.value, SandboxdError)
    assert refused.value.kind == "invalid-request"


def test_names_that_look_alike(world, listed) -> None:  # noqa: F811
    for name in ("site.example.attacker.example", "xsite.example", "attacker.example", "www.site.example"):
        assert not reaches(listed, name)[0]
    assert not [line for line in world.names_asked() if "attacker" in line]
    assert reaches(listed, "SITE.Example")[0]


@pytest.mark.parametrize("name", ["rebind.example", "meta.example", "loop.example", "host.example", "near.example"])
def test_a_listed_name_that_leads_inside(client, name) -> None:
    with Sandbox.create(network={"mode": "allowlist", "allow": [name, "mixed.example"]}, client=client) as sandbox:
        assert not reaches(sandbox, name)[0]
        assert reaches(sandbox, "mixed.example")[0]  # by its other address
        assert not reaches(sandbox, PRIVATE)[0]


def test_names_carry_nothing_out(world, listed) -> None:  # noqa: F811
    before = len(world.names_asked())
    for kind in ("udp", "tcp"):
        attempt(listed, kind, NAMESERVER, 53, QUESTION)
        assert attempt(listed, kind, "8.8.8.8", 53, QUESTION) in BLOCKED
    listed.exec("getent hosts secret.attacker.example; getent hosts secret.site.example")
    assert attempt(listed, "udp", "127.0.0.53", 53, QUESTION)[4:8] == "8185"  # REFUSED
    text = QUESTION[:-8].replace("0861747461636b6572", "0473697465") + "00100001"  # site.example, TXT
    assert attempt(listed, "udp", "127.0.0.53", 53, text)[12:16] == "0000"  # no data
    assert len(world.names_asked()) == before


@pytest.mark.parametrize(("kind", "port"), [("udp", 443), ("tcp", 853), ("udp", 853), ("tcp", 443), ("udp", 53)])
def test_other_ways_out_of_an_allow_list(listed, kind, port) -> None:
    wanted = [(kind, address, port, QUESTION) for address in (SITE, NAMESERVER, "8.8.8.8", SITE_6)]
    assert set(attempts(listed, *wanted)) <= BLOCKED


def test_icmp_raw_and_fragments(listed, internet) -> None:
    ping = (
        "import socket; s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM, 1); s.settimeout(2); s.connect(('{}', 1));"
        "s.send(bytes.fromhex('0800f7ff00000000')); s.recv(99)"
    )
    assert listed.exec(["python3", "-c", ping.format(OTHER)]).exit_code != 0
    assert internet.exec(["python3", "-c", ping.format(SITE)]).exit_code == 0
    assert attempt(listed, "raw", OTHER, 80) == "PermissionError 1"
    assert attempt(listed, "udp", NAMESERVER, 53, "00" * 4000) in BLOCKED  # three fragments


def test_a_source_that_is_not_its_own(internet) -> None:
    """With nothing but its own address a program cannot send another; that the rules drop one is seen from the host."""
    bind = "import socket; s=socket.socket(); s.setsockopt(socket.SOL_IP, 19, 1)"  # IP_TRANSPARENT
    assert internet.exec(["python3", "-c", bind]).exit_code != 0
    bind = "import socket; s=socket.socket(); s.bind(('10.213.0.77', 0))"
    assert internet.exec(["python3", "-c", bind]).exit_code != 0


@pytest.fixture
def arrivals(world):  # noqa: F811
    found = [Counter(world.receivers[0], "eth0"), Counter("/proc/thread-self/ns/net", "sd*-router")]
    yield found
    for counter in found:
        counter.close()


def test_frames_that_are_forged(daemon, internet, arrivals) -> None:  # noqa: F811
    """As one who had got packet sockets inside would send them: nothing leaves the router but under its own name."""
    four, six = internet.exec("hostname -I").check().stdout.split()
    own = internet.exec("cat /sys/class/net/eth0/address").check().stdout.strip()
    router = "02:73:62:78:64:01"
    source_route = bytes([131, 7, 4, *socket.inet_aton(PRIVATE), 0])
    forged = [
        frame((router, own), "10.213.0.77", OTHER),
        frame((router, own), HOST, OTHER),
        frame((router, own), "127.0.0.1", OTHER),
        frame((router, own), SITE, OTHER),
        frame((router, "02:73:62:00:00:01"), four, OTHER),
        frame((router, own), four, PRIVATE),
        frame((router, own), four, HOST, vlan=7),
        frame((router, own), four, "10.213.0.0"),
        frame((router, own), four, "169.254.1.1"),
        frame((router, own), four, OTHER, options=source_route),
        frame(("ff:ff:ff:ff:ff:ff", own), four, "255.255.255.255"),
        frame((router, own), "2001:db8::1", SITE_6),
        frame((router, own), "fe80::2", SITE_6),
        frame((router, own), six, "ff02::1"),
        frame((router, own), six, "fd73:6264:73::"),
        frame((router, own), six, "fe80::1"),
    ]
    with socket_in(f"/proc/{init_pid(daemon, internet)}/ns/net", socket.SOCK_RAW, 0) as inside:
        inside.bind(("eth0", 0))
        for one in forged * 3:
            inside.send(one)
        inside.send(frame((router, own), four, SITE))  # the only true ones
        inside.send(frame((router, own), six, SITE_6))
    wait_until(lambda: all({SITE, SITE_6} <= set(counter.seen) for counter in arrivals))
    assert [counter.seen for counter in arrivals] == [{SITE: 1, SITE_6: 1}] * 2


def test_a_link_that_was_not_admitted_is_dead(daemon, internet, arrivals) -> None:  # noqa: F811
    """It is so from its making to its admission, and for one that nobody ever admits."""
    enter = ["nsenter", f"--net={daemon.runtime_dir / 'router'}", "ip"]
    router, own, four = "02:73:62:78:64:01", "02:73:62:ff:ff:ff", "10.213.255.200"
    prefix = next(name for name in router_links(daemon) if name.startswith("sd")).partition("-")[0]
    for words in (
        f"link add {prefix}-ffff address {router} type veth peer name forged address {own} netns {os.getpid()}",
        f"link set {prefix}-ffff arp off up",
        f"route add {four}/32 dev {prefix}-ffff",
        f"neigh add {four} lladdr {own} dev {prefix}-ffff nud permanent",
    ):
        subprocess.run([*enter, *words.split()], check=True)
    address, six = internet.exec("hostname -I").check().stdout.split()
    mac = internet.exec("cat /sys/class/net/eth0/address").check().stdout.strip()
    try:
        subprocess.run(["ip", "link", "set", "forged", "arp", "off", "up"], check=True)
        with socket_in("/proc/thread-self/ns/net", socket.SOCK_RAW, 0) as link:
            link.bind(("forged", 0))
            for to in (OTHER, PRIVATE, HOST, address):
                link.send(frame((router, own), four, to))
                link.send(frame((router, mac), address, to))  # as if it were another's
            link.send(frame((router, mac), six, SITE_6))
        with socket_in(f"/proc/{init_pid(daemon, internet)}/ns/net", socket.SOCK_RAW, 0) as inside:
            inside.bind(("eth0", 0))
            inside.send(frame((router, mac), address, SITE))
        wait_until(lambda: all(SITE in counter.seen for counter in arrivals))
        assert [counter.seen for counter in arrivals] == [{SITE: 1}] * 2
    finally:
        subprocess.run(["ip", "link", "del", "forged"], check=True)


def test_the_host_and_others_do_not_open_connections_into_a_sandbox(internet) -> None:
    internet.start_process(["python3", "-m", "http.server", "8099", "--bind", "0.0.0.0"])
    address = internet.exec("hostname -I").check().stdout.split()[0]
    internet.exec(
        "until python3 -c 'import urllib.request as u; u.urlopen(\"http://127.0.0.1:8099\")'; do :; done"
    ).check()
    with socket.socket() as link:
        link.settimeout(1)
        assert link.connect_ex((address, 8099)) != 0


def test_no_neighbours_on_the_link(daemon, internet) -> None:  # noqa: F811
    enter = ["nsenter", f"--net={daemon.runtime_dir / 'router'}"]
    for words, name in (([], ": sd"), (enter, ": sd"), (enter, ": uplink")):
        shown = subprocess.run([*words, "ip", "-d", "link"], capture_output=True, text=True, check=True).stdout
        ours = [line for line in shown.splitlines() if name in line]
        assert ours
        assert all("NOARP" in line for line in ours)
    assert internet.exec("cat /proc/net/arp").check().stdout.count("\n") <= 2
