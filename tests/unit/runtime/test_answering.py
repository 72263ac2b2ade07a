"""What may be asked of the host's nameservers for a sandbox, and what of their answers it may have."""

from __future__ import annotations

import ipaddress
from typing import Any

import dns.message
import dns.name
import dns.rdatatype
import dns.rrset
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sandboxd.allow import forbidden
from sandboxd.runtime.answering import TYPES, chain, is_private, rows_in_reach, why_not_asked
from sandboxd.runtime.nearby import Nearby, routes_4, routes_6

PUBLIC = ("A", "AAAA", "CNAME", "PTR", "MX", "TXT", "SRV", "CAA", "HTTPS", "SVCB")
#: Of every other type a sandbox hears nothing: what they say of a zone, a host or a network is nobody's in there.
OTHERS = (
    "ANY", "AXFR", "IXFR", "NS", "SOA", "HINFO", "WKS", "LOC", "NAPTR", "APL", "A6", "DNAME", "KX", "NULL", "SSHFP",
    "IPSECKEY", "DHCID", "HIP", "NSEC", "DNSKEY", "DS", "RRSIG", "TLSA", "URI", "SPF", "RP", "X25", "L32", "EUI48",
)  # fmt: skip


def asked(name: str, kind: str = "A") -> dns.rrset.RRset:
    return dns.message.make_query(name, kind).question[0]


def kept(name: str, kind: str, *sets: tuple[str, str, str]) -> list[str]:
    """Return what of an answer (owner, type, record) is told, as lines."""
    answer: list[dns.rrset.RRset] = []
    for owner, type_, text in sets:
        answer.append(dns.rrset.from_text(owner, 60, "IN", type_, text))
    told, _ = rows_in_reach(chain(asked(name, kind), answer), why, 64)
    return [f"{rrset.name} {dns.rdatatype.to_text(rrset.rdtype)} {row}" for rrset, rows in told for row in rows]


def why(address: Any) -> str | None:
    return forbidden(address) or ("the host's" if str(address) in ("203.0.113.9", "2001:db8::9") else None)


def test_the_list_of_types() -> None:
    assert {dns.rdatatype.to_text(kind) for kind in TYPES} == set(PUBLIC)
    name = dns.name.from_text("a.example")
    for kind in PUBLIC:
        assert why_not_asked(name, dns.rdatatype.from_text(kind), why) is None
    for kind in OTHERS:
        assert why_not_asked(name, dns.rdatatype.from_text(kind), why) == ""


@pytest.mark.parametrize("kind", PUBLIC)
@pytest.mark.parametrize(
    "name", ["db.internal", "x.y.LOCAL", "_ldap._tcp.corp", "gw.home.arpa", "router", "_https._tcp.svc.cluster.local"]
)
def test_private_zones_are_asked_for_addresses_alone(name: str, kind: str) -> None:
    refused = why_not_asked(dns.name.from_text(name), dns.rdatatype.from_text(kind), why)
    assert (refused is None) == (kind in ("A", "AAAA"))


@pytest.mark.parametrize(
    ("address", "is_asked"),
    [
        ("8.8.8.8", True), ("2606:4700::1111", True), ("10.1.2.3", False), ("127.0.0.1", False),
        ("169.254.169.254", False), ("192.168.1.1", False), ("172.17.0.2", False), ("fd00::1", False), ("::1", False),
        ("fe80::1", False), ("::ffff:10.0.0.1", False), ("203.0.113.9", False), ("2001:db8::9", False),
    ],
)  # fmt: skip
def test_reverse_names_are_those_of_public_addresses(address: str, is_asked: bool) -> None:
    name = dns.name.from_text(ipaddress.ip_address(address).reverse_pointer)
    assert (why_not_asked(name, dns.rdatatype.PTR, why) is None) == is_asked
    for kind in set(PUBLIC) - {"PTR"}:
        assert why_not_asked(name, dns.rdatatype.from_text(kind), why) is not None


