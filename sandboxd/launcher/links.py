"""Sandboxes' networks: the process that makes links and rules (templates/network), its orders and its ends.

The launcher decides: which addresses a sandbox has (by the number of its range, which nothing else on the host has),
and what its rules say. It holds the whole state, so a process that ends is started anew and told everything again; the
rules in the kernel stay meanwhile, and what they do not let pass does not pass. It opens a sandbox's network namespace
and makes the one socket of rtnetlink in it that the process needs: that holds CAP_NET_ADMIN, and nothing to enter with.

The process is started for the first sandbox that has a network. Its table goes with the last one, itself some minutes
later: loading it takes a part of a second.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import hashlib
import ipaddress
import logging
import os
import selectors
import signal
import socket
import time
from collections.abc import Callable
from typing import Any, Final

import msgpack

from ..allow import FORBIDDEN_4, FORBIDDEN_6, AllowList, forbidden
from ..errors import InvalidRequest, NetworkUnavailable, SandboxdError
from ..linux.kernel import CLONE_NEWIPC, CLONE_NEWNET, CLONE_NEWNS, CLONE_NEWUTS, Kernel
from ..network import NetworkSpec
from . import template_start
from .settings import Settings
from .template_start import Start

log = logging.getLogger("sandboxd.launcher")

#: CAP_NET_ADMIN.
_CAPABILITIES: Final = 1 << 12
_NAMESPACES: Final = CLONE_NEWNS | CLONE_NEWIPC | CLONE_NEWUTS
#: Loading pyroute2 takes a part of a second, an order some milliseconds; both on a machine that is busy with others.
_START_TIMEOUT_S: Final = 30.0
_ORDER_TIMEOUT_S: Final = 30.0
#: How long after one that failed the next is started.
_REST_S: Final = 1.0
#: How long one that has nothing to do is kept; it holds some 30 MiB.
_IDLE_S: Final = 300.0
_ANSWER_BYTES: Final = 16 * 1024
#: Addresses of one answer, and for how long.
_MAX_ITEMS: Final = 64
_MAX_TTL_S: Final = 3600.0
#: Ranges of ports in one answer, so that it fits into one message.
_MAX_RANGES: Final = 4096
_FORWARDING: Final = {4: "/proc/sys/net/ipv4/ip_forward", 6: "/proc/sys/net/ipv6/conf/all/forwarding"}

Done = Callable[[SandboxdError | None], None]


@dataclasses.dataclass(slots=True)
class _Link:
    """A sandbox's network; `attached` once the process has made it."""

    id: str
    index: int
    pid: int
    spec: NetworkSpec
    generation: int = 1
    attached: bool = False


@dataclasses.dataclass(slots=True)
class _Order:
    """What is asked of the process; `fds` are ours until it was sent."""

    operation: str
    params: dict[str, Any]
    fds: list[int]
    done: Done
    deadline: float = 0.0


