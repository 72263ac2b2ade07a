"""A sandboxd daemon of the benchmark's own: private directories, stopped and removed at the end."""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import socket
import subprocess
import sys
from pathlib import Path

from bench.contender import Unavailable
from bench.workspace import Workspace, wait_until
from sandboxd.client import Client
from sandboxd.errors import SandboxdError
from sandboxd.launcher.settings import Settings
from sandboxd.linux import cgroupfs, procfs

_START_S = 30.0
_STOP_S = 15.0
_CREATE = re.compile(r"Created sandbox \S+ in ([0-9.]+) ms")


class Daemon:
    """Serves on `socket`; made by `Workspace.share(Daemon)`.

    Attributes:
        client: the SDK's connections to it, shared by all who measure.
        tcp_url, token: where it serves besides.
    """

    def __init__(self, workspace: Workspace) -> None:
        home = workspace.directory("sandboxd")
        self.log = home / "log"
        self.socket = home / "run" / "sandboxd.sock"
        self.url = f"unix://{self.socket}"
        self.client = Client(self.url)
        state = home / "state"
        self._cgroup = Settings(
            state_dir=str(state),
            runtime_dir=str(home / "run"),
            rootfs_dir=str(workspace.rootfs_dir),
            profile_dir="",
        ).cgroup_name
        workspace.own_cgroup(self._cgroup)
        program = [sys.executable, *_profiler(workspace.profile), "-m", "sandboxd"]
        # TCP too: the kernel gives the port, and it is free again at once.
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            address = f"127.0.0.1:{probe.getsockname()[1]}"
        self.tcp_url, self.token = f"http://{address}", secrets.token_hex(16)
        token_file = home / "token"
        token_file.write_text(self.token)
        token_file.chmod(0o600)
        listen = ["--listen", address, "--token-file", token_file]
        options = [
            "serve",
            *listen,
            "--state-dir",
            state,
            "--runtime-dir",
            home / "run",
            "--rootfs-dir",
            workspace.rootfs_dir,
        ]
        with self.log.open("wb") as log:
            self._process = subprocess.Popen(
                [*program, *map(str, options), "--allow-unenforced"],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        workspace.defer(self._stop)
        wait_until(lambda: self._answers() or self._process.poll() is not None, _START_S)
        if not self._answers():
            raise Unavailable(f"its daemon does not start: {self.log.read_text()[-300:]}")

    @property
    def pid(self) -> int:
        """The daemon's process; launcher and inits are below it."""
        return self._process.pid

    def births(self) -> list[float]:
        """Return how long the daemon says that each creation took, in seconds."""
        return [float(ms) / 1000 for ms in _CREATE.findall(self.log.read_text())]

    def _answers(self) -> bool:
        try:
            self.client.health()
        except SandboxdError:
            return False
        return True

    def _stop(self) -> None:
        """End the daemon, then what sandboxes there still are: their cgroup bears the name of our directory."""
        self.client.close()
        self._process.terminate()
        try:
            self._process.wait(_STOP_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        mount = cgroupfs.find_mount(procfs.mounts())
        if mount is not None and Path(mount, self._cgroup).is_dir():
            with contextlib.suppress(OSError):
                cgroupfs.kill(os.path.join(mount, self._cgroup))


def _profiler(output: Path | None) -> list[str]:
    return [] if output is None else ["-m", "cProfile", "-o", str(output)]
