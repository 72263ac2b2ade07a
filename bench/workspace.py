"""What one run of the benchmark owns: a temporary directory, shared daemons, cgroup names; all removed at its end."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Final, Self, TypeVar

from bench.contender import Unavailable
from bench.den import Den
from sandboxd.linux import procfs

T = TypeVar("T")
INTERRUPTIONS: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
#: How long killed processes may take to leave their cgroups.
_LEAVE_S = 5.0
_LOOK_S = 0.02


def wait_until(condition: Callable[[], bool], seconds: float) -> bool:
    """Look again and again until the condition holds; return whether it does."""
    pause = threading.Event()
    for _ in range(int(seconds / _LOOK_S)):
        if condition():
            return True
        pause.wait(_LOOK_S)
    return condition()


class Workspace:
    """A context manager; what is opened in it is closed in reverse order.

    Attributes:
        tree: the unpacked rootfs that every contender uses.
        cgroup: the name of a top cgroup for peers that make cgroups.
    """

    def __init__(self, rootfs_dir: Path, rootfs: str) -> None:
        self.rootfs_dir = rootfs_dir
        self.rootfs = rootfs
        self.tree = rootfs_dir / rootfs / "private" / "tree"
        self.cgroup = f"sandboxd-bench-{os.getpid()}"
        self.profile: Path | None = None
        self._cgroups = [self.cgroup]
        self._stack = contextlib.ExitStack()
        self._shared: dict[object, object] = {}

    def __enter__(self) -> Self:
        self.path = Path(tempfile.mkdtemp(prefix="sandboxd-bench-"))
        self.path.chmod(0o711)  # the daemon may run as a user of its own
        self._stack.callback(shutil.rmtree, self.path, ignore_errors=True)
        self._stack.callback(self._remove_cgroups)
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Remove everything; again does nothing. A second Ctrl-C does not stop it half-way."""
        for number in INTERRUPTIONS:
            signal.signal(number, signal.SIG_IGN)
        self._stack.close()

    def directory(self, name: str) -> Path:
        """Return a new directory, of that name or, where there is one already, with a number after it."""
        path, number = self.path / name, 1
        while path.exists():
            number += 1
            path = self.path / f"{name}-{number}"
        path.mkdir()
        return path

    def den(self, *, covers: tuple[str, ...] = (), net: bool = False) -> Den:
        """Return a new den, ended with the workspace."""
        return self._stack.enter_context(Den(covers=covers, net=net))

    def defer(self, callback: Callable[[], object]) -> None:
        """Have something called before what was opened until now is closed."""
        self._stack.callback(callback)

    def own_cgroup(self, name: str) -> None:
        """Have a top cgroup of that name removed at the end."""
        self._cgroups.append(name)

    def share(self, make: Callable[[Workspace], T]) -> T:
        """Return what `make` made, the same for all who ask; its failure is shared too.

        Raises:
            Unavailable: it could not be made.
        """
        if make not in self._shared:
            try:
                self._shared[make] = make(self)
            except Unavailable as error:
                self._shared[make] = error
        found = self._shared[make]
        if isinstance(found, Unavailable):
            raise Unavailable(str(found))
        return found  # type: ignore[return-value]  # what make returned

    def _remove_cgroups(self) -> None:
        for mount in procfs.mounts():
            if mount.fstype in ("cgroup", "cgroup2"):
                for name in self._cgroups:
                    wait_until(lambda path=Path(mount.target, name): _removed(path), _LEAVE_S)  # type: ignore[misc]


def _removed(top: Path) -> bool:
    """Remove an empty cgroup with those below; return False while a process is in one."""
    try:
        for path, _, _ in os.walk(top, topdown=False):
            os.rmdir(path)
    except OSError:
        return not top.exists()
    return True
