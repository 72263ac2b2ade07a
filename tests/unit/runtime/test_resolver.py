"""Names that a sandbox asks for, before a nameserver that lies, floods, cuts or says nothing."""

from __future__ import annotations

import contextlib
import socket
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import dns.flags
import dns.message
import dns.rcode
import dns.rdatatype
import dns.rrset
import pytest
import trio
import trio.testing

from sandboxd.allow import parse_allow
from sandboxd.errors import LaunchFailed
from sandboxd.runtime import resolver as module
from sandboxd.runtime.resolver import MAX_ADDRESSES, MAX_CONNECTIONS, MAX_QUESTIONS, Policy, Resolver, host_nameservers

INTERNET = Policy("internet", parse_allow([]))
Query = dns.message.Message
#: Given a question, what a nameserver sends for it, in order.
Lie = Callable[[Query], list[bytes]]


def say(query: Query, *rows: str, kind: str = "A", ttl: int = 60, name: str | None = None) -> Query:
    reply = dns.message.make_response(query, recursion_available=True)
    if rows:
        reply.answer.append(dns.rrset.from_text(name or query.question[0].name, ttl, "IN", kind, *rows))
    return reply


def honest(query: Query) -> list[bytes]:
    return [say(query, "198.51.100.7").to_wire()] if query.question[0].rdtype == 1 else [say(query).to_wire()]


def free_port() -> tuple[socket.socket, socket.socket]:
    """Return a UDP and a listening TCP socket at one port of loopback, whoever else takes ports meanwhile."""
    while True:
        datagrams, listener = socket.socket(socket.AF_INET, socket.SOCK_DGRAM), socket.socket()
        datagrams.bind(("127.0.0.1", 0))
        try:
            listener.bind(datagrams.getsockname())
        except OSError:
            datagrams.close()
            listener.close()
            continue
        listener.listen(64)
        datagrams.setblocking(False)
        listener.setblocking(False)
        return datagrams, listener


class Upstream:
    """A nameserver on loopback: UDP and TCP at one port. `over_tcp` is what it says there."""

    def __init__(self) -> None:
        self.lie: Lie = honest
        self.over_tcp: Lie = honest
        self.asked: list[str] = []
        self.ports: list[int] = []
        self.ids: list[int] = []

    async def run(self, task_status: trio.TaskStatus[tuple[str, int]] = trio.TASK_STATUS_IGNORED) -> None:
        datagrams, listener = free_port()
        with trio.socket.from_stdlib_socket(datagrams) as link:
            address = link.getsockname()
            listeners = [trio.SocketListener(trio.socket.from_stdlib_socket(listener))]
            async with trio.open_nursery() as nursery:
                nursery.start_soon(trio.serve_listeners, self._stream, listeners)
                task_status.started(address)
                while True:
                    wire, sender = await link.recvfrom(4096)
                    self.ports.append(sender[1])
                    for answer in self.lie(self._note(wire)):
                        with contextlib.suppress(OSError):
                            await link.sendto(answer, sender)

    async def _stream(self, stream: trio.SocketStream) -> None:
        async with stream:
            head = await stream.receive_some(2)
            if len(head) < 2:
                return  # whoever asked has no time left
            wire = await stream.receive_some(struct.unpack(">H", head)[0])
            for answer in self.over_tcp(self._note(wire)):
                await stream.send_all(struct.pack(">H", len(answer)) + answer)

    def _note(self, wire: bytes) -> Query:
        query = dns.message.from_wire(wire)
        self.asked.append(query.question[0].name.to_text())
        self.ids.append(query.id)
        return query


