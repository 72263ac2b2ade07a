"""Building, listing and removing, with recipes that build in milliseconds."""

import contextlib
import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from sandboxd import images
from sandboxd.errors import Conflict, InvalidRequest, RootfsError, RootfsNotFound
from tests.support.waiting import SOON_S

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="programs of a recipe run as root")


@pytest.fixture
def recipes(tmp_path):
    tiny = tmp_path / "recipes/tiny"
    (tiny / "files/etc").mkdir(parents=True)
    (tiny / "files/etc/motd").write_text("hello\n")
    (tiny / "manifest.toml").write_text('format = 1\nsummary = "tiny"\n')
    return tmp_path / "recipes"


@pytest.fixture
def rootfs_dir(tmp_path):
    return tmp_path / "state/rootfs"


def mode(path: Path) -> int:
    return path.lstat().st_mode & 0o7777


def entries(directory: Path) -> list[str]:
    return sorted(os.listdir(directory))


def with_host_programs(recipe: Path, finish: str) -> None:
    """Give a recipe a `finish` and just enough of a system to run it: busybox-like, the host's own sh and sleep."""
    (recipe / "finish").write_text(f"#!/bin/sh\n{finish}\n")
    (recipe / "files/bin").mkdir(exist_ok=True)
    for program in ("sh", "sleep"):
        path = shutil.which(program)
        assert path
        shutil.copy(path, recipe / "files/bin" / program)
        linked = subprocess.run(["ldd", path], capture_output=True, text=True, check=True).stdout
        for library in [word for word in linked.split() if word.startswith("/")]:
            target = recipe / "files" / library.lstrip("/")
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(library, target)


def test_a_build_has_the_agreed_layout(recipes, rootfs_dir) -> None:
    seen: list[images.Progress] = []
    built = images.build("tiny", rootfs_dir, recipes=recipes, progress=seen.append)

    private = rootfs_dir / "tiny/private"
    assert entries(rootfs_dir) == ["tiny"]
    assert [mode(path) for path in (rootfs_dir, rootfs_dir / "tiny", private, private / "tree")] == [
        0o755,
        0o755,
        0o700,
        0o755,
    ]
    assert entries(rootfs_dir / "tiny") == ["private", "rootfs.json"]
    assert mode(rootfs_dir / "tiny/rootfs.json") == 0o644
    tree = private / "tree"
    assert (tree / "etc/motd").read_text() == "hello\n"
    assert [mode(tree / name) for name in ("dev", "proc", "sys", "run", "tmp", "workspace")] == [
        0o755,
        0o755,
        0o755,
        0o755,
        0o1777,
        0o755,
    ]
    for name in ("hostname", "hosts", "machine-id", "resolv.conf"):
        assert (tree / "etc" / name).read_bytes() == b""
    assert built == images.load_rootfs("tiny", rootfs_dir)
    assert built.trusted
    assert built.recipe_hash == images.find_recipe("tiny", recipes).hash
    numbers = [progress.number for progress in seen if progress.line is None]
    assert numbers == list(range(1, seen[0].total + 1))


def test_the_same_recipe_is_built_once(recipes, rootfs_dir) -> None:
    first = images.build("tiny", rootfs_dir, recipes=recipes)
    inode = (rootfs_dir / "tiny").stat().st_ino
    assert images.build("tiny", rootfs_dir, recipes=recipes) == first
    assert (rootfs_dir / "tiny").stat().st_ino == inode

    images.build("tiny", rootfs_dir, recipes=recipes, force=True)
    assert (rootfs_dir / "tiny").stat().st_ino != inode
    assert entries(rootfs_dir) == ["tiny"]


def test_a_changed_recipe_replaces_the_rootfs(recipes, rootfs_dir) -> None:
    images.build("tiny", rootfs_dir, recipes=recipes)
    (recipes / "tiny/files/etc/motd").write_text("new\n")
    images.build("tiny", rootfs_dir, recipes=recipes)

    assert (rootfs_dir / "tiny/private/tree/etc/motd").read_text() == "new\n"
    assert entries(rootfs_dir) == ["tiny"]


