"""Import a stranger's image: start the unpacking process, give it what it needs, and judge what it says.

The image is read by `unpack_child` alone, in a cell (`confine`). This side, which is root, opens the source, makes
the folder, and gives it its name by one rename when the child is done and gone: as a build does (`builder`).
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import socket
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from sandboxd import spec
from sandboxd.errors import Conflict, RootfsError
from sandboxd.images import confine, store
from sandboxd.images.progress import Progress, ProgressCallback, silent
from sandboxd.images.tree import disk_usage, fsync_folder, remove_tree
from sandboxd.linux.kernel import Kernel

__all__ = ["MAX_BYTES", "MAX_ENTRIES", "Imported", "Wanted", "import_image"]

#: The unpacking process: Python without the environment's, the user's and the current folder's say.
PROGRAM = (sys.executable, "-I", "-X", "utf8", "-m", "sandboxd.images.unpack_child")
#: What an image may unpack to: five times the largest that people commonly run.
MAX_BYTES: Final = 20 * 1024**3
#: Members of all layers; the largest images have some hundred thousand.
MAX_ENTRIES: Final = 2_000_000
#: The only files of an image folder that the child may have: a layout's, docker save's, skopeo's dir.
_FILE: Final = re.compile(
    r"(index\.json|manifest\.json|(blobs/sha256/)?[0-9a-f]{64}(\.json|\.tar|\.manifest\.json|/layer\.tar)?)\Z"
)
_STDERR_BYTES: Final = 64 * 1024


@dataclass(frozen=True, slots=True)
class Wanted:
    """Which image of an archive, and how large it may be."""

    image: str | None = None
    platform: str | None = None
    max_bytes: int = MAX_BYTES
    max_entries: int = MAX_ENTRIES


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
    wanted: Wanted = Wanted(),
    progress: ProgressCallback = silent,
    force: bool = False,
    in_use: store.InUse = store.nobody,
) -> Imported:
    """Import an image as the rootfs `name`.

    Waits while another build or removal works in the same folder. Ended by an exception (a Ctrl-C too), it leaves
    nothing behind; killed, it leaves a folder that the next build or import sweeps.

    Args:
        name: the rootfs' name.
        source: a `docker export` or `docker save` archive, an OCI layout as a folder or archive; `-` is stdin.
        rootfs_dir: the folder of all rootfs; made when missing.
        wanted: which image of several, and the bounds.
        progress: told of each layer and of how far it is.
        force: replace a rootfs that has the name.
        in_use: names the sandboxes that use a rootfs; one in use is not replaced.

    Raises:
        InvalidRequest: `name` cannot be a rootfs' name.
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
            raise RootfsError(f"cannot make {rootfs_dir}: {error.strerror}") from error
        waiting = Progress(0, 0, "Wait for another build or removal to end")
        with store.locked(rootfs_dir, wait=lambda: progress(waiting)):
            store.sweep(rootfs_dir)
            _refuse_taken(name, rootfs_dir, force)
            if os.path.lexists(rootfs_dir / name):
                store.check_unused(name, rootfs_dir, in_use, verb="replace")
            return _import(name, rootfs_dir, _Child(name, form, fd, wanted, progress))


def _refuse_taken(name: str, rootfs_dir: Path, force: bool) -> None:
    if not force and os.path.lexists(rootfs_dir / name):
        raise Conflict(f"cannot import rootfs {name}: there is one of that name; --force replaces it", rootfs=name)


@contextlib.contextmanager
def _opened(name: str, source: str) -> Iterator[tuple[str, int]]:
    """Open the source: yields its form (file, pipe or folder) and a descriptor."""
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


def _import(name: str, rootfs_dir: Path, child: _Child) -> Imported:
    scratch = rootfs_dir / store.building(name)
    try:
        scratch.mkdir(mode=0o700)
        private = scratch / "private"
        private.mkdir(mode=0o700)
        (private / "tree").mkdir()
        (private / "tree").chmod(0o755)
        result = child.run(private / "tree", scratch)
        child.progress(Progress(0, 0, "Write it to disk"))
        imported = _record(name, result, private)
        text = json.loads(imported.rootfs.to_json()) | {"image": imported.config, "notes": imported.notes}
        (scratch / "rootfs.json").write_text(json.dumps(text, indent=2, sort_keys=True) + "\n", encoding="utf-8")
        (scratch / "rootfs.json").chmod(0o644)
        subprocess.run(["sync", "--file-system", scratch], check=True)
        scratch.chmod(0o755)
        fsync_folder(scratch)
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
        raise _broken(name, "its result is malformed")
    if not (isinstance(packages, dict) and all(isinstance(versions, dict) for versions in packages.values())):
        raise _broken(name, "its list of packages is malformed")
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


