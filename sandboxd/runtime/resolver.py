"""A sandbox's questions about names, answered by the daemon on the sandbox's own loopback.

The launcher made the two sockets inside the sandbox's network namespace (127.0.0.53, port 53, UDP and TCP), so nothing
of the host has to be reachable for it, and nobody but that sandbox can ask.

    question ──▶ parsed (dnspython) ──▶ may it be asked? ──▶ upstream ──▶ may it be answered? ──▶ permit ──▶ answer

**What may be asked**: in the mode internet, records of the types that answering.py lists. With an allow list, A and
AAAA of listed names; another type of a listed name has no data, and every other name is refused without a word to
anybody, so that no name carries data out.

**What may be answered**: what hangs on the name that was asked for, and no address of the host's, a private network's
or a neighbour's, whatever the name (DNS rebinding), but where a listed network has it. With an allow list each address
is let through the rules for as long as the answer lives before the sandbox hears of it.

Everything of a sandbox is bounded: questions under way, connections, and how long each may take. What does not parse
is dropped. The questions that go out have random ids, come from a random port each, and only an answer from the server
that was asked, with that id and that question, is one.
"""

from __future__ import annotations

import dataclasses
import ipaddress
import logging
import secrets
import struct
from typing import TYPE_CHECKING, Any, Final

import dns.exception
import dns.flags
import dns.message
import dns.name
import dns.opcode
import dns.rcode
import dns.rdataclass
import dns.rrset
import trio

from ..allow import AllowList, forbidden
from ..errors import SandboxdError
from .answering import ADDRESSES, chain, rows_in_reach, why_not_asked
from .strangers import Lane

if TYPE_CHECKING:
    import socket
    from collections.abc import Awaitable, Callable, Sequence

    from ..allow import Address
    from .launcher import Permit

_log = logging.getLogger(__name__)

#: Questions of one sandbox under way at once; more are dropped, and asked again by whoever waits.
MAX_QUESTIONS: Final = 64
MAX_CONNECTIONS: Final = 16
#: A question that is longer is none (RFC 1035 has one name in it, EDNS some options).
MAX_QUESTION_BYTES: Final = 1024
#: Addresses of one answer; a name with more is given the first ones.
MAX_ADDRESSES: Final = 64
#: An answer lives so long, at least and at most: as long as its addresses may be reached, and no longer.
MIN_TTL_S: Final = 5
MAX_TTL_S: Final = 3600
UPSTREAM_TIMEOUT_S: Final = 3.0
TRIES: Final = 2
#: How long a connection may be silent, and a question on it take to arrive.
IDLE_TIMEOUT_S: Final = 10.0
#: Records behind a question: EDNS, and a signature.
MAX_ADDITIONAL: Final = 2
#: Records of an answer that are read; whoever owns a zone can pack thousands into one, each worth 100 microseconds.
MAX_RECORDS: Final = 128
_COUNTS: Final = struct.Struct(">6H")
_UDP_BYTES: Final = 1232  # what passes everywhere unfragmented (DNS flag day 2020)
_MAX_ANSWER_BYTES: Final = 65_535


@dataclasses.dataclass(frozen=True, slots=True)
class Policy:
    """What names a sandbox may ask for: `mode` is "internet" or "allowlist"."""

    mode: str
    allow: AllowList