class Under:
    """A resolver under test with its upstream, and what it did."""

    def __init__(self, address: tuple[str, int], upstream: Upstream) -> None:
        self.address = address
        self.upstream = upstream
        self.permitted: list[Any] = []
        self.denied: list[tuple[str, str]] = []
        self.before_permit: Callable[[], Awaitable[None]] = trio.lowlevel.checkpoint
        self.resolver: Resolver

    async def permit(self, items: list[Any]) -> None:
        await self.before_permit()
        self.permitted += items

    async def ask(self, name: str, kind: str = "A", **options: Any) -> dns.message.Message:
        query = dns.message.make_query(name, kind, **options)
        return dns.message.from_wire(await self.send(query.to_wire()), raise_on_truncation=False)

    async def send(self, wire: bytes) -> bytes:
        with trio.fail_after(30), trio.socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as link:
            await link.connect(self.address)
            await link.send(wire)
            return await link.recv(65535)

    async def ask_over_tcp(self, name: str) -> dns.message.Message:
        wire = dns.message.make_query(name, "A").to_wire()
        with trio.fail_after(30):
            async with await trio.open_tcp_stream(*self.address) as stream:
                await stream.send_all(struct.pack(">H", len(wire)) + wire)
                found = b""
                while len(found) < 2 or len(found) < 2 + struct.unpack(">H", found[:2])[0]:
                    piece = await stream.receive_some()
                    assert piece
                    found += piece
        return dns.message.from_wire(found[2:])


@contextlib.asynccontextmanager
async def resolving(policy: Policy = INTERNET, upstreams: list[tuple[str, int]] | None = None) -> AsyncIterator[Under]:
    datagrams, listener = free_port()
    upstream = Upstream()
    async with trio.open_nursery() as nursery:
        address = await nursery.start(upstream.run)
        found = Under(datagrams.getsockname(), upstream)
        found.resolver = Resolver(
            datagrams,
            listener,
            policy,
            [address] if upstreams is None else [*upstreams, address],
            found.permit,
            lambda name, why: found.denied.append((name, why)),
        )
        nursery.start_soon(found.resolver.run)
        yield found
        nursery.cancel_scope.cancel()


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "UPSTREAM_TIMEOUT_S", 0.15)
    monkeypatch.setattr(module, "IDLE_TIMEOUT_S", 0.3)


def addresses(message: dns.message.Message) -> list[str]:
    return [row.address for rrset in message.answer for row in rrset if hasattr(row, "address")]


def allowing(*entries: str) -> Policy:
    return Policy("allowlist", parse_allow(entries))


# --- a nameserver that lies


def other_id(query: Query) -> bytes:
    reply = say(query, "203.0.113.66")
    reply.id ^= 0x5555
    return reply.to_wire()


def other_question(query: Query) -> bytes:
    forged = dns.message.make_query("other.example", "A")
    forged.id = query.id
    return say(forged, "203.0.113.66").to_wire()


def other_type(query: Query) -> bytes:
    forged = dns.message.make_query(query.question[0].name, "AAAA")
    forged.id = query.id
    return say(forged, "2001:db8::66", kind="AAAA").to_wire()


def echo(query: Query) -> bytes:
    return query.to_wire()


def garbage(query: Query) -> bytes:
    return struct.pack(">H", query.id) + b"\xff" * 400


def disconnect(query: Query) -> bytes:
    return say(query, "203.0.113.66").to_wire()[:-3]


def loop(query: Query) -> bytes:
    return struct.pack(">HHHHHH", query.id, 0x8180, 1, 1, 0, 0) + b"\xc0\x0c" * 30


FORGERIES = [other_id, other_question, other_type, echo, garbage, disconnect, loop, lambda _: b"", lambda _: b"\0"]


@pytest.mark.parametrize("forge", FORGERIES)
async def test_what_is_no_answer_to_the_question_is_passed_over(forge: Callable[[Query], bytes]) -> None:
    async with resolving() as under:
        under.upstream.lie = lambda query: [forge(query), *honest(query)]
        assert addresses(await under.ask("a.example")) == ["198.51.100.7"]


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("forge", FORGERIES)
async def test_nothing_but_lies_is_a_failure(forge: Callable[[Query], bytes]) -> None:
    async with resolving(allowing("a.example")) as under:
        under.upstream.lie = lambda query: [forge(query)]
        answer = await under.ask("a.example")
        assert (answer.rcode(), answer.answer) == (dns.rcode.SERVFAIL, [])
        assert not under.permitted


