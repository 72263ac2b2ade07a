"""The rules of an allow list: what stands before what, what a wide entry does not open, and answers that lapse."""

from __future__ import annotations

import ipaddress

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sandboxd.allow import FORBIDDEN_4, FORBIDDEN_6, parse_allow
from sandboxd.errors import InvalidRequest
from sandboxd.launcher import veth
from sandboxd.linux.eventloop import Alarm, EventLoop
from sandboxd.netd import boxes, guard, rules
from sandboxd.netd.answers import Answers
from sandboxd.netd.netlink import Route
from sandboxd.netd.server import Server
from sandboxd.netd.state import Host, State, parse
from sandboxd.netd.watch import HostNetwork, facts_of

HOST = Host(
    table="sandboxd_test",
    prefix="sdtest-",
    pool_4="10.213.0.0/16",
    pool_6=None,
    group=7,
    forbidden_4=tuple(map(str, FORBIDDEN_4)),
    forbidden_6=tuple(map(str, FORBIDDEN_6)),
)


def state(*networks: str, sandbox_id: str = "a", index: int = 1) -> State:
    return State(
        id=sandbox_id,
        index=index,
        name=f"sdtest-{index}",
        mode="allowlist",
        address_4=f"10.213.0.{index}",
        address_6=None,
        networks=tuple((network, 443, 443) for network in networks),
    )


def place(commands: str, text: str) -> int:
    (found,) = [number for number, line in enumerate(commands.splitlines()) if text in line]
    return found


def set_of(commands: str, network: str) -> str:
    """Return the name of the set that a listed network is in."""
    shown = {"0.0.0.0/0": "0.0.0.0-255.255.255.255", "::/0": "::-ffff:"}.get(network, f"{network} . 443")
    (line,) = [line for line in commands.splitlines() if "elements" in line and shown in line]
    return line.split()[4]


@pytest.mark.parametrize("wide", ["0.0.0.0/0", "128.0.0.0/1", "169.0.0.0/8", "::/0", "2001::/16", "203.0.113.0/24"])
def test_a_wide_entry_stands_behind_what_is_special(wide: str) -> None:
    commands = rules.admit(HOST, state(wide), set())
    assert place(commands, f"th dport @{set_of(commands, wide)} ") > place(commands, "jump special")


@pytest.mark.parametrize("private", ["10.0.0.0/8", "192.168.77.0/24", "fd00::/64", "169.254.169.0/24"])
def test_a_private_network_that_is_listed_is_meant_but_for_the_host_in_it(private: str) -> None:
    commands = rules.admit(HOST, state(private), set())
    rule = place(commands, f"th dport @{set_of(commands, private)} ")
    assert place(commands, "jump own") < rule < place(commands, "jump special")


def test_a_single_address_is_meant_whatever_it_is() -> None:
    commands = rules.admit(HOST, state("203.0.113.1/32"), set())
    assert place(commands, f"th dport @{set_of(commands, '203.0.113.1')} ") < place(commands, "jump own")


@pytest.mark.parametrize(
    ("entry", "address", "listed"),
    [
        ("0.0.0.0/0", "169.254.169.254", False),
        ("128.0.0.0/1:443", "192.168.1.1", False),
        ("::/0", "fd00::1", False),
        ("::/0", "169.254.169.254", False),
        ("169.254.169.254", "169.254.169.254", True),
        ("10.1.0.0/16:5432", "10.1.2.3", True),
        ("fd00::/64", "fd00::1", True),
    ],
)
def test_a_name_leads_to_a_special_address_only_where_that_is_meant(entry: str, address: str, listed: bool) -> None:
    assert parse_allow([entry]).lists(ipaddress.ip_address(address)) is listed


def test_what_no_rule_names_does_not_pass() -> None:
    table = rules.table(HOST, HostNetwork())
    hooks = [line for line in table.splitlines() if " hook " in line]
    assert len(hooks) == 4
    assert all("policy drop" in line for line in hooks)


def test_sandboxes_are_kept_apart_before_any_list_is_asked() -> None:
    table = rules.table(HOST, HostNetwork())
    forward = table[table.index("chain forward") : table.index("chain input")]
    assert place(forward, 'oifname != "uplink" goto deny') < place(forward, "goto out")


