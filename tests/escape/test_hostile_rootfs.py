"""A rootfs that was made to lead the host's root astray while it mounts and writes."""

from __future__ import annotations

import os
import pathlib
import stat
from collections.abc import Callable, Iterator

import pytest

from sandboxd.wire.messages import Failure, Reply
from tests.support.launching import LauncherProcess

pytestmark = pytest.mark.real

ID = "a" * 20
Spoil = Callable[[pathlib.Path, pathlib.Path], None]


def _replace(name: str, make: Callable[[pathlib.Path, pathlib.Path], None]) -> Spoil:
    def spoil(tree: pathlib.Path, canary: pathlib.Path) -> None:
        path = tree / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.is_dir():
            path.rmdir()
        make(path, canary)

    return spoil


def _link(path: pathlib.Path, canary: pathlib.Path) -> None:
    path.symlink_to(canary)


def _relative(path: pathlib.Path, canary: pathlib.Path) -> None:
    path.symlink_to("../" * 20 + str(canary).lstrip("/"))


def _magic(path: pathlib.Path, canary: pathlib.Path) -> None:
    path.symlink_to(f"/proc/self/root{canary}")


def _file(path: pathlib.Path, canary: pathlib.Path) -> None:
    path.write_text("")


def _fifo(path: pathlib.Path, canary: pathlib.Path) -> None:
    os.mkfifo(path)


def _device(path: pathlib.Path, canary: pathlib.Path) -> None:
    os.mknod(path, stat.S_IFCHR | 0o666, os.makedev(1, 3))


REFUSED = {
    f"{name} as {make.__name__[1:]}": _replace(name, make)
    for name in ("proc", "sys", "dev", "etc", "workspace", "tmp")
    for make in (_link, _relative, _magic, _file)
} | {
    f"etc/{name} as {make.__name__[1:]}": _replace(f"etc/{name}", make)
    for name in ("hostname", "hosts", "resolv.conf", "machine-id")
    for make in (_link, _relative, _magic, _fifo, _device)
}


@pytest.fixture
def rootfs(tmp_path: pathlib.Path) -> tuple[pathlib.Path, pathlib.Path]:
    """The directory of an almost empty rootfs `evil`, and a canary of the host's that holds one file."""
    tree = tmp_path / "rootfs" / "evil" / "private" / "tree"
    for directory in ("proc", "sys", "dev", "etc", "workspace", "tmp"):
        (tree / directory).mkdir(parents=True)
    (tree.parents[1] / "rootfs.json").write_text("{}")
    canary = tmp_path / "canary"
    canary.mkdir()
    (canary / "hostname").write_text("the host's")
    return tree, canary


@pytest.fixture
def launcher(tmp_path: pathlib.Path, rootfs: object) -> Iterator[LauncherProcess]:
    launcher = LauncherProcess(tmp_path, rootfs_dir=str(tmp_path / "rootfs"))
    yield launcher
    launcher.close()
    assert not launcher.cgroup.exists()


def create(launcher: LauncherProcess) -> Reply | Failure:
    return launcher.asker.ask("create", id=ID, rootfs="evil", limits={}, network={"mode": "none"}, seccomp="default")


def untouched(canary: pathlib.Path) -> bool:
    return [path.name for path in canary.iterdir()] == ["hostname"] and (
        (canary / "hostname").read_text() == "the host's"
    )


@pytest.mark.parametrize("spoil", REFUSED.values(), ids=REFUSED)
def test_what_leads_elsewhere_is_refused(
    launcher: LauncherProcess, rootfs: tuple[pathlib.Path, pathlib.Path], spoil: Spoil
) -> None:
    tree, canary = rootfs
    spoil(tree, canary)
    answer = create(launcher)
    assert isinstance(answer, Failure), "it was born"
    assert answer.kind == "launch-failed"
    assert answer.facts["step"] in {"attach-mounts", "write-identity"}
    assert answer.facts["errno"] in {"ELOOP", "ENOTDIR", "EINVAL", "ENXIO", "EACCES"}, answer
    assert untouched(canary)
    assert launcher.leftovers() == []


def test_the_masks_are_made_of_our_own_null(
    launcher: LauncherProcess, rootfs: tuple[pathlib.Path, pathlib.Path]
) -> None:
    """A /dev/null of the rootfs that is a link is never looked at."""
    tree, canary = rootfs
    for name in ("null", "zero", "tty", "pts", "shm", "mqueue", "fd", "ptmx"):
        (tree / "dev" / name).symlink_to("/proc/sys/kernel/core_pattern" if name == "null" else canary)
    pattern = pathlib.Path("/proc/sys/kernel/core_pattern").read_text()
    answer = create(launcher)
    assert isinstance(answer, Reply), answer
    root = f"/proc/{answer.result['pid']}/root"
    null = os.lstat(f"{root}/dev/null")
    assert (stat.S_ISCHR(null.st_mode), null.st_rdev) == (True, os.makedev(1, 3))
    for name in ("kallsyms", "keys", "timer_list"):
        with open(f"{root}/proc/{name}", "rb") as file:
            assert (stat.S_ISCHR(os.fstat(file.fileno()).st_mode), file.read()) == (True, b"")
    assert os.statvfs(f"{root}/proc/sys").f_flag & os.ST_RDONLY
    assert pathlib.Path("/proc/sys/kernel/core_pattern").read_text() == pattern
    assert untouched(canary)
    launcher.asker.ask("destroy", id=ID)
    assert launcher.leftovers() == []


def test_what_is_written_at_birth_goes_to_the_real_proc(
    launcher: LauncherProcess, rootfs: tuple[pathlib.Path, pathlib.Path]
) -> None:
    """A rootfs whose /proc holds files of the names that a creation writes: they are covered, not written."""
    tree, canary = rootfs
    decoys = [tree / "proc" / path for path in ("self/oom_score_adj", "sys/net/ipv4/ping_group_range", "1/uid_map")]
    for decoy in decoys:
        decoy.parent.mkdir(parents=True, exist_ok=True)
        decoy.symlink_to(canary / "hostname")
    answer = create(launcher)
    assert isinstance(answer, Reply), answer
    pid = answer.result["pid"]
    assert pathlib.Path(f"/proc/{pid}/uid_map").read_text().split()[::2] == ["0", "65536"]
    assert pathlib.Path("/proc/sys/net/ipv4/ip_unprivileged_port_start").read_text() != "0\n"
    assert all(decoy.is_symlink() for decoy in decoys)
    assert untouched(canary)
    launcher.asker.ask("destroy", id=ID)
    assert launcher.leftovers() == []
