"""podman on private storage, over the rootfs with an overlay of its own (`--rootfs TREE:O`)."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import TYPE_CHECKING

from bench.contender import ECHO, TRUE, Cold, Held, Unavailable, check_stream
from bench.peers.oci import CGROUPS
from bench.peers.plain import _Plain, first_line

if TYPE_CHECKING:
    from bench.den import Den

_IDS = itertools.count(1)
#: Where podman would leave locks and state outside of its private roots.
_COVERS = ("/run", "/dev/shm")  # noqa: S108 - covered, not written to


class _HeldPodman:
    """A container that sleeps, with its conmon."""

    def __init__(self, den: Den, command: list[str], name: str) -> None:
        self._den = den
        self._command = command
        self._name = name

    def exec(self) -> float:
        return self._den.run([*self._command, "exec", self._name, *TRUE]).check().total_s

    def start(self) -> float:
        argv = [*self._command, "exec", "--detach", self._name, *TRUE]
        return self._den.run(argv, capture=False).check().total_s

    def stdout(self, count: int) -> float:
        run = self._den.run([*self._command, "exec", self._name, "head", "-c", str(count), "/dev/zero"]).check()
        check_stream(count, run.bytes)
        return run.stream_s or run.total_s

    def put(self, source: Path) -> float:
        return self._den.run([*self._command, "cp", str(source), f"{self._name}:/tmp/file"]).check().total_s

    def get(self, target: Path) -> float:
        return self._den.run([*self._command, "cp", f"{self._name}:/tmp/file", str(target)]).check().total_s

    def end(self) -> None:
        self._den.run([*self._command, "rm", "--force", "--time", "0", self._name]).check()


class Podman(_Plain):
    """podman with crun, without network and cgroups: the cheapest way that it has."""

    name = "podman"
    what = "podman --rootfs TREE:O, crun, --cgroups=disabled, --network=none"
    figures = frozenset({"create", "exec", "start", "memory", "files"})

    def open(self) -> None:
        self._den = self._workspace.den(covers=_COVERS)
        home = self._workspace.directory("podman")
        roots = [f"--{option}={home / option}" for option in ("root", "runroot", "tmpdir")]
        how = ["--cgroup-manager=cgroupfs", "--storage-driver=overlay", "--runtime=crun", "--events-backend=none"]
        self._command = ["podman", *roots, *how]
        self._version = first_line(self._den.run(["podman", "--version"]).check().stdout)
        try:
            self.cold()
        except Unavailable:  # its crun refuses a hybrid hierarchy
            self._den = self._workspace.den(covers=(*_COVERS, CGROUPS))
            self.cold()

    def _argv(self, *options: str) -> list[str]:
        # Limits as they are: raising them needs a capability that root may lack.
        limits = ["--ulimit=nofile=1024:1024", "--ulimit=nproc=1024:1024"]
        alone = ["--cgroups=disabled", "--network=none", *limits]
        return [*self._command, "run", *alone, *options, "--rootfs", f"{self._workspace.tree}:O"]

    def cold(self) -> Cold:
        return self._cold([*self._argv("--rm"), *ECHO])

    def hold(self) -> Held:
        name = f"idle-{next(_IDS)}"
        argv = [*self._argv("--detach", "--name", name), "/bin/sleep", "infinity"]
        if self._den.run(argv, capture=False).status != 0:
            raise Unavailable("cannot start a detached container")
        return _HeldPodman(self._den, self._command, name)
