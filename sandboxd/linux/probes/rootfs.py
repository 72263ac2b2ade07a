"""The root filesystems that sandboxes can be made of: each one whole, readable, and whence."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import json
import os
import stat
from typing import TYPE_CHECKING, Any, Final

from ..kernel import RESOLVE_IN_ROOT
from .feature import AS_ROOT, Feature, Status, listed

if TYPE_CHECKING:
    from ..kernel import Kernel

#: What a rootfs without it cannot do: `sh -c` is how a command that is one string runs.
SHELL: Final = "bin/sh"
#: What a creation mounts or writes on: refused where it is a link.
MOUNT_POINTS: Final = ("dev", "etc", "proc", "sys")


@dataclasses.dataclass(frozen=True, slots=True)
class Rootfs:
    """One directory of the rootfs directory.

    Attributes:
        name: its name.
        facts: its rootfs.json; None where there is none that can be understood.
        tree: whether it has a tree that a creation takes; None when this user may not look.
        why: what is wrong with it, if anything.
    """

    name: str
    facts: dict[str, Any] | None
    tree: bool | None
    why: str = ""


@dataclasses.dataclass(frozen=True, slots=True)
class RootfsListing:
    """What is in `directory`; `error` when it cannot be listed."""

    directory: str
    found: tuple[Rootfs, ...] = ()
    error: str | None = None


def gather(kernel: Kernel, directory: str) -> RootfsListing:
    """Look at each directory that looks like a rootfs; a dot in front is a build or removal under way."""
    try:
        entries = [entry for entry in os.scandir(directory) if entry.is_dir(follow_symlinks=False)]
    except FileNotFoundError:
        return RootfsListing(directory)
    except OSError as error:
        return RootfsListing(directory, error=f"{directory} cannot be listed: {error.strerror}")
    names = sorted(entry.name for entry in entries if not entry.name.startswith(".") and _is_meant(entry.path))
    return RootfsListing(directory, tuple(_look(kernel, directory, name) for name in names))


def trees(facts: RootfsListing) -> list[str]:
    """Return the unpacked trees that are whole, `default` first."""
    names = sorted((item.name for item in facts.found if item.facts and item.tree), key=lambda name: name != "default")
    return [f"{facts.directory}/{name}/private/tree" for name in names]


def evaluate(facts: RootfsListing) -> list[Feature]:
    """Tell root filesystems that sandboxes can be created from."""
    features = [_one(facts.directory, item) for item in facts.found]
    usable = [item.name for item in facts.found if item.facts is not None and item.tree]
    unseen = [item.name for item in facts.found if item.facts is not None and item.tree is None]
    build = f"sandboxd rootfs build default --rootfs-dir {facts.directory}"
    remedy: str | None = None
    if facts.error is not None:
        status, found, means = Status.UNKNOWN, facts.error, "root filesystems that sandboxes can be created from"
        remedy = AS_ROOT
    elif "default" in usable:
        status, found, means = Status.OK, listed(usable), "sandboxes can be created from it"
    elif usable:
        status, found, means = (
            Status.DEGRADED,
            listed(usable),
            "creating a sandbox requires the name of a rootfs: there is no default",
        )
        remedy = build
    elif unseen:
        status, found, means = Status.UNKNOWN, f"{listed(unseen)}, of which only root can see the tree", "see each"
        remedy = AS_ROOT
    else:
        status, found = Status.MISSING, f"none in {facts.directory}"
        means, remedy = "no sandbox can be created", build
    whole = Feature(name="rootfs", status=status, found=found, means=means, remedy=remedy, essential=True)
    return [whole, *features]


def _is_meant(path: str) -> bool:
    """Tell a rootfs, whole or not, from a directory that only happens to be here, such as lost+found."""
    return any(os.path.lexists(f"{path}/{name}") for name in ("rootfs.json", "private"))


def _look(kernel: Kernel, directory: str, name: str) -> Rootfs:
    tree, why = _look_at_tree(kernel, f"{directory}/{name}/private/tree")
    try:
        with open(f"{directory}/{name}/rootfs.json", encoding="utf-8") as file:
            facts = json.load(file)
    except OSError as error:
        return Rootfs(name, None, tree, f"its rootfs.json cannot be read: {error.strerror}")
    except ValueError:
        return Rootfs(name, None, tree, "its rootfs.json is not JSON")
    if not isinstance(facts, dict) or facts.get("name") != name:
        return Rootfs(name, None, tree, "its rootfs.json names another rootfs")
    return Rootfs(name, facts, tree, why)


def _look_at_tree(kernel: Kernel, tree: str) -> tuple[bool | None, str]:
    """Return whether a creation takes this tree (None: it cannot be seen), and what is wrong with it."""
    try:
        root = kernel.open(tree, os.O_RDONLY | os.O_DIRECTORY)
    except OSError as error:
        return (None, "") if error.errno == errno.EACCES else (False, "it has no tree")
    try:
        for name in MOUNT_POINTS:
            with contextlib.suppress(FileNotFoundError):
                if not stat.S_ISDIR(os.stat(name, dir_fd=root, follow_symlinks=False).st_mode):
                    return False, f"its /{name} is not a directory, so a sandbox's own cannot be mounted there"
        # Below the tree: its absolute links are its own.
        os.close(kernel.openat2(root, SHELL, os.O_PATH, RESOLVE_IN_ROOT))
    except OSError:
        return True, f"it has no /{SHELL}"
    finally:
        os.close(root)
    return True, ""


def _one(directory: str, item: Rootfs) -> Feature:
    name = f"rootfs:{item.name}"
    if item.facts is None or item.tree is False:
        found, rebuild = item.why, f"sandboxd rootfs rm {item.name} --rootfs-dir {directory}, and build it again"
        means = "no sandbox can be created from it: a build was interrupted, or its files were changed"
        return Feature(name=name, status=Status.DEGRADED, found=found, means=means, remedy=rebuild)
    recipe = item.facts.get("recipe")
    origin = f"built by the recipe {recipe}" if recipe else "imported"
    trust = "trusted" if item.facts.get("trusted") else "not trusted"
    found = f"{origin}, {item.facts.get('built_at', 'at an unknown time')}, {trust}"
    if item.tree is None:
        means = "only root can inspect its tree"
        return Feature(name=name, status=Status.UNKNOWN, found=found, means=means, remedy=AS_ROOT)
    if item.why:
        means = "commands given as one string fail there; lists of arguments work"
        remedy = f"build the rootfs from an image that has /{SHELL}"
        return Feature(name=name, status=Status.DEGRADED, found=f"{found}; {item.why}", means=means, remedy=remedy)
    return Feature(name=name, status=Status.OK, found=found, means="sandboxes can be created from it")
