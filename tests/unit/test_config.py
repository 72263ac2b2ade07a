from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from sandboxd.config import Config, launcher_settings, load
from sandboxd.errors import ConfigError
from sandboxd.spec import DEFAULT_LIMITS


def test_the_defaults_are_the_documented_ones() -> None:
    config = load(None, {})
    assert config.state_dir == Path("/var/lib/sandboxd")
    assert config.socket_path == Path("/run/sandboxd/sandboxd.sock")
    assert config.rootfs_path == Path("/var/lib/sandboxd/rootfs")
    assert config.init_sockets_dir == Path("/run/sandboxd/links")
    assert config.listen is None
    assert config.limits == DEFAULT_LIMITS


def test_flags_go_before_the_file(tmp_path: Path) -> None:
    file = tmp_path / "sandboxd.toml"
    file.write_text('state_dir = "/a"\nruntime_dir = "/b"\nallow_unenforced = true\n[limits]\npids = 10\n')
    config = load(file, {"state_dir": Path("/c"), "runtime_dir": None, "allow_unenforced": None})
    assert (config.state_dir, config.runtime_dir, config.allow_unenforced) == (Path("/c"), Path("/b"), True)
    assert config.limits == dataclasses.replace(DEFAULT_LIMITS, pids=10)


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("colour = 1", "colour"),
        ("state_dir = 1", "state_dir"),
        ("state_dir = ''", "state_dir"),
        ("allow_unenforced = 1", "allow_unenforced"),
        ("listen = 'x'", "listen"),
        ("listen = 'x:99999'", "listen"),
        ("listen = ':80'", "listen"),
        ("log_level = 'loud'", "log_level"),
        ("limits = 3", "limits"),
        ("node_spare_s = -1", "node_spare_s"),
        ("node_spare_s = true", "node_spare_s"),
        ("node_spare_s = 1.5", "node_spare_s"),
        ("node_spare_s = 100000", "node_spare_s"),
        ("standby_s = -1", "standby_s"),
        ("standby_s = true", "standby_s"),
        ("standby_s = 1.5", "standby_s"),
        ("standby_s = 100000", "standby_s"),
        ("cgroup = 'system.slice'", "cgroup"),
        ("cgroup = '/'", "cgroup"),
        ("cgroup = '/a/../b'", "cgroup"),
        ("cgroup = 1", "cgroup"),
        ("[limits]\nio = 3", "limits.io"),
        ("[limits]\npids = true", "limits.pids"),
        ("[limits]\npids = 1.5", "limits.pids"),
        ("[limits]\ncpus = nan", "limits.cpus"),
        ("[limits]\npids = -1", "limits.pids"),
        ("listen = '127.0.0.1:80'", "token_file"),
        ("not toml", "config"),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, text: str, key: str) -> None:
    file = tmp_path / "sandboxd.toml"
    file.write_text(text)
    with pytest.raises(ConfigError) as caught:
        load(file, {})
    assert caught.value.key == key


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError):
        load(tmp_path / "none.toml", {})


@pytest.mark.parametrize(
    "text", ["", "   \n", "short", "two words are not one token", "ünïcödé-is-no-header-value", "a" * 2000]
)
def test_weak_tokens_are_refused(tmp_path: Path, text: str) -> None:
    file = tmp_path / "token"
    file.write_text(text)
    with pytest.raises(ConfigError):
        Config(token_file=file).token()


def test_a_token_is_read_without_its_line_end(tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text("correct-horse-battery\n")
    assert load(None, {"token_file": file, "listen": "[::1]:80"}).token() == "correct-horse-battery"
    assert load(None, {"token_file": file, "listen": "[::1]:80"}).listen == ("::1", 80)
    assert Config().token() is None


def test_the_launcher_understands_its_settings() -> None:
    settings = pytest.importorskip("sandboxd.launcher.settings").Settings
    config = Config(allow_unenforced=True, limits=dataclasses.replace(DEFAULT_LIMITS, pids=7))
    got = settings.from_message(launcher_settings(config, daemon_uid=5, daemon_gid=6))
    assert got.default_limits == config.limits
    assert (got.daemon_uid, got.daemon_gid, got.allow_unenforced) == (5, 6, True)
    assert Path(got.profile_dir).name == "seccomp"