@pytest.mark.usefixtures("impatient")
async def test_silence_and_nobody_are_failures_and_the_next_nameserver_is_asked() -> None:
    async with resolving() as under:
        under.upstream.lie = lambda _: []
        assert (await under.ask("a.example")).rcode() == dns.rcode.SERVFAIL
        assert len(under.upstream.asked) == module.TRIES
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as nobody:
        nobody.bind(("127.0.0.1", 0))
        closed = nobody.getsockname()
    async with resolving(upstreams=[closed, ("192.0.2.300", 53)]) as under:
        assert addresses(await under.ask("a.example")) == ["198.51.100.7"]


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("code", ["SERVFAIL", "REFUSED", "FORMERR", "NOTIMP"])
async def test_a_nameserver_that_refuses_is_no_answer(code: str) -> None:
    def refuse(query: Query) -> list[bytes]:
        reply = say(query)
        reply.set_rcode(dns.rcode.from_text(code))
        return [reply.to_wire()]

    async with resolving() as under:
        under.upstream.lie = refuse
        assert (await under.ask("a.example")).rcode() == dns.rcode.SERVFAIL


async def test_ids_and_ports_are_not_to_be_guessed() -> None:
    async with resolving() as under:
        for _ in range(16):
            await under.ask("a.example")
        assert len(set(under.upstream.ids)) > 12
        assert len(set(under.upstream.ports)) > 8


async def test_a_truncated_answer_is_asked_for_over_tcp() -> None:
    def truncated(query: Query) -> list[bytes]:
        reply = say(query)
        reply.flags |= dns.flags.TC
        return [reply.to_wire()]

    async with resolving() as under:
        under.upstream.lie = truncated
        assert addresses(await under.ask("a.example")) == ["198.51.100.7"]
        assert len(under.upstream.asked) == 2


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("forge", [*FORGERIES, None])
async def test_a_stream_may_lie_no_more_than_a_datagram(forge: Callable[[Query], bytes] | None) -> None:
    def truncated(query: Query) -> list[bytes]:
        reply = say(query)
        reply.flags |= dns.flags.TC
        return [reply.to_wire()]

    async with resolving() as under:
        under.upstream.lie = truncated
        under.upstream.over_tcp = lambda query: [forge(query)] if forge else []
        assert (await under.ask("a.example")).rcode() == dns.rcode.SERVFAIL


# --- what is answered


async def test_thousands_of_addresses_are_cut_and_those_alone_are_let_through() -> None:
    def flood(query: Query) -> list[bytes]:
        reply = say(query)
        reply.flags |= dns.flags.TC
        return [reply.to_wire()]

    async with resolving(allowing("many.example:443")) as under:
        under.upstream.lie = flood
        rows = [f"198.51.{n // 250}.{n % 250 + 1}" for n in range(3000)]
        under.upstream.over_tcp = lambda query: [say(query, *rows).to_wire(max_size=65535)]
        answer = await under.ask_over_tcp("many.example")
        assert len(addresses(answer)) == MAX_ADDRESSES
        assert {item[0] for item in under.permitted} == set(addresses(answer))
        assert {item[1] for item in under.permitted} == {((443, 443),)}
        small = await under.ask("many.example")  # 512 bytes hold fewer: it is told to ask over TCP
        assert small.flags & dns.flags.TC
        assert not small.answer


@pytest.mark.parametrize("address", ["127.0.0.1", "10.0.0.1", "169.254.169.254", "192.168.1.1", "0.0.0.0"])
@pytest.mark.parametrize("policy", [INTERNET, allowing("a.example"), allowing("a.example", "0.0.0.0/0")])
async def test_rebinding_is_refused_after_resolution(policy: Policy, address: str) -> None:
    async with resolving(policy) as under:
        under.upstream.lie = lambda query: [say(query, address).to_wire()]
        answer = await under.ask("a.example")
        assert (answer.rcode(), answer.answer, under.permitted) == (dns.rcode.NOERROR, [], [])
        ((name, why),) = under.denied
        assert name == "a.example"
        assert address in why


