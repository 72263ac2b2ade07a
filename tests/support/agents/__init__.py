"""OpenAI's agents with their Cloudflare sandbox client, in an environment of their own that is cached over test runs.

The product never imports them; `program.py` runs under their interpreter and tells what it saw as JSON.
"""

from __future__ import annotations

import hashlib
import json
import os
import pathlib
import shutil
import subprocess
import sys
from typing import Any

CACHE = pathlib.Path("/var/cache/sandboxd-tests/agents")
PACKAGES = ("openai-agents[cloudflare]==0.24.0",)
_HERE = pathlib.Path(__file__).parent
_INSTALL_S = 600
_RUN_S = 120


def python() -> pathlib.Path:
    """Return the interpreter that has the packages; they are installed where they are not."""
    name = hashlib.sha256(repr((PACKAGES, sys.version)).encode()).hexdigest()[:16]
    place = CACHE / name
    if not (place / "complete").exists():
        shutil.rmtree(place, ignore_errors=True)
        subprocess.run([sys.executable, "-m", "venv", str(place)], check=True, timeout=_INSTALL_S)
        pip = [str(place / "bin" / "pip"), "install", "--quiet", "--disable-pip-version-check", *PACKAGES]
        subprocess.run(pip, check=True, timeout=_INSTALL_S)
        (place / "complete").touch()
    return place / "bin" / "python"


def run(what: str, url: str, token: str) -> Any:
    """Run one part of the program and return what it saw."""
    environment = {
        "PATH": os.environ["PATH"],
        "HOME": "/nonexistent",
        "OPENAI_AGENTS_DISABLE_TRACING": "1",
        "OPENAI_API_KEY": "none",
        "WORKER_URL": url,
        "WORKER_KEY": token,
        "CLOUDFLARE_SANDBOX_API_KEY": token,  # what a resumed session takes: its state holds no key
    }
    found = subprocess.run(
        [str(python()), str(_HERE / "program.py"), what],
        env=environment,
        capture_output=True,
        text=True,
        timeout=_RUN_S,
        check=False,
    )
    assert found.returncode == 0, found.stderr[-6000:]
    return json.loads(found.stdout.splitlines()[-1])
