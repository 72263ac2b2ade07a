"""Ports of destroyed sandboxes, whose visitors get 410 (gone) instead of 404 (never existed).

Kept in one file, so that a daemon that starts still knows: a JSON line is appended for each sandbox that had exposed
ports, before its record is dropped. The newest `MAX_TOMBSTONES` ports count; the file is written anew, atomically, when
it holds twice as many. Nothing here justifies an fsync, or failing a destruction: a lost port is answered with 404.
"""

from __future__ import annotations

import collections
import dataclasses
import json
import logging
import os
from typing import TYPE_CHECKING, Any, Final

from ..errors import SandboxdError
from ..spec import check_id
from .ports import PortSpec

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

_log = logging.getLogger(__name__)

#: Ports that are remembered, the newest: a line takes about 130 bytes, the file at most some MiB.
MAX_TOMBSTONES: Final = 4096


class Tombstones:
    """The newest ports that are gone. `path` is the file; without one they are forgotten with the daemon.

    `add` and `get` use memory only; `load` and `write` block on the disk and never raise.
    """

    def __init__(self, path: Path | None = None, bound: int = MAX_TOMBSTONES) -> None:
        self._path = path
        self._bound = bound
        self._ports: collections.OrderedDict[tuple[str, int], PortSpec] = collections.OrderedDict()
        self._rows = 0  # ports in the file

    def __repr__(self) -> str:
        return f"<Tombstones {len(self._ports)} ports>"

    def __len__(self) -> int:
        return len(self._ports)

    def get(self, sandbox_id: str, port: int) -> PortSpec | None:
        """Return what was exposed there, or None."""
        return self._ports.get((sandbox_id, port))

    def add(self, sandbox_id: str, specs: Iterable[PortSpec]) -> None:
        """Remember ports; the oldest are forgotten."""
        for spec in specs:
            self._ports[sandbox_id, spec.port] = spec
        while len(self._ports) > self._bound:
            self._ports.popitem(last=False)

    def load(self) -> None:
        """Read the file; a line that is none, as a crash may leave, is passed over."""
        if self._path is None:
            return
        try:
            lines = self._path.read_bytes().splitlines()
        except FileNotFoundError:
            return
        except OSError as error:
            _log.warning("Cannot read %s: %s", self._path, error.strerror)
            return
        for line in lines:
            try:
                sandbox_id, specs = _parse(json.loads(line))
            except (ValueError, TypeError, KeyError, SandboxdError):
                continue
            self.add(sandbox_id, specs)
            self._rows += len(specs)
        self._compact()

    def write(self, sandbox_id: str, specs: Sequence[PortSpec]) -> None:
        """Append ports that were added."""
        if self._path is None or not specs:
            return
        try:
            fd = os.open(self._path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
            with open(fd, "r+b", buffering=0) as file:
                size = file.seek(0, os.SEEK_END)
                torn = size > 0 and os.pread(fd, 1, size - 1) != b"\n"
                file.write(b"\n" * torn + _line(sandbox_id, specs))
        except OSError as error:
            _log.warning("Cannot write %s: %s", self._path, error.strerror)
            return
        self._rows += len(specs)
        self._compact()

    def _compact(self) -> None:
        if self._path is None or self._rows <= 2 * self._bound:
            return
        new = self._path.with_suffix(".new")
        kept = list(self._ports.items())
        try:
            new.write_bytes(b"".join(_line(sandbox_id, [spec]) for (sandbox_id, _), spec in kept))
            new.chmod(0o600)
            new.rename(self._path)
        except OSError as error:
            _log.warning("Cannot write %s: %s", self._path, error.strerror)
            return
        self._rows = len(kept)


def _line(sandbox_id: str, specs: Sequence[PortSpec]) -> bytes:
    data = {"id": sandbox_id, "ports": [dataclasses.asdict(spec) for spec in specs]}
    return json.dumps(data, separators=(",", ":")).encode() + b"\n"


def _parse(data: dict[str, Any]) -> tuple[str, list[PortSpec]]:
    return check_id(data["id"]), [PortSpec(**port) for port in data["ports"]]
