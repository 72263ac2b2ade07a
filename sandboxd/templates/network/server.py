"""The process' loop: orders in batches, what lapses, and what was denied (see the package's theory of operation)."""

from __future__ import annotations

import contextlib
import os
import select
import socket
import subprocess
import time
from typing import Any, Final

import msgpack

from . import links, rules
from .answers import Answers
from .denied import Attempt, Log
from .links import Netlink
from .state import Host, State

#: The launcher's end.
SOCKET_FD: Final = 3
MAX_MESSAGE_BYTES: Final = 128 * 1024
_MAX_FDS: Final = 2
#: Orders that one call of nft serves.
_BATCH: Final = 64
#: Addresses that were denied and are told at once; the rules tell none of them twice in ten seconds.
_TOLD_AT_ONCE: Final = 64
_NFT_TIMEOUT_S: Final = 30.0
#: Lapsed answers are looked for this often at most.
_LAPSE_S: Final = 1.0
_NFT: Final = "/usr/sbin/nft"


class Server:
    """Serves the launcher until it is gone."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._host: Host | None = None
        self._log: Log | None = None
        self._netlink = Netlink()
        self._states: dict[str, State] = {}
        self._by_address: dict[str, str] = {}
        self._answers: dict[str, Answers] = {}
        self._limits: set[int] = set()  # chains for connections that the table has
        self._neighbours: set[str] = set()

    def run(self) -> None:
        """Serve; returns when it is time to end."""
        while True:
            readable = [self._connection, *([self._log.socket] if self._log else [])]
            ready, _, _ = select.select(readable, [], [], self._wait_s())
            if self._connection in ready and not self._serve():
                return
            if self._log is not None and self._log.socket in ready:
                self._tell_denied(self._log.read())
            self._lapse()

    # --- orders ---

    def _serve(self) -> bool:
        """Take what waits, and answer; False when it is time to end: the launcher is gone, or knows better."""
        agreed = True
        batch: list[tuple[int, str, str, str]] = []  # sequence, commands, error, the sandbox that is to be admitted
        while len(batch) < _BATCH and select.select([self._connection], [], [], 0)[0]:
            message, fds, _, _ = socket.recv_fds(self._connection, MAX_MESSAGE_BYTES, _MAX_FDS)
            if not message:
                return False
            sequence, operation, params = msgpack.unpackb(message)
            admitted = params["id"] if operation in ("attach", "adopt") else ""
            try:
                batch.append((sequence, self._prepare(operation, params, fds), "", admitted))
            except (OSError, KeyError, ValueError) as error:
                batch.append((sequence, "", str(error) or type(error).__name__, ""))
            finally:
                for fd in fds:
                    with contextlib.suppress(OSError):
                        os.close(fd)
        failure = _nft("".join(commands for _, commands, _, _ in batch))
        for sequence, commands, told, admitted in batch:
            if failure and commands:
                # One that is wrong takes the others of its batch with it; each has its own chance then.
                refused = _nft(commands) if len(batch) > 1 else failure
                if refused and admitted:
                    self._forget(admitted)  # its rules are not there, so none are to be taken back
                elif refused:
                    agreed = False
                self._send([sequence, refused or None])
            else:
                self._send([sequence, told or None])
        # What the kernel refused is not there as it is here. The launcher knows what should be, and starts another
        # process, which makes all of it anew.
        return agreed

    def _send(self, message: list[Any]) -> None:
        self._connection.send(msgpack.packb(message))

    def _prepare(self, operation: str, params: dict[str, Any], fds: list[int]) -> str:
        """Do an order's part with the links, and return the commands of its part with the rules."""
        if operation == "begin":
            return self._begin(Host.from_message(params))
        if self._host is None:
            raise ValueError("nothing has begun")
        if operation == "detach":
            return self._detach(params["id"], params["name"])
        if operation == "permit":
            return self._permit(params["id"], params["items"])
        if operation == "end":
            return rules.forget_table(self._host)
        state = State.from_message(params)
        if operation == "attach":
            with Netlink(os.dup(fds[1])) as inside:
                links.attach(self._netlink, state, fds[0], inside)
            return self._admit(state)
        if operation == "adopt":
            return self._admit(state)
        if operation == "change":
            with Netlink(os.dup(fds[1])) as inside:
                links.limit(self._netlink, inside, state)
            before = self._states.get(state.id)
            return (rules.expel(self._host, before) if before else "") + self._admit(state)
        raise ValueError(f"no such operation: {operation}")

    def _begin(self, host: Host) -> str:
        for sandbox_id in list(self._states):
            self._forget(sandbox_id)
        self._limits.clear()
        self._host = host
        self._log = self._log or Log(host.group)
        self._neighbours = set(self._netlink.networks_on_link(host.prefix))
        return rules.table(host, self._neighbours)

    def _admit(self, state: State) -> str:
        host = self._need_host()
        near = set(self._netlink.networks_on_link(host.prefix)) - self._neighbours
        self._neighbours |= near
        commands = rules.renew_neighbours(host, near) + rules.admit(host, state, self._limits)
        if state.connections is not None:
            self._limits.add(state.connections)
        self._states[state.id] = state
        self._answers[state.id] = Answers(host, state)
        self._by_address.update({address: state.id for _, address in state.addresses})
        return commands

    def _detach(self, sandbox_id: str, name: str) -> str:
        """The link first: while its name is in no set, what comes out of it would be anybody's."""
        self._netlink.remove(name)
        state = self._forget(sandbox_id)
        return "" if state is None else rules.expel(self._need_host(), state)

    def _forget(self, sandbox_id: str) -> State | None:
        state = self._states.pop(sandbox_id, None)
        if state is not None:
            del self._answers[sandbox_id]
            for _, address in state.addresses:
                self._by_address.pop(address, None)
        return state

    def _permit(self, sandbox_id: str, items: list[tuple[str, list[list[int]], float]]) -> str:
        answers, now = self._answers[sandbox_id], time.monotonic()
        return "".join(
            answers.permit(address, [(low, high) for low, high in ranges], now + ttl_s)
            for address, ranges, ttl_s in items
        )

    def _need_host(self) -> Host:
        if self._host is None:
            raise ValueError("nothing has begun")
        return self._host

    # --- time, and what was denied ---

    def _wait_s(self) -> float | None:
        dues = [due for answers in self._answers.values() if (due := answers.next_lapse) is not None]
        return max(_LAPSE_S, min(dues) - time.monotonic()) if dues else None

    def _lapse(self) -> None:
        now = time.monotonic()
        lapsed = [(answers, commands) for answers in self._answers.values() if (commands := answers.lapse(now))]
        if _nft("".join(commands for _, commands in lapsed)):
            # A set that is not what we think it is must not keep the others' answers alive, nor its own.
            for answers, _ in lapsed:
                _nft(answers.renew())

    def _tell_denied(self, found: list[Attempt]) -> None:
        for attempt in found[:_TOLD_AT_ONCE]:
            sandbox_id = self._by_address.get(attempt.source)
            if sandbox_id is not None:
                facts = {"id": sandbox_id, "address": attempt.address, "protocol": attempt.protocol}
                with contextlib.suppress(BlockingIOError):
                    self._send([0, "denied", {**facts, "port": attempt.port}])


def _nft(commands: str) -> str:
    """Run commands in one transaction; return why they were refused, or nothing."""
    if not commands:
        return ""
    try:
        done = subprocess.run(
            [_NFT, "-f", "-"], input=commands.encode(), capture_output=True, timeout=_NFT_TIMEOUT_S, check=False, env={}
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"nft: {error}"
    return done.stderr.decode(errors="replace").strip()[:400] if done.returncode else ""
