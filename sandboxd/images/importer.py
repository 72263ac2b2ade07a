"""Import a stranger's image: start the unpacking process, give it what it needs, and judge what it says.

The image is read by `unpack_child` alone, in a cell (`confine`); `unpack_process` starts it and listens to it. This
side, which is root, opens the source, makes the directory, and gives it its name by one rename when the child is done
and gone, as a build does (`builder`).
"""

from __future__ import annotations

import contextlib
import json
import os
import stat
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from sandboxd import spec
from sandboxd.errors import Conflict, RootfsError
from sandboxd.images import store
from sandboxd.images.progress import Progress, ProgressCallback, silent
from sandboxd.images.tree import disk_usage, fsync_directory, make_root, remove_tree
from sandboxd.images.unpack_process import MAX_BYTES, UnpackProcess, UnpackRequest, broken

__all__ = ["MAX_BYTES", "Imported", "UnpackRequest", "import_image"]


@dataclass(frozen=True, slots=True)
class Imported:
    """A finished import: the rootfs, the image's own settings, and what was not taken over as it is."""

    rootfs: store.Rootfs
    config: dict[str, Any]
    notes: tuple[str, ...] = field(default_factory=tuple)


def import_image(
    name: str,
    source: str,
    rootfs_dir: Path,
    *,
    wanted: UnpackRequest | None = None,
    progress: ProgressCallback = silent,
    force: bool = False,
    in_use: store.InUse = store.nobody,
) -> Imported:
    """Import an image as the rootfs `name`.

    Waits while another build or removal works in the same directory. Ended by an exception (a Ctrl-C too), it leaves
    nothing behind; killed, it leaves a directory that the next build or import sweeps.

    Args:
        name: the rootfs's name.
        source: a `docker export` or `docker save` archive, an OCI layout as a directory or archive; `-` is stdin.
        rootfs_dir: the directory of all rootfs; made when missing.
        wanted: which image of several, and the bounds; None is the defaults.
        progress: told of each layer and of how far it is.
        force: replace a rootfs that has the name.
        in_use: names the sandboxes that use a rootfs; one in use is not replaced.

    Raises:
        InvalidRequest: `name` cannot be a rootfs's name.
        Conflict: there is such a rootfs, and `force` is not set or it is in use.
        RootfsError: the source cannot be read, or the image is refused: `reason`, often `member` and `layer`.
    """
    spec.check_rootfs(name)
    if os.geteuid() != 0:
        raise RootfsError(f"cannot import rootfs {name}: only root can; run it with sudo", rootfs=name)
    with _opened(name, source) as (form, fd):
        _refuse_taken(name, rootfs_dir, force)
        try:
            rootfs_dir.mkdir(mode=0o755, parents=True, exist_ok=True)
        except OSError as error:
            raise RootfsError(f"cannot create {rootfs_dir}: {error.strerror}") from error
        waiting = Progress(0, 0, "Wait for another build or removal to end")
        with store.locked(rootfs_dir, wait=lambda: progress(waiting)):
            store.sweep(rootfs_dir)
            _refuse_taken(name, rootfs_dir, force)
            if os.path.lexists(rootfs_dir / name):
                store.check_unused(name, rootfs_dir, in_use, verb="replace")
            return _import(name, rootfs_dir, UnpackProcess(name, form, fd, wanted or UnpackRequest(), progress))


def _refuse_taken(name: str, rootfs_dir: Path, force: bool) -> None:
    if not force and os.path.lexists(rootfs_dir / name):
        raise Conflict(f"cannot import rootfs {name}: a rootfs with that name exists; --force replaces it", rootfs=name)


@contextlib.contextmanager
def _opened(name: str, source: str) -> Iterator[tuple[str, int]]:
    """Open the source: yields its form (file, pipe or directory) and a descriptor."""
    try:
        fd = os.dup(0) if source == "-" else os.open(source, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise RootfsError(f"cannot import rootfs {name}: {source}: {error.strerror}", rootfs=name) from error
    try:
        kind = os.fstat(fd).st_mode
        if stat.S_ISDIR(kind):
            yield "folder", fd
        elif stat.S_ISREG(kind) and os.lseek(fd, 0, os.SEEK_CUR) == 0:
            yield "file", fd
        elif os.isatty(fd):
            raise RootfsError(f"cannot import rootfs {name}: {source} is a terminal, not an archive", rootfs=name)
        else:
            yield "pipe", fd
    finally:
        os.close(fd)


def _import(name: str, rootfs_dir: Path, child: UnpackProcess) -> Imported:
    scratch = rootfs_dir / store.building(name)
    try:
        scratch.mkdir(mode=0o700)
        private = scratch / "private"
        private.mkdir(mode=0o700)
        make_root(private / "tree")
        result = child.run(private / "tree", scratch)
        child.progress(Progress(0, 0, "Write it to disk"))
        imported = _record(name, result, private)
        text = json.loads(imported.rootfs.to_json()) | {"image": imported.config, "notes": imported.notes}
        (scratch / "rootfs.json").write_text(json.dumps(text, indent=2, sort_keys=True) + "\n", encoding="utf-8")
        (scratch / "rootfs.json").chmod(0o644)
        subprocess.run(["sync", "--file-system", scratch], check=True)
        scratch.chmod(0o755)
        fsync_directory(scratch)
        store.publish(scratch, name, rootfs_dir)
    except (OSError, subprocess.CalledProcessError) as error:
        raise RootfsError(f"cannot import rootfs {name}: {error}", rootfs=name) from error
    finally:
        if scratch.exists():
            remove_tree(scratch)
    return imported


def _record(name: str, result: dict[str, Any], private: Path) -> Imported:
    """Check the child's words, which a hostile image may have put into its mouth."""
    digest, config, notes, packages = (result.get(key) for key in ("digest", "config", "notes", "packages"))
    if not (isinstance(digest, str) and isinstance(config, dict) and isinstance(notes, list)):
        raise broken(name, "its result is malformed")
    if not (isinstance(packages, dict) and all(isinstance(versions, dict) for versions in packages.values())):
        raise broken(name, "its list of packages is malformed")
    rootfs = store.Rootfs(
        name=name,
        recipe="import",
        recipe_hash=digest.removeprefix("sha256:"),
        trusted=False,
        built_at=datetime.now(UTC).isoformat(timespec="seconds"),
        size_bytes=disk_usage(private),
        packages=packages,
    )
    return Imported(rootfs, config, tuple(str(note) for note in notes))
