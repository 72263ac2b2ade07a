"""The API's tests run over our own server and over the stock one behind ASGI (tests/support/asgi.py)."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.fake_daemon import SERVER


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run what asks a daemon twice, but for what is about our own server."""
    if "daemon" in metafunc.fixturenames and not any(metafunc.definition.iter_markers("own_server")):
        metafunc.parametrize("http_server", ["own", "asgi"], indirect=True)


@pytest.fixture(autouse=True)
def http_server(request: pytest.FixtureRequest) -> Iterator[str]:
    """Choose the server that `daemon_in` runs."""
    name: str = getattr(request, "param", "own")
    token = SERVER.set(name)
    yield name
    SERVER.reset(token)