async def test_of_a_mixed_answer_the_public_part_is_given() -> None:
    async with resolving(allowing("a.example")) as under:
        under.upstream.lie = lambda query: [say(query, "10.0.0.1", "198.51.100.7", "127.0.0.1").to_wire()]
        assert addresses(await under.ask("a.example")) == ["198.51.100.7"]
        assert [item[0] for item in under.permitted] == ["198.51.100.7"]


@pytest.mark.parametrize("address", ["::1", "::ffff:127.0.0.1", "fe80::1", "fd00:ec2::254", "64:ff9b::7f00:1"])
async def test_rebinding_by_ipv6_is_refused(address: str) -> None:
    async with resolving() as under:
        under.upstream.lie = lambda query: [say(query, address, kind="AAAA").to_wire()]
        assert not (await under.ask("a.example", "AAAA")).answer


async def test_a_private_address_that_is_listed_is_meant() -> None:
    async with resolving(allowing("a.example", "10.1.0.0/16")) as under:
        under.upstream.lie = lambda query: [say(query, "10.1.2.3", "10.2.2.3").to_wire()]
        assert addresses(await under.ask("a.example")) == ["10.1.2.3"]


async def test_an_answer_about_something_else_lets_nothing_through() -> None:
    """An address of the type that was not asked for, or in a section that is no answer."""

    def lie(query: Query) -> list[bytes]:
        reply = say(query, "198.51.100.7")
        reply.additional.append(dns.rrset.from_text("evil.example.", 60, "IN", "A", "203.0.113.66"))
        reply.authority.append(dns.rrset.from_text("evil.example.", 60, "IN", "A", "203.0.113.67"))
        return [reply.to_wire()]

    async with resolving(allowing("a.example")) as under:
        under.upstream.lie = lie
        answer = await under.ask("a.example")
        assert addresses(answer) == ["198.51.100.7"]
        assert (answer.additional, answer.authority) == ([], [])
        assert [item[0] for item in under.permitted] == ["198.51.100.7"]


@pytest.mark.parametrize(("ttl", "lives"), [(0, module.MIN_TTL_S), (60, 60), (1 << 30, module.MAX_TTL_S)])
async def test_an_answer_lives_as_long_as_its_addresses_may_be_reached(ttl: int, lives: int) -> None:
    async with resolving(allowing("a.example")) as under:
        under.upstream.lie = lambda query: [say(query, "198.51.100.7", ttl=ttl).to_wire()]
        answer = await under.ask("a.example")
        assert answer.answer[0].ttl == lives
        assert under.permitted == [("198.51.100.7", ((1, 65535),), float(lives))]


async def test_what_the_internet_would_not_say_is_not_told() -> None:
    """The nameservers are the host's, and may know a whole private network."""

    def chatty(query: Query) -> list[bytes]:
        rows = {"HTTPS": ("1 . alpn=h2 ipv4hint=10.0.0.1",), "SRV": ("0 0 443 db.internal.", "0 0 443 b.example.")}
        kind = dns.rdatatype.to_text(query.question[0].rdtype)
        reply = say(query, *rows.get(kind, ("198.51.100.7", "203.0.113.9")), kind=kind)
        reply.answer.insert(0, dns.rrset.from_text("other.example.", 60, "IN", "A", "203.0.113.66"))
        reply.authority.append(dns.rrset.from_text("corp.", 60, "IN", "SOA", "ns.corp. root.corp. 1 2 3 4 5"))
        reply.additional.append(dns.rrset.from_text("ns.corp.", 60, "IN", "A", "10.0.0.53"))
        return [reply.to_wire()]

    async with resolving() as under:
        under.resolver._near = lambda address: "the host's own" if str(address) == "203.0.113.9" else None
        under.upstream.lie = chatty
        for kind, told in (
            ("A", "a.example. 60 IN A 198.51.100.7"),
            ("HTTPS", 'a.example. 60 IN HTTPS 1 . alpn="h2"'),
            ("SRV", "a.example. 60 IN SRV 0 0 443 b.example."),
        ):
            answer = await under.ask("a.example", kind)
            assert [rrset.to_text() for rrset in answer.answer] == [told]
            assert (answer.authority, answer.additional) == ([], [])
        asked = len(under.upstream.asked)
        for name, kind in (
            ("1.0.0.10.in-addr.arpa", "PTR"),
            ("9.113.0.203.in-addr.arpa", "PTR"),  # the host's own
            ("_ldap._tcp.corp", "SRV"),
            ("a.internal", "TXT"),
            ("a.example", "ANY"),
            ("a.example", "SOA"),
        ):
            answer = await under.ask(name, kind)
            assert (answer.rcode(), answer.answer, answer.authority) == (dns.rcode.NOERROR, [], [])
        assert len(under.upstream.asked) == asked


