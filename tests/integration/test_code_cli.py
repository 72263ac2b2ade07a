"""`sandboxd code` and `sandboxd contexts` against a real daemon."""

from __future__ import annotations

import json
import os
import pathlib
import subprocess
import sys

import pytest

from sandboxd import Sandbox
from tests.support.daemon import Daemon

pytestmark = pytest.mark.real


def run(daemon: Daemon, *words: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
    program = str(pathlib.Path(sys.executable).with_name("sandboxd"))
    env = {**os.environ, "SANDBOXD_URL": daemon.url}
    return subprocess.run(
        [program, *words], input=stdin, capture_output=True, text=True, env=env, timeout=60, check=False
    )


def test_code(daemon: Daemon, sandbox: Sandbox, tmp_path: pathlib.Path) -> None:
    done = run(daemon, "code", sandbox.id, "-c", "x = 2\nprint('out')\nx + 1")
    assert (done.returncode, done.stdout, done.stderr) == (0, "out\n3\n", "")
    done = run(daemon, "code", sandbox.id, "-", stdin="1 / (x - 2)")
    assert done.returncode == 1
    assert "ZeroDivisionError" in done.stderr
    done = run(daemon, "code", "-t", "0.3", sandbox.id, "-c", "while True: pass")
    assert (done.returncode, done.stdout) == (124, "")
    script = tmp_path / "a.ts"
    script.write_text("const n: number = 4; n * 2")
    assert run(daemon, "code", sandbox.id, str(script)).stdout == "8\n"
    done = run(daemon, "code", "--save", str(tmp_path), sandbox.id, "-c", "import PIL.Image as i; i.new('RGB', (1, 1))")
    assert (tmp_path / "1.png").read_bytes().startswith(b"\x89PNG")
    found = json.loads(
        run(daemon, "code", "--json", "-e", "A=1", sandbox.id, "-c", "import os; os.environ['A']").stdout
    )
    assert (found["status"], found["results"][0]["text"]) == ("ok", "'1'")
    assert run(daemon, "code", sandbox.id).returncode == 2
    assert run(daemon, "code", sandbox.id, "-c", "import os; os._exit(1)").returncode == 125
    done = run(daemon, "code", sandbox.id, "-c", "1")
    assert (done.returncode, done.stdout) == (0, "1\n")
    assert "the context was restarted" in done.stderr
    assert run(daemon, "code", sandbox.id, "-c", "1").stderr == ""


def test_contexts(daemon: Daemon, sandbox: Sandbox) -> None:
    made = run(daemon, "contexts", "create", sandbox.id, "js").stdout.strip()
    assert run(daemon, "contexts", "ls", "-q", sandbox.id).stdout == f"{made}\n"
    assert "javascript" in run(daemon, "contexts", "ls", sandbox.id).stdout
    assert run(daemon, "code", "-x", made, sandbox.id, "-c", "globalThis.k = 1").returncode == 0
    assert "nothing is running" in run(daemon, "contexts", "interrupt", sandbox.id, made).stderr
    assert run(daemon, "contexts", "restart", sandbox.id, made).returncode == 0
    assert run(daemon, "code", "-x", made, sandbox.id, "-c", "typeof k").stdout == "'undefined'\n"
    assert run(daemon, "contexts", "rm", sandbox.id, made).returncode == 0
    assert run(daemon, "contexts", "rm", sandbox.id, made).returncode == 1