class Links:
    """Every network that this launcher's sandboxes have."""

    def __init__(
        self,
        selector: selectors.BaseSelector,
        settings: Settings,
        kernel: Kernel,
        denied: Callable[[dict[str, Any]], None],
    ) -> None:
        self._selector = selector
        self._settings = settings
        self._kernel = kernel
        self._denied = denied
        self._links: dict[str, _Link] = {}
        self._detaching: dict[str, list[Done]] = {}
        self._connection: socket.socket | None = None
        self._pidfd = -1
        self._is_ready = False
        self._has_table = False
        self._started_at = 0.0
        self._failed_at = -_REST_S
        self._idle_at = 0.0
        self._sequence = 0
        self._waiting: collections.deque[_Order] = collections.deque()
        self._sent: dict[int, _Order] = {}
        self._own = os.open("/proc/self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        mark = settings.cgroup_name.rpartition("-")[2]
        self._table, self._prefix = f"sandboxd_{mark}", f"sd{mark[:6]}-"
        self._group = int(mark[:4], 16) | 1

    def __contains__(self, sandbox_id: object) -> bool:
        return sandbox_id in self._links or sandbox_id in self._detaching

    # --- what the rest of the launcher asks ---

    def check(self, spec: NetworkSpec) -> NetworkSpec:
        """Return `spec` with the configuration's values where it says nothing.

        Raises:
            InvalidRequest: they do not go together.
            NetworkUnavailable: this host does not forward packets.
        """
        mode = spec.mode or ("allowlist" if spec.allow else self._settings.network)
        found = dataclasses.replace(spec, mode=mode)
        if found.has_link:
            if not _is_on(_FORWARDING[4]):
                raise NetworkUnavailable(
                    f"cannot give network mode {mode}: this host does not forward packets",
                    mode=mode,
                    remedy="sysctl -w net.ipv4.ip_forward=1 (the operator's decision: it concerns the whole host)",
                )
            if found.connections is None:
                found = dataclasses.replace(found, connections=self._settings.network_connections)
        return found

    def attach(self, sandbox_id: str, index: int, pid: int, spec: NetworkSpec, done: Done) -> None:
        """Make a sandbox's link and rules; `pid` is in its network namespace.

        Raises:
            OSError: it has ended.
        """
        link = _Link(sandbox_id, index, pid, spec)
        fds = self._enter(pid)
        self._links[sandbox_id] = link

        def attached(error: SandboxdError | None) -> None:
            link.attached = error is None
            done(error)

        self._ask("attach", self._state(link), fds, attached)

    def adopt(self, sandbox_id: str, index: int, pid: int, spec: NetworkSpec, generation: int) -> None:
        """Take over the network of a sandbox that an earlier launcher made."""
        link = _Link(sandbox_id, index, pid, spec, generation, attached=True)
        self._links[sandbox_id] = link
        if self._has_table:
            self._ask("adopt", self._state(link), [], _ignore)
        else:
            self._start_if_needed()  # what begins is told all that there is

    def sweep(self, sandbox_id: str, index: int) -> None:
        """Know of a network whose sandbox is dead: `detach` takes it away."""
        self._links[sandbox_id] = _Link(sandbox_id, index, 0, NetworkSpec(mode="none"))

    def detach(self, sandbox_id: str, done: Done) -> None:
        """Take a sandbox's link and rules away; no error where it has none."""
        if sandbox_id in self._detaching:
            self._detaching[sandbox_id].append(done)
            return
        link = self._links.get(sandbox_id)
        if link is None:
            done(None)
            return
        self._detaching[sandbox_id] = [done]

        def detached(error: SandboxdError | None) -> None:
            if error is None:
                self._links.pop(sandbox_id, None)
            for callback in self._detaching.pop(sandbox_id):
                callback(error)
            if not self._links and not self._waiting and not self._sent:
                self._ask("end", {}, [], _ignore)

        self._ask("detach", {"id": sandbox_id, "name": self._name(link.index)}, [], detached)

    def change(self, sandbox_id: str, spec: NetworkSpec, done: Done) -> None:
        """Give a sandbox that has a network other rules.

        Raises:
            OSError: it has ended.
        """
        link = self._links[sandbox_id]
        fds = self._enter(link.pid)
        before = link.spec, link.generation
        link.spec, link.generation = spec, link.generation + 1

        def changed(error: SandboxdError | None) -> None:
            if error:
                link.spec, link.generation = before
            done(error)

        self._ask("change", self._state(link), fds, changed)

    def permit(self, sandbox_id: str, items: object, done: Done) -> None:
        """Let addresses that a name was answered with be reached: [address, [[first port, last port]], seconds].

        Raises:
            InvalidRequest: they are none, or never to be reached but where they are listed.
        """
        link = self._links.get(sandbox_id)
        if link is None or link.spec.mode != "allowlist":
            done(None)
            return
        self._ask("permit", {"id": sandbox_id, "items": _checked(items, link.spec.allow_list)}, [], done)

    def close(self) -> None:
        """Let the process end; the rules stay."""
        self._drop("the launcher ends")

    @property
    def wait_s(self) -> float | None:
        """How long the loop may sleep before `advance` is due."""
        due = self._due()
        return None if due is None else max(0.0, due - time.monotonic())

    def advance(self) -> None:
        """End a process that does not answer, and start it again where sandboxes need it."""
        due = self._due()
        if due is None or time.monotonic() < due:
            return
        if self._connection is None:
            self._start_if_needed()
        elif self._is_idle:
            self._drop("")
        else:
            self._drop("it does not answer")

    def _due(self) -> float | None:
        if self._connection is None:
            # Without it, what names were answered with would not lapse.
            wanted = self._waiting or any(link.attached for link in self._links.values())
            return self._failed_at + _REST_S if wanted else None
        if self._is_idle:
            return self._idle_at + _IDLE_S
        if not self._is_ready:
            return self._started_at + _START_TIMEOUT_S
        return min((order.deadline for order in self._sent.values()), default=None)

    @property
    def _is_idle(self) -> bool:
        return self._is_ready and not (self._links or self._waiting or self._sent)

    # --- state ---

    def _name(self, index: int) -> str:
        return f"{self._prefix}{index:x}"

    def _state(self, link: _Link) -> dict[str, Any]:
        networks = [
            [str(network), low, high]
            for network, (low, high) in (link.spec.allow_list.networks if link.spec.mode == "allowlist" else ())
        ]
        pool_6 = self._pool_6()
        return {
            "id": link.id,
            "index": link.index,
            "name": self._name(link.index),
            "mode": link.spec.mode,
            "address_4": _address(self._settings.network_ipv4, link.index),
            "address_6": _address(pool_6, link.index) if pool_6 else None,
            "networks": networks,
            "receive_bytes_per_s": link.spec.receive_bytes_per_s,
            "send_bytes_per_s": link.spec.send_bytes_per_s,
            "connections": link.spec.connections,
            "generation": _mark(link),
        }

    def _pool_6(self) -> str | None:
        """Return the pool of IPv6 where this host forwards IPv6, else None: sandboxes then have none of it."""
        return self._settings.network_ipv6 if _is_on(_FORWARDING[6]) else None

    def _enter(self, pid: int) -> list[int]:
        """Return a descriptor of a process' network namespace, and of a socket of rtnetlink in it."""
        namespace = self._kernel.open(f"/proc/{pid}/ns/net", os.O_RDONLY)
        try:
            self._kernel.setns(namespace, CLONE_NEWNET)
            try:
                inside = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.NETLINK_ROUTE)
            finally:
                try:
                    self._kernel.setns(self._own, CLONE_NEWNET)
                except OSError:
                    os.abort()  # all that it did next would be done there
        except BaseException:
            os.close(namespace)
            raise
        return [namespace, inside.detach()]

    # --- the process ---

    def _ask(self, operation: str, params: dict[str, Any], fds: list[int], done: Done) -> None:
        self._waiting.append(_Order(operation, params, fds, done))
        self._start_if_needed()
        self._send_orders()

    def _start_if_needed(self) -> None:
        """Start it, but not at once after one that failed: `advance` does then."""
        if self._connection is not None or time.monotonic() < self._failed_at + _REST_S:
            return
        try:
            self._start()
        except OSError as error:
            self._failed_at = time.monotonic()
            self._fail_all(f"cannot start the process that makes links: {error}")

    def _start(self) -> None:
        self._started_at = time.monotonic()
        argv = (template_start.INTERPRETER, "-I", "-B", "-m", "sandboxd.templates.network")
        start = Start(
            argv=argv,
            tree=None,
            folders=template_start.host_folders(),
            stage=self._settings.stage_dir,
            filters=(),
            capabilities=_CAPABILITIES,
            namespaces=_NAMESPACES,
        )
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            pid, self._pidfd = self._kernel.clone3(0)
            if pid == 0:
                template_start.run(self._kernel, start, theirs.fileno(), lambda *what: _tell(theirs, *what))
        except BaseException:
            ours.close()
            raise
        finally:
            theirs.close()
        ours.setblocking(False)
        self._connection, self._is_ready = ours, False
        self._selector.register(ours, selectors.EVENT_READ, self._on_answer)

    def _begin(self) -> None:
        """Tell the process everything there is, before what is asked."""
        self._has_table = True
        host = {
            "table": self._table,
            "prefix": self._prefix,
            "pool_4": self._settings.network_ipv4,
            "pool_6": self._pool_6(),
            "group": self._group,
            "forbidden_4": [str(network) for network in FORBIDDEN_4],
            "forbidden_6": [str(network) for network in FORBIDDEN_6],
        }
        asked = list(self._waiting)
        self._waiting.clear()
        self._waiting.append(_Order("begin", host, [], _or_log("begin")))
        for link in self._links.values():
            if link.attached and link.spec.has_link:
                self._waiting.append(_Order("adopt", self._state(link), [], _or_log(f"adopt {link.id}")))
        self._waiting.extend(asked)

    def _send_orders(self) -> None:
        while self._is_ready and self._waiting and self._connection is not None:
            if not self._has_table:
                self._begin()
            order = self._waiting[0]
            self._sequence += 1
            message = msgpack.packb([self._sequence, order.operation, order.params])
            try:
                socket.send_fds(self._connection, [message], order.fds)
            except BlockingIOError:
                self._sequence -= 1
                return  # its answers will wake us
            except OSError as error:
                self._drop(str(error))
                return
            self._waiting.popleft()
            _close(order.fds)
            order.deadline = time.monotonic() + _ORDER_TIMEOUT_S
            self._sent[self._sequence] = order
            if order.operation == "end":
                self._has_table = False
                self._idle_at = time.monotonic()

    def _on_answer(self) -> None:
        assert self._connection is not None  # noqa: S101 - registered with it
        try:
            answer = self._connection.recv(_ANSWER_BYTES)
        except BlockingIOError:
            return
        except OSError:
            answer = b""
        if not answer:
            self._drop("it ended")
        elif answer == b"ready" and not self._is_ready:
            self._is_ready = True
            self._begin()
            self._send_orders()
        elif not self._is_ready:
            self._drop(answer.decode(errors="replace")[:300])
        else:
            self._take(answer)
            self._send_orders()

    def _take(self, answer: bytes) -> None:
        try:
            sequence, told, *facts = msgpack.unpackb(answer)
            order = None if sequence == 0 else self._sent.pop(sequence, None)
            attempt = dict(facts[0]) if sequence == 0 else {}
        except (ValueError, TypeError, IndexError, msgpack.UnpackException):
            # It reads what sandboxes sent, so it may be taken over; it must not take the launcher with it.
            self._drop("it sent nonsense")
            return
        if attempt:
            self._denied(attempt)
        elif order is not None:
            why = f"cannot {order.operation} a network: {str(told)[:400]}"
            order.done(NetworkUnavailable(why) if told else None)

    def _drop(self, why: str) -> None:
        """Let go of the process; what was asked of it fails."""
        if self._connection is None:
            return
        if why:
            self._failed_at = time.monotonic()
            log.warning("The process that makes links is let go: %s", why)
        self._selector.unregister(self._connection)
        self._connection.close()
        self._connection, self._is_ready, self._has_table = None, False, False
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)
        with contextlib.suppress(ChildProcessError):
            os.waitid(os.P_PIDFD, self._pidfd, os.WEXITED)
        os.close(self._pidfd)
        self._pidfd = -1
        self._fail_all(why or "it was let go")

    def _fail_all(self, why: str) -> None:
        orders = [*self._sent.values(), *self._waiting]
        self._sent.clear()
        self._waiting.clear()
        for order in orders:
            _close(order.fds)
            order.done(NetworkUnavailable(f"cannot {order.operation} a network: {why}"))


