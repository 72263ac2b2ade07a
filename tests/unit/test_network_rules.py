"""The rules of an allow list: what stands before what, what a wide entry does not open, and answers that lapse."""

from __future__ import annotations

import ipaddress

import pytest

from sandboxd.allow import FORBIDDEN_4, FORBIDDEN_6, parse_allow
from sandboxd.errors import InvalidRequest
from sandboxd.launcher import links
from sandboxd.templates.network import rules, server
from sandboxd.templates.network.answers import Answers
from sandboxd.templates.network.server import Server
from sandboxd.templates.network.state import Host, State

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


@pytest.mark.parametrize("wide", ["0.0.0.0/0", "128.0.0.0/1", "169.0.0.0/8", "::/0", "2001::/16", "203.0.113.0/24"])
def test_a_wide_entry_stands_behind_what_is_special(wide: str) -> None:
    commands = rules.admit(HOST, state(wide), set())
    assert place(commands, f"daddr {wide} ") > place(commands, "jump special")


@pytest.mark.parametrize("private", ["10.0.0.0/8", "192.168.77.0/24", "fd00::/64", "169.254.169.0/24"])
def test_a_private_network_that_is_listed_is_meant_but_for_the_host_in_it(private: str) -> None:
    commands = rules.admit(HOST, state(private), set())
    assert place(commands, "fib daddr type local") < place(commands, f"daddr {private} ")
    assert place(commands, f"daddr {private} ") < place(commands, "jump special")


def test_a_single_address_is_meant_whatever_it_is() -> None:
    commands = rules.admit(HOST, state("203.0.113.1/32"), set())
    assert place(commands, "daddr 203.0.113.1/32 ") < place(commands, "fib daddr type local")


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


def test_sandboxes_are_kept_apart_before_any_list_is_asked() -> None:
    table = rules.table(HOST, [])
    forward = table[table.index("chain forward") : table.index("chain input")]
    assert place(forward, "iifname @links oifname @links goto deny") < place(forward, "iifname @links jump out")


def test_a_set_that_differs_keeps_no_lapsed_answer_alive(monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[str] = []

    def refuse_deletes(commands: str) -> str:
        given.append(commands)
        return "Could not process rule: No such file or directory" if "delete element" in commands else ""

    monkeypatch.setattr(server, "_nft", refuse_deletes)
    one = Server.__new__(Server)
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
    assert links._checked([["198.18.0.1", [[80, 80]], 5.0]], allow) == [("198.18.0.1", [[80, 80]], 5.0)]
    wide = [[port, port] for port in range(1, 256, 2)]
    for items in (
        [[f"198.18.0.{i}", wide, 5.0] for i in range(1, 60)],
        [["198.18.0.1", [], 5.0]] * 65,
        [["x"]],
        None,
        5,
    ):
        with pytest.raises(InvalidRequest):
            links._checked(items, allow)
    with pytest.raises(InvalidRequest, match="not on the internet"):
        links._checked([["10.0.0.1", [[80, 80]], 5.0]], allow)
