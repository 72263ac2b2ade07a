"""The rootfs directory: what is in it, the lock that builders and removers hold, and removal."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import secrets
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

from sandboxd import spec
from sandboxd.errors import Conflict, InvalidRequest, RootfsError, RootfsNotFound
from sandboxd.images.tree import fsync_directory, mounts_below, remove_tree

__all__ = [
    "InUse",
    "Rootfs",
    "building",
    "check_unused",
    "list_rootfs",
    "load_rootfs",
    "locked",
    "nobody",
    "publish",
    "remove",
    "sweep",
]

_FORMAT = 1
_BUILDING = ".building-"
_REMOVING = ".removing-"

InUse: TypeAlias = Callable[[str], list[str]]
"""Names the sandboxes that use a rootfs. Only the daemon knows, so whoever can ask it passes this in."""


def nobody(name: str) -> list[str]:
    """Say that no sandbox uses the rootfs `name`."""
    return []


@dataclass(frozen=True, slots=True)
class Rootfs:
    """A built rootfs, as its rootfs.json says."""

    name: str
    recipe: str
    recipe_hash: str
    trusted: bool
    built_at: str
    size_bytes: int
    packages: dict[str, dict[str, str]] = field(default_factory=dict)

    def to_json(self) -> str:
        """Return the text of rootfs.json."""
        return json.dumps({"format": _FORMAT, **asdict(self)}, indent=2, sort_keys=True) + "\n"

    @classmethod
    def from_json(cls, text: str) -> Rootfs:
        """Read the text of rootfs.json; raises ValueError when it is not one."""
        data = json.loads(text)
        if not isinstance(data, dict) or data.get("format") != _FORMAT:
            raise ValueError(f"it is not of format {_FORMAT}")
        values: dict[str, Any] = {}
        for name, kind in _FIELDS.items():
            values[name] = data.get(name)
            if type(values[name]) is not kind:
                raise ValueError(f"{name} is missing or has a wrong type")
        return cls(**values)


_FIELDS: dict[str, type] = {
    "name": str,
    "recipe": str,
    "recipe_hash": str,
    "trusted": bool,
    "built_at": str,
    "size_bytes": int,
    "packages": dict,
}


def load_rootfs(name: str, rootfs_dir: Path) -> Rootfs:
    """Return the built rootfs called `name`.

    Raises:
        InvalidRequest: `name` cannot be a rootfs's name.
        RootfsNotFound: there is none of that name.
        RootfsError: its rootfs.json cannot be read.
    """
    spec.check_rootfs(name)
    try:
        return _read(name, rootfs_dir)
    except FileNotFoundError:
        raise _not_found("use", name, rootfs_dir) from None
    except (OSError, ValueError) as error:
        raise RootfsError(f"cannot read rootfs {name}: {error}", rootfs=name) from error


def _read(name: str, rootfs_dir: Path) -> Rootfs:
    rootfs = Rootfs.from_json((rootfs_dir / name / "rootfs.json").read_text(encoding="utf-8"))
    if rootfs.name != name:
        raise ValueError(f"its rootfs.json names {rootfs.name}")
    return rootfs


def list_rootfs(rootfs_dir: Path) -> list[Rootfs]:
    """Return the rootfs of a directory, sorted by name; one whose rootfs.json cannot be read is not listed.

    Raises:
        RootfsError: the directory exists and cannot be read.
    """
    try:
        names = sorted(entry.name for entry in os.scandir(rootfs_dir) if entry.is_dir(follow_symlinks=False))
    except FileNotFoundError:
        return []
    except OSError as error:
        raise RootfsError(f"cannot list rootfs in {rootfs_dir}: {error.strerror}") from error
    found = []
    for name in names:
        # A name with a dot in front is a build or a removal under way: `check_rootfs` refuses it.
        with contextlib.suppress(InvalidRequest, OSError, ValueError):
            found.append(_read(spec.check_rootfs(name), rootfs_dir))
    return found


def remove(name: str, rootfs_dir: Path, *, in_use: InUse = nobody) -> None:
    """Remove the rootfs called `name`, or a directory of that name that is none any more.

    Raises:
        InvalidRequest: `name` cannot be a rootfs's name.
        RootfsNotFound: there is none of that name.
        Conflict: sandboxes use it, a build or removal is under way, or something is mounted in it.
        RootfsError: the files cannot be removed.
    """
    spec.check_rootfs(name)
    path = rootfs_dir / name
    if not os.path.lexists(path):
        raise _not_found("remove", name, rootfs_dir)
    with locked(rootfs_dir, wait=None):
        sweep(rootfs_dir)
        check_unused(name, rootfs_dir, in_use, verb="remove")
        aside = rootfs_dir / _scratch(_REMOVING, name)
        try:
            path.rename(aside)
            fsync_directory(rootfs_dir)
            remove_tree(aside)
        except OSError as error:
            raise RootfsError(f"cannot remove rootfs {name}: {error}", rootfs=name) from error


def check_unused(name: str, rootfs_dir: Path, in_use: InUse, *, verb: str) -> None:
    """Refuse to `verb` a rootfs that is in use, that is a symbolic link, or in which something is mounted.

    Raises:
        Conflict: sandboxes use it, or something is mounted in it.
        RootfsError: it is no directory.
    """
    path = rootfs_dir / name
    if path.is_symlink() or not path.is_dir():
        raise RootfsError(f"cannot {verb} rootfs {name}: {path} is not a directory", rootfs=name)
    users = in_use(name)
    if users:
        raise Conflict(
            f"cannot {verb} rootfs {name}: sandboxes use it ({', '.join(users)}); destroy them first",
            rootfs=name,
            sandboxes=users,
        )
    mounts = mounts_below(path)
    if mounts:
        raise Conflict(f"cannot {verb} rootfs {name}: {mounts[0]} is mounted", rootfs=name, mounts=mounts)


@contextlib.contextmanager
def locked(rootfs_dir: Path, *, wait: Callable[[], None] | None) -> Iterator[None]:
    """Hold the lock of `rootfs_dir`; while another has it, call `wait` once and wait, or fail where that is None.

    Raises:
        Conflict: another process holds the lock and `wait` is None.
        RootfsError: the directory cannot be opened.
    """
    try:
        fd = os.open(rootfs_dir, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise RootfsError(f"cannot open {rootfs_dir}: {error.strerror}") from error
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if wait is None:
                raise Conflict(f"cannot lock {rootfs_dir}: a build or a removal is under way there") from None
            wait()
            fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)


def _scratch(prefix: str, name: str) -> str:
    """Return a new name for a directory under way, which no rootfs can have."""
    return f"{prefix}{name}-{os.getpid()}-{secrets.token_hex(4)}"


def building(name: str) -> str:
    """Return a new name for the directory in which the rootfs `name` is built."""
    return _scratch(_BUILDING, name)


def sweep(rootfs_dir: Path) -> None:
    """Remove what killed builds and removals left; the caller holds the lock, so none of it is alive.

    Raises:
        RootfsError: something cannot be removed.
    """
    for entry in sorted(os.scandir(rootfs_dir), key=lambda entry: entry.name):
        if entry.name.startswith((_BUILDING, _REMOVING)) and entry.is_dir(follow_symlinks=False):
            try:
                remove_tree(Path(entry.path))
            except OSError as error:
                raise RootfsError(f"cannot remove the remains of a build at {entry.path}: {error}") from error


def publish(built: Path, name: str, rootfs_dir: Path) -> None:
    """Give the finished directory `built` its name; what had the name before is removed afterwards.

    Between the two renames of a replacement the name does not exist; a builder killed just there leaves no rootfs, and
    the next build makes one.

    Raises:
        OSError: a rename or a removal failed.
    """
    path = rootfs_dir / name
    aside: Path | None = None
    if os.path.lexists(path):
        aside = rootfs_dir / _scratch(_REMOVING, name)
        path.rename(aside)
    built.rename(path)
    fsync_directory(rootfs_dir)
    if aside is not None:
        remove_tree(aside)


def _not_found(verb: str, name: str, rootfs_dir: Path) -> RootfsNotFound:
    available = [rootfs.name for rootfs in list_rootfs(rootfs_dir)]
    return RootfsNotFound(
        f"cannot {verb} rootfs {name}: {rootfs_dir} has {', '.join(available) or 'none'}",
        rootfs=name,
        available=available,
    )