class Resolver:
    """One sandbox's. Its owner runs `run`; the sockets are closed when that ends.

    Args:
        datagrams: a bound UDP socket, not blocking.
        listener: a TCP socket that listens, not blocking.
        policy: what may be asked.
        upstreams: whom to ask, as addresses and ports.
        permit: lets addresses be reached; a `SandboxdError` of it keeps the answer back.
        denied: told of a name that was refused, and why.
        near: why an address is the host's or its neighbours', or None.
    """

    def __init__(
        self,
        datagrams: socket.socket,
        listener: socket.socket,
        policy: Policy,
        upstreams: Sequence[tuple[str, int]],
        permit: Callable[[list[Permit]], Awaitable[None]],
        denied: Callable[[str, str], None],
        near: Callable[[Address], str | None] = lambda _: None,
    ) -> None:
        self._datagrams = trio.socket.from_stdlib_socket(datagrams)
        self._listener = trio.SocketListener(trio.socket.from_stdlib_socket(listener))
        self._policy = policy
        self._upstreams = tuple(upstreams)
        self._permit = permit
        self._denied = denied
        self._near = near
        self._questions = trio.CapacityLimiter(MAX_QUESTIONS)
        self._lane = Lane()
        self._connections = 0

    def update(self, policy: Policy) -> None:
        """Judge by another policy from now on."""
        self._policy = policy

    async def run(self) -> None:
        """Serve until cancelled."""
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._serve_datagrams, nursery)
                await trio.serve_listeners(self._serve_connection, [self._listener], handler_nursery=nursery)
        finally:
            self._datagrams.close()

    # --- how questions come -----------------------------------------------------------------------------

    async def _serve_datagrams(self, nursery: trio.Nursery) -> None:
        while True:
            try:
                data, sender = await self._datagrams.recvfrom(MAX_QUESTION_BYTES + 1)
            except OSError:
                await trio.sleep(0.01)  # an ICMP error of an earlier answer, or no memory
                continue
            if self._questions.available_tokens > 0 and len(data) <= MAX_QUESTION_BYTES:
                token = object()
                self._questions.acquire_on_behalf_of_nowait(token)
                nursery.start_soon(self._answer_datagram, data, sender, token)

    async def _answer_datagram(self, data: bytes, sender: Any, token: object) -> None:  # noqa: ANN401 - an address
        try:
            await self._lane.wait()  # one question a round of the loop, however many have come
            question = parse(data)
            if question is None:
                return
            answer = await self._answer(question)
            room = max(512, min(question.payload, _UDP_BYTES))
            wire = pack(answer, room)
            try:
                await self._datagrams.sendto(wire, sender)
            except OSError:
                return  # it has closed its socket
        finally:
            self._questions.release_on_behalf_of(token)

    async def _serve_connection(self, stream: trio.SocketStream) -> None:
        async with stream:
            if self._connections >= MAX_CONNECTIONS:
                return
            self._connections += 1
            try:
                while True:
                    with trio.fail_after(IDLE_TIMEOUT_S):
                        data = await _receive_framed(stream, MAX_QUESTION_BYTES)
                    await self._lane.wait()
                    question = parse(data) if data else None
                    if question is None:
                        return
                    async with self._questions:
                        answer = await self._answer(question)
                    with trio.fail_after(IDLE_TIMEOUT_S):
                        wire = pack(answer, _MAX_ANSWER_BYTES)
                        await stream.send_all(struct.pack(">H", len(wire)) + wire)
            except (trio.TooSlowError, trio.BrokenResourceError, trio.ClosedResourceError):
                return
            finally:
                self._connections -= 1

    # --- what they are answered with --------------------------------------------------------------------

    async def _answer(self, question: dns.message.QueryMessage) -> dns.message.Message:
        try:
            return await self._answered(question)
        except Exception:  # a bug, or a message that the parser let through: this question's affair alone
            _log.exception("Cannot answer a question about a name")
            return _reply(question, dns.rcode.SERVFAIL)

    async def _answered(self, question: dns.message.QueryMessage) -> dns.message.Message:
        asked = question.question[0]
        name, policy = asked.name.to_text(omit_final_dot=True).lower(), self._policy
        ports: tuple[tuple[int, int], ...] = ()
        if policy.mode == "allowlist":
            found = policy.allow.matches(name)
            if found is None:
                self._denied(name, "it is not on the allow list")
                return _reply(question, dns.rcode.REFUSED)
            if asked.rdtype not in ADDRESSES:
                return _reply(question, dns.rcode.NOERROR)
            ports = found
        elif (why := why_not_asked(asked.name, asked.rdtype, self._out_of_reach(policy))) is not None:
            if why:
                self._denied(name, why)
            return _reply(question, dns.rcode.NOERROR)
        answer = await self._ask(asked)
        if answer is None:
            return _reply(question, dns.rcode.SERVFAIL)
        sections = self._judged(name, asked, answer, policy)
        if policy.mode == "allowlist":
            items = [
                (row.address, ports, float(rrset.ttl)) for rrset in sections for row in rrset if _is_address(rrset)
            ]
            try:
                if items:
                    await self._permit(items)
            except SandboxdError as error:
                _log.warning("Cannot let a sandbox reach %s: %s", name, error)
                return _reply(question, dns.rcode.SERVFAIL)
        reply = _reply(question, answer.rcode())
        reply.answer = sections
        return reply

    def _judged(
        self, name: str, asked: dns.rrset.RRset, answer: dns.message.Message, policy: Policy
    ) -> list[dns.rrset.RRset]:
        """Return the answer's records that the sandbox may have, their time clamped."""
        kept, refused = rows_in_reach(chain(asked, answer.answer), self._out_of_reach(policy), MAX_ADDRESSES)
        if refused and not kept:
            self._denied(name, refused)
        return [
            dns.rrset.from_rdata_list(rrset.name, min(MAX_TTL_S, max(MIN_TTL_S, rrset.ttl)), rows)
            for rrset, rows in kept
        ]

    def _out_of_reach(self, policy: Policy) -> Callable[[Address], str | None]:
        def why(address: Address) -> str | None:
            return None if policy.allow.lists(address) else forbidden(address) or self._near(address)

        return why

    # --- upstream ---------------------------------------------------------------------------------------

    async def _ask(self, asked: dns.rrset.RRset) -> dns.message.Message | None:
        """Ask the nameservers in turn; None when none of them answers with sense."""
        query = dns.message.make_query(asked.name, asked.rdtype, use_edns=0, payload=_UDP_BYTES)
        for _ in range(TRIES):
            for upstream in self._upstreams:
                query.id = secrets.randbelow(1 << 16)
                with trio.move_on_after(UPSTREAM_TIMEOUT_S):
                    try:
                        answer = await _ask_by_datagram(query, upstream, self._lane)
                        if answer.flags & dns.flags.TC:
                            answer = await _ask_by_stream(query, upstream, self._lane)
                    except (OSError, dns.exception.DNSException, trio.BrokenResourceError, ValueError):
                        continue
                    if answer.rcode() in (dns.rcode.NOERROR, dns.rcode.NXDOMAIN):
                        return answer
        return None


