"""State that must survive the launcher: one small file per running sandbox, replaced by rename.

A record identifies the sandbox's init (by pid and start time, which are unique until a reboot) and keeps the facts for
which the daemon may ask again. A crash between fork and record leaves a populated cgroup without one: the sweep
kills it. After a reboot no record's process exists, so records need no fsync.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
from typing import Any

import msgpack

from ..linux import procfs


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """A running sandbox, as the launcher remembers it.

    `network` has the fields of its `NetworkSpec`, and is empty for one without; `generation` counts its changes.
    """

    id: str
    pid: int
    started: int
    range_index: int
    rootfs: str
    seccomp: str
    devices: list[int]
    limits: dict[str, Any]
    unenforced: list[str]
    network: dict[str, Any] = dataclasses.field(default_factory=dict)
    generation: int = 1

    @property
    def is_alive(self) -> bool:
        """Whether its init still runs."""
        return procfs.start_time(self.pid) == self.started


class RecordStore:
    """The records directory."""

    def __init__(self, directory: str) -> None:
        self._dir = directory

    def save(self, record: Record) -> None:
        """Write or replace a record."""
        temporary = f"{self._dir}/.{record.id}"
        with open(temporary, "wb") as file:
            file.write(msgpack.packb(dataclasses.asdict(record)))
        os.rename(temporary, f"{self._dir}/{record.id}")

    def remove(self, sandbox_id: str) -> None:
        """Forget a sandbox, and what a crash left of a record that was being written."""
        for name in (sandbox_id, f".{sandbox_id}"):
            with contextlib.suppress(FileNotFoundError):
                os.unlink(f"{self._dir}/{name}")

    def load(self) -> dict[str, Record]:
        """Return every readable record; one that a crash of the host tore names nothing that lives."""
        found = {}
        for name in os.listdir(self._dir):
            if name.startswith("."):
                continue
            with contextlib.suppress(ValueError, TypeError), open(f"{self._dir}/{name}", "rb") as file:
                found[name] = Record(**msgpack.unpackb(file.read()))
        return found

    def names(self) -> list[str]:
        """Return the ids that have a record, torn ones included."""
        return [name.removeprefix(".") for name in os.listdir(self._dir)]
