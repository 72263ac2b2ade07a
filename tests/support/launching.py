"""Drives a launcher directly, as the daemon does, without a daemon."""

from __future__ import annotations

import array
import os
import pathlib
import socket
import subprocess
import sys
from typing import Any

import msgpack

from sandboxd.launcher.settings import Settings
from sandboxd.linux import cgroupfs, procfs
from sandboxd.wire.link import DEFAULT_WINDOW, LinkConnection, Role
from sandboxd.wire.messages import Credit, Event, Failure, Message, Reply, Request
from tests.support.daemon import ROOTFS_DIR, children_of, process_name

PROFILES = str(pathlib.Path(__file__).parents[2] / "seccomp")


class Asker:
    """A blocking asker on a link: one request at a time."""

    def __init__(self, connection: socket.socket) -> None:
        connection.settimeout(60)
        self.socket = connection
        self.link = LinkConnection(Role.ASKER)
        self._next = 0
        self._messages: list[Message] = []
        connection.sendall(self.link.greet())

    def close(self) -> None:
        self.link.close()
        self.socket.close()

    def _receive(self) -> Message:
        while not self._messages:
            data, ancillary, _, _ = self.socket.recvmsg(1 << 20, 1024)
            if not data:
                raise EOFError
            fds: list[int] = []
            for _, _, raw in ancillary:
                fds += array.array("i", raw)
            self._messages += self.link.receive(data, fds)
        return self._messages.pop(0)

    def ask(self, op: str, **params: Any) -> Reply | Failure:
        """Ask and return the end; events are kept in `events`, descriptors in `fds`."""
        self._next += 1
        self.events: list[Event] = []
        self.fds: list[int] = []
        self.socket.sendall(self.link.send(Request(self._next, op, params)))
        while True:
            message = self._receive()
            if isinstance(message, Event):
                self.events.append(message)
                self.socket.sendall(self.link.send(Credit(message.id, message.cost)))
            elif isinstance(message, Reply):
                self.fds = self.link.take_fds(message.fds)
                return message
            elif isinstance(message, Failure):
                return message

    def ask_all(self, *requests: Request) -> dict[int, Reply | Failure]:
        """Ask all in one write and return the ends by their ids, which must be above those that `ask` gives."""
        self.socket.sendall(b"".join(self.link.send(request) for request in requests))
        ends: dict[int, Reply | Failure] = {}
        while len(ends) < len(requests):
            message = self._receive()
            assert isinstance(message, Reply | Failure), message
            ends[message.id] = message
        return ends

    def run(self, *argv: str) -> bytes:
        """Run a command in an init and return its output."""
        self._next += 1
        reply = self.ask("exec", argv=list(argv), process=f"p{self._next}", credit=DEFAULT_WINDOW)
        assert isinstance(reply, Reply), reply
        return b"".join(event.data for event in self.events if isinstance(event.data, bytes))


class LauncherProcess:
    """A launcher with directories of its own."""

    def __init__(
        self,
        directory: pathlib.Path,
        *,
        module: tuple[str, ...] = ("-I", "-m", "sandboxd.launcher"),
        rootfs_dir: str = ROOTFS_DIR,
        **settings: str | int,
    ) -> None:
        self.settings = Settings(
            state_dir=str(directory / "state"),
            runtime_dir=str(directory / "run"),
            rootfs_dir=rootfs_dir,
            profile_dir=PROFILES,
            allow_unenforced=True,
            **settings,  # type: ignore[arg-type]
        )
        for path in (self.settings.init_sockets_dir, self.settings.stage_dir, self.settings.state_dir):
            os.makedirs(path, exist_ok=True)
        names = {"state_dir", "runtime_dir", "rootfs_dir", "profile_dir", "allow_unenforced", *settings}
        memory = os.memfd_create("settings", 0)
        os.write(memory, msgpack.packb({name: getattr(self.settings, name) for name in names}))
        os.lseek(memory, 0, os.SEEK_SET)
        ours, theirs = socket.socketpair()
        self.process = subprocess.Popen(
            [sys.executable, *module, "--fd", str(theirs.fileno()), "--config-fd", str(memory)],
            pass_fds=(theirs.fileno(), memory),
            env={"LC_ALL": "C.UTF-8", "PYTHONPATH": str(pathlib.Path(__file__).parents[2])},
        )
        theirs.close()
        os.close(memory)
        self.asker = Asker(ours)

    def init(self, sandbox_id: str) -> Asker:
        """Connect to a sandbox's init."""
        connection = socket.socket(socket.AF_UNIX)
        connection.connect(f"{self.settings.init_sockets_dir}/{sandbox_id}.sock")
        return Asker(connection)

    @property
    def cgroup(self) -> pathlib.Path:
        mount = cgroupfs.find_mount(procfs.mounts())
        assert mount
        return pathlib.Path(mount) / self.settings.cgroup_name

    def leftovers(self) -> list[str]:
        """Return everything that belongs to a sandbox."""
        mounted = f"/proc/{self.process.pid}/root{self.settings.pool_mount}"
        places = [self.settings.pool_dir, self.settings.records_dir, self.settings.init_sockets_dir]
        places += [mounted] if os.path.isdir(mounted) else []
        found = [str(path) for place in places for path in pathlib.Path(place).iterdir()]
        found += [str(path) for path in self.cgroup.glob("*/") if path.is_dir()]
        for claim in pathlib.Path("/run/sandboxd-ids").glob("[0-9]*"):
            try:
                pid, _, group = msgpack.unpackb(claim.read_bytes())
            except FileNotFoundError:
                continue  # another launcher's, given back meanwhile
            if pid == self.process.pid and (group or not self._is_preparing()):
                found.append(f"{claim} ({group})")
        return found

    def _is_preparing(self) -> bool:
        """The real launcher holds one range ready."""
        return "failing" not in " ".join(map(str, self.process.args))  # type: ignore[arg-type]

    def fds(self) -> int:
        return len(os.listdir(f"/proc/{self.process.pid}/fd"))

    def children(self) -> list[int]:
        """Return its children, but for the zygote."""
        return [pid for pid in children_of(self.process.pid) if process_name(pid) != "sandboxd-zygote"]

    def close(self) -> None:
        self.asker.close()
        self.process.wait(30)