async def test_a_name_of_the_hosts_own_address_has_none() -> None:
    for policy in (INTERNET, allowing("a.example"), allowing("a.example", "198.51.100.0/24")):
        async with resolving(policy) as under:
            under.resolver._near = lambda address: f"{address} is the host's own"
            assert not (await under.ask("a.example")).answer
            assert under.denied == [("a.example", "198.51.100.7 is the host's own")]
            assert not under.permitted
    async with resolving(allowing("a.example", "198.51.100.7")) as under:
        under.resolver._near = lambda address: f"{address} is the host's own"
        assert addresses(await under.ask("a.example")) == ["198.51.100.7"]


async def test_an_address_that_cannot_be_let_through_is_not_told() -> None:
    async def fail() -> None:
        raise LaunchFailed("no", step="network")

    async with resolving(allowing("a.example")) as under:
        under.before_permit = fail
        answer = await under.ask("a.example")
        assert (answer.rcode(), answer.answer) == (dns.rcode.SERVFAIL, [])


# --- what is asked


@pytest.mark.parametrize("kind", ["A", "AAAA", "TXT", "NULL", "ANY", "HTTPS", "MX"])
async def test_a_name_that_is_not_listed_never_leaves(kind: str) -> None:
    async with resolving(allowing("a.example", "*.below.example")) as under:
        for name in ("secret.attacker.example", "x.a.example", "below.example", "a.example.evil.example", "."):
            answer = await under.ask(name, kind)
            assert (answer.rcode(), answer.answer) == (dns.rcode.REFUSED, [])
        assert under.upstream.asked == []
        assert len(under.denied) == 5


@pytest.mark.parametrize("kind", ["TXT", "NULL", "ANY", "HTTPS", "MX", "CNAME", "SRV"])
async def test_of_a_listed_name_only_addresses_are_asked_for(kind: str) -> None:
    async with resolving(allowing("a.example")) as under:
        answer = await under.ask("A.example", kind)
        assert (answer.rcode(), answer.answer, under.upstream.asked) == (dns.rcode.NOERROR, [], [])


@pytest.mark.parametrize(
    "name",
    ["a.example\\000.b.example", "a\\.example", "a.example\\032", "\\255.a.example", "a.example\\046evil.example"],
)
async def test_labels_with_odd_bytes_match_no_entry(name: str) -> None:
    async with resolving(allowing("a.example", "b.example")) as under:
        assert (await under.ask(name)).rcode() == dns.rcode.REFUSED
        assert under.upstream.asked == []


async def test_a_list_that_changes_counts_from_the_next_question_on() -> None:
    async with resolving(allowing("a.example")) as under:
        assert addresses(await under.ask("a.example"))
        under.resolver.update(allowing("b.example"))
        assert (await under.ask("a.example")).rcode() == dns.rcode.REFUSED
        assert addresses(await under.ask("b.example"))


