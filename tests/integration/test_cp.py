"""`sandboxd cp` of files and directories, against a real daemon."""

from __future__ import annotations

import io
import os
import pathlib
import pty
import subprocess
import tarfile

import pytest

from sandboxd import Sandbox
from tests.integration.test_sdk_and_cli import PROGRAM, cli
from tests.support.daemon import Daemon

pytestmark = pytest.mark.real


def test_folders_both_ways(daemon: Daemon, sandbox: Sandbox, tmp_path: pathlib.Path) -> None:
    here = tmp_path / "src"
    (here / "deep").mkdir(parents=True)
    (here / "deep" / "f").write_bytes(os.urandom(2_000_000))
    (here / "deep" / "tool").write_text("#!/bin/sh\necho ran\n")
    (here / "deep" / "tool").chmod(0o755)
    (here / "l").symlink_to("deep/f")
    for target, lands in (
        ("/workspace", "/workspace/src"),
        ("/workspace/new", "/workspace/new"),
        ("/opt/", "/opt/src"),
    ):
        done = cli(daemon, "cp", str(here), f"{sandbox.id}:{target}")
        assert (done.returncode, done.stderr) == (0, b"")
        assert sandbox.exec([f"{lands}/deep/tool"]).stdout == "ran\n"
        assert sandbox.exec(["readlink", f"{lands}/l"]).stdout == "deep/f\n"
    sandbox.exec("ln -s /etc/passwd src/out").check()
    done = cli(daemon, "cp", f"{sandbox.id}:/workspace/src", str(tmp_path / "back"))
    assert done.returncode == 0
    assert done.stderr.decode().count("\n") == 1
    assert "left out /workspace/src/out" in done.stderr.decode()
    assert (tmp_path / "back" / "l").read_bytes() == (here / "deep" / "f").read_bytes()
    (tmp_path / "there").mkdir()
    assert cli(daemon, "cp", f"{sandbox.id}:/workspace/src/", str(tmp_path / "there")).returncode == 0
    assert os.access(tmp_path / "there" / "src" / "deep" / "tool", os.X_OK)
    archive = cli(daemon, "cp", f"{sandbox.id}:/workspace/src", "-").stdout
    with tarfile.open(fileobj=io.BytesIO(archive)) as found:
        assert "deep/tool" in found.getnames()


def test_a_file_goes_into_a_folder_that_is_there(daemon: Daemon, sandbox: Sandbox, tmp_path: pathlib.Path) -> None:
    (tmp_path / "f").write_text("x")
    assert cli(daemon, "cp", str(tmp_path / "f"), f"{sandbox.id}:/workspace").returncode == 0
    assert sandbox.read_text("/workspace/f") == "x"
    for words in ([f"{sandbox.id}:/dev/null", str(tmp_path / "n")], [f"{sandbox.id}:/none", str(tmp_path / "n")]):
        done = cli(daemon, "cp", *words)
        assert (done.returncode, done.stderr.count(b"\n")) == (1, 1)
    done = cli(daemon, "cp", f"{sandbox.id}:/workspace", str(tmp_path / "f"))
    assert (done.returncode, (tmp_path / "f").read_text()) == (1, "x")
    assert [path.name for path in tmp_path.iterdir()] == ["f"]


def test_a_terminal_sees_how_far_it_is(daemon: Daemon, sandbox: Sandbox, tmp_path: pathlib.Path) -> None:
    (tmp_path / "f").write_bytes(bytes(30_000_000))
    ours, theirs = pty.openpty()
    env = {**os.environ, "SANDBOXD_URL": daemon.url, "TERM": "xterm", "COLUMNS": "100"}
    command = [PROGRAM, "cp", str(tmp_path / "f"), f"{sandbox.id}:/workspace/f"]
    with subprocess.Popen(command, env=env, stderr=theirs) as process:
        os.close(theirs)
        seen = b""
        while True:
            try:
                data = os.read(ours, 65536)
            except OSError:
                break
            seen += data
    os.close(ours)
    assert process.returncode == 0
    assert b"/workspace/f" in seen
    assert b"30.0" in seen


def test_a_project_with_a_virtual_environment_goes_in_whole(
    daemon: Daemon, sandbox: Sandbox, tmp_path: pathlib.Path
) -> None:
    project = tmp_path / "project"
    (project / ".venv/bin").mkdir(parents=True)
    (project / ".venv/bin/python").symlink_to("/usr/bin/python3")
    (project / ".venv/lib64").symlink_to("lib")
    (project / "up").symlink_to("../../../../../etc/hostname")
    (project / "data").write_text("once")
    (project / "same").hardlink_to(project / "data")
    (project / "zz.py").write_text("print(6 * 7)\n")
    done = cli(daemon, "cp", str(project), f"{sandbox.id}:/workspace")
    assert (done.returncode, done.stderr) == (0, b"")
    assert sandbox.exec("cd project && .venv/bin/python zz.py && readlink up .venv/lib64").stdout == (
        "42\n../../../../../etc/hostname\nlib\n"
    )
    assert sandbox.exec("cat project/same; stat -c %h project/same").stdout == "once2\n"
    os.mkfifo(project / "a\x1b[31mfifo")
    done = cli(daemon, "cp", str(project), f"{sandbox.id}:/workspace/again")
    assert (done.returncode, done.stderr) == (
        1,
        f"sandboxd: left out {project}/a\\x1b[31mfifo: it is a FIFO\n".encode(),
    )
    assert sandbox.exec("cat again/zz.py").stdout == "print(6 * 7)\n"


def test_what_has_no_place_in_a_copy_out_is_told(daemon: Daemon, sandbox: Sandbox, tmp_path: pathlib.Path) -> None:
    sandbox.exec("mkdir -p d/.deep && mkfifo \"d/.deep/$(printf 'a\\033b')\" && echo last >d/z").check()
    done = cli(daemon, "cp", f"{sandbox.id}:/workspace/d", str(tmp_path / "d"))
    assert (done.returncode, done.stderr) == (1, b"sandboxd: left out /workspace/d/.deep/a\\x1bb: it is a fifo\n")
    assert (tmp_path / "d/z").read_text() == "last\n"
    done = cli(daemon, "cp", f"{sandbox.id}:/workspace/d", "-")
    assert (done.returncode, done.stderr.count(b"\n")) == (1, 1)
    with tarfile.open(fileobj=io.BytesIO(done.stdout)) as found:
        assert found.getnames() == [".deep", "z"]


def test_a_sparse_file_takes_no_room_here(daemon: Daemon, sandbox: Sandbox, tmp_path: pathlib.Path) -> None:
    sandbox.exec("mkdir d && truncate -s 100M d/sparse && echo end >>d/sparse && truncate -s 1T d/huge").check()
    assert cli(daemon, "cp", f"{sandbox.id}:/workspace/d/sparse", str(tmp_path / "one")).returncode == 0
    assert (tmp_path / "one").stat().st_size == 100 * 1024**2 + 4
    assert (tmp_path / "one").stat().st_blocks <= 64
    for words in ([f"{sandbox.id}:/workspace/d/huge", str(tmp_path / "two")], [f"{sandbox.id}:/workspace/d", "three"]):
        done = cli(daemon, "cp", words[0], str(tmp_path / words[1]))
        assert (done.returncode, done.stderr.count(b"\n")) == (1, 1)
        assert b"it is over" in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["one"]
