"""The READMEs' examples run as they stand, against a real daemon; and print what the page says that they print."""

from __future__ import annotations

import itertools
import os
import pathlib
import shutil
import subprocess
import sys
from typing import Any

import pytest

from tests.support import documents
from tests.support.cloudflare_client import TOKEN
from tests.support.daemon import Daemon
from tests.support.documents import ROOT, Block

pytestmark = [pytest.mark.real, pytest.mark.slow]
PAGES = (("README.md", "python"), ("sandboxd/client/README.md", "python"), ("sandboxd/api/README.md", "sh"))


def programs() -> list[Any]:
    """Return the blocks to run, each with the block behind it. In shell these are the ones that speak to the socket."""
    found = []
    for page, language in PAGES:
        if not (ROOT / page).exists():  # tests/unit/test_documents.py says so
            continue
        blocks = documents.blocks((ROOT / page).read_text())
        for block, following in itertools.zip_longest(blocks, blocks[1:]):
            wanted = block.language == language and not documents.NOT_RUN.search(block.before)
            if wanted and (language == "python" or "--unix-socket $S" in block.text):
                found.append(pytest.param(block, following, id=f"{page}:{block.line}"))
    return found


@pytest.mark.parametrize(("block", "following"), programs())
def test_an_example_runs(
    served: tuple[Daemon, str], tmp_path: pathlib.Path, block: Block, following: Block | None
) -> None:
    daemon, url = served
    shutil.copytree(ROOT / "rootfs", tmp_path / "rootfs")
    (tmp_path / "token").write_text(f"{TOKEN}\n")
    text = block.text.replace("http://127.0.0.1:7070", url).replace("/run/sandboxd/sandboxd.sock", str(daemon.socket))
    program = [sys.executable, "-c"] if block.language == "python" else ["bash", "-euo", "pipefail", "-c"]
    env = {**os.environ, "SANDBOXD_URL": daemon.url, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [*program, text], cwd=tmp_path, env=env, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert not done.stderr or block.language == "sh"
    if following and following.before == "It prints:":
        assert done.stdout == following.text
