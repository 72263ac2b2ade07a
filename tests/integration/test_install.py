"""`make install` into a directory of the test's own: what is where, that a second run changes nothing, and its end."""

from __future__ import annotations

import os
import pathlib
import subprocess

import pytest

from sandboxd.config import Config, load

ROOT = pathlib.Path(__file__).parents[2]
pytestmark = [pytest.mark.real, pytest.mark.slow]


def make(goal: str, directory: pathlib.Path) -> None:
    done = subprocess.run(
        ["make", goal, f"DESTDIR={directory}", "PREFIX=/srv/sandboxd"],
        cwd=ROOT,
        env={key: value for key, value in os.environ.items() if not key.startswith("MAKE")},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def state(directory: pathlib.Path) -> dict[str, tuple[int, int]]:
    """Return every file with its inode and when it was written; compiled Python is a matter of who ran it."""
    found = (path for path in directory.rglob("*") if "__pycache__" not in path.parts and not path.is_dir())
    return {str(path): (path.lstat().st_ino, path.lstat().st_mtime_ns) for path in found}


def test_install_twice_and_uninstall(tmp_path: pathlib.Path) -> None:
    make("install", tmp_path)
    command = tmp_path / "srv/sandboxd/bin/sandboxd"
    assert command.read_text().startswith("#!/srv/sandboxd/bin/python")
    assert os.readlink(tmp_path / "usr/local/bin/sandboxd") == "/srv/sandboxd/bin/sandboxd"
    units = tmp_path / "etc/systemd/system"
    assert "ExecStart=/srv/sandboxd/bin/sandboxd serve" in (units / "sandboxd.service").read_text()
    assert "ExecStart=/srv/sandboxd/libexec/sandboxd-cgroups" in (units / "sandboxd-cgroups.service").read_text()
    assert os.access(tmp_path / "srv/sandboxd/libexec/sandboxd-cgroups", os.X_OK)
    assert "ip_forward = 1" in (tmp_path / "etc/sysctl.d/60-sandboxd.conf").read_text()
    assert "u sandboxd" in (tmp_path / "etc/sysusers.d/sandboxd.conf").read_text()
    # It stands on its own: nothing of the checkout is on its path.
    program = "import sandboxd, sandboxd.daemon; print(sandboxd.__file__)"
    python = tmp_path / "srv/sandboxd/bin/python"
    done = subprocess.run([python, "-I", "-c", program], capture_output=True, text=True, check=True, cwd="/")
    assert done.stdout.startswith(str(tmp_path))

    (tmp_path / "etc/sandboxd/config.toml").write_text("log_level = 'debug'\n")
    before = state(tmp_path)
    make("install", tmp_path)
    assert state(tmp_path) == before

    make("uninstall", tmp_path)
    assert [path for path in state(tmp_path)] == [str(tmp_path / "etc/sandboxd/config.toml")]


def test_a_strange_prefix_is_refused(tmp_path: pathlib.Path) -> None:
    done = subprocess.run(
        [ROOT / ".setup/install"],
        env={**os.environ, "PREFIX": "relative", "DESTDIR": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert "absolute" in done.stderr
    assert not list(tmp_path.iterdir())


def test_the_configuration_that_is_installed_shows_the_defaults(tmp_path: pathlib.Path) -> None:
    text = (ROOT / "systemd/config.toml").read_text()
    assert load(ROOT / "systemd/config.toml", {}) == Config(network="internet")
    shown = tmp_path / "shown.toml"
    lines = [line.removeprefix("# ") for line in text.splitlines() if " = " in line or line == "# [limits]"]
    without_default = ("listen", "token_file", "network_dns")
    shown.write_text("\n".join(line for line in lines if not line.startswith(without_default)))
    assert len(lines) > 8
    assert load(shown, {}) == Config(network="internet")
