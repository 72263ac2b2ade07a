"""Versions of directories, watches by patterns, directories kept as archives: SDK and command line, a real daemon."""

from __future__ import annotations

import io
import itertools
import os
import subprocess
import sys
import tarfile

import pytest

from sandboxd import AsyncSandbox, Sandbox
from sandboxd.client import AsyncClient
from sandboxd.errors import ArchiveRefused, FileNotFound, InvalidRequest, NotAFile
from tests.support.daemon import Daemon

pytestmark = pytest.mark.real


@pytest.fixture
def directory(shared: Sandbox, request: pytest.FixtureRequest) -> str:
    """A directory of the test's own with a small project in it."""
    path = f"/workspace/{request.node.name.partition('[')[0]}"
    lines = "mkdir -p src/deep .git node_modules/x; echo a > src/a.ts; echo b > src/deep/b.py; echo c > .git/c"
    shared.exec(f"rm -rf {path}; mkdir -p {path}; cd {path}; {lines}; echo '*.log' > .gitignore; echo l > x.log")
    return path


@pytest.mark.parametrize(
    "line",
    [
        "echo x >> src/a.ts",
        "touch new",
        "mkdir src/empty",
        "rm src/deep/b.py",
        "mv src/a.ts src/z.ts",
        "chmod 600 src/a.ts",
        "chown 5 src/a.ts",
        "ln -s a.ts src/l",
        "rm -r src/deep",
        # the same size, and the time set back
        "cp -p src/a.ts /tmp/t; printf 'z\\n' > src/a.ts; touch -r /tmp/t src/a.ts",
        "cp -p src/a.ts src/t && mv src/t src/a.ts",
    ],
)
def test_every_change_is_another_version(shared: Sandbox, directory: str, line: str) -> None:
    before = shared.check_changes(directory)
    assert before.changed is None
    assert before.entries == 10
    assert shared.check_changes(directory, since=before.version).changed is False
    shared.exec(line, cwd=directory)
    after = shared.check_changes(directory, since=before.version)
    assert after.changed is True
    assert after.version != before.version


@pytest.mark.parametrize("line", ["cat src/a.ts; ls -R", "touch .git/c node_modules/x/y", "rm -r .git", "mkdir .git/z"])
def test_reading_and_what_is_left_out_change_nothing(shared: Sandbox, directory: str, line: str) -> None:
    rules = {"exclude": [".git", "node_modules"]}
    before = shared.check_changes(directory, **rules)  # type: ignore[arg-type]
    assert before.entries == 6
    shared.exec(line, cwd=directory)
    assert shared.check_changes(directory, since=before.version, **rules).changed is False  # type: ignore[arg-type]


def test_only_what_is_included_counts(shared: Sandbox, directory: str) -> None:
    before = shared.check_changes(directory, include=["*.py"])
    assert before.entries == 1
    shared.exec("echo x >> src/a.ts; mkdir other", cwd=directory)
    assert shared.check_changes(directory, include=["*.py"], since=before.version).changed is False
    shared.exec("echo x > other/n.py", cwd=directory)
    assert shared.check_changes(directory, include=["*.py"], since=before.version).changed is True


def test_a_version_is_compared_by_its_own_rules(shared: Sandbox, directory: str) -> None:
    version = shared.check_changes(directory).version
    for since, more in ((version, {"recursive": False}), (version, {"exclude": ["x"]}), ("1", {}), (version + "0", {})):
        with pytest.raises(InvalidRequest) as caught:
            shared.check_changes(directory, since=since, **more)
        assert caught.value.facts["field"] == "since"
    with pytest.raises(InvalidRequest):
        shared.check_changes(directory + "/src", since=version)
    with pytest.raises(InvalidRequest):
        shared.check_changes(directory, exclude=["x" * 1001])
    with pytest.raises(FileNotFound):
        shared.check_changes(directory + "/none")


def test_a_file_has_a_version_too(shared: Sandbox, directory: str) -> None:
    before = shared.check_changes(directory + "/src/a.ts")
    assert before.entries == 1
    shared.exec("echo x > src/b.ts", cwd=directory)
    assert shared.check_changes(directory + "/src/a.ts", since=before.version).changed is False
    shared.exec("echo x > src/a.ts", cwd=directory)
    assert shared.check_changes(directory + "/src/a.ts", since=before.version).changed is True


def test_a_watch_tells_what_its_patterns_mean(shared: Sandbox, directory: str) -> None:
    with shared.watch(directory, exclude=[".git", "node_modules"]) as changes:
        line = "echo > .git/d; echo > node_modules/x/e; mkdir -p .git/deep; echo > .git/deep/f; mv src/a.ts .git/; "
        shared.exec(line + "mv .git/c src/c; echo > end", cwd=directory)
        seen = [one.type for one in itertools.islice(changes, 3)]
    assert seen == ["remove", "create", "create"]
    with shared.watch(directory, include=["*.py"]) as changes:
        shared.exec("echo > x.ts; mkdir -p fresh; echo > fresh/y.ts; echo > fresh/n.py", cwd=directory)
        assert next(iter(changes)).path == f"{directory}/fresh/n.py"
    with pytest.raises(InvalidRequest):
        shared.watch(directory, include=["a,b"])


