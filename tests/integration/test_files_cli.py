"""`sandboxd files` on a real daemon."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys

import pytest

from sandboxd import Sandbox
from tests.support.daemon import Daemon

pytestmark = pytest.mark.real


def words(*given: str) -> list[str]:
    return [sys.executable, "-m", "sandboxd", "files", *given]


def files(daemon: Daemon, *given: str, data: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    env = {**os.environ, "SANDBOXD_URL": daemon.url}
    return subprocess.run(words(*given), env=env, input=data, capture_output=True, timeout=30, check=False)


def test_the_verbs_of_files(daemon: Daemon, sandbox: Sandbox) -> None:
    key, data = sandbox.id, bytes(range(256)) * 5000
    strange = os.fsdecode(b"/workspace/d/\xff\n")

    def done(*given: str, data: bytes = b"") -> bytes:
        result = files(daemon, *given, data=data)
        assert (result.returncode, result.stderr) == (0, b""), given
        return result.stdout

    done("write", "-m", "750", key, "/workspace/d/bytes", data=data)
    assert done("cat", key, "/workspace/d/bytes") == data
    done("write", key, strange, data=b"def one\n\x1b[31mtwo\n")
    done("mkdir", "-p", key, "/workspace/d/.hidden/deep")
    assert done("ls", key, "/workspace/d") == b"bytes\n\\xff\\n\n"
    assert done("ls", "-aR", key, "/workspace/d").split() == [b".hidden", b".hidden/deep", b"bytes", b"\\xff\\n"]
    assert b"-rwxr-x---  0:0    1280000" in done("ls", "-l", key, "/workspace/d")
    done("chmod", key, "600", "/workspace/d/bytes")
    done("chown", key, "nobody:7", "/workspace/d/bytes")
    (shown,) = json.loads(done("stat", "--json", key, "/workspace/d/bytes"))
    assert (shown["mode"], shown["uid"], shown["gid"], shown["size"]) == ("0600", 65534, 7, len(data))
    assert done("search", key, "def|two", "/workspace/d").splitlines() == [
        b"/workspace/d/\\xff\\n:1:def one",
        b"/workspace/d/\\xff\\n:2:\\x1b[31mtwo",
    ]
    assert done("find", key, "deep", "-a") == b"/workspace/d/.hidden/deep\n"
    assert done("replace", key, "one", "three", strange) == b"/workspace/d/\\xff\\n:1\n"
    assert done("cat", key, strange) == b"def three\n\x1b[31mtwo\n"
    done("truncate", key, "/workspace/d/bytes", "1K")
    assert done("stat", key, "/workspace/d/bytes").splitlines()[2] == b"size       1024"
    done("mv", key, strange, "/workspace/new/plain")
    done("copy", key, "/workspace/new/plain", "/workspace/d")  # a directory: under its name into it
    done("ln", key, "d/plain", "/workspace/link")
    assert done("cat", key, "/workspace/link") == b"def three\n\x1b[31mtwo\n"
    taken = files(daemon, "copy", "-n", key, "/workspace/link", "/workspace/d/plain")
    assert (taken.returncode, taken.stderr.count(b"\n")) == (1, 1)
    full = files(daemon, "rm", key, "/workspace/d", "/workspace/none", "/workspace/link")
    assert (full.returncode, full.stderr.count(b"\n")) == (1, 2)
    done("rm", "-r", key, "/workspace/d", "/workspace/new")
    assert done("ls", "-a", key) == b""
    assert files(daemon, "ls", key, "/workspace/d").returncode == 1


def test_a_watch_tells_changes_until_it_is_interrupted(daemon: Daemon, sandbox: Sandbox) -> None:
    env = {**os.environ, "SANDBOXD_URL": daemon.url}
    with subprocess.Popen(
        words("watch", sandbox.id), env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        try:
            assert process.stderr.readline() == b"sandboxd: watching /workspace\n"
            sandbox.exec("mkdir made").check()
            assert process.stdout.readline() == b"create   /workspace/made/\n"
            sandbox.exec(r"mv made $(printf '\377')").check()
            assert process.stdout.readline() == b"rename   /workspace/made/ -> /workspace/\\xff/\n"
            process.send_signal(signal.SIGINT)
            assert process.communicate(timeout=30) == (b"", b"")
        finally:
            process.kill()
    assert process.returncode == 130
