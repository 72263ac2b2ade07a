"""Opens files on the daemon's behalf, inside the sandbox's root and with the sandbox's rights.

init hands out descriptors and does no reading or writing itself. A write goes to a temporary file beside the
target and becomes the target by a rename, so a reader sees the old file or the new one, and a writer that
vanishes leaves the old one whole.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import stat
from collections.abc import Callable
from typing import Any, Final

from ..errors import InvalidRequest, SandboxdError, ServerBusy
from ..linux.kernel import AT_FDCWD, RESOLVE_NO_MAGICLINKS, Kernel
from .paths import TEMPORARY, mapped, open_target, require, shown
from .users import User

#: Writes that may be open at once: each holds two descriptors here and one in the daemon.
MAX_WRITES: Final = 256


@dataclasses.dataclass(frozen=True, slots=True)
class _Write:
    """A write under way: the target's directory, its name, and the temporary name beside it."""

    directory: int
    name: str
    temporary: str
    holder: object


class Files:
    """The file operations of one sandbox; owns the directories of the writes under way."""

    def __init__(self, kernel: Kernel) -> None:
        self._kernel = kernel
        self._writes: dict[int, _Write] = {}
        self._next_ticket = 1

    def open_read(self, path: str) -> tuple[dict[str, int | float], int]:
        """Return facts {size, mtime, mode} and a descriptor of a regular file.

        Raises:
            FileNotFound, NotAFile, FilePermissionDenied: as the names say.
        """
        with mapped(path, "read"):
            # O_NONBLOCK: opening a FIFO must not wait for a writer. /proc's magic links lead out of the tree.
            flags = os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY
            fd = self._kernel.openat2(AT_FDCWD, path, flags, RESOLVE_NO_MAGICLINKS)
        try:
            facts = os.fstat(fd)
            require(path, facts.st_mode, stat.S_IFREG, "read")
        except SandboxdError:
            os.close(fd)
            raise
        return {"size": facts.st_size, "mtime": facts.st_mtime, "mode": stat.S_IMODE(facts.st_mode)}, fd

    def open_write(self, path: str, owner: User, mode: int | None, holder: object) -> tuple[int, int]:
        """Return a ticket and a descriptor of an empty temporary file that `commit` makes `path`.

        Missing directories are made. A link is followed to what it names, as a program's own write would. The file gets
        `mode`, or that of the one that it replaces, or 0644. `holder` stands for whoever asked (see `abort_of`).

        Raises:
            NotAFile, FilePermissionDenied, QuotaExceeded: as the names say.
            ServerBusy: `MAX_WRITES` are under way.
        """
        if len(self._writes) >= MAX_WRITES:
            raise ServerBusy(f"cannot write {shown(path)}: {MAX_WRITES} writes are under way already")
        directory, name = open_target(self._kernel, path, owner)
        try:
            old = self._target_mode(path, directory, name)
            mode = old if mode is None else mode
            ticket = self._next_ticket
            # Not made of the name, which may fill NAME_MAX; not to be guessed by what runs here.
            temporary = f"{TEMPORARY}{os.urandom(8).hex()}"
            with mapped(path, "write"):
                fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600, dir_fd=directory)
                try:
                    os.fchown(fd, owner.uid, owner.gid)
                    os.fchmod(fd, mode)
                except OSError:
                    os.close(fd)
                    os.unlink(temporary, dir_fd=directory)
                    raise
        except (OSError, SandboxdError):
            os.close(directory)
            raise
        self._next_ticket += 1
        self._writes[ticket] = _Write(directory, name, temporary, holder)
        return ticket, fd

    def _target_mode(self, path: str, directory: int, name: str) -> int:
        """Return the mode that the file gets: that of the one it replaces, or 0644."""
        try:
            old = os.stat(name, dir_fd=directory, follow_symlinks=False).st_mode
        except FileNotFoundError:
            return 0o644
        require(path, old, stat.S_IFREG, "write")
        return stat.S_IMODE(old) & 0o777

    def commit(self, ticket: int) -> bool:
        """Put a written file in its place; return whether there was none before.

        Raises:
            InvalidRequest: no such write.
            NotAFile: a directory has that name by now.
        """
        write = self._take_write(ticket)
        try:
            with mapped(write.name, "write"):
                try:
                    os.stat(write.name, dir_fd=write.directory, follow_symlinks=False)
                    created = False
                except FileNotFoundError:
                    created = True
                os.rename(write.temporary, write.name, src_dir_fd=write.directory, dst_dir_fd=write.directory)
        except SandboxdError:
            with contextlib.suppress(OSError):
                os.unlink(write.temporary, dir_fd=write.directory)
            raise
        finally:
            os.close(write.directory)
        return created

    def abort(self, ticket: int) -> None:
        """Forget a write; the old file stays as it was.

        Raises:
            InvalidRequest: no such write.
        """
        write = self._take_write(ticket)
        with contextlib.suppress(OSError):
            os.unlink(write.temporary, dir_fd=write.directory)
        os.close(write.directory)

    def abort_of(self, matches: Callable[[Any], bool]) -> bool:
        """Forget the writes whose holder matches: nobody waits for them any more; return whether there was one."""
        found = [ticket for ticket, write in self._writes.items() if matches(write.holder)]
        for ticket in found:
            self.abort(ticket)
        return bool(found)

    def _take_write(self, ticket: int) -> _Write:
        write = self._writes.pop(ticket, None)
        if write is None:
            raise InvalidRequest("cannot end a write: no such ticket", field="ticket")
        return write
