"""The machine's drives: built once, kept by the hash of all that they are made from.

    <cache>/trees/<hash>/      the Debian tree of recipes/machine (mmdebstrap, by the builder of sandboxd's own rootfs)
    <cache>/machines/<hash>/   kernel, initrd, root.ext4: that tree with the locked Python packages in it (layer/)
    <cache>/projects/<hash>/   this checkout as `make install` puts it in PREFIX: a tar file
    <cache>/rootfs/<hash>.ext4 the rootfs `default`, read-only in the machine

The cache is /var/cache/sandboxd/vm, or $SANDBOXD_VM_CACHE. Whatever has another hash and was not used for three days
goes when something new is built. Nothing is mounted but in a mount namespace of the build's own.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import hashlib
import os
import pathlib
import shutil
import time
from collections.abc import Callable, Iterator

from sandboxd.images import builder, contained, recipe
from sandboxd.images.progress import Progress
from sandboxd.images.tree import remove_tree

HERE = pathlib.Path(__file__).parent
SOURCE = HERE.parents[1]
CACHE = pathlib.Path(os.environ.get("SANDBOXD_VM_CACHE", "/var/cache/sandboxd/vm"))
ROOTFS_DIR = pathlib.Path(os.environ.get("SANDBOXD_TEST_ROOTFS_DIR", "/var/lib/sandboxd/rootfs"))
#: A sparse file; what the tests fill (pools, disk bombs) must fit.
ROOT_BYTES = 24 << 30
UNUSED_S = 3 * 86400
#: What the Python packages of the machine depend on.
LOCKS = ("requirements.lock", ".setup/install.lock", ".setup/build.lock")
#: What of the checkout `make install` puts into PREFIX, and how.
INSTALLED = (".setup/install", "README.md", "pyproject.toml", "rootfs", "sandboxd", "seccomp")

Say = Callable[[str], None]


@dataclasses.dataclass(frozen=True, slots=True)
class Drives:
    """What a machine boots from."""

    kernel: pathlib.Path
    initrd: pathlib.Path
    root: pathlib.Path
    rootfs: pathlib.Path


def get(say: Say) -> Drives:
    """Return the drives, built where they are missing.

    Raises:
        RootfsError: a build failed; its `output` has the last lines.
        FileNotFoundError: there is no rootfs `default`.
    """
    CACHE.mkdir(parents=True, exist_ok=True)
    with _locked():
        machine = _machine(say)
        return Drives(machine / "kernel", machine / "initrd", machine / "root.ext4", _rootfs(say))


@contextlib.contextmanager
def _locked() -> Iterator[None]:
    """One build at a time; the others wait for it and then find it done."""
    fd = os.open(CACHE / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)


def _recipe() -> recipe.Recipe:
    return recipe.load_recipe(HERE / "recipes" / "machine")


def _machine(say: Say) -> pathlib.Path:
    wanted = _recipe()
    digest = hashlib.sha256(f"2 {wanted.hash}".encode())
    for name in LOCKS:
        digest.update((SOURCE / name).read_bytes())
    path = CACHE / "machines" / digest.hexdigest()[:16]
    if not path.exists():
        trees = CACHE / "trees" / wanted.hash[:16]
        builder.build("machine", trees, recipes=HERE / "recipes", progress=_progress(say))
        os.utime(trees)
        _drop_unused()
        with _building(path) as directory:
            directory.mkdir()
            say("Install the locked Python packages in the machine's tree, then write its drive")
            contained.run(
                ["sh", "-euc", _FILL, "sh", str(directory), str(ROOT_BYTES)],
                verb="build the test machine",
                report=lambda line: None,
                mounts=_MOUNTS.format(tree=trees / "machine/private/tree", source=SOURCE, directory=directory),
                network=True,
            )
    os.utime(path)
    return path


# The tree stays as it is: what is installed goes to an overlay's upper. pip in the tree uses the host's resolver,
# certificates and settings.
_MOUNTS = """
mount -t tmpfs -o mode=0755 tmpfs /mnt; mkdir /mnt/root; mkdir {directory}/upper {directory}/work
mount -t overlay -o lowerdir={tree},upperdir={directory}/upper,workdir={directory}/work overlay /mnt/root
cd /mnt/root; mount --rbind /dev dev; mount -t proc proc proc
mount -t tmpfs -o mode=1777 tmpfs tmp; mount -t tmpfs tmpfs mnt; mkdir mnt/source
mount --rbind {source} mnt/source
mount --bind /etc/resolv.conf etc/resolv.conf; mount --bind /etc/ssl/certs etc/ssl/certs
[ ! -e /etc/pip.conf ] || {{ : >etc/pip.conf; mount --bind /etc/pip.conf etc/pip.conf; }}
"""
_FILL = """
chroot . sh -euc '
    export HOME=/root PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin TMPDIR=/tmp PIP_NO_CACHE_DIR=1
    cd /mnt/source
    .setup/install dependencies
    /usr/bin/python3 -m venv /opt/vm-tests
    /opt/vm-tests/bin/python -m pip install -q --require-hashes -r .setup/build.lock
    /opt/vm-tests/bin/python -m pip install -q --no-build-isolation --require-hashes -r requirements.lock
    /opt/vm-tests/bin/python -m pip uninstall -q -y mypy ruff
    rm -rf /root/.cache