async def _ask_by_datagram(query: dns.message.Message, upstream: tuple[str, int], lane: Lane) -> dns.message.Message:
    family = trio.socket.AF_INET6 if ":" in upstream[0] else trio.socket.AF_INET
    # Connected: the kernel takes datagrams of that server alone, and chooses a random port.
    with trio.socket.socket(family, trio.socket.SOCK_DGRAM) as link:
        await link.connect(upstream)
        await link.send(query.to_wire())
        while True:
            found = await link.recv(_MAX_ANSWER_BYTES)
            await lane.wait()
            answer = _sensible(query, found)
            if answer is not None:
                return answer


async def _ask_by_stream(query: dns.message.Message, upstream: tuple[str, int], lane: Lane) -> dns.message.Message:
    async with await trio.open_tcp_stream(*upstream) as stream:
        wire = query.to_wire()
        await stream.send_all(struct.pack(">H", len(wire)) + wire)
        found = await _receive_framed(stream, _MAX_ANSWER_BYTES) or b""
        await lane.wait()
        answer = _sensible(query, found)
        if answer is None:
            raise ValueError("an answer to something else")
        return answer


def _sensible(query: dns.message.Message, wire: bytes) -> dns.message.Message | None:
    """Return the answer if it is one to this query."""
    try:
        answer = dns.message.from_wire(_first_records(wire), ignore_trailing=True, raise_on_truncation=False)
    except (dns.exception.DNSException, ValueError, IndexError, struct.error):
        return None
    return answer if query.is_response(answer) else None


