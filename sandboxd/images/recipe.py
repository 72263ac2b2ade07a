"""Recipes: a directory with a manifest, and the hash that says whether a built rootfs still matches it.

A recipe's parts, all but the manifest optional:

    manifest.toml     format, summary, and the tables [debian], [python], [node]
    *.lock            what the tables name: requirements with versions and hashes
    files/            copied over the tree, as root's
    finish, check     programs that run inside the tree, without a network, at the end; `check` must succeed
"""

from __future__ import annotations

import hashlib
import os
import platform
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sandboxd import spec
from sandboxd.errors import RootfsError, RootfsNotFound

__all__ = ["Debian", "Recipe", "find_recipe", "load_recipe", "recipe_names", "recipes_dir"]

_FORMAT = 1
# Enters every recipe's hash: raise it when the builder itself makes another tree from the same recipe.
_BUILDER = 1
_TABLES = {
    "debian": {"suite", "variant", "packages", "exclude", "include", "expect"},
    "python": {"version", "lock"},
    "node": {"lock"},
}


@dataclass(frozen=True, slots=True)
class Debian:
    """The Debian part: suite, variant and packages, as mmdebstrap takes them."""

    suite: str
    variant: str = "minbase"
    packages: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    include: tuple[str, ...] = ()
    expect: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Recipe:
    """A recipe as read; `hash` covers all that decides what is built, the machine's architecture included."""

    name: str
    path: Path
    summary: str
    hash: str
    debian: Debian | None = None
    python_version: str | None = None
    python_lock: Path | None = None
    node_lock: Path | None = None
    files: Path | None = None
    finish: Path | None = None
    check: Path | None = None


def recipes_dir() -> Path:
    """Return the directory of the recipes that come with sandboxd: package data, or the checkout's `rootfs/`."""
    package = Path(__file__).resolve().parent.parent
    installed = package / "_data" / "rootfs"
    return installed if installed.is_dir() else package.parent / "rootfs"


def recipe_names(recipes: Path | None = None) -> list[str]:
    """Return the names of the recipes there are, sorted."""
    directory = recipes or recipes_dir()
    return sorted(manifest.parent.name for manifest in directory.glob("*/manifest.toml"))


def find_recipe(name: str, recipes: Path | None = None) -> Recipe:
    """Return the recipe called `name`.

    Raises:
        InvalidRequest: `name` cannot be a rootfs's name.
        RootfsNotFound: there is no such recipe.
        RootfsError: the recipe is malformed.
    """
    spec.check_rootfs(name)
    directory = recipes or recipes_dir()
    if not (directory / name / "manifest.toml").is_file():
        available = recipe_names(directory)
        listed = ", ".join(available) or "none"
        raise RootfsNotFound(
            f"cannot find a recipe for rootfs {name}: the recipes are {listed}", rootfs=name, available=available
        )
    return load_recipe(directory / name)


def load_recipe(path: Path) -> Recipe:
    """Read the recipe in the directory `path`, whose last part is the recipe's name.

    Raises:
        RootfsError: a file is missing or unreadable, or the manifest has a wrong type, an unknown key or format.
    """
    try:
        manifest = tomllib.loads((path / "manifest.toml").read_text(encoding="utf-8"))
        return _parse(path, manifest)
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError, TypeError, ValueError) as error:
        raise RootfsError(f"cannot read recipe {path}: {error}", recipe=str(path)) from error


def _parse(path: Path, manifest: dict[str, Any]) -> Recipe:
    if manifest.get("format") != _FORMAT:
        raise ValueError(f"its format is {manifest.get('format')!r} and not {_FORMAT}")
    _refuse_unknown(manifest, {"format", "summary", *_TABLES}, "the manifest")
    for table, keys in _TABLES.items():
        _refuse_unknown(manifest.get(table, {}), keys, f"[{table}]")
    python = manifest.get("python", {})
    return Recipe(
        name=path.name,
        path=path,
        summary=_text(manifest, "summary", ""),
        hash=_hash(path, manifest),
        debian=_debian(manifest["debian"]) if "debian" in manifest else None,
        python_version=_text(python, "version") if python else None,
        python_lock=_part(path, _text(python, "lock")) if python else None,
        node_lock=_part(path, _text(manifest["node"], "lock")) if "node" in manifest else None,
        files=_optional(path / "files"),
        finish=_optional(path / "finish"),
        check=_optional(path / "check"),
    )


def _debian(table: dict[str, Any]) -> Debian:
    return Debian(
        suite=_text(table, "suite"),
        variant=_text(table, "variant", "minbase"),
        packages=_texts(table, "packages"),
        exclude=_texts(table, "exclude"),
        include=_texts(table, "include"),
        expect={str(key): str(value) for key, value in dict(table.get("expect", {})).items()},
    )


def _refuse_unknown(table: object, known: set[str], where: str) -> None:
    if not isinstance(table, dict):
        raise TypeError(f"{where} is not a table")
    unknown = sorted(set(table) - known)
    if unknown:
        raise ValueError(f"{where} has unknown keys: {', '.join(unknown)}")


def _text(table: dict[str, Any], key: str, default: str | None = None) -> str:
    value = table.get(key, default)
    if not isinstance(value, str):
        raise TypeError(f"{key} is not text")
    return value


def _texts(table: dict[str, Any], key: str) -> tuple[str, ...]:
    value = table.get(key, [])
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise TypeError(f"{key} is not a list of strings")
    return tuple(value)


def _part(path: Path, name: str) -> Path:
    if "/" in name or not (path / name).is_file():
        raise ValueError(f"it names {name}, which is not a file of the recipe")
    return path / name


def _optional(path: Path) -> Path | None:
    return path if path.exists() else None


def _hash(path: Path, manifest: dict[str, Any]) -> str:
    """Hash the parts that decide what is built: not the inputs that locks are made from, nor notes beside them."""
    digest = hashlib.sha256(f"{_FORMAT} {_BUILDER} {platform.machine()}\n".encode())
    locks = [manifest[table]["lock"] for table in ("python", "node") if table in manifest]
    for part in ["manifest.toml", "finish", "check", "files", *locks]:
        for item in _walk(path / part):
            kind, content = _content(item)
            relative = item.relative_to(path).as_posix()
            digest.update(f"{kind} {len(content)} {relative}\n".encode())
            digest.update(content)
    return digest.hexdigest()


def _walk(path: Path) -> Iterator[Path]:
    if path.is_symlink() or path.exists():
        yield path
    if path.is_dir() and not path.is_symlink():
        for item in sorted(path.iterdir()):
            yield from _walk(item)


def _content(path: Path) -> tuple[str, bytes]:
    if path.is_symlink():
        return "link", os.fsencode(path.readlink())
    if path.is_dir():
        return "folder", b""
    return "program" if os.access(path, os.X_OK) else "file", path.read_bytes()
