"""What tests in the machine look at: the service as systemd has it, and cgroup files."""

from __future__ import annotations

import pathlib
import subprocess

from sandboxd import Sandbox
from sandboxd.client import Client

URL = "unix:///run/sandboxd/sandboxd.sock"
HOLDER = pathlib.Path("/sys/fs/cgroup/system.slice/sandboxd-cgroups.service")


def systemctl(*arguments: str) -> str:
    """Run systemctl and return what it printed."""
    return subprocess.run(["systemctl", *arguments], check=True, capture_output=True, text=True).stdout.strip()


class Service:
    """The installed service."""

    @property
    def pid(self) -> int:
        """The daemon's pid."""
        return int(systemctl("show", "--property=MainPID", "--value", "sandboxd"))

    @property
    def launcher_pid(self) -> int:
        """The launcher's pid, as the daemon knows it."""
        with Client(URL) as client:
            return int(client.info()["launcher"]["pid"])

    @property
    def root(self) -> pathlib.Path:
        """The cgroup that holds all sandboxes'."""
        (found,) = HOLDER.glob("sandboxd-*")
        return found

    def wait_for_another(self, pid: int) -> None:
        """Return when another daemon than `pid` is ready; systemd is asked to start it, which waits."""
        for _ in range(200):
            systemctl("start", "sandboxd")
            if self.pid not in (0, pid):
                systemctl("start", "sandboxd")  # it may have come between the two: wait until it is ready
                return
        raise AssertionError(f"pid {pid} is still the daemon's: {systemctl('status', 'sandboxd')}")


def group_of(service: Service, sandbox: Sandbox) -> pathlib.Path:
    """Return a sandbox's cgroup."""
    return service.root / sandbox.id


def value(path: pathlib.Path) -> str:
    """Return what a cgroup's file says."""
    return path.read_text().strip()


def keyed(path: pathlib.Path) -> dict[str, int]:
    """Return a flat-keyed cgroup file, such as memory.events."""
    return {key: int(number) for key, number in (line.split() for line in path.read_text().splitlines())}
