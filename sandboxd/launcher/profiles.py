"""Seccomp profiles, compiled once at the launcher's start, in a short child that alone loads libseccomp."""

from __future__ import annotations

import os
from typing import Any

import msgpack

from ..errors import ConfigError
from ..linux import seccomp


def compile_all(directory: str) -> dict[str, list[bytes]]:
    """Return the filters of every profile in `directory`, by name.

    Each allows clone3 on top (see `seccomp.DENY_CLONE3`).

    Raises:
        ConfigError: a profile cannot be compiled; the launcher does not start with fewer walls than configured.
    """
    read_end, write_end = os.pipe2(os.O_CLOEXEC)
    pid = os.fork()
    if pid == 0:
        _compile_child(directory, write_end)
    os.close(write_end)
    with open(read_end, "rb") as pipe:
        raw = pipe.read()
    os.waitpid(pid, 0)
    answer: dict[str, Any] = msgpack.unpackb(raw) if raw else {"error": "the compiler died"}
    if "error" in answer:
        raise ConfigError(f"cannot compile the seccomp profiles in {directory}: {answer['error']}", key="seccomp")
    return answer["profiles"]  # type: ignore[no-any-return]


def _compile_child(directory: str, write_end: int) -> None:
    try:
        profiles = {}
        for entry in sorted(os.listdir(directory)):
            if entry.endswith(".json"):
                profile = seccomp.load_profile(f"{directory}/{entry}")
                profiles[entry.removesuffix(".json")] = seccomp.compile_profile(profile, also_allow=("clone3",))
        answer: dict[str, Any] = {"profiles": profiles}
    except Exception as error:
        answer = {"error": f"{type(error).__name__}: {error}"}
    try:
        with open(write_end, "wb") as pipe:
            pipe.write(msgpack.packb(answer))
    finally:
        os._exit(0)