def test_a_rootfs_in_use_is_neither_replaced_nor_removed(recipes, rootfs_dir) -> None:
    images.build("tiny", rootfs_dir, recipes=recipes)
    for change in (
        lambda: images.build("tiny", rootfs_dir, recipes=recipes, force=True, in_use=lambda name: ["sandbox1"]),
        lambda: images.remove("tiny", rootfs_dir, in_use=lambda name: ["sandbox1"]),
    ):
        with pytest.raises(Conflict) as caught:
            change()
        assert caught.value.facts["sandboxes"] == ["sandbox1"]
    assert images.load_rootfs("tiny", rootfs_dir)


def test_remove(recipes, rootfs_dir) -> None:
    images.build("tiny", rootfs_dir, recipes=recipes)
    images.remove("tiny", rootfs_dir)

    assert entries(rootfs_dir) == []
    with pytest.raises(RootfsNotFound):
        images.remove("tiny", rootfs_dir)
    for name in ("..", "../state", ".building-x", "", "a/b"):
        with pytest.raises(InvalidRequest):
            images.remove(name, rootfs_dir)


def test_a_link_is_not_taken_for_a_rootfs(recipes, rootfs_dir, tmp_path) -> None:
    images.build("tiny", tmp_path / "other", recipes=recipes)
    rootfs_dir.mkdir(parents=True)
    (rootfs_dir / "tiny").symlink_to(tmp_path / "other/tiny")

    assert images.list_rootfs(rootfs_dir) == []
    with pytest.raises(RootfsError, match="not a directory"):
        images.remove("tiny", rootfs_dir)
    assert images.load_rootfs("tiny", tmp_path / "other")


def test_only_whole_rootfs_are_listed(recipes, rootfs_dir) -> None:
    assert images.list_rootfs(rootfs_dir) == []
    images.build("tiny", rootfs_dir, recipes=recipes)
    (rootfs_dir / "half").mkdir()
    (rootfs_dir / "broken").mkdir()
    (rootfs_dir / "broken/rootfs.json").write_text("{}")
    (rootfs_dir / ".building-dead-1-2").mkdir()
    shutil.copytree(rootfs_dir / "tiny", rootfs_dir / "copy")  # it says that it is tiny

    assert [rootfs.name for rootfs in images.list_rootfs(rootfs_dir)] == ["tiny"]


def test_a_build_waits_for_another_and_takes_what_it_made(recipes, rootfs_dir) -> None:
    images.build("tiny", rootfs_dir, recipes=recipes)
    held = os.open(rootfs_dir, os.O_RDONLY)
    fcntl.flock(held, fcntl.LOCK_EX)
    with pytest.raises(Conflict, match="under way"):
        images.remove("tiny", rootfs_dir)

    (recipes / "tiny/files/etc/motd").write_text("new\n")
    waited = []

    def watch(progress):
        waited.append(progress.step)
        with contextlib.suppress(OSError):  # the first event is the waiting: let go
            os.close(held)

    images.build("tiny", rootfs_dir, recipes=recipes, progress=watch)
    assert waited[0].startswith("Wait for another build")


@needs_root
def test_a_failed_program_fails_the_build_with_its_words_and_leaves_nothing(recipes, rootfs_dir) -> None:
    with_host_programs(recipes / "tiny", "echo something is wrong; exit 3")
    with pytest.raises(RootfsError, match=r"status 3 \(something is wrong\)"):
        images.build("tiny", rootfs_dir, recipes=recipes)
    assert entries(rootfs_dir) == []


@needs_root
def test_a_program_runs_inside_and_without_a_network(recipes, rootfs_dir) -> None:
    finish = "while read -r line; do interfaces=${line%%:*}; done < /proc/net/dev; echo $$ $interfaces > /inside"
    with_host_programs(recipes / "tiny", finish)
    images.build("tiny", rootfs_dir, recipes=recipes)

    tree = rootfs_dir / "tiny/private/tree"
    assert (tree / "inside").read_text() == "1 lo\n"
    assert entries(tree / "dev") == []
    assert entries(tree / "mnt") == []


