"""`sandbox.json`: the daemon's whole record of a sandbox, one file each, written atomically, mode 0600.

It holds what the launcher must never see (env, labels). The daemon asks the launcher again for the rest (devices,
effective limits) when it starts, so nothing is stored twice.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
import os
from typing import TYPE_CHECKING, Any, Final

from ..errors import SandboxdError
from ..network import NetworkSpec
from ..spec import Limits, SandboxSpec, check_id
from .ports import PortSpec

if TYPE_CHECKING:
    from pathlib import Path

_log = logging.getLogger(__name__)

#: Raised by one when the meaning of a field changes; a file of another version is not read.
VERSION: Final = 1


@dataclasses.dataclass(frozen=True, slots=True)
class Record:
    """What is kept of a sandbox."""

    id: str
    spec: SandboxSpec
    created_at: float
    ports: tuple[PortSpec, ...] = ()


class Store:
    """The records under one directory. Every method blocks on the disk: call it in a worker thread."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def __repr__(self) -> str:
        return f"<Store {self._root}>"

    def save(self, record: Record) -> None:
        """Write a record: a new file beside it, synced, then renamed over it."""
        directory = self._root / check_id(record.id)
        directory.mkdir(mode=0o700, exist_ok=True)
        data = {
            "version": VERSION,
            "id": record.id,
            "created_at": record.created_at,
            "spec": dataclasses.asdict(record.spec),
            "ports": [dataclasses.asdict(port) for port in record.ports],
        }
        fd = os.open(directory / "sandbox.json.new", os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        with open(fd, "wb") as file:
            file.write(json.dumps(data).encode())
            file.flush()
            os.fsync(file.fileno())
        os.rename(directory / "sandbox.json.new", directory / "sandbox.json")

    def drop(self, sandbox_id: str) -> None:
        """Remove a record; none is fine."""
        directory = self._root / check_id(sandbox_id)
        for name in ("sandbox.json", "sandbox.json.new"):
            with contextlib.suppress(FileNotFoundError):
                os.unlink(directory / name)
        with contextlib.suppress(FileNotFoundError):
            os.rmdir(directory)

    def load(self) -> list[Record]:
        """Return every record, the oldest first; one that cannot be read is logged and left out."""
        found = []
        for directory in sorted(self._root.iterdir()):
            try:
                found.append(_parse(json.loads((directory / "sandbox.json").read_bytes())))
            except (OSError, ValueError, TypeError, KeyError, SandboxdError) as error:
                _log.warning("Cannot read the record of sandbox %s: %s", directory.name, error)
        return sorted(found, key=lambda record: record.created_at)

    def names(self) -> list[str]:
        """Return the ids that have a directory, readable or not."""
        return [directory.name for directory in self._root.iterdir()]


def _parse(data: dict[str, Any]) -> Record:
    if data["version"] != VERSION:
        raise ValueError(f"version {data['version']}")
    spec = dict(data["spec"])
    limits = Limits(**spec.pop("limits"))
    network = spec.pop("network")
    if isinstance(network, str):  # as it was before there was more to say
        network = {"mode": network}
    network = NetworkSpec(**{**network, "allow": tuple(network.get("allow") or ())})
    ports = tuple(PortSpec(**port) for port in data.get("ports", ()))
    return Record(
        check_id(data["id"]), SandboxSpec(limits=limits, network=network, **spec), float(data["created_at"]), ports
    )
