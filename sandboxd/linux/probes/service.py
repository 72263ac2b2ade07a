"""sandboxd as a systemd service: whether `make install` was run here, and what became of it."""

from __future__ import annotations

import dataclasses
import os
from typing import Final

from .. import cgroupfs, procfs
from .feature import Feature, Status
from .files import read_text

UNIT: Final = "sandboxd.service"
HOLDER: Final = "sandboxd-cgroups.service"
_UNIT_DIRECTORIES: Final = ("/etc/systemd/system", "/usr/local/lib/systemd/system", "/usr/lib/systemd/system")
_INSTALL: Final = "make install"


@dataclasses.dataclass(frozen=True, slots=True)
class ServiceState:
    """What is there of the service.

    Attributes:
        systemd: whether systemd runs this host.
        unit, holder: the unit files, where there are any.
        program: what the unit starts; missing: whether that is not there.
        enabled: whether it starts with the host.
        running, holding: whether there are processes in the two units.
    """

    systemd: bool
    unit: str | None = None
    holder: str | None = None
    program: str | None = None
    missing: bool = False
    enabled: bool = False
    running: bool = False
    holding: bool = False


def gather() -> ServiceState:
    """Look at files alone; needs no root and no systemctl."""
    if not os.path.isdir("/run/systemd/system"):
        return ServiceState(systemd=False)
    unit = _unit_file(UNIT)
    program = program_of(read_text(unit) or "") if unit else None
    mount = cgroupfs.find_mount(procfs.mounts())
    return ServiceState(
        systemd=True,
        unit=unit,
        holder=_unit_file(HOLDER),
        program=program,
        missing=program is not None and not os.access(program, os.X_OK),
        enabled=os.path.lexists(f"/etc/systemd/system/multi-user.target.wants/{UNIT}"),
        running=mount is not None and cgroupfs.is_populated(f"{mount}/system.slice/{UNIT}"),
        holding=mount is not None and cgroupfs.is_populated(f"{mount}/system.slice/{HOLDER}/holder"),
    )


def program_of(unit: str) -> str | None:
    """Return the program that a unit file's ExecStart names."""
    for line in unit.splitlines():
        key, _, value = line.partition("=")
        if key.strip() == "ExecStart" and value.split():
            return value.split()[0].lstrip("-@:+!")
    return None


def evaluate(facts: ServiceState) -> list[Feature]:
    """Tell it as one feature; a daemon that somebody starts by hand needs none of it."""
    name, means = "service", "systemd starts the daemon, and sandboxes outlive its restarts"
    if not facts.systemd:
        by_hand = "systemd does not restart the daemon; you keep it running yourself"
        return [Feature(name=name, status=Status.OK, found="systemd does not run this host", means=by_hand)]
    if facts.unit is None:
        found = "not installed; make install does it"
        return [
            Feature(
                name=name, status=Status.OK, found=found, means="the daemon runs only while someone runs it by hand"
            )
        ]
    trouble, remedy = _trouble(facts)
    if trouble:
        means = "sandboxes cannot be relied on to outlive a restart of the daemon"
        return [Feature(name=name, status=Status.DEGRADED, found=trouble, means=means, remedy=remedy)]
    state = "running" if facts.running else "not running; systemctl start sandboxd"
    boots = "starts with the host" if facts.enabled else "does not start with the host; systemctl enable sandboxd"
    return [Feature(name=name, status=Status.OK, found=f"installed ({facts.program}), {state}, {boots}", means=means)]


def _trouble(facts: ServiceState) -> tuple[str | None, str | None]:
    if facts.holder is None:
        return f"{facts.unit} is installed, {HOLDER} is not", _INSTALL
    if facts.missing or facts.program is None:
        return f"{facts.unit} starts {facts.program or 'nothing'}, which does not exist", _INSTALL
    if facts.running and not facts.holding:
        return f"running, but {HOLDER} is not active", f"systemctl start {HOLDER}; systemctl restart {UNIT}"
    return None, None


def _unit_file(name: str) -> str | None:
    for directory in _UNIT_DIRECTORIES:
        if os.path.isfile(f"{directory}/{name}"):
            return f"{directory}/{name}"
    return None