def malformed() -> list[bytes]:
    good = dns.message.make_query("a.example", "A").to_wire()
    two = dns.message.make_query("a.example", "A")
    two.question.append(two.question[0].copy())
    chaos = dns.message.make_query("version.bind", "TXT", "CH").to_wire()
    update = good[:2] + b"\x28" + good[3:]
    notify = good[:2] + b"\x20" + good[3:]
    answer = good[:2] + b"\x80" + good[3:]
    counted = good[:4] + b"\xff\xff" + good[6:]
    none = good[:4] + b"\0\0" + good[6:12]
    pointer = good[:12] + b"\xc0\x0c" + good[-4:]
    forward = good[:12] + b"\xc0\xff" + good[-4:]
    long_label = good[:12] + b"\x80" + good[13:]
    return [
        b"", b"\0", good[:11], good[:-1], good + b"x", two.to_wire(), chaos, update, notify, answer, counted, none,
        pointer, forward, long_label, good + b"\0" * 2000, b"\xff" * 1024,
    ]  # fmt: skip


async def test_malformed_questions_are_dropped_and_the_next_is_answered() -> None:
    async with resolving() as under:
        with trio.fail_after(30), trio.socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as link:
            await link.connect(under.address)
            for wire in malformed():
                await link.send(wire)
            last = dns.message.make_query("last.example", "A")
            await link.send(last.to_wire())
            assert dns.message.from_wire(await link.recv(65535)).id == last.id  # the first thing that comes back
        assert under.upstream.asked == ["last.example."]


async def test_malformed_questions_over_tcp_end_the_connection() -> None:
    async with resolving() as under:
        for wire in malformed():
            with trio.fail_after(30):
                async with await trio.open_tcp_stream(*under.address) as stream:
                    with contextlib.suppress(trio.BrokenResourceError):
                        await stream.send_all(struct.pack(">H", len(wire)) + wire)
                        assert await stream.receive_some() == b""
        assert addresses(await under.ask_over_tcp("a.example")) == ["198.51.100.7"]


async def test_a_flood_is_bounded_and_passes() -> None:
    async with resolving() as under:
        under.upstream.lie = lambda _: []
        wires = [dns.message.make_query(f"a{n}.example", "A").to_wire() for n in range(4 * MAX_QUESTIONS)]
        with trio.socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as link:
            await link.connect(under.address)
            for wire in wires:
                await link.send(wire)
            await trio.testing.wait_all_tasks_blocked(0.05)
            assert under.resolver._questions.borrowed_tokens == MAX_QUESTIONS
            assert len(under.upstream.asked) <= MAX_QUESTIONS
    async with resolving() as under:
        async with trio.open_nursery() as nursery:
            for n in range(MAX_QUESTIONS):
                nursery.start_soon(under.ask, f"a{n}.example")
        assert under.resolver._questions.borrowed_tokens == 0


@pytest.mark.usefixtures("impatient")
async def test_half_open_connections_are_bounded_and_given_up() -> None:
    async with resolving() as under, contextlib.AsyncExitStack() as stack:
        streams = []
        for n in range(MAX_CONNECTIONS):
            stream = await stack.enter_async_context(await trio.open_tcp_stream(*under.address))
            await stream.send_all([b"", b"\0", b"\0\x20", b"\0\x20half"][n % 4])
            streams.append(stream)
        with trio.fail_after(30):
            while under.resolver._connections < MAX_CONNECTIONS:  # noqa: ASYNC110 - nothing tells of it
                await trio.sleep(0.005)
            async with await trio.open_tcp_stream(*under.address) as late:
                with contextlib.suppress(trio.BrokenResourceError):
                    assert await late.receive_some() == b""
            for stream in streams:
                with contextlib.suppress(trio.BrokenResourceError):
                    assert await stream.receive_some() == b""
            while under.resolver._connections:  # noqa: ASYNC110 - nothing tells of it
                await trio.sleep(0.005)
        assert addresses(await under.ask_over_tcp("a.example")) == ["198.51.100.7"]


def test_nameservers_of_the_host(tmp_path: Any) -> None:
    path = tmp_path / "resolv.conf"
    path.write_text(
        "# nameserver 192.0.2.9\nnameserver 192.0.2.1\nnameserver fe80::1%eth0\nnameserver no\nnameserver\n"
    )
    assert host_nameservers(str(path)) == [("192.0.2.1", 53), ("fe80::1", 53)]
    assert host_nameservers(str(tmp_path / "none")) == []
    path.write_bytes(b"\xff\xfe")
    assert host_nameservers(str(path)) == []