@pytest.mark.parametrize(
    "name",
    ["10.in-addr.arpa", "in-addr.arpa", "1.2.10.in-addr.arpa", "x.8.8.8.8.in-addr.arpa", "300.8.8.8.in-addr.arpa",
     "ip6.arpa", "0.0.ip6.arpa", "1.0-25.2.0.192.in-addr.arpa", "b._dns-sd._udp.0.1.168.192.in-addr.arpa"],
)  # fmt: skip
def test_a_reverse_name_of_no_address_is_not_asked(name: str) -> None:
    assert why_not_asked(dns.name.from_text(name), dns.rdatatype.PTR, why) is not None


A, B, C = ("a.example. CNAME b.example.", "b.example. CNAME c.example.", "c.example. A 198.51.100.7")


@pytest.mark.parametrize(
    ("kind", "answer", "told"),
    [
        ("A", [A, B, C], [A, B, C]),
        ("A", [C, B, A], [A, B, C]),
        ("A", ["A.EXAMPLE. CNAME b.example.", B, C], ["A.EXAMPLE. CNAME b.example.", B, C]),
        ("A", [C], []),
        ("A", [A, C], [A]),
        ("A", ["evil.example. A 203.0.113.66", A, B, C, "b.example. A 203.0.113.67"], [A, "b.example. A 203.0.113.67"]),
        ("A", ["a.example. A 198.51.100.7", "a.example. AAAA 2001:db8::7"], ["a.example. A 198.51.100.7"]),
        ("A", [A, "b.example. CNAME a.example."], [A, "b.example. CNAME a.example."]),
        ("A", [A, B, "c.example. A 10.0.0.1"], []),
        ("A", ["a.example. A 203.0.113.9"], []),
        ("AAAA", ["a.example. AAAA 2001:db8::9"], []),
        ("A", ["a.example. CNAME lb.internal.", "lb.internal. A 198.51.100.7"], ["a.example. A 198.51.100.7"]),
        ("TXT", ["a.example. CNAME lb.internal.", 'lb.internal. TXT "x"'], []),
        ("CNAME", ["a.example. CNAME lb.internal."], []),
        ("CNAME", [A, B, C], [A]),
        ("TXT", ['a.example. TXT "x"', "a.example. A 10.0.0.1", 'b.example. TXT "y"'], ['a.example. TXT "x"']),
        ("SRV", ["a.example. SRV 0 0 443 b.example."], ["a.example. SRV 0 0 443 b.example."]),
        ("SRV", ["a.example. SRV 0 0 443 db.internal."], []),
        ("MX", ["a.example. MX 0 mail."], []),
        ("MX", ["a.example. MX 0 ."], ["a.example. MX 0 ."]),
        ("HTTPS", ["a.example. HTTPS 1 ."], ["a.example. HTTPS 1 ."]),
        ("HTTPS", ["a.example. HTTPS 1 db.corp."], []),
        ("HTTPS", ["a.example. HTTPS 1 . alpn=h2 ipv4hint=10.0.0.1,198.51.100.7 ipv6hint=fd00::1"],
         ['a.example. HTTPS 1 . alpn="h2"']),
        ("HTTPS", ["a.example. HTTPS 1 . mandatory=alpn,ipv4hint alpn=h2 ipv4hint=198.51.100.7"],
         ['a.example. HTTPS 1 . mandatory="alpn" alpn="h2"']),
        ("HTTPS", ["a.example. HTTPS 1 . mandatory=ipv4hint ipv4hint=198.51.100.7"], ["a.example. HTTPS 1 ."]),
        ("SVCB", ["a.example. SVCB 1 b.example. port=53 key65280=0a"], ['a.example. SVCB 1 b.example. port="53"']),
    ],
)  # fmt: skip
def test_what_of_an_answer_is_told(kind: str, answer: list[str], told: list[str]) -> None:
    sets = [tuple(line.split(" ", 2)) for line in answer]
    assert kept("a.example", kind, *sets) == told  # type: ignore[arg-type]