def _first_records(wire: bytes) -> bytes:
    """Return the message with its first `MAX_RECORDS` records alone.

    Raises:
        ValueError, IndexError, struct.error: it is none.
    """
    counts = list(_COUNTS.unpack_from(wire))
    if sum(counts[3:]) <= MAX_RECORDS:
        return wire
    if counts[2] != 1:
        raise ValueError("an answer to more than one question")
    at, left = _skip_name(wire, _COUNTS.size) + 4, MAX_RECORDS
    for section in (3, 4, 5):
        counts[section] = min(counts[section], left)
        left -= counts[section]
        for _ in range(counts[section]):
            at = _skip_name(wire, at)
            at += 10 + struct.unpack_from(">H", wire, at + 8)[0]  # type, class, TTL, the length of what follows
    return _COUNTS.pack(*counts) + wire[_COUNTS.size : at]


def _skip_name(wire: bytes, at: int) -> int:
    """Return where a name ends (RFC 1035, 4.1.4)."""
    while 0 < (size := wire[at]) < 0xC0:
        at += 1 + size
    return at + (2 if size else 1)


async def _receive_framed(stream: trio.SocketStream, limit: int) -> bytes | None:
    """Return one message of TCP's framing (RFC 1035, 4.2.2); None at the end, or when it is over the limit."""
    head = await _receive_exactly(stream, 2)
    if head is None:
        return None
    length = struct.unpack(">H", head)[0]
    return await _receive_exactly(stream, length) if 0 < length <= limit else None


async def _receive_exactly(stream: trio.SocketStream, count: int) -> bytes | None:
    data = b""
    while len(data) < count:
        piece = await stream.receive_some(count - len(data))
        if not piece:
            return None
        data += piece
    return data


# --- messages -------------------------------------------------------------------------------------------


def parse(wire: bytes) -> dns.message.QueryMessage | None:
    """Return a question of one name of the internet; None for all else, which has no answer."""
    if not _is_one_question(wire):
        return None
    try:
        message = dns.message.from_wire(wire)
    except (dns.exception.DNSException, ValueError):
        return None
    if not isinstance(message, dns.message.QueryMessage) or message.flags & dns.flags.QR:
        return None
    if message.opcode() != dns.opcode.QUERY or len(message.question) != 1:
        return None
    return message if message.question[0].rdclass == dns.rdataclass.IN else None


def _is_one_question(wire: bytes) -> bool:
    """Look at the counts alone: dnspython reads all the records that a stranger packed into his question."""
    if len(wire) < _COUNTS.size:
        return False
    _, flags, questions, answers, authority, additional = _COUNTS.unpack_from(wire)
    return not flags & dns.flags.QR and (questions, answers, authority) == (1, 0, 0) and additional <= MAX_ADDITIONAL


def pack(message: dns.message.Message, room: int) -> bytes:
    """Return the message in at most `room` bytes; what does not fit is asked for again over TCP."""
    try:
        return message.to_wire(max_size=room)
    except dns.exception.TooBig:
        message.answer, message.authority, message.additional = [], [], []
        message.flags |= dns.flags.TC
        return message.to_wire(max_size=_MAX_ANSWER_BYTES)


def host_nameservers(path: str = "/etc/resolv.conf") -> list[tuple[str, int]]:
    """Return the nameservers that a resolv.conf names; none where it cannot be read."""
    found = []
    try:
        with open(path) as file:
            lines = file.read(65_536).splitlines()
    except (OSError, ValueError):
        return []
    for line in lines:
        words = line.split()
        if len(words) >= 2 and words[0] == "nameserver":
            try:
                found.append((str(ipaddress.ip_address(words[1].partition("%")[0])), 53))
            except ValueError:
                continue
    return found


def _reply(question: dns.message.Message, code: dns.rcode.Rcode) -> dns.message.Message:
    reply = dns.message.make_response(question, recursion_available=True)
    reply.set_rcode(code)
    return reply


def _is_address(rrset: dns.rrset.RRset) -> bool:
    return rrset.rdtype in ADDRESSES