def test_backup_and_restore(shared: Sandbox, directory: str) -> None:
    archive = "/tmp/kept/it.tar.gz"
    made = shared.create_backup(directory, archive)
    assert made.size == shared.stat_file(archive).size
    before = shared.exec("find . | sort", cwd=directory).stdout
    shared.exec("rm -r src; echo new > more; echo changed > x.log", cwd=directory)
    inode = shared.exec("stat -c %i .", cwd=directory).stdout
    assert shared.restore_backup(directory, archive).entries == made.entries
    assert shared.exec("find . | sort; stat -c %i .", cwd=directory).stdout == before + inode
    assert shared.exec("cat src/a.ts x.log", cwd=directory).stdout == "a\nl\n"
    assert shared.restore_backup(directory + "/restored-elsewhere", archive).entries == made.entries
    left = shared.exec("find / -xdev -name '.sandboxd-tmp-*'").stdout
    assert left == ""


@pytest.mark.parametrize("form", ["tar", "tar.gz", "zip"])
def test_what_a_backup_leaves_out(shared: Sandbox, directory: str, form: str) -> None:
    archive = f"/tmp/left.{form}"
    shared.create_backup(directory, archive, format=form, exclude=["node_modules", "deep"], gitignore=True)  # type: ignore[arg-type]
    shared.restore_backup(directory + "/out", archive)
    assert shared.exec("find . -mindepth 1 | sort", cwd=directory + "/out").stdout.split() == [
        "./.gitignore",
        "./src",
        "./src/a.ts",
    ]


def test_below_a_repositorys_root_its_rules_hold(shared: Sandbox, directory: str) -> None:
    shared.exec(
        "mkdir -p .git/info; echo secret > .git/info/exclude; echo x > src/secret; echo x > src/y.log", cwd=directory
    )
    shared.create_backup(directory + "/src", "/tmp/below.tar", format="tar", gitignore=True)
    shared.restore_backup(directory + "/out", "/tmp/below.tar")
    assert "secret" not in (kept := shared.exec("ls -A", cwd=directory + "/out").stdout.split())
    assert "y.log" not in kept
    found = shared.search_files(directory + "/src", content="x|a", gitignore=True)
    assert {match.path.rpartition("/")[2] for match in found.items} == {"a.ts"}
    changed = shared.replace_in_files(directory + "/src", "x", "z", gitignore=True)
    assert not changed.items


def test_a_damaged_backup_changes_nothing(shared: Sandbox, directory: str) -> None:
    shared.create_backup(directory, "/tmp/whole.tar.gz")
    shared.exec("head -c 150 /tmp/whole.tar.gz > /tmp/cut.tar.gz")
    evil = io.BytesIO()
    with tarfile.open(fileobj=evil, mode="w") as file:
        file.addfile(tarfile.TarInfo("../../evil"))
    shared.write_file("/tmp/evil.tar", evil.getvalue())
    version = shared.check_changes(directory).version
    for archive in ("/tmp/cut.tar.gz", "/tmp/evil.tar"):
        with pytest.raises(ArchiveRefused):
            shared.restore_backup(directory, archive)
    with pytest.raises(FileNotFound):
        shared.restore_backup(directory, "/tmp/none.tar")
    assert shared.check_changes(directory, since=version).changed is False
    with pytest.raises(FileNotFound):
        shared.create_backup(directory + "/none", "/tmp/none.tar")
    assert not shared.exists("/tmp/none.tar")
    with pytest.raises(NotAFile):
        shared.create_backup(directory, directory)
    left = shared.exec("find / -xdev -name '.sandboxd-tmp-*'").stdout
    assert left == ""


async def test_the_asynchronous_twins(daemon: Daemon) -> None:
    async with AsyncClient(daemon.url) as client, await AsyncSandbox.create(client=client) as sandbox:
        await sandbox.write_file("/workspace/a/b", "1")
        version = (await sandbox.check_changes("/workspace/a")).version
        made = await sandbox.create_backup("/workspace/a", "/tmp/a.tar")
        await sandbox.delete_file("/workspace/a/b")
        assert (await sandbox.check_changes("/workspace/a", since=version)).changed is True
        assert (await sandbox.restore_backup("/workspace/a", "/tmp/a.tar")).entries == made.entries == 1
        assert await sandbox.exists("/workspace/a/b")


def test_the_command_line(shared: Sandbox, directory: str, daemon: Daemon) -> None:
    def run(*words: str) -> tuple[int, str]:
        command = [sys.executable, "-m", "sandboxd", "files", *words]
        env = {**os.environ, "SANDBOXD_URL": daemon.url}
        done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=30, check=False)
        return done.returncode, done.stdout

    code, version = run("changes", shared.id, directory, "--exclude", ".git")
    assert code == 0
    asked = ("changes", shared.id, directory, "--exclude", ".git", "--since", version.strip())
    assert run(*asked) == (0, version)
    assert run("backup", shared.id, directory, "/tmp/cli.tar.gz")[0] == 0
    shared.exec("echo x > more", cwd=directory)
    assert run(*asked)[0] == 1
    assert run("restore", shared.id, "/tmp/cli.tar.gz", directory) == (0, f"{directory}: 10 entries\n")
    assert not shared.exists(f"{directory}/more")
