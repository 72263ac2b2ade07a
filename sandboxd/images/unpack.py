"""Unpack layers into a directory, by descriptors of that directory alone.

Every name is resolved by `openat2` below the root without following any symbolic link, and the last part is made
with O_EXCL or its like in the directory found. The process that runs this sees no other directory (`confine`), so these
checks decide what a good image is, not what the host survives.

What an image says, and what becomes of it:

    below /dev, /proc, /sys                   skipped: a sandbox has its own
    /dev, /proc, /sys, /etc                   directories, or the image is refused; made where missing
    /etc/hostname, hosts                      empty files (written at each sandbox's creation); as links refused
    /etc/resolv.conf, machine-id              the same, but real images have links here: replaced, and noted
    /tmp, /workspace                          directories, made where missing; links are replaced, and noted
    devices, FIFOs, sockets, sparse files     refused
    extended attributes                       user.* is kept, others (security.capability …) are dropped, and noted
    / itself                                  always 0755, root's
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import tarfile
from collections import Counter
from typing import Final

from sandboxd.images.archive import Tape, members, shown
from sandboxd.images.directories import Directories
from sandboxd.images.members import check, split
from sandboxd.images.readers import Budget, ImageRefused
from sandboxd.linux.kernel import Kernel

__all__ = ["Unpacker"]

_DIRECTORY: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_NEW_FILE: Final = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_HIDDEN: Final = ("dev", "proc", "sys")
_WHITEOUT: Final = ".wh."
_OPAQUE: Final = ".wh..wh..opq"
_XATTR: Final = "SCHILY.xattr."
#: A time that no file system refuses; an absurd one becomes 0.
_LAST_TIME: Final = 2**33


class Unpacker:
    """Applies layers in order to the directory behind `root`; `notes` counts what was not taken over as it is."""

    def __init__(self, root: int, budget: Budget, kernel: Kernel | None = None) -> None:
        self.notes: Counter[str] = Counter()
        self._budget = budget
        self._directories = Directories(root, kernel or Kernel())
        # Of the layer under way: its members and all directories above them.
        self._touched: set[str] = set()
        self._directory_times: dict[str, float] = {}

    def apply(self, tape: Tape, *, layered: bool) -> None:
        """Apply one archive; `layered` gives whiteouts their meaning.

        Raises:
            ImageRefused: a member may not be, `member` in its facts.
        """
        self._touched.clear()
        for member in members(tape, marked=not layered):
            self._budget.take_entry()
            try:
                self._member(member, tape, layered)
            except ImageRefused as refused:
                refused.facts.setdefault("member", shown(member.name))
                raise
            except (OSError, ValueError) as error:
                why = error.strerror if isinstance(error, OSError) else str(error)
                raise ImageRefused(
                    f"member {shown(member.name)} cannot be unpacked: {why}",
                    member=shown(member.name),
                    reason="no-space" if isinstance(error, OSError) and error.errno == errno.ENOSPC else "write",
                ) from error
        self._directories.forget()

    def _member(self, member: tarfile.TarInfo, tape: Tape, layered: bool) -> None:
        parts = split(member.name, member)
        if parts and parts[0] in _HIDDEN and len(parts) > 1:
            self.notes["skipped below /dev, /proc and /sys, because a sandbox has its own"] += 1
            return
        if layered and parts and parts[-1].startswith(_WHITEOUT):
            self._whiteout(parts)
            return
        check(member, parts)
        if not parts:
            return
        path = "/".join(parts)
        if path in self._touched and not (member.isdir() and self._directories.exists(parts)):
            raise ImageRefused(f"member {shown(member.name)} occurs twice", reason="duplicate")
        parent = self._directories.make(parts[:-1], member)
        if member.isdir():
            self._directory(parent, path, parts[-1], member)
        elif member.islnk():
            self._link(parent, path, parts[-1], member)
        else:
            self._remove_lower(parent, parts[-1], path)
            if member.issym():
                _symlink(parent, parts[-1], member)
            else:
                self._file(parent, parts[-1], member, tape)
        self._touch(parts)

    def _file(self, parent: int, name: str, member: tarfile.TarInfo, tape: Tape) -> None:
        fd = os.open(name, _NEW_FILE, 0o600, dir_fd=parent)
        try:
            for data in tape.data(member.size):
                view = memoryview(data)
                while view:
                    view = view[os.write(fd, view) :]
            self._dress(fd, member)
            os.utime(fd, ns=_times(member))
        finally:
            os.close(fd)

    def _directory(self, parent: int, path: str, name: str, member: tarfile.TarInfo) -> None:
        with contextlib.suppress(FileNotFoundError):
            if not stat.S_ISDIR(os.stat(name, dir_fd=parent, follow_symlinks=False).st_mode):
                os.unlink(name, dir_fd=parent)
        with contextlib.suppress(FileExistsError):
            os.mkdir(name, 0o700, dir_fd=parent)
        fd = os.open(name, _DIRECTORY, dir_fd=parent)
        try:
            self._dress(fd, member)
        finally:
            os.close(fd)
        self._directory_times[path] = member.mtime

    def _dress(self, fd: int, member: tarfile.TarInfo) -> None:
        os.fchown(fd, member.uid, member.gid)
        os.fchmod(fd, member.mode & 0o7777)  # after the owner, which takes setuid away
        for key, value in member.pax_headers.items():
            name = key.removeprefix(_XATTR)
            if name == key:
                continue
            if name.startswith("user.") and not name.startswith("user.overlay."):
                os.setxattr(fd, name, value.encode("utf-8", "surrogateescape"))
            else:
                self.notes[f"extended attributes dropped: {shown(name)[:40]}"] += 1

    def _link(self, parent: int, path: str, name: str, member: tarfile.TarInfo) -> None:
        target = split(member.linkname, member)
        if "/".join(target) == path or not target:
            raise ImageRefused(f"member {shown(member.name)} is a hard link to itself", reason="link")
        try:
            directory = self._directories.open(target[:-1])
            try:
                kind = os.stat(target[-1], dir_fd=directory, follow_symlinks=False).st_mode
                if stat.S_ISDIR(kind):
                    raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
                self._remove_lower(parent, name, path)
                os.link(target[-1], name, src_dir_fd=directory, dst_dir_fd=parent, follow_symlinks=False)
            finally:
                os.close(directory)
        except OSError as error:
            why = "its path leads through a symbolic link" if error.errno == errno.ELOOP else error.strerror
            raise ImageRefused(
                f"member {shown(member.name)} is a hard link to {shown(member.linkname)}: {why}", reason="link"
            ) from error

    def _touch(self, parts: tuple[str, ...]) -> None:
        for length in range(len(parts), 0, -1):
            path = "/".join(parts[:length])
            if path in self._touched:
                break
            self._touched.add(path)

    # --- removing what lower layers have ---

    def _whiteout(self, parts: tuple[str, ...]) -> None:
        if parts[-1] != _OPAQUE and parts[-1].startswith(".wh..wh."):
            return  # aufs' own notes
        name = parts[-1].removeprefix(_WHITEOUT)
        if name in ("", ".", ".."):
            raise ImageRefused(f"member {shown('/'.join(parts))} is a whiteout of nothing", reason="whiteout")
        self._directories.forget()
        try:
            parent = self._directories.open(parts[:-1])
        except FileNotFoundError:
            return
        except OSError as error:
            raise ImageRefused(
                f"member {shown('/'.join(parts))} would remove through a link or a file", reason="through-link"
            ) from error
        try:
            above = "/".join(parts[:-1])
            for child in os.listdir(parent) if parts[-1] == _OPAQUE else [name]:
                self._remove_lower(parent, child, f"{above}/{child}" if above else child)
        finally:
            os.close(parent)

    def _remove_lower(self, parent: int, name: str, path: str) -> bool:
        """Remove what is at `path` but for what this layer put there; tell whether nothing is left."""
        try:
            is_folder = stat.S_ISDIR(os.stat(name, dir_fd=parent, follow_symlinks=False).st_mode)
        except FileNotFoundError:
            return True
        if not is_folder:
            if path not in self._touched:
                os.unlink(name, dir_fd=parent)
            return path not in self._touched
        fd = os.open(name, _DIRECTORY, dir_fd=parent)
        try:
            gone = [self._remove_lower(fd, child, f"{path}/{child}") for child in os.listdir(fd)]
        finally:
            os.close(fd)
        if path in self._touched or not all(gone):
            return False
        self._directory_times.pop(path, None)
        os.rmdir(name, dir_fd=parent)
        return True

    def restore_directory_times(self) -> None:
        """Give directories the times that they lost as they were filled; the last act."""
        for path, time in self._directory_times.items():
            with contextlib.suppress(OSError):  # a later layer took it away
                fd = self._directories.open(tuple(path.split("/")))
                try:
                    os.utime(fd, ns=(_nanoseconds(time), _nanoseconds(time)))
                finally:
                    os.close(fd)


def _symlink(parent: int, name: str, member: tarfile.TarInfo) -> None:
    os.symlink(member.linkname, name, dir_fd=parent)
    os.chown(name, member.uid, member.gid, dir_fd=parent, follow_symlinks=False)
    os.utime(name, ns=_times(member), dir_fd=parent, follow_symlinks=False)


def _nanoseconds(time: float) -> int:
    return int(time * 1_000_000_000) if 0 <= time < _LAST_TIME else 0


def _times(member: tarfile.TarInfo) -> tuple[int, int]:
    return _nanoseconds(member.mtime), _nanoseconds(member.mtime)
