"""Seccomp profiles, compiled once at the launcher's start, in a short child that alone loads libseccomp."""

from __future__ import annotations

import os
import stat
from typing import Any

import msgpack

from ..errors import ConfigError, InvalidRequest
from ..linux import seccomp
from ..spec import check_profile


def compile_all(directory: str, own_directory: str | None = None) -> dict[str, list[bytes]]:
    """Return the filters of every profile by name: those that come with sandboxd, and the operator's own.

    Each allows what init needs on top (see `seccomp.FOR_INIT`).

    Raises:
        ConfigError: a profile cannot be compiled, or the operator's folder is not root's alone; the launcher does
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
    return answer["profiles"]  # type: ignore[no-any-return]


def _compile_child(directory: str, own_directory: str | None, write_end: int) -> None:
    try:
        paths = _found(directory)
        if own_directory is not None:
            _check_roots(own_directory)
            own = _found(own_directory)
            for path in own.values():
                _check_roots(path)
            if taken := sorted(set(own) & set(paths)):
                raise ValueError(f"{own[taken[0]]} has the name of a profile that comes with sandboxd")
            paths |= own
        profiles = {name: _compile(path) for name, path in paths.items()}
        answer: dict[str, Any] = {"profiles": profiles}
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


def _found(directory: str) -> dict[str, str]:
    """Return the paths of the profiles in `directory`, by name."""
    entries = sorted(entry for entry in os.listdir(directory) if entry.endswith(".json"))
    try:
        return {check_profile(entry.removesuffix(".json")): f"{directory}/{entry}" for entry in entries}
    except InvalidRequest as error:
        raise ValueError(f"{directory}: {error.message}") from None


def _check_roots(path: str) -> None:
    """Raise ValueError unless root alone can change what `path` (a folder or file, no link) says."""
    facts = os.lstat(path)
    if not (stat.S_ISREG(facts.st_mode) or stat.S_ISDIR(facts.st_mode)):
        raise ValueError(f"{path} is neither a folder nor a plain file")
    if facts.st_uid != 0 or facts.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise ValueError(f"{path} must be root's, and nobody else's to write")
