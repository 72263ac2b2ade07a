"""The fixtures of the browser tests, over another rootfs; run by `make test-apps` alone."""

from __future__ import annotations

import pathlib
import tempfile
from collections.abc import Iterator

import pytest

from sandboxd import Sandbox, images
from tests.support.browser import Browser
from tests.support.daemon import Daemon
from tests.support.web import CACHE

RECIPES = pathlib.Path(__file__).parents[1] / "support" / "recipes"


@pytest.fixture(scope="module")
def apps() -> Iterator[Sandbox]:
    images.build("apps", CACHE / "rootfs", recipes=RECIPES)
    with tempfile.TemporaryDirectory(prefix="sandboxd-apps-") as name:
        daemon = Daemon(pathlib.Path(name, "d"), rootfs_dir=str(CACHE / "rootfs"))
        daemon.start()
        try:
            with daemon.client() as client, Sandbox.create(rootfs="apps", client=client) as sandbox:
                yield sandbox
        finally:
            daemon.close()


@pytest.fixture(scope="module")
def page() -> Iterator[Browser]:
    with Browser() as page:
        yield page
