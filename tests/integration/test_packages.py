"""What pip installs: the client alone, without a compiler; and a wheel that has all that a daemon reads."""

from __future__ import annotations

import os
import pathlib
import shutil
import subprocess
import sys
import zipfile

import pytest

from tests.support.daemon import Daemon

ROOT = pathlib.Path(__file__).parents[2]
pytestmark = [pytest.mark.real, pytest.mark.slow]


def run(*words: str | os.PathLike[str], cwd: pathlib.Path = pathlib.Path("/"), **env: str) -> str:
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("PYTHON", "SANDBOXD"))}
    done = subprocess.run(
        words, cwd=cwd, env={**environment, **env}, capture_output=True, text=True, timeout=250, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """Return a directory with an sdist and a wheel, each built from a copy of what git knows, outside the checkout."""
    top = tmp_path_factory.mktemp("packages")
    tree, out = top / "tree", top / "dist"
    for name in run("git", "ls-files", cwd=ROOT).splitlines():
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, tree / name)
    run(sys.executable, "-m", "hatchling", "build", "--target", "sdist", "--directory", out, cwd=tree)
    run(sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", out, cwd=tree)
    return out


def only(directory: pathlib.Path, pattern: str) -> pathlib.Path:
    (found,) = directory.glob(pattern)
    return found


def names(wheel: pathlib.Path) -> set[str]:
    return {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}


def test_a_wheel_has_what_a_daemon_reads_and_is_pure(built: pathlib.Path) -> None:
    wheel = only(built, "*.whl")
    assert wheel.name.endswith("-py3-none-any.whl")
    there = names(wheel)
    tracked = run("git", "ls-files", "sandboxd", "rootfs", "seccomp", "systemd", cwd=ROOT).splitlines()
    wanted = {name if name.startswith("sandboxd/") else f"sandboxd/_data/{name}" for name in tracked}
    assert wanted <= there, wanted - there
    for name in ("rootfs/default/manifest.toml", "seccomp/default.json", "systemd/sandboxd.service"):
        assert (ROOT / name).exists(), name


def test_a_wheel_of_the_sdist_is_the_same(built: pathlib.Path, tmp_path: pathlib.Path) -> None:
    run("tar", "--extract", "--file", only(built, "*.tar.gz"), cwd=tmp_path)
    (tree,) = tmp_path.iterdir()
    run(sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", tmp_path / "dist", cwd=tree)
    assert names(only(tmp_path / "dist", "*.whl")) == names(only(built, "*.whl"))


def test_the_client_is_installed_without_a_compiler(
    built: pathlib.Path, tmp_path: pathlib.Path, daemon: Daemon
) -> None:
    """Into an environment of its own, from ready-made wheels alone; and it runs a command."""
    run(sys.executable, "-m", "venv", tmp_path / "venv")
    python = tmp_path / "venv/bin/python"
    pip = (python, "-m", "pip", "--disable-pip-version-check", "--no-input", "--quiet", "install")
    run(*pip, "--only-binary", ":all:", only(built, "*.whl"))
    installed = run(python, "-m", "pip", "list", "--format", "freeze").lower()
    assert not [name for name in ("prctl", "pyseccomp", "trio", "quart", "msgpack") if f"{name}==" in installed]
    program = tmp_path / "venv/bin/sandboxd"
    assert run(program, "run", "--", "echo", "it works", SANDBOXD_URL=daemon.url) == "it works\n"
    code = "import sandboxd\nwith sandboxd.Sandbox.create() as box: print(box.exec(['echo', 'here']).stdout, end='')"
    assert run(python, "-c", code, SANDBOXD_URL=daemon.url) == "here\n"