def _broken(name: str, why: str) -> RootfsError:
    return RootfsError(f"cannot import rootfs {name}: the unpacking process failed: {why}", rootfs=name)


class _Child:
    """The unpacking process, from start to end."""

    def __init__(self, name: str, form: str, fd: int, wanted: Wanted, progress: ProgressCallback) -> None:
        self.progress = progress
        self._name = name
        self._form = form
        self._fd = fd
        self._wanted = wanted
        self._kernel = Kernel()
        self._layer = 0

    def run(self, tree: Path, scratch: Path) -> dict[str, Any]:
        """Unpack into `tree`; returns the child's result when the child is gone; raises RootfsError or OSError."""
        wanted = {
            "form": self._form,
            "size": os.fstat(self._fd).st_size,
            "image": self._wanted.image,
            "platform": self._wanted.platform,
            "max_bytes": self._wanted.max_bytes,
            "max_entries": self._wanted.max_entries,
        }
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with ours, theirs:
            process = subprocess.Popen(
                [*PROGRAM, str(theirs.fileno()), json.dumps(wanted)],
                stdin=subprocess.DEVNULL if self._form == "folder" else self._fd,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                pass_fds=[theirs.fileno()],
                env={"PATH": os.defpath},
                cwd="/",
                start_new_session=True,  # a Ctrl-C reaches this process alone, which then ends the other
            )
            theirs.close()
            with process:
                try:
                    return self._serve(process, ours, tree, scratch)
                finally:
                    process.kill()

    def _serve(
        self, process: subprocess.Popen[bytes], sock: socket.socket, tree: Path, scratch: Path
    ) -> dict[str, Any]:
        while True:
            packet = sock.recv(confine.MAX_PACKET + 1)
            if not packet:
                raise _broken(self._name, self._last_words(process))
            try:
                message = json.loads(packet)
                kind = message["kind"]
                if kind == "unshared":
                    self._equip(process, sock, tree, scratch)
                elif kind == "open" and self._form == "folder":
                    self._answer(sock, str(message["name"]))
                elif kind == "progress":
                    self._report(message)
                elif kind == "refused":
                    raise self._refusal(message)
                elif kind == "done":
                    return dict(message)
            except (ValueError, KeyError, TypeError, RecursionError) as error:
                raise _broken(self._name, f"it sent nonsense ({error!r})") from error

    def _equip(self, process: subprocess.Popen[bytes], sock: socket.socket, tree: Path, scratch: Path) -> None:
        userns = confine.map_ids(process.pid)
        try:
            mount = confine.mount_of(tree, userns, self._kernel)
        except OSError as error:
            hint = "the file system of the rootfs folder must have idmapped mounts, which sandboxes need too"
            raise RootfsError(f"cannot import rootfs {self._name}: {error}", rootfs=self._name, hint=hint) from error
        finally:
            os.close(userns)
        # A file without a name: for an image archive that cannot be read twice.
        with tempfile.TemporaryFile(dir=scratch) as spool:
            socket.send_fds(sock, [b"{}"], [mount, spool.fileno()])
        os.close(mount)

    def _answer(self, sock: socket.socket, name: str) -> None:
        fd = -1
        if _FILE.match(name):
            with contextlib.suppress(OSError):
                fd = self._kernel.openat2(self._fd, name, os.O_RDONLY | os.O_NONBLOCK, confine.STRICT)
        if fd >= 0 and not stat.S_ISREG(os.fstat(fd).st_mode):
            os.close(fd)
            fd = -1
        if fd < 0:
            sock.send(b"{}")
            return
        socket.send_fds(sock, [json.dumps({"size": os.fstat(fd).st_size}).encode()], [fd])
        os.close(fd)

    def _report(self, message: dict[str, Any]) -> None:
        number, total, read, entries = (int(message[key]) for key in ("layer", "layers", "read", "entries"))
        step = f"Unpack layer {number} of {total}" if total > 1 else "Unpack"
        if number != self._layer:
            self._layer = number
            self.progress(Progress(number, total, step))
        self.progress(Progress(number, total, step, f"{read / 1e6:.0f} MB read, {entries} members"))

    def _refusal(self, message: dict[str, Any]) -> RootfsError:
        error = RootfsError(f"cannot import rootfs {self._name}: {message['why']}", rootfs=self._name)
        if isinstance(facts := message.get("facts"), dict):
            error.facts.update(facts)
        return error

    def _last_words(self, process: subprocess.Popen[bytes]) -> str:
        assert process.stderr is not None  # noqa: S101
        lines = process.stderr.read(_STDERR_BYTES).decode("utf-8", "replace").strip().splitlines()
        return lines[-1] if lines else f"it ended with status {process.wait()}"
