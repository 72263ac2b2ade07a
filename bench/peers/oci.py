"""crun and runc, driven by bundles as a container engine drives them."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from bench.contender import ECHO, TRUE, Cold, Held, Unavailable, check_stream
from bench.peers.plain import _Plain, first_line

if TYPE_CHECKING:
    from bench.den import Den
    from bench.workspace import Workspace

_IDS = itertools.count(1)
#: Where a peer that cannot cope with this host's cgroups sees nothing instead.
CGROUPS = "/sys/fs/cgroup"


def bundle(home: Path, name: str, tree: Path, cgroup: str | None, args: tuple[str, ...]) -> Path:
    """Write a bundle: the read-only tree, five namespaces, no network, no capabilities dropped beyond the default."""
    path = home / name
    path.mkdir()
    spec: dict[str, Any] = {
        "ociVersion": "1.0.2",
        "process": {
            "user": {"uid": 0, "gid": 0},
            "args": args,
            "env": ["PATH=/usr/local/bin:/usr/bin:/bin"],
            "cwd": "/",
            "noNewPrivileges": True,
        },
        "root": {"path": str(tree), "readonly": True},
        "hostname": "bench",
        "mounts": [
            {"destination": "/proc", "type": "proc", "source": "proc"},
            {"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "mode=755"]},
            {
                "destination": "/dev/pts",
                "type": "devpts",
                "source": "devpts",
                "options": ["newinstance", "ptmxmode=0666"],
            },
            {"destination": "/tmp", "type": "tmpfs", "source": "tmpfs"},  # noqa: S108 - inside the container
        ],
        "linux": {"namespaces": [{"type": kind} for kind in ("pid", "network", "ipc", "uts", "mount")]},
    }
    if cgroup is not None:
        spec["linux"]["cgroupsPath"] = f"/{cgroup}/{name}-{next(_IDS)}"
    (path / "config.json").write_text(json.dumps(spec))
    return path


class _HeldOci:
    """A container that sleeps."""

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

    def end(self) -> None:
        self._den.run([*self._command, "delete", "--force", self._name]).check()


class _Oci(_Plain):
    """A low-level runtime; each container's cgroup lies in the benchmark's own."""

    figures = frozenset({"create", "exec", "start", "memory", "stdout"})
    program: ClassVar[str]

    def __init__(self, workspace: Workspace) -> None:
        super().__init__(workspace)
        self._options: list[str] = []
        self._cgroup: str | None = workspace.cgroup

    def open(self) -> None:
        super().open()
        self._home = self._workspace.directory(self.program)
        self._version = first_line(self._den.run([self.program, "--version"]).check().stdout)
        self._start()

    def _start(self) -> None:
        tree = self._workspace.tree
        for name, args in (("cold", ECHO), ("idle", ("/bin/sleep", "infinity"))):
            bundle(self._home, name, tree, self._cgroup, args)
        self.cold()

    @property
    def _command(self) -> list[str]:
        return [self.program, "--root", str(self._home / "state"), *self._options]

    def cold(self) -> Cold:
        return self._cold([*self._command, "run", "--bundle", str(self._home / "cold"), f"cold-{next(_IDS)}"])

    def hold(self) -> Held:
        name = f"idle-{next(_IDS)}"
        place = self._home / "idle"
        if self._cgroup is not None:
            place = bundle(self._home, name, self._workspace.tree, self._cgroup, ("/bin/sleep", "infinity"))
        argv = [*self._command, "run", "--detach", "--bundle", str(place), name]
        if self._den.run(argv, capture=False).status != 0:
            raise Unavailable(f"cannot start a detached container: {self._den.run(argv).stderr[-300:]}")
        return _HeldOci(self._den, self._command, name)


class Runc(_Oci):
    """runc, with cgroups."""

    name = "runc"
    what = "runc with a read-only bundle"
    program = "runc"


class Crun(_Oci):
    """crun; where it refuses the host's cgroups, without any: a favour to it."""

    name = "crun"
    what = "crun with a read-only bundle"
    program = "crun"

    @property
    def note(self) -> str:
        return "" if self._cgroup else "makes no cgroups here: it refuses this host's hybrid hierarchy"

    def _start(self) -> None:
        try:
            super()._start()
        except Unavailable:
            self._home = self._workspace.directory("crun-without-cgroups")
            self._den = self._workspace.den(covers=(CGROUPS,))
            self._options, self._cgroup = ["--cgroup-manager=disabled"], None
            super()._start()
