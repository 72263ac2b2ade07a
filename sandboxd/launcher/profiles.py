"""Seccomp profiles, compiled once at the launcher's start, in a short child that alone loads libseccomp."""

from __future__ import annotations

import os
import stat
from typing import Any, Final, NamedTuple

import msgpack

from ..errors import ConfigError, InvalidRequest
from ..linux import seccomp
from ..spec import check_profile

#: What a template is limited to: the profile of this name, as its children live under it too, but for what its two
#: capabilities would make of ioctl(2) and madvise(2), and with setns.
_TEMPLATE_BASE: Final = "default"
#: ioctl(2) of a template and its children, as (mask, value): terminals, pipes and sockets by their type (0x54, 0x89);
#: files' own by their number (flags, extents, clones). The rest of a filesystem's would freeze, trim, shut
#: down or search the host's disk for whoever has CAP_SYS_ADMIN, and a read-only directory of it is enough to ask.
_IOCTLS: Final = (
    *((0xFFFFFF00, kind << 8) for kind in (0x54, 0x89)),
    *((0xFFFFFFFF, number) for number in (0x2, 0x80086601, 0xC020660B, 0x801C581F)),
    *((0xFFFFFFFF, number) for number in (0x40049409, 0x4020940D, 0xC0189436, 0x80045200)),
)
#: MADV_HWPOISON and MADV_SOFT_OFFLINE take a page of the host's memory out of use.
_POISON: Final = (100, 101)


class Filters(NamedTuple):
    """Compiled filters.

    Attributes:
        profiles: by the profile's name.
        shipped: the names of those that come with sandboxd.
        template: those of a template's process.
    """

    profiles: dict[str, list[bytes]]
    shipped: frozenset[str]
    template: list[bytes]


def compile_all(directory: str, own_directory: str | None = None) -> Filters:
    """Return the filters of every profile by name: those that come with sandboxd, and the operator's own.

    Each allows what init needs on top (see `seccomp.FOR_INIT`).

    Raises:
        ConfigError: a profile cannot be compiled, or the operator's directory is not root's alone; the launcher does
            not start with fewer walls than configured.
    """
    read_end, write_end = os.pipe2(os.O_CLOEXEC)
    pid = os.fork()
    if pid == 0:
        _compile_child(directory, own_directory, write_end)
    os.close(write_end)
    with open(read_end, "rb") as pipe:
        raw = pipe.read()
    os.waitpid(pid, 0)
    answer: dict[str, Any] = msgpack.unpackb(raw) if raw else {"error": "the compiler died"}
    if "error" in answer:
        raise ConfigError(f"cannot compile the seccomp profiles: {answer['error']}", key="seccomp_dir")
    return Filters(answer["profiles"], frozenset(answer["shipped"]), answer["template"])


def _compile_child(directory: str, own_directory: str | None, write_end: int) -> None:
    try:
        paths = _found(directory)
        shipped = sorted(paths)
        if own_directory is not None:
            _check_roots(own_directory)
            own = _found(own_directory)
            for path in own.values():
                _check_roots(path)
            if taken := sorted(set(own) & set(paths)):
                raise ValueError(f"{own[taken[0]]} has the name of a built-in profile")
            paths |= own
        profiles = {name: _compile(path) for name, path in paths.items()}
        template = _compile_template(paths[_TEMPLATE_BASE]) if _TEMPLATE_BASE in paths else []
        answer: dict[str, Any] = {"profiles": profiles, "shipped": shipped, "template": template}
    except Exception as error:
        answer = {"error": f"{type(error).__name__}: {error}"}
    try:
        with open(write_end, "wb") as pipe:
            pipe.write(msgpack.packb(answer))
    finally:
        os._exit(0)


def _compile(path: str) -> list[bytes]:
    try:
        return seccomp.compile_profile(seccomp.load_profile(path), also_allow=seccomp.FOR_INIT)
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        text = str(error)
        raise ValueError(text if path in text else f"{path}: {text}") from None


def _compile_template(path: str) -> list[bytes]:
    profile = template_profile(seccomp.load_profile(path))
    return seccomp.compile_profile(profile, also_allow=(*seccomp.FOR_INIT, "setns"))


def template_profile(profile: dict[str, Any]) -> dict[str, Any]:
    """Return what becomes of a profile for a template: fewer of ioctl(2) and madvise(2)."""
    rules = []
    for rule in profile["syscalls"]:
        names = rule["names"]
        if rule["action"] == "SCMP_ACT_ALLOW" and not rule.get("args"):
            names = [name for name in names if name != "ioctl"]
        rules.append({**rule, "names": names})
    for mask, value in _IOCTLS:
        compare = {"index": 1, "value": mask, "valueTwo": value, "op": "SCMP_CMP_MASKED_EQ"}
        rules.append({"names": ["ioctl"], "action": "SCMP_ACT_ALLOW", "args": [compare]})
    for advice in _POISON:
        compare = {"index": 2, "value": 0xFFFFFFFF, "valueTwo": advice, "op": "SCMP_CMP_MASKED_EQ"}
        rules.append({"names": ["madvise"], "action": "SCMP_ACT_ERRNO", "errnoRet": 1, "args": [compare]})
    return {**profile, "syscalls": rules}


def _found(directory: str) -> dict[str, str]:
    """Return the paths of the profiles in `directory`, by name."""
    entries = sorted(entry for entry in os.listdir(directory) if entry.endswith(".json"))
    try:
        return {check_profile(entry.removesuffix(".json")): f"{directory}/{entry}" for entry in entries}
    except InvalidRequest as error:
        raise ValueError(f"{directory}: {error.message}") from None


def _check_roots(path: str) -> None:
    """Raise ValueError unless root alone can change what `path` (a directory or file, no link) says."""
    facts = os.lstat(path)
    if not (stat.S_ISREG(facts.st_mode) or stat.S_ISDIR(facts.st_mode)):
        raise ValueError(f"{path} is neither a directory nor a regular file")
    if facts.st_uid != 0 or facts.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise ValueError(f"{path} must be owned by root and writable by no other user")
