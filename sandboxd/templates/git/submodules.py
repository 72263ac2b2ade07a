"""Submodules: repositories that a tree names by a commit, and `.gitmodules` by an address.

Both are the repository's word, so: a name is a path that goes nowhere else (CVE-2018-17456, CVE-2018-11235), an
address is one of http, https and git (a path or file:// would read what the cloning user may read: CVE-2022-39253),
nothing of it becomes an option of a command (there is none), and there is an end to how many and how deep.
"""

from __future__ import annotations

import os
import posixpath
import urllib.parse
from pathlib import Path
from typing import TYPE_CHECKING, Final

from ...errors import GitRefused, SandboxdError
from . import configfile, layout, transport
from .checkout import is_safe

if TYPE_CHECKING:
    from .clone import Cloning

MAX_LEVELS: Final = 8
MAX_SUBMODULES: Final = 200


def clone_all(
    cloning: Cloning,
    address: transport.Address,
    files: Path,
    git: Path,
    gitlinks: list[tuple[bytes, bytes]],
    level: int,
) -> int:
    """Clone every submodule that has an address; returns how many files that made.

    Raises:
        GitRefused: a name or an address is not taken, or they are too many.
        SandboxdError: one cannot be cloned: `submodule` names it.
    """
    if level >= MAX_LEVELS or len(gitlinks) > MAX_SUBMODULES:
        raise GitRefused(
            "cannot clone the submodules: there are too many, or they nest too deeply", reason="submodules"
        )
    declared = _declared(files)
    made = 0
    for path, commit in gitlinks:
        if path not in declared:
            continue  # a bare link: C git passes over it as well
        name, written = declared[path]
        shown = path.decode("utf-8", "replace")
        if not _is_inside(name) or not _is_inside(path):
            raise GitRefused(f"cannot clone submodule {shown!r}: that name is not allowed", reason="submodule-name")
        if written is None:
            raise GitRefused(f"cannot clone submodule {shown!r}: it has no url", reason="submodule-address")
        url = written.decode("utf-8", "surrogateescape")
        made += _clone_one(cloning, _absolute(address, url, shown), files, git, (path, name), commit)
    return made


def _clone_one(
    cloning: Cloning,
    address: transport.Address,
    files: Path,
    git: Path,
    names: tuple[bytes, bytes],
    commit: bytes,
) -> int:
    path, name = names
    shown = path.decode("utf-8", "replace")
    place = files / os.fsdecode(path)
    modules = git / "modules"
    own = modules / os.fsdecode(name)
    # Nor in another one's directory: what is made there would be that one's hooks or objects.
    above = [directory for directory in own.parents if modules in directory.parents]
    if (
        any(os.path.lexists(directory / "HEAD") for directory in above)
        or os.path.lexists(own)
        or place.is_symlink()
        or not place.is_dir()
    ):
        raise GitRefused(
            f"cannot clone submodule {shown!r}: its path already exists or is not a directory", reason="submodule-name"
        )
    own.parent.mkdir(parents=True, exist_ok=True)
    progress = cloning.progress
    before, progress.about = progress.about, shown
    try:
        found = cloning.below(commit.hex().encode()).run(address, place, own, os.path.relpath(place, own))
    except SandboxdError as error:
        error.facts.setdefault("submodule", shown)
        raise
    finally:
        progress.about = before
    (place / ".git").write_text(f"gitdir: {os.path.relpath(own, place)}\n", "utf-8", "surrogateescape")
    with (git / "config").open("ab") as config:
        rows = [(b"url", layout.quoted(address.url.encode())), (b"active", b"true")]
        config.write(layout.section(b"submodule", name, rows))
    return int(found["files"])


def _declared(files: Path) -> dict[bytes, tuple[bytes, bytes | None]]:
    """Return what .gitmodules says: path to (name, address). As in C git, of two that say the same the last holds."""
    data = configfile.read(files / ".gitmodules", ".gitmodules")
    paths: dict[bytes, bytes] = {}
    urls: dict[bytes, bytes] = {}
    for section, name, variable, value in configfile.parse(data or b"", ".gitmodules"):
        if section != b"submodule" or name is None or variable not in (b"path", b"url"):
            continue
        shown = name.decode("utf-8", "replace")
        if value is None:
            raise GitRefused(
                f"cannot clone submodule {shown!r}: its {variable.decode()} has no value", reason="configuration"
            )
        (paths if variable == b"path" else urls)[name] = value
    return {path: (name, urls.get(name)) for name, path in paths.items()}


def _is_inside(name: bytes) -> bool:
    """Whether a name, as a path, leads nowhere but down."""
    return all(is_safe(part) for part in name.split(b"/")) and not name.startswith(b"-")


def _absolute(address: transport.Address, url: str, shown: str) -> transport.Address:
    if url.startswith(("./", "../")) and address.scheme:
        path = posixpath.normpath(posixpath.join(address.path.rstrip("/"), url))
        parts = urllib.parse.urlsplit(address.url)
        url = f"{parts.scheme}://{parts.netloc}{path}"
    if any(ord(character) <= 32 or ord(character) == 127 or "\udc80" <= character <= "\udcff" for character in url):
        raise GitRefused(f"cannot clone submodule {shown!r}: its address is not a URL", reason="submodule-address")
    try:
        parsed = transport.parse(url)
    except GitRefused:
        parsed = None
    if parsed is None or not parsed.scheme:
        raise GitRefused(
            f"cannot clone submodule {shown!r}: its address must be http, https or git",
            reason="submodule-address",
            submodule=shown,
        )
    return parsed