def _checked(items: object, allow: AllowList) -> list[Any]:
    """Check what the daemon says of answers: it may have been taken over, and never opens what no list names."""
    found: list[tuple[str, list[list[int]], float]] = []
    try:
        for address, ranges, ttl_s in items:  # type: ignore[attr-defined]
            plain = ipaddress.ip_address(address)
            why = forbidden(plain)
            if why and not allow.lists(plain):
                raise InvalidRequest(f"cannot permit an address: {why}", field="items")
            pairs = [[int(low), int(high)] for low, high in ranges]
            if not all(1 <= low <= high <= 65_535 for low, high in pairs) or not 0 < float(ttl_s) <= _MAX_TTL_S:
                raise ValueError
            found.append((str(plain), pairs, float(ttl_s)))
    except (TypeError, ValueError):
        raise InvalidRequest("cannot permit addresses: they are none", field="items") from None
    if len(found) > _MAX_ITEMS or sum(len(pairs) for _, pairs, _ in found) > _MAX_RANGES:
        raise InvalidRequest(
            f"cannot permit addresses: {_MAX_ITEMS} at once, and {_MAX_RANGES} ranges of ports", field="items"
        )
    return found


def _address(pool: str, index: int) -> str:
    """Return the address of a range's number; the pool's first one is nobody's."""
    network = ipaddress.ip_network(pool)
    if index + 1 >= network.num_addresses:
        raise NetworkUnavailable(f"cannot give an address: {pool} has too few", pool=pool)
    return str(network[index + 1])


def _mark(link: _Link) -> int:
    """Return what marks the connections of a sandbox' present allow list; never 0, which is that of all others.

    It is of the sandbox's own id too: connection tracking remembers for days what a dead sandbox had open, and the next
    one with its address must not go on with that.
    """
    digest = hashlib.sha256(f"{link.id}.{link.generation}".encode()).digest()
    return int.from_bytes(digest[:4], "big") or 1


def _is_on(path: str) -> bool:
    try:
        with open(path) as file:
            return file.read().strip() != "0"
    except OSError:
        return False


def _or_log(what: str) -> Done:
    def done(error: SandboxdError | None) -> None:
        if error:
            log.error("Cannot %s the network: %s", what, error)

    return done


def _ignore(error: SandboxdError | None) -> None:
    """Nobody waits for it; what failed is logged."""
    if error:
        log.error("%s", error)


def _tell(connection: socket.socket, step: str, error: OSError) -> None:
    with contextlib.suppress(OSError):
        connection.send(f"step {step}: {error}".encode()[:300])


def _close(fds: list[int]) -> None:
    while fds:
        os.close(fds.pop())
