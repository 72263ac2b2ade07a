"""The kernel here loads modules on demand: nothing that a sandbox does may be such a demand."""

from __future__ import annotations

import pathlib

import pytest

from sandboxd import Sandbox
from sandboxd.client import Client

LOADING = pathlib.Path(__file__).parents[2] / "probes/load_modules.py"


def loaded() -> set[str]:
    """Return the names of the modules that are loaded."""
    return {line.split()[0] for line in pathlib.Path("/proc/modules").read_text().splitlines()}


@pytest.mark.parametrize("profile", ["default", "strict"])
def test_a_sandbox_loads_no_module(client: Client, profile: str) -> None:
    with Sandbox.create(client=client, seccomp=profile, network={"mode": "none"}) as sandbox:
        sandbox.exec("true").check()
        before = loaded()
        sandbox.exec(["python3", "-c", LOADING.read_text()]).check()
        assert loaded() - before == set()
