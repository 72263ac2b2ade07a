"""The doctor's verdict on the installed service, for hosts that are made up."""

from __future__ import annotations

import pathlib
from typing import Any

import pytest

from sandboxd.linux.probes import service
from sandboxd.linux.probes.service import ServiceState

ROOT = pathlib.Path(__file__).parents[3]
UNITS: dict[str, Any] = {
    "unit": "/etc/systemd/system/sandboxd.service",
    "holder": "/etc/systemd/system/sandboxd-cgroups.service",
}


@pytest.mark.parametrize(
    ("facts", "status", "found"),
    [
        (ServiceState(systemd=False), "ok", "systemd does not run this host"),
        (ServiceState(systemd=True), "ok", "not installed"),
        (ServiceState(systemd=True, **UNITS, program="/p"), "ok", "not running"),
        (
            ServiceState(systemd=True, **UNITS, program="/p", running=True, holding=True),
            "ok",
            "does not start with the host",
        ),
        (
            ServiceState(systemd=True, **UNITS, program="/p", running=True, holding=True, enabled=True),
            "ok",
            "running, starts",
        ),
        (ServiceState(systemd=True, unit="/u", program="/p"), "degraded", "sandboxd-cgroups.service is not"),
        (
            ServiceState(systemd=True, **UNITS, program="/p", missing=True),
            "degraded",
            "starts /p, which does not exist",
        ),
        (ServiceState(systemd=True, **UNITS), "degraded", "starts nothing"),
        (ServiceState(systemd=True, **UNITS, program="/p", running=True), "degraded", "is not active"),
    ],
)
def test_service(facts: ServiceState, status: str, found: str) -> None:
    (feature,) = service.evaluate(facts)
    assert str(feature.status) == status
    assert found in feature.found
    assert (feature.remedy is None) == (status == "ok")


def test_the_program_of_our_own_unit() -> None:
    unit = (ROOT / "systemd/sandboxd.service").read_text().replace("@PREFIX@", "/opt/sandboxd")
    assert service.program_of(unit) == "/opt/sandboxd/bin/sandboxd"
    assert service.program_of("[Service]\nExecStart=-/a b\n") == "/a"
    assert service.program_of("[Service]\nExecStart=\n") is None
