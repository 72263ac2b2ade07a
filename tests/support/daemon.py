"""A real daemon for tests: `sandboxd serve` on its own directories, ready when it says so (sd_notify)."""

from __future__ import annotations

import contextlib
import json
import os
import pathlib
import select
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from typing import Any

from sandboxd.client import Client
from sandboxd.linux import cgroupfs, procfs

ROOTFS_DIR = os.environ.get("SANDBOXD_TEST_ROOTFS_DIR", "/var/lib/sandboxd/rootfs")
#: In an emulated machine beside other work a start took over 30 s.
READY_S = 120.0


def children_of(pid: int) -> list[int]:
    """Return the pids of a process's children."""
    return [int(child) for child in pathlib.Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def process_name(pid: int) -> str:
    """Return a process's name; empty once it is gone."""
    try:
        return pathlib.Path(f"/proc/{pid}/comm").read_text().strip()
    except (FileNotFoundError, ProcessLookupError):
        return ""


class Daemon:
    """Starts, kills and restarts one daemon; `close` destroys its sandboxes and checks that nothing is left."""

    def __init__(
        self,
        directory: pathlib.Path,
        *,
        rootfs_dir: str = ROOTFS_DIR,
        options: tuple[str, ...] = (),
        config: Mapping[str, Any] | None = None,
    ) -> None:
        self.state_dir = directory / "state"
        self.runtime_dir = directory / "run"
        self.socket = self.runtime_dir / "sandboxd.sock"
        self.url = f"unix://{self.socket}"
        self.log = directory / "log"
        self.rootfs_dir = rootfs_dir
        self.options = options
        self.process: subprocess.Popen[bytes] | None = None
        directory.mkdir(parents=True, exist_ok=True)
        directory.chmod(0o755)  # where there is the user `sandboxd`, the daemon is that one
        if config is not None:
            file = directory / "config.toml"
            file.write_text("".join(f"{key} = {json.dumps(value)}\n" for key, value in config.items()))
            self.options += ("--config", str(file))

    def command(self) -> list[str]:
        """Return the daemon's command line."""
        beside = pathlib.Path(sys.executable).with_name("sandboxd")
        return [
            str(beside)
            if beside.exists()
            else "sandboxd",  # where it is installed, the tests have a Python of their own
            "serve",
            *("--state-dir", str(self.state_dir), "--runtime-dir", str(self.runtime_dir)),
            *("--rootfs-dir", self.rootfs_dir, "--allow-unenforced", *self.options),
        ]

    def start(self) -> None:
        """Start the daemon and wait until it serves."""
        notify = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        notify.bind(f"\0sandboxd-test-{os.getpid()}-{id(self)}")
        name = "@" + notify.getsockname()[1:].decode()
        with notify, self.log.open("ab") as log:
            self.process = subprocess.Popen(
                self.command(),
                env={**os.environ, "NOTIFY_SOCKET": name},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
            self._wait_until_ready(notify)

    def _wait_until_ready(self, notify: socket.socket) -> None:
        assert self.process
        ended = os.pidfd_open(self.process.pid)
        try:
            while True:
                ready, _, _ = select.select([notify.fileno(), ended], [], [], READY_S)
                if notify.fileno() in ready and b"READY=1" in notify.recv(4096):
                    return
                if ended in ready or not ready:
                    raise AssertionError(f"the daemon is not ready:\n{self.log.read_text()}")
        finally:
            os.close(ended)

    def client(self) -> Client:
        """Return a client of this daemon."""
        return Client(self.url)

    def signal(self, number: int) -> int:
        """Send the daemon a signal and return its exit status."""
        assert self.process
        self.process.send_signal(number)
        return self.process.wait(30)

    def stop(self) -> None:
        """End the daemon cleanly; its sandboxes go on."""
        if self.process and self.process.poll() is None:
            assert self.signal(signal.SIGTERM) == 0, self.log.read_text()

    def ping(self) -> None:
        """Return when the daemon has answered over a fresh connection."""
        with self.client() as client:
            client.health()

    def launcher_pid(self) -> int:
        """Return the launcher's pid."""
        with self.client() as client:
            info: dict[str, Any] = client.info()
        return int(info["launcher"]["pid"])

    def zygote_pid(self) -> int:
        """Return the pid of the process that creations are forked from."""
        # The oldest: a creation is the launcher's child too, and has its parent's name until it takes its own.
        zygote, *_ = [pid for pid in children_of(self.launcher_pid()) if process_name(pid) == "sandboxd-zygote"]
        return zygote

    def pool(self) -> pathlib.Path:
        """Return the directory of the sandboxes' files as the launcher sees it: images are mounted for it alone."""
        with self.client() as client:
            info: dict[str, Any] = client.info()
        if info["launcher"]["storage"] == "directory":
            return self.state_dir / "pool"
        return pathlib.Path(f"/proc/{info['launcher']['pid']}/root{self.runtime_dir}/pool")

    def cgroup(self) -> pathlib.Path:
        """Return the directory of this daemon's cgroups."""
        from sandboxd.launcher.settings import Settings

        mount = cgroupfs.find_mount(procfs.mounts())
        assert mount
        settings = Settings(state_dir=str(self.state_dir), runtime_dir="", rootfs_dir="", profile_dir="")
        return pathlib.Path(mount) / settings.cgroup_name

    def prepared(self) -> str | None:
        """Return the id of the prepared sandbox that is held for the next sandbox: its builder waits in its cgroup."""
        from sandboxd.launcher.create_child import NAME

        for path in self.cgroup().glob("*/**/cgroup.procs"):
            with contextlib.suppress(OSError):
                if any(process_name(int(pid)) == NAME for pid in path.read_text().split()):
                    return path.relative_to(self.cgroup()).parts[0]
        return None

    def end_newborn(self) -> None:
        """End the prepared sandbox that is held, after a creation: the next creation is a whole one."""
        until = time.monotonic() + READY_S
        while (held := self.prepared()) is None and time.monotonic() < until:
            pass  # the launcher makes it when nobody asks it for anything
        assert held
        (self.cgroup() / held / "cgroup.kill").write_text("1")
        # Its socket goes last: who harms the host meanwhile would keep it there.
        places = [self.cgroup() / held, self.runtime_dir / "links" / f"{held}.sock"]
        while any(place.exists() for place in places) and time.monotonic() < until:
            pass

    def leftovers(self) -> list[str]:
        """Return what belongs to no running sandbox but is there: directories, sockets, records, cgroups.

        The prepared sandbox that is held for the next sandbox is no leftover.
        """
        places = [self.state_dir / name for name in ("pool", "records", "registry")] + [self.runtime_dir / "links"]
        if self.process and self.process.poll() is None:
            places.append(self.pool())
        found = [str(path) for place in places if place.exists() for path in place.iterdir()]
        groups = [path for path in self.cgroup().glob("*/") if path.is_dir()]
        if self.process and self.process.poll() is None:
            groups = [path for path in groups if not path.name.startswith("template-")]  # they end with the launcher
        found += [str(path) for path in groups]
        held = self.prepared()
        return [path for path in found if not held or held not in path]

    def close(self) -> None:
        """Destroy every sandbox, stop, and remove the directories."""
        if self.process is None or self.process.poll() is not None:
            self.start()
        with self.client() as client:
            from sandboxd import Sandbox

            for sandbox in Sandbox.list(client=client):
                sandbox.destroy()
        until = time.monotonic() + READY_S
        while (left := self.leftovers()) and time.monotonic() < until:
            self.ping()  # a prepared sandbox may just be taking its place
        self.stop()
        left += self.leftovers()
        shutil.rmtree(self.state_dir)
        shutil.rmtree(self.runtime_dir)
        assert not left, left
        assert not self.cgroup().exists(), list(self.cgroup().iterdir())