'
cd /mnt/root
umount etc/ssl/certs etc/resolv.conf; umount -l mnt/source; umount mnt tmp proc; umount -l dev
[ ! -e etc/pip.conf ] || { umount etc/pip.conf; rm etc/pip.conf; }
mv boot/vm-kernel "$1/kernel"; mv boot/vm-initrd.img "$1/initrd"
mkfs.ext4 -q -F -L root -O ^has_journal -E nodiscard -i 65536 -m 0 -d /mnt/root "$1/root.ext4" $(($2 / 1024))k
cd /; umount /mnt/root; rm -rf "$1/work"; mv "$1/upper" "$1/layer"
"""


def project(drives: Drives) -> bytes:
    """Return this checkout installed: a tar file of what `make install` adds to the machine's /opt/sandboxd.

    Made here in the machine's tree, with its Python: pip takes seconds here and minutes where it is emulated. In the
    machine `make install` finds its stamp and does the rest.
    """
    digest = hashlib.sha256(drives.root.parent.name.encode())
    for part in INSTALLED:
        for path in sorted((SOURCE / part).rglob("*")) if (SOURCE / part).is_dir() else [SOURCE / part]:
            if path.is_file() and "__pycache__" not in path.parts:
                digest.update(f"{path.relative_to(SOURCE)} {path.stat().st_size}\n".encode() + path.read_bytes())
    path = CACHE / "projects" / digest.hexdigest()[:16]
    with _locked():
        if not path.exists():
            _drop_unused()
            tree = CACHE / "trees" / _recipe().hash[:16] / "machine/private/tree"
            with _building(path) as directory:
                directory.mkdir()
                contained.run(
                    ["sh", "-euc", _INSTALL, "sh", str(directory)],
                    verb="install this checkout in the machine's tree",
                    report=lambda line: None,
                    mounts=_MOUNTS.format(
                        tree=f"{drives.root.parent}/layer:{tree}", source=SOURCE, directory=directory
                    ),
                )
        os.utime(path)
        return (path / "tar").read_bytes()


_INSTALL = """
chroot . sh -euc '
    export HOME=/root PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin TMPDIR=/tmp
    cd /mnt/source; .setup/install environment
'
tar -C "$1/upper" -cf "$1/tar" opt/sandboxd
cd /; umount -l /mnt/root; rm -rf "$1/upper" "$1/work"
"""


def _rootfs(say: Say) -> pathlib.Path:
    built = ROOTFS_DIR / "default"
    digest = hashlib.sha256((built / "rootfs.json").read_bytes()).hexdigest()[:16]
    path = CACHE / "rootfs" / f"{digest}.ext4"
    if not path.exists():
        say("Write the rootfs `default` to a drive")
        _drop_unused()
        with _building(path) as file:
            contained.run(
                ["mkfs.ext4", "-q", "-F", "-L", "rootfs", "-O", "^has_journal", "-m", "0", "-E", "nodiscard"]
                + ["-d", "/mnt/rootfs", str(file), "3G"],
                verb="write the rootfs drive",
                report=lambda line: None,
                mounts="mount -t tmpfs -o mode=0755 tmpfs /mnt; mkdir -p /mnt/rootfs/default; "
                f"mount --bind {built} /mnt/rootfs/default",
            )
    os.utime(path)
    return path


@contextlib.contextmanager
def _building(path: pathlib.Path) -> Iterator[pathlib.Path]:
    """Give a new name beside `path`, and rename it to that once it is whole; what a killed build left goes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    for old in path.parent.glob(".building-*"):
        _remove(old)
    scratch = path.with_name(f".building-{path.name}")
    try:
        yield scratch
        scratch.rename(path)
    finally:
        if scratch.exists():
            _remove(scratch)


def _drop_unused() -> None:
    for kind in ("trees", "machines", "rootfs", "projects"):
        for path in (CACHE / kind).glob("*"):
            if path.stat().st_mtime < time.time() - UNUSED_S:
                _remove(path)


def _remove(path: pathlib.Path) -> None:
    if path.is_dir():
        remove_tree(path)
    else:
        path.unlink()


def _progress(say: Say) -> Callable[[Progress], None]:
    def progress(event: Progress) -> None:
        if event.line is None:
            say(event.step)

    return progress


def sizes(drives: Drives) -> str:
    """Return what the drives take on the disk, for the report."""
    return ", ".join(f"{path.name} {path.stat().st_blocks * 512 / 1e6:.0f} MB" for path in dataclasses.astuple(drives))


def clear() -> None:
    """Remove the whole cache."""
    with contextlib.suppress(FileNotFoundError):
        shutil.rmtree(CACHE)
