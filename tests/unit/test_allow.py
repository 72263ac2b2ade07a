"""The parser of allow lists: one way to write each entry; what two parsers would read differently is refused."""

from __future__ import annotations

import ipaddress

import pytest

from sandboxd.allow import ALL_PORTS, MAX_ENTRIES, forbidden, lists_special, merged, parse_allow
from sandboxd.errors import InvalidRequest


@pytest.mark.parametrize(
    ("entry", "shown"),
    [
        ("example.com", "example.com"),
        ("EXAMPLE.Com", "example.com"),
        ("*.Example.com", "*.example.com"),
        ("example.com:443", "example.com:443"),
        ("example.com:0443", "example.com:443"),
        ("example.com:80-80", "example.com:80"),
        ("example.com:1-65535", "example.com"),
        ("xn--bcher-kva.example:8000-8100", "xn--bcher-kva.example:8000-8100"),
        ("_dmarc.example.com", "_dmarc.example.com"),
        ("a" * 63 + ".example", "a" * 63 + ".example"),
        ("192.0.2.1", "192.0.2.1"),
        ("192.0.2.1/32", "192.0.2.1"),
        ("192.0.2.0/24:53", "192.0.2.0/24:53"),
        ("2001:DB8:0:0::1", "2001:db8::1"),
        ("[2001:db8::1]", "2001:db8::1"),
        ("[2001:db8::1]:443", "[2001:db8::1]:443"),
        ("[2001:db8::/32]:443", "[2001:db8::/32]:443"),
        ("[2001:db8::]/32:443", "[2001:db8::/32]:443"),
        ("2001:db8::/32", "2001:db8::/32"),
        ("127.0.0.1", "127.0.0.1"),
    ],
)
def test_entries_are_shown_in_one_form_which_means_the_same(entry: str, shown: str) -> None:
    found = parse_allow([entry])
    assert found.entries == (shown,)
    assert parse_allow(found.entries) == found