@contextlib.contextmanager
def build_in_a_process(recipes: Path, rootfs_dir: Path) -> Iterator[subprocess.Popen[str]]:
    """Start a build and wait until its `finish` runs; that sleeps until it is killed."""
    with_host_programs(recipes / "tiny", "echo running; exec sleep 1000")
    program = (
        "import sys; from pathlib import Path; from sandboxd import images\n"
        "images.build('tiny', Path(sys.argv[1]), recipes=Path(sys.argv[2]),"
        " progress=lambda progress: print(progress.line, flush=True))"
    )
    command = [sys.executable, "-c", program, str(rootfs_dir), str(recipes)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout
        assert process.stderr
        try:
            for line in process.stdout:
                if line == "running\n":
                    break
            else:
                pytest.fail(f"the build ended: {process.stderr.read()}")
            yield process
        finally:
            process.kill()


def living_in(tree: os.stat_result) -> list[str]:
    """Return the processes whose root directory is the tree."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if os.path.samestat((entry / "root").stat(), tree):
                found.append(entry.name)
    return found


@needs_root
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_a_build_ended_in_the_middle_leaves_nothing_that_is_usable(recipes, rootfs_dir, number) -> None:
    with build_in_a_process(recipes, rootfs_dir) as process:
        [tree] = [path.stat() for path in rootfs_dir.glob(".building-tiny-*/private/tree")]
        assert len(living_in(tree)) == 1
        process.send_signal(number)
        process.communicate(timeout=20)

    assert process.returncode == -number
    deadline = time.monotonic() + SOON_S
    while living_in(tree):  # the kernel ends a namespace a moment after the builder
        assert time.monotonic() < deadline, "a program of the build lives on"
        os.sched_yield()
    assert images.list_rootfs(rootfs_dir) == []
    assert str(rootfs_dir) not in Path("/proc/self/mountinfo").read_text()
    left = entries(rootfs_dir)
    if number == signal.SIGINT:
        assert left == []
        return
    assert [name.rpartition("-")[0].rpartition("-")[0] for name in left] == [".building-tiny"]
    (recipes / "tiny/finish").unlink()
    images.build("tiny", rootfs_dir, recipes=recipes)
    assert entries(rootfs_dir) == ["tiny"]


@needs_root
def test_a_mounted_rootfs_is_not_removed(recipes, rootfs_dir) -> None:
    images.build("tiny", rootfs_dir, recipes=recipes)
    program = (
        "import sys; from pathlib import Path; from sandboxd import errors, images\n"
        "try: images.remove('tiny', Path(sys.argv[1]))\n"
        "except errors.Conflict as error: print(error.facts['mounts'][0])"
    )
    tree = rootfs_dir / "tiny/private/tree"
    script = f'mount -t tmpfs tmpfs "{tree}/workspace" && exec "$@"'
    command = ["unshare", "--mount", "--propagation", "private", "sh", "-euc", script, "sh"]
    done = subprocess.run(
        [*command, sys.executable, "-c", program, rootfs_dir], capture_output=True, text=True, check=True
    )
    assert done.stdout == f"{tree}/workspace\n"
    assert images.load_rootfs("tiny", rootfs_dir)


class TestCommand:
    @pytest.fixture
    def sandboxd(self, rootfs_dir):
        def run(*arguments):
            command = [sys.executable, "-m", "sandboxd.cli.main", "--url", "unix:///nonexistent/socket", "rootfs"]
            return subprocess.run([*command, *arguments], capture_output=True, text=True, check=False, timeout=60)

        return run

    def test_ls_and_rm(self, sandboxd, recipes, rootfs_dir) -> None:
        images.build("tiny", rootfs_dir, recipes=recipes)
        place = ("--state-dir", str(rootfs_dir.parent))

        assert "tiny" in sandboxd("ls", *place).stdout
        [listed] = json.loads(sandboxd("ls", "--json", *place).stdout)
        assert listed["name"] == "tiny"
        assert sandboxd("rm", "tiny", *place).returncode == 0
        assert json.loads(sandboxd("ls", "--json", "--rootfs-dir", str(rootfs_dir)).stdout) == []

    @pytest.mark.parametrize(
        ("arguments", "status"), [(("rm", "none"), 1), (("rm", "../x"), 2), (("build", "none"), 1), (("build", "A"), 2)]
    )
    def test_an_error_is_one_sentence(self, sandboxd, rootfs_dir, arguments, status) -> None:
        done = sandboxd(*arguments, "--rootfs-dir", str(rootfs_dir))
        assert done.returncode == status
        assert done.stderr.startswith("sandboxd: cannot ")
        assert done.stderr.count("\n") == 1
        assert not rootfs_dir.exists()
