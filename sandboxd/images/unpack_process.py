"""The parent's side of the unpacking process: what it is given, and how its words are taken."""

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
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from sandboxd.errors import RootfsError
from sandboxd.images import confine
from sandboxd.images.progress import Progress, ProgressCallback
from sandboxd.linux.kernel import Kernel

__all__ = ["MAX_BYTES", "MAX_ENTRIES", "UnpackProcess", "UnpackRequest", "broken"]

#: The unpacking process: Python without the environment's, the user's and the current directory's say.
PROGRAM = (sys.executable, "-I", "-X", "utf8", "-m", "sandboxd.images.unpack_child")
#: What an image may unpack to: five times the largest that people commonly run.
MAX_BYTES: Final = 20 * 1024**3
#: Members of all layers; the largest images have some hundred thousand.
MAX_ENTRIES: Final = 2_000_000
#: The only files of an image directory that the child may have: a layout's, docker save's, skopeo's dir.
_FILE: Final = re.compile(
    r"(index\.json|manifest\.json|(blobs/sha256/)?[0-9a-f]{64}(\.json|\.tar|\.manifest\.json|/layer\.tar)?)\Z"
)
_STDERR_BYTES: Final = 64 * 1024
#: How long a process that closed its socket may take to end.
_LAST_WORDS_S: Final = 5.0


@dataclass(frozen=True, slots=True)
class UnpackRequest:
    """Which image of an archive, and how large it may be."""

    image: str | None = None
    platform: str | None = None
    max_bytes: int = MAX_BYTES
    max_entries: int = MAX_ENTRIES


def broken(name: str, why: str) -> RootfsError:
    """Make the error of an unpacking process that did not do its work."""
    return RootfsError(f"cannot import rootfs {name}: the unpacking process failed: {why}", rootfs=name)


class UnpackProcess:
    """The unpacking process, from start to end."""

    def __init__(self, name: str, form: str, fd: int, wanted: UnpackRequest, progress: ProgressCallback) -> None:
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
                raise broken(self._name, self._last_words(process))
            try:
                message = json.loads(packet)
                kind = message["kind"]
                if kind == "unshared":
                    self._attach(process, sock, tree, scratch)
                elif kind == "open" and self._form == "folder":
                    self._answer(sock, str(message["name"]))
                elif kind == "progress":
                    self._report(message)
                elif kind == "refused":
                    raise self._refusal(message)
                elif kind == "done":
                    return dict(message)
            except (ValueError, KeyError, TypeError, RecursionError) as error:
                raise broken(self._name, f"it sent an invalid message ({error!r})") from error

    def _attach(self, process: subprocess.Popen[bytes], sock: socket.socket, tree: Path, scratch: Path) -> None:
        userns = confine.map_ids(process.pid)
        try:
            mount = confine.mount_of(tree, userns, self._kernel)
        except OSError as error:
            hint = "the file system of the rootfs directory must have idmapped mounts, which sandboxes need too"
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
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(_LAST_WORDS_S)
        process.kill()
        lines = process.stderr.read(_STDERR_BYTES).decode("utf-8", "replace").strip().splitlines()
        return lines[-1] if lines else f"it ended with status {process.wait()}"