@pytest.mark.parametrize(
    "entry",
    [
        "",
        "evil.com\0.allowed.com",
        "evil.com\n.allowed.com",
        "evil.com%00.allowed.com",
        "evil.com allowed.com",
        " example.com",
        "example.com\t",
        "example.com\x7f",
        "example.com.",
        "example.com.:443",
        ".example.com",
        "a..example.com",
        "-a.example.com",
        "a-.example.com",
        "a" * 64 + ".example.com",
        ".".join(["a" * 60] * 5),
        "a" * 301,
        "*",
        "*.",
        "*.*.example.com",
        "a.*.example.com",
        "*example.com",
        "**.example.com",
        "bücher.example",
        "ехаmple.com",  # noqa: RUF001 - Cyrillic
        "example。com",
        "example.com\u200b",
        "①②⑦.0.0.1",
        "١٢٧.0.0.1",
        "user@example.com",
        "allowed.com@evil.com",
        "https://example.com",
        "//example.com",
        "example.com/path",
        "example.com?x",
        "example.com#x",
        "example.com\\.evil.com",
        "example.com:",
        "example.com:0",
        "example.com:65536",
        "example.com:100000",
        "example.com:443-80",
        "example.com:-1",
        "example.com:+1",
        "example.com:80-",
        "example.com:٨٠",
        "example.com:http",
        "example.com:80:80",
        "2130706433",
        "0x7f000001",
        "0x7f.0.0.1",
        "0177.0.0.1",
        "127.0.0.01",
        "127.1",
        "127.0.1",
        "127.0.0.1.",
        "127.0.0.1.2",
        "127.0.0.256",
        "1.2.3.example.4",
        "example.0x7f",
        "example.123",
        "192.0.2.1/24",
        "192.0.2.0/33",
        "192.0.2.0/024",
        "192.0.2.0/255.255.255.0",
        "192.0.2.0/-1",
        "192.0.2.0/",
        "192.0.2.0/24/24",
        "::1/129",
        "fe80::1%eth0",
        "[fe80::1%25eth0]:80",
        "[2001:db8::1",
        "2001:db8::1]",
        "[2001:db8::1]443",
        "[example.com]:443",
        "[]:443",
        "[2001:db8::/32]/32",
        ":::",
        ":443",
        "2001:db8:::1",
    ],
)
def test_what_is_no_entry_is_refused_by_name(entry: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        parse_allow(["example.com", entry])
    assert refused.value.facts["field"] == "network.allow"
    assert refused.value.facts["entry"] == entry[:80]
    assert "\0" not in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("entry", [None, 1, b"example.com", ["example.com"]])
def test_what_is_no_text_is_refused(entry: object) -> None:
    with pytest.raises(InvalidRequest):
        parse_allow([entry])  # type: ignore[list-item]


def test_a_list_is_bounded() -> None:
    assert len(parse_allow([f"a{n}.example" for n in range(MAX_ENTRIES)]).names) == MAX_ENTRIES
    with pytest.raises(InvalidRequest):
        parse_allow(["example.com"] * (MAX_ENTRIES + 1))
    assert parse_allow(["example.com", "EXAMPLE.com", "example.com:1-65535"]).names == (("example.com", ALL_PORTS),)


@pytest.mark.parametrize(
    ("name", "ports"),
    [
        ("example.com", ((443, 443),)),
        ("EXAMPLE.com.", ((443, 443),)),
        ("www.example.com", None),
        ("example.com.evil.com", None),
        ("notexample.com", None),
        ("example.com\0.evil.com", None),
        ("all.example", None),
        ("a.all.example", ((80, 81),)),
        ("a.b.ALL.example", ((80, 81), (8000, 8100))),
        ("all.example.evil.com", None),
        ("", None),
        (".", None),
    ],
)
def test_names_match_whole_labels(name: str, ports: object) -> None:
    allow = parse_allow(["example.com:443", "*.all.example:80", "*.all.example:81", "*.b.all.example:8000-8100"])
    assert allow.matches(name) == ports


def test_ranges_are_merged() -> None:
    assert merged([(5, 6), (1, 2), (3, 3), (6, 9), (20, 30), (22, 23)]) == ((1, 3), (5, 9), (20, 30))


@pytest.mark.parametrize(
    "address",
    [
        "0.0.0.0",
        "127.0.0.1",
        "127.255.255.254",
        "10.0.0.1",
        "100.64.0.1",
        "169.254.169.254",
        "172.16.0.1",
        "172.31.255.255",
        "192.168.1.1",
        "224.0.0.1",
        "255.255.255.255",
        "::",
        "::1",
        "::7f00:1",
        "::ffff:127.0.0.1",
        "::ffff:8.8.8.8",
        "64:ff9b::a00:1",
        "2002:7f00:1::",
        "fd00:ec2::254",
        "fe80::1",
        "ff02::1",
    ],
)
def test_special_addresses_are_out_of_reach(address: str) -> None:
    assert forbidden(ipaddress.ip_address(address))


@pytest.mark.parametrize(
    "address", ["8.8.8.8", "172.32.0.1", "100.128.0.1", "11.0.0.1", "2600::1", "2001:4860:4860::8888"]
)
def test_public_ones_are_not(address: str) -> None:
    assert forbidden(ipaddress.ip_address(address)) is None


def test_a_wide_network_opens_no_special_address() -> None:
    for entry in ("0.0.0.0/0", "8.0.0.0/6", "::/0"):
        assert not lists_special(ipaddress.ip_network(entry))
    for entry in ("10.1.0.0/16", "10.0.0.0/8", "169.254.169.254/32", "8.8.8.8/32", "fd00::/8"):
        assert lists_special(ipaddress.ip_network(entry))
    allow = parse_allow(["0.0.0.0/0", "::/0", "10.1.0.0/16"])
    assert not allow.lists(ipaddress.ip_address("169.254.169.254"))
    assert not allow.lists(ipaddress.ip_address("10.2.0.1"))
    assert allow.lists(ipaddress.ip_address("10.1.0.1"))
