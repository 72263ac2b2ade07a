"""The requests of a stream about its own command, a process started by …/exec (see `calls`)."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeAlias

from . import process_calls

if TYPE_CHECKING:
    from .calls import Call, Steps

#: The sandbox's id, and the process's.
ProcessKey: TypeAlias = tuple[str, str]


def write_stdin(key: ProcessKey, data: bytes | str) -> Steps:
    """Write to the command's standard input, which `stdin=True` left open; returns once the data is accepted.

    Raises:
        ProcessNotRunning: the command has ended, or closed its standard input.
    """
    return process_calls.write_stdin(*key, data)


def send_signal(key: ProcessKey, number: str | int) -> Call[None]:
    """Send a signal, a name or a number, to the command's process group; KILL reaches everything it started.

    Raises:
        ProcessNotRunning: the command has ended.
    """
    return process_calls.kill_process(*key, number)


def close_stdin(key: ProcessKey) -> Steps:
    """Close the command's standard input, so that it reads end of file. Does nothing if the command has ended."""
    return process_calls.close_stdin(*key)