def test_a_set_that_differs_keeps_no_lapsed_answer_alive(monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[str] = []

    def refuse_deletes(commands: str) -> str:
        given.append(commands)
        return "Could not process rule: No such file or directory" if "delete element" in commands else ""

    one = Server.__new__(Server)
    one._lapse_at, one._lapsing = 0.0, Alarm(EventLoop(), one._lapse)
    monkeypatch.setattr(one, "_nft", refuse_deletes)
    one._answers = {name: Answers(HOST, state(sandbox_id=name, index=at)) for at, name in enumerate("ab", 1)}
    for answers in one._answers.values():
        answers.permit("198.18.0.10", [(443, 443)], -1.0)
        answers.permit("198.18.0.11", [(443, 443)], float("inf"))
    one._lapse()
    assert [
        index for index in (1, 2) if f"flush set inet sandboxd_test answered_4_{index}\n" in "".join(given[1:])
    ] == [1, 2]
    assert "198.18.0.11" in given[1]
    assert "198.18.0.10" not in "".join(given[1:])


def test_what_the_daemon_permits_is_bounded() -> None:
    """One answer fits into one message to the process that makes the rules."""
    allow = parse_allow(["site.example"])
    assert veth._checked([["198.18.0.1", [[80, 80]], 5.0]], allow) == [("198.18.0.1", [[80, 80]], 5.0)]
    wide = [[port, port] for port in range(1, 256, 2)]
    for items in (
        [[f"198.18.0.{i}", wide, 5.0] for i in range(1, 60)],
        [["198.18.0.1", [], 5.0]] * 65,
        [["x"]],
        None,
        5,
    ):
        with pytest.raises(InvalidRequest):
            veth._checked(items, allow)
    with pytest.raises(InvalidRequest, match="not on the internet"):
        veth._checked([["10.0.0.1", [[80, 80]], 5.0]], allow)


ADDRESSES_4 = st.integers(0, 2**32 - 1) | st.integers(0x0A000000, 0x0A0000FF)


@st.composite
def entries_4(draw: st.DrawFn) -> tuple[str, int, int]:
    """Networks that are often in one another, with ports that often overlap."""
    length = draw(st.sampled_from([0, 1, 8, 16, 24, 28, 31, 32]))
    network = ipaddress.ip_network((draw(ADDRESSES_4) >> (32 - length) << (32 - length), length))
    low, high = sorted((draw(st.integers(1, 40)), draw(st.integers(1, 40) | st.just(65_535))))
    return str(network), low, high


#: The first and the last address, the first and the last port.
Plain = tuple[int, int, int, int]


def plain(network: str, low: int, high: int) -> Plain:
    found = ipaddress.ip_network(network)
    return int(found[0]), int(found[-1]), low, high


def holding(boxes: list[Plain], address: int, port: int) -> int:
    """Count those that an address and a port are in."""
    return sum(first <= address <= last and low <= port <= high for first, last, low, high in boxes)


@settings(deadline=None, max_examples=60)
@given(st.lists(entries_4(), max_size=20), st.lists(st.tuples(ADDRESSES_4, st.integers(1, 42)), max_size=20))
def test_disjoint_boxes_name_what_the_list_names(
    entries: list[tuple[str, int, int]], probes: list[tuple[int, int]]
) -> None:
    sets = boxes.disjoint(entries)
    assert sum(map(len, sets)) <= len(entries)
    listed = [plain(*entry) for entry in entries]
    made = [[plain(network, *ports) for network, ports in chosen] for chosen in sets]
    edges = {address for first, last, _, _ in listed for address in (first, last)}
    ports = {port + by for *_, low, high in listed for port in (low, high) for by in (-1, 0, 1)}
    for address, port in [*probes, *((edge, port) for edge in edges for port in ports)]:
        found = [holding(chosen, address, port) for chosen in made]
        assert any(found) is bool(holding(listed, address, port))
        assert max(found, default=0) <= 1  # a set refuses elements that overlap


def test_lists_that_overlap_on_purpose_stay_small() -> None:
    """As disjoint boxes of one set these would be 16,000."""
    entries = [("10.0.0.0/8", port, port) for port in range(2, 258, 2)]
    entries += [(f"10.0.0.{at}/32", 1, 65_535) for at in range(128)]
    sets = boxes.disjoint(entries)
    assert [len(chosen) for chosen in sets] == [128, 128]
    assert len(boxes.disjoint([("::/0", 1, 65_535)] + [(f"2001:db8::{at:x}/128", 1, 9) for at in range(200)])[0]) == 1


def test_overlaps_are_merged() -> None:
    assert boxes.disjoint([("10.0.0.0/8", 80, 90), ("10.1.0.0/16", 85, 95), ("10.0.0.0/8", 91, 91)]) == [
        [("10.0.0.0/8", (80, 91)), ("10.1.0.0/16", (92, 95))]
    ]
    assert boxes.element(("10.1.0.0/16", (92, 95))) == "10.1.0.0/16 . 92-95"
    assert boxes.element(("10.1.2.3/32", (92, 92))) == "10.1.2.3 . 92"
    assert boxes.element(("0.0.0.0/0", (1, 2))) == "0.0.0.0-255.255.255.255 . 1-2"


@given(st.ip_addresses().filter(lambda found: not getattr(found, "scope_id", None)), st.data())
def test_a_network_is_read_as_the_module_ipaddress_does(address: ipaddress.IPv4Address, data: st.DataObject) -> None:
    length = data.draw(st.integers(0, address.max_prefixlen))
    network = ipaddress.ip_network(f"{address}/{length}", strict=False)
    assert parse(str(network)) == (network.max_prefixlen, int(network.network_address), network.prefixlen)


def test_the_hosts_own_addresses_and_links_are_known_by_its_routes() -> None:
    routes = [
        Route("203.0.113.7/32", 2, 3, False),
        Route("203.0.113.255/32", 3, 3, False),
        Route("203.0.113.0/24", 1, 3, False),
        Route(None, 1, 3, True),
        Route("198.51.100.0/24", 1, 3, True),  # through a gateway
        Route("10.213.0.9/32", 1, 5, False),  # a sandbox, through the uplink
        Route("2001:db8::/64", 1, 3, False),
        Route("192.0.2.0/24", 6, 0, False),  # a blackhole
    ]
    facts = facts_of(routes, uplink=5)
    assert sorted(facts.own(4)) == ["203.0.113.255/32", "203.0.113.7/32"]
    assert facts.near(4) == ["203.0.113.0/24"]
    assert facts.near(6) == ["2001:db8::/64"]


def test_the_hosts_table_lets_the_uplink_to_listed_single_addresses_of_the_host() -> None:
    facts = HostNetwork(frozenset({"203.0.113.7/32"}), frozenset({"203.0.113.0/24"}))
    table = guard.table(HOST, facts, ["203.0.113.7"])
    assert "set listed_4 { type ipv4_addr; elements = { 203.0.113.7 }; }" in table
    chain = table[table.index("chain input") : table.index("chain forward")]
    assert chain.strip().endswith("reject with icmpx type admin-prohibited\n    }")
    assert rules.singles(state("203.0.113.7/32", "203.0.113.0/24", "2001:db8::1/128")) == {"203.0.113.7", "2001:db8::1"}