def test_a_reverse_name_that_leads_inside_is_not_told() -> None:
    name = "8.8.8.8.in-addr.arpa."
    assert kept(name, "PTR", (name, "PTR", "dns.google.")) == [f"{name} PTR dns.google."]
    for inside in ("host.corp.", "host.internal.", "printer."):
        assert kept(name, "PTR", (name, "PTR", inside)) == []
    other = "8.0-25.8.8.8.in-addr.arpa."
    classless = [(name, "CNAME", other), (other, "PTR", "a.example.")]
    assert kept(name, "PTR", *classless) == [f"{name} CNAME {other}", f"{other} PTR a.example."]


NAMES = st.sampled_from(["a.example.", "b.example.", "c.example.", "d.internal.", "evil.example."])
RECORDS = st.one_of(
    st.tuples(NAMES, st.just("CNAME"), NAMES),
    st.tuples(NAMES, st.just("A"), st.ip_addresses(v=4).map(str)),
    st.tuples(NAMES, st.just("AAAA"), st.ip_addresses(v=6).map(str)),
    st.tuples(NAMES, st.just("HTTPS"), st.ip_addresses(v=4).map(lambda a: f"1 . ipv4hint={a}")),
)


@given(st.lists(RECORDS, max_size=12), st.sampled_from(["A", "AAAA", "HTTPS"]))
def test_nothing_is_told_that_does_not_hang_on_the_question(records: list[tuple[str, str, str]], kind: str) -> None:
    owner = "a.example."
    for line in kept("a.example", kind, *records):
        name, type_, value = line.split(" ", 2)
        assert (name, type_ in ("CNAME", kind)) == (owner, True)
        assert "internal" not in line
        assert "hint" not in line
        if type_ == "CNAME":
            owner = value
        elif kind != "HTTPS":
            assert why(ipaddress.ip_address(value)) is None


@given(
    st.binary(min_size=1, max_size=40).map(lambda data: dns.name.Name([data, b"example", b""])) | st.just(dns.name.root)
)
def test_any_name_can_be_judged(name: dns.name.Name) -> None:
    is_private(name)
    assert why_not_asked(name, dns.rdatatype.PTR, why) is None


# --- the host's own addresses


def test_networks_on_the_hosts_links() -> None:
    text = """Iface\tDestination\tGateway\tFlags\tRefCnt\tUse\tMetric\tMask\tMTU\tWindow\tIRTT
eth0\t00000000\t010200C0\t0003\t0\t0\t0\t00000000\t0\t0\t0
eth0\t007100CB\t00000000\t0001\t0\t0\t0\t00FFFFFF\t0\t0\t0
eth1\t0000010A\t010200C0\t0003\t0\t0\t0\t0000FFFF\t0\t0\t0
"""
    assert [str(network) for network in routes_4(text.splitlines())] == ["203.0.113.0/24"]
    zero = "0" * 32
    text = f"""{"20010db8" + "0" * 24} 40 {zero} 00 {zero} 00000100 00000001 00000000 00000001 eth0
{zero} 00 {zero} 00 {"20010db8" + "0" * 23 + "1"} 00000400 00000002 00000000 00000003 eth0
{"20010db9" + "0" * 24} 20 {zero} 00 {zero} 00000400 00000002 00000000 00200200 lo
"""
    assert [str(network) for network in routes_6(text.splitlines())] == ["2001:db8::/64"]
    assert routes_4(["", "x"]) == routes_6(["", "x"]) == []


def test_the_hosts_own_addresses_are_told() -> None:
    near = Nearby()
    assert near.why(ipaddress.ip_address("127.0.0.1")) == "127.0.0.1 is the host's own"
    assert near.why(ipaddress.ip_address("198.51.100.200")) is None
