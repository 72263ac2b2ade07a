"""Fixtures for tests that run in the machine, as root, beside the installed service `sandboxd`."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from sandboxd import Sandbox
from sandboxd.client import Client
from tests.vm.inside.support import URL, Service, systemctl


@pytest.fixture
def service() -> Iterator[Service]:
    """The service; running again after a test that stopped it."""
    yield Service()
    systemctl("reset-failed", "sandboxd")
    systemctl("start", "sandboxd")


@pytest.fixture
def client(service: Service) -> Iterator[Client]:
    with Client(URL) as client:
        yield client


@pytest.fixture
def sandbox(client: Client) -> Iterator[Sandbox]:
    """A fresh sandbox with the default limits."""
    with Sandbox.create(client=client) as sandbox:
        yield sandbox
