"""What the process does: orders in batches, what lapses, and what was denied (see the package's theory of operation).

It waits in one loop (`linux/eventloop.py`). Orders come last in a turn, after what changed in the host's network.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import socket
import time
from collections.abc import Callable
from typing import Any, Final

import msgpack

from ..linux.eventloop import READ, Alarm, EventLoop, is_readable
from . import nft, rules, veth
from .answers import Answers
from .denied import Attempt, Log
from .guard import Guard
from .netlink import Netlink
from .state import Host, State
from .veth import Places
from .watch import Change, HostNetwork, Watch, facts_of

#: The launcher's end.
SOCKET_FD: Final = 3
MAX_MESSAGE_BYTES: Final = 128 * 1024
_MAX_FDS: Final = 4
#: Orders that one call of nft serves.
_BATCH: Final = 64
#: Addresses that were denied and are told at once; the rules tell none of them twice in ten seconds.
_TOLD_AT_ONCE: Final = 64
#: Lapsed answers are looked for this often at most.
_LAPSE_S: Final = 1.0
#: Sandboxes whose rules were refused that the launcher is told of, so that they fit into one message.
_LEFT_OUT: Final = 64
#: How soon it is tried again to make what the host took away.
_HEAL_S: Final = 1.0


@dataclasses.dataclass(slots=True)
class _Taken:
    """An order of a batch: what its part of the rules is, why it failed, and the sandbox that it is to admit."""

    sequence: int
    commands: str = ""
    error: str = ""
    admitted: str = ""


class Server:
    """Serves the launcher until it is gone."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._places: Places | None = None
        self._remote: nft.Remote | None = None
        self._log_socket: socket.socket | None = None
        self._log: Log | None = None
        self._host: Host | None = None
        self._guard: Guard | None = None
        self._watch: Watch | None = None
        self._facts = HostNetwork()
        self._loop = EventLoop()
        self._healing = Alarm(self._loop, self._heal)
        self._lapsing = Alarm(self._loop, self._lapse)
        self._lapse_at = 0.0
        self._is_over = False
        self._states: dict[str, State] = {}
        self._by_address: dict[str, str] = {}
        self._answers: dict[str, Answers] = {}
        self._limits: set[int] = set()  # chains for connections that the table has

    def run(self) -> None:
        """Serve; returns when it is time to end."""
        self._loop.open()
        self._loop.watch(self._connection.fileno(), READ, lambda: self._loop.defer(self._on_orders))
        while not self._is_over:
            self._loop.turn()
        self._loop.close()

    # --- orders ---

    def _on_orders(self) -> None:
        self._is_over = not self._serve()

    def _serve(self) -> bool:
        """Take what waits, and answer; False when it is time to end: the launcher is gone, or knows better."""
        batch: list[_Taken] = []
        while len(batch) < _BATCH and is_readable(self._connection.fileno()):
            message, fds, _, _ = socket.recv_fds(self._connection, MAX_MESSAGE_BYTES, _MAX_FDS)
            if not message:
                return False
            sequence, operation, params = msgpack.unpackb(message)
            if operation in ("router", "begin", "end"):
                # Each is a transaction of its own, and what was asked before comes before.
                agreed = self._commit(batch) and self._do_alone(sequence, operation, params, fds)
                batch = []
                if not agreed:
                    return False
                continue
            batch.append(self._take_order(sequence, operation, params, fds))
        return self._commit(batch)

    def _take_order(self, sequence: int, operation: str, params: dict[str, Any], fds: list[int]) -> _Taken:
        taken = _Taken(sequence, admitted=params["id"] if operation == "attach" else "")
        try:
            taken.commands = self._prepare(operation, params, fds)
        except (OSError, KeyError, ValueError) as error:
            taken.error = str(error) or type(error).__name__
        finally:
            _close(fds)
        return taken

    def _commit(self, batch: list[_Taken]) -> bool:
        """Bring a batch into force and answer it; False when the kernel has not what this process thinks it has."""
        agreed = True
        self._guarded(Guard.open)
        failure = self._nft("".join(taken.commands for taken in batch))
        for taken in batch:
            refused = ""
            if failure and taken.commands:
                # One that is wrong takes the others of its batch with it; each has its own chance then.
                refused = self._nft(taken.commands) if len(batch) > 1 else failure
                if refused and taken.admitted:
                    self._forget(taken.admitted)  # its rules are not there, so none are to be taken back
                elif refused:
                    agreed = False
            self._send([taken.sequence, refused or taken.error or None])
        self._guarded(Guard.close)
        # What the kernel refused is not there as it is here. The launcher knows what should be, and starts another
        # process, which makes all of it anew.
        return agreed

    def _guarded(self, act: Callable[[Guard], str]) -> None:
        """Change the host's table; where it is not what it should be, since somebody flushed it, it is made anew."""
        if self._guard is not None and act(self._guard):
            self._healing.after(0)

    def _do_alone(self, sequence: int, operation: str, params: dict[str, Any], fds: list[int]) -> bool:
        acts: dict[str, Callable[[], list[str]]] = {
            "router": lambda: self._take_router(fds),
            "begin": lambda: self._begin(Host.from_message(params), fds[0]),
            "end": self._end,
        }
        try:
            left_out = acts[operation]()
        except (OSError, ValueError, KeyError, IndexError) as error:
            self._send([sequence, str(error) or type(error).__name__])
            return False
        finally:
            if operation != "router":
                _close(fds)
        self._send([sequence, None, left_out[:_LEFT_OUT]])
        return True

    def _send(self, message: list[Any]) -> None:
        self._connection.send(msgpack.packb(message))

    def _prepare(self, operation: str, params: dict[str, Any], fds: list[int]) -> str:
        """Do an order's part with the veths, and return the commands of its part with the rules."""
        if operation == "detach":
            return self._detach(params)
        if operation == "permit":
            return self._permit(params["id"], params["items"])
        state = State.from_message(params)
        places, guard = self._need_places(), self._need_guard()
        if operation == "attach":
            with Netlink(os.dup(fds[1])) as inside:
                veth.attach(places, guard.uplink, state, fds[0], inside)
            known = self._forget(state.id)  # of an attempt whose answer was lost
            return (rules.expel(self._need_host(), known) if known else "") + self._admit(state)
        if operation == "change":
            with Netlink(os.dup(fds[1])) as inside:
                veth.limit(places.router, inside, state)
            before = self._forget(state.id)
            return (rules.expel(self._need_host(), before) if before else "") + self._admit(state)
        raise ValueError(f"no such operation: {operation}")

    def _take_router(self, fds: list[int]) -> list[str]:
        """Take what acts in the router: rtnetlink, netfilter's log, a descriptor of it, and a process that runs nft."""
        rtnetlink, log, namespace, remote = fds
        self._places = Places(Netlink(), Netlink(rtnetlink), namespace)
        self._log_socket = socket.socket(fileno=log)
        self._remote = nft.Remote(socket.socket(fileno=remote))
        return []

    def _begin(self, host: Host, fd: int) -> list[str]:
        """Make everything anew, the rules of all sandboxes in one transaction; return whose were refused."""
        places, remote = self._need_places(), self._need_remote()
        states = [State.from_message(given) for given in msgpack.unpackb(_read(fd))]
        self._guard = None
        for sandbox_id in list(self._states):
            self._forget(sandbox_id)
        self._limits.clear()
        self._host, self._guard = host, Guard(host, places)
        self._listen(host)
        self._facts = facts_of(places.host.routes(), self._index_of_uplink())
        left_out = []
        if remote.run(rules.table(host, self._facts) + "".join(map(self._admit_plainly, states))):
            left_out = self._begin_one_by_one(states)
        # The rules are there: only now is there a way out, and do veths come that an earlier version made.
        veth.fetch(places, states)
        if refused := self._restore():
            raise ValueError(refused)
        return left_out

    def _listen(self, host: Host) -> None:
        """Hear of changes in the host's network, and of denied packets."""
        if self._watch is None:
            self._watch = Watch(host.table)
            for one in self._watch.sockets:
                self._loop.watch(one.fileno(), READ, self._look)
        if self._log is None and self._log_socket is not None:
            self._log = log = Log(host.group, self._log_socket)
            self._loop.watch(log.socket.fileno(), READ, lambda: self._tell_denied(log.read()))

    def _begin_one_by_one(self, states: list[State]) -> list[str]:
        """Admit those that can be: what is wrong with one list must not be the others' end."""
        host, remote = self._need_host(), self._need_remote()
        for state in states:
            self._forget(state.id)
        self._limits.clear()
        if refused := remote.run(rules.table(host, self._facts)):
            raise ValueError(refused)
        left_out = []
        for state in states:
            if refused := remote.run(self._admit_plainly(state)):
                self._forget(state.id)
                left_out.append(f"{state.id}: {refused}")
        return left_out

    def _end(self) -> list[str]:
        host, guard = self._need_host(), self._need_guard()
        # The router's table stays, empty: what might still be in it is shut in until it goes itself.
        if refused := guard.forget() or self._need_remote().run(rules.table(host, self._facts)):
            raise ValueError(refused)
        for sandbox_id in list(self._states):
            self._forget(sandbox_id)
        self._host = self._guard = None
        self._healing.cancel()
        return []

    def _admit(self, state: State) -> str:
        """Have the host's guard know of a sandbox, and return the commands that have the router's rules do."""
        self._need_guard().list(state)
        return self._admit_plainly(state)

    def _admit_plainly(self, state: State) -> str:
        host = self._need_host()
        commands = rules.admit(host, state, self._limits)
        if state.connections is not None:
            self._limits.add(state.connections)
        self._states[state.id] = state
        self._answers[state.id] = Answers(host, state)
        self._by_address.update({address: state.id for _, address in state.addresses})
        return commands

    def _detach(self, params: dict[str, Any]) -> str:
        guard = self._need_guard()
        addresses = [(int(version), str(address)) for version, address in params["addresses"]]
        veth.detach(self._need_places(), guard.uplink, params["name"], addresses)
        state = self._forget(params["id"])
        return "" if state is None else rules.expel(self._need_host(), state)

    def _forget(self, sandbox_id: str) -> State | None:
        state = self._states.pop(sandbox_id, None)
        if state is not None:
            del self._answers[sandbox_id]
            for _, address in state.addresses:
                self._by_address.pop(address, None)
            if self._guard is not None:
                self._guard.unlist(state)
        return state

    def _permit(self, sandbox_id: str, items: list[tuple[str, list[list[int]], float]]) -> str:
        answers, now = self._answers[sandbox_id], time.monotonic()
        self._lapsing.by(self._lapse_at)
        return "".join(
            answers.permit(address, [(low, high) for low, high in ranges], now + ttl_s)
            for address, ranges, ttl_s in items
        )

    def _nft(self, commands: str) -> str:
        return self._need_remote().run(commands) if commands else ""

    def _need_host(self) -> Host:
        if self._host is None:
            raise ValueError("nothing has begun")
        return self._host

    def _need_guard(self) -> Guard:
        if self._guard is None:
            raise ValueError("nothing has begun")
        return self._guard

    def _need_watch(self) -> Watch:
        if self._watch is None:
            raise ValueError("nothing has begun")
        return self._watch

    def _need_places(self) -> Places:
        if self._places is None:
            raise ValueError("there is no router")
        return self._places

    def _need_remote(self) -> nft.Remote:
        if self._remote is None:
            raise ValueError("there is no router")
        return self._remote

    def _index_of_uplink(self) -> int:
        with contextlib.suppress(OSError):
            return self._need_places().host.index_of(self._need_host().uplink)
        return 0

    # --- the host's network, time, and what was denied ---

    def _look(self) -> None:
        """Follow what changed in the host's network, once for all that did."""
        if self._watch is None or self._guard is None or self._host is None:
            for link in self._watch.sockets if self._watch else []:
                with contextlib.suppress(BlockingIOError, OSError):
                    link.recv(1 << 17)
            return
        change = self._watch.read(self._guard.uplink, self._guard.ports)
        self._guard.forget_ports()
        if change.facts:
            facts = facts_of(self._need_places().host.routes(), self._guard.uplink)
            if facts != self._facts:
                self._facts = facts
                refused = self._nft(rules.renew_facts(self._host, facts))
                if refused or self._guard.renew_facts(facts):
                    change.harmed = True
        if change.harmed:
            self._healing.after(0)

    def _heal(self) -> None:
        """Make anew what somebody took from the host: its rules, the uplink or routes."""
        if self._guard is None:
            return
        try:
            refused = self._restore()
        except OSError as error:
            refused = str(error)
        if refused:
            self._healing.after(_HEAL_S)

    def _restore(self) -> str:
        """Make the host's part anew, and again where its rules were changed meanwhile; return why it was refused."""
        meanwhile = Change()
        with self._need_watch().passing_over(meanwhile):
            refused = self._need_guard().restore(self._facts, self._states.values())
        if meanwhile.harmed:
            self._healing.after(_HEAL_S)
        return refused

    def _lapse(self) -> None:
        """Take back what has had its time: not at each turn, since whoever sends packets brings those about."""
        now = time.monotonic()
        if now < self._lapse_at:
            return
        self._lapse_at = now + _LAPSE_S
        lapsed = [(answers, commands) for answers in self._answers.values() if (commands := answers.lapse(now))]
        if self._nft("".join(commands for _, commands in lapsed)):
            # A set that is not what we think it is must not keep the others' answers alive, nor its own.
            for answers, _ in lapsed:
                self._nft(answers.renew())
        if any(answers.has_any for answers in self._answers.values()):
            self._lapsing.by(self._lapse_at)

    def _tell_denied(self, found: list[Attempt]) -> None:
        for attempt in found[:_TOLD_AT_ONCE]:
            sandbox_id = self._by_address.get(attempt.source)
            if sandbox_id is not None:
                facts = {"id": sandbox_id, "address": attempt.address, "protocol": attempt.protocol}
                with contextlib.suppress(BlockingIOError):
                    self._send([0, "denied", {**facts, "port": attempt.port}])


def _read(fd: int) -> bytes:
    """Return all of a file in memory."""
    return os.pread(fd, os.fstat(fd).st_size, 0)


def _close(fds: list[int]) -> None:
    for fd in fds:
        with contextlib.suppress(OSError):
            os.close(fd)
