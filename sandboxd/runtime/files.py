"""The files of one sandbox: every verb on them, with what init answers checked.

A verb is one of two things to init. What waits for nothing long (`stat`, opening a file) it answers itself. All else is
a file job, a process of its own (`jobs.py`); what such a job finds as it goes is in `file_streams.py`. What is read or
written goes through a descriptor (`open_files.py`).

Paths are absolute, as `spec.check_file_path` returns them. Every verb may raise `FileNotFound`, `NotAFile`,
`FilePermissionDenied` and `QuotaExceeded`, as their names say, and `SandboxFailed` and `SandboxGone`.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, Final

import trio

from ..errors import FileNotFound, InternalError, InvalidRequest, NotAFile, RemoteProtocolError, SandboxdError
from ..spec import check_mode, check_user, name_bytes
from . import backups, checks, filefacts, open_files
from .file_streams import Archive, Found, SearchResults, Watch
from .filefacts import Changed, Copied, Made, Page, Replaced, Unpacked
from .link_client import discarded
from .open_files import FileReader, FileWriter

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

    from .backups import Backup, Version
    from .file_queries import Picked, Replacement, Search
    from .filefacts import FileFacts
    from .jobs import FileJob
    from .sandbox import Sandbox

#: Files of one page.
MAX_PAGE: Final = 1000
#: Bytes of a file, its holes counted: more than any disk has.
MAX_FILE_SIZE: Final = 1 << 50
#: When nothing limits a sandbox's disk.
NO_LIMIT: Final = 1 << 50
#: A search's own alarm comes first; this much later comes the end of one that does not hear it.
_SLACK_S: Final = 5
#: Ends of writes may be slow on a busy disk, but not for ever.
_ABORT_TIMEOUT_S: Final = 30.0
#: How long a refused write waits for its temporary file's end.
_REFUSAL_TIMEOUT_S: Final = 5.0


class Files:
    """What can be done with a sandbox's files; made by it."""

    def __init__(self, sandbox: Sandbox) -> None:
        self._sandbox = sandbox
        #: Threads that read and write its files.
        self.turns = trio.CapacityLimiter(open_files.SANDBOX_THREADS)

    def __repr__(self) -> str:
        return f"<Files of {self._sandbox!r}>"

    # --- one file's bytes ---

    async def open_read(self, path: str) -> FileReader:
        """Open a file for reading; the caller closes it."""
        _, fd = await self._sandbox.ask_for_fd("open_read", path=name_bytes(path))
        try:
            with trio.CancelScope(shield=True):
                devices = self._sandbox.devices
                facts, head = await open_files.in_thread(self.turns, open_files.vet_and_read, fd, devices)
        except BaseException as error:
            raise await self._refused(error, path, fd) from error
        return FileReader(self.turns, fd, facts, head)

    async def open_write(self, path: str, mode: str | None = None) -> FileWriter:
        """Begin a new version of a file, its parents made; the caller commits or leaves it.

        `mode` is octal text; without it the file keeps the old one's mode, or gets 0644.
        """
        check_mode(mode)
        result, fd = await self._sandbox.ask_for_fd("open_write", path=name_bytes(path), mode=mode)
        ticket: int | str | None = None
        try:
            ticket = _ticket(result)
            with trio.CancelScope(shield=True):
                await open_files.in_thread(self.turns, open_files.vet, fd, os.O_WRONLY, self._sandbox.devices)
        except BaseException as error:
            refusal = await self._refused(error, path, fd)
            if ticket is not None and not isinstance(error, RemoteProtocolError):
                with trio.move_on_after(_REFUSAL_TIMEOUT_S, shield=True):
                    await self.abort_write(ticket)  # or its temporary file stays
            raise refusal from error
        return FileWriter(self, fd, ticket)

    async def _refused(self, error: BaseException, path: str, fd: int) -> BaseException:
        """Close a descriptor that could not be taken, its sender cut off before, and return what to raise."""
        if isinstance(error, RemoteProtocolError):
            self._sandbox.fail_protocol(error)
        with trio.CancelScope(shield=True):
            await discarded([fd])
        if isinstance(error, RemoteProtocolError):
            return await self._sandbox.why_broken(error)
        if isinstance(error, OSError):
            return InternalError(f"cannot open {path}: {error.strerror}")
        return error

    async def commit_write(self, ticket: int | str) -> bool:
        """Put a new version in place; return whether the file is new. `FileWriter.commit` calls it."""
        result = await self._sandbox.ask("commit_write", ticket=ticket)
        return result.get("created") is True

    async def abort_write(self, ticket: int | str) -> None:
        """Drop a new version; never raises, since the sandbox may be gone by then."""
        with trio.move_on_after(_ABORT_TIMEOUT_S):
            try:
                await self._sandbox.ask("abort_write", ticket=ticket)
            except SandboxdError:
                return

    # --- one file ---

    async def stat(self, path: str, *, follow: bool = False) -> FileFacts:
        """Return what a file is; a link itself, or with `follow` what it leads to."""
        return filefacts.parse(await self._sandbox.ask("stat", path=name_bytes(path), follow=follow))

    async def find(self, path: str, *, follow: bool = False) -> FileFacts | None:
        """Return what a file is, as `stat`; None where nothing has that name."""
        try:
            return await self.stat(path, follow=follow)
        except (FileNotFound, NotAFile):
            return None

    async def delete(self, path: str, *, recursive: bool = False) -> None:
        """Delete a file, a link or an empty directory; with `recursive` a directory and all in it.

        Raises:
            DirectoryNotEmpty: as its name says.
        """
        await self._finish_job("delete", path, recursive=recursive)

    async def mkdir(self, path: str, *, parents: bool = False, mode: str | None = None) -> Made:
        """Make a directory; with `parents` those above it too, and then it may be there. `mode` is octal text.

        Raises:
            FileExists: something has that name.
        """
        check_mode(mode)
        result = await self._finish_job("mkdir", path, parents=parents, mode=mode)
        return Made(filefacts.parse_file(result), checks.flag(result, "created"))

    async def rename(self, path: str, new_path: str, *, overwrite: bool = True) -> FileFacts:
        """Give a file or directory another name, whose parents are made.

        Raises:
            FileExists, DirectoryNotEmpty: as their names say.
        """
        result = await self._finish_job("rename", path, new_path=name_bytes(new_path), overwrite=overwrite)
        return filefacts.parse_file(result)

    async def copy(self, path: str, new_path: str, *, overwrite: bool = True) -> Copied:
        """Copy a file, or a directory with all in it; the parents of the new name are made.

        Raises:
            FileExists: as its name says.
        """
        result = await self._finish_job("copy", path, new_path=name_bytes(new_path), overwrite=overwrite)
        entries, size, skipped = (checks.integer(result, field) for field in ("entries", "bytes", "skipped"))
        return Copied(filefacts.parse_file(result), entries, size, skipped)

    async def symlink(self, path: str, target: str) -> FileFacts:
        """Make a link at `path` that leads to `target`, which need not be there.

        Raises:
            FileExists: something has that name.
        """
        return filefacts.parse_file(await self._finish_job("symlink", path, target=name_bytes(target)))

    async def chmod(self, path: str, mode: str | None, *, recursive: bool = False) -> Changed:
        """Set a mode, octal text; with `recursive` of all below it too."""
        check_mode(mode)
        return _changed(await self._finish_job("chmod", path, mode=mode, recursive=recursive))

    async def chown(
        self, path: str, user: str | int | None, group: str | int | None, *, recursive: bool = False
    ) -> Changed:
        """Set an owner, names or ids, of which None stays; with `recursive` of all below it too."""
        user = None if user is None else check_user(user)
        group = None if group is None else check_user(group, "group")
        return _changed(await self._finish_job("chown", path, user=user, group=group, recursive=recursive))

    async def truncate(self, path: str, size: int) -> FileFacts:
        """Set a regular file's size: cut it, or let it grow by a hole. A link is followed to what it names."""
        if not 0 <= size <= MAX_FILE_SIZE:
            raise InvalidRequest(f"cannot accept size: it must be 0 to {MAX_FILE_SIZE}", field="size")
        return filefacts.parse_file(await self._finish_job("truncate", path, size=size))

    # --- many files ---

    async def list(
        self,
        path: str,
        *,
        recursive: bool = False,
        hidden: bool = False,
        limit: int = MAX_PAGE,
        after: str | None = None,
    ) -> Page:
        """Return what is in a directory, sorted: at most `limit` files that come after the name `after`."""
        start = None if after is None else name_bytes(after)
        found: list[FileFacts] = []
        async with self._job("list", path, recursive=recursive, hidden=hidden, limit=limit, after=start) as job:
            while rows := await job.next_rows():
                found += map(filefacts.parse, rows)
            return Page(found[:limit], filefacts.optional_name(job.result or {}, "next"))

    def search(self, search: Search) -> SearchResults:
        """Return a search to be entered, which gives matches as it finds them.

        Raises (on entry or later):
            InvalidRequest: the pattern is none.
        """
        job = self._sandbox.job("search", search.params(), timeout_s=search.timeout_s + _SLACK_S)
        return SearchResults(job, search.limit)

    async def replace(self, replacement: Replacement) -> Replaced:
        """Replace a text or a pattern in files, each whole or not at all.

        Raises:
            InvalidRequest: the pattern is none.
        """
        files = []
        job = self._sandbox.job("replace", replacement.params(), timeout_s=replacement.timeout_s + _SLACK_S)
        async with Found(job, filefacts.parse_replaced, replacement.limit) as found:
            while rows := await found.next():
                files += rows
            return Replaced(files, checks.integer(found.result, "count"), filefacts.parse_truncated(found.result))

    def watch(self, path: str, picked: Picked, *, recursive: bool) -> Watch:
        """Return a watch to be entered: what changes below a path, until it is gone."""
        return Watch(self._job("watch", path, recursive=recursive, **picked.params()))

    async def version(self, path: str, picked: Picked, *, recursive: bool = True) -> Version:
        """Return the version of a directory or a file (`backups.is_version` tells what it can be compared with)."""
        result = await self._finish_job("changes", path, recursive=recursive, **picked.params())
        return backups.parse_version(result, path, picked, recursive=recursive)

    # --- archives ---

    def pack(self, path: str, form: str, *, exclude: Sequence[str] = (), gitignore: bool = False) -> Archive:
        """Return what is in a directory, or one file, as an archive to be entered and read: tar, tar.gz or zip."""
        return Archive(self._job("pack", path, format=form, exclude=[*exclude], gitignore=gitignore))

    async def unpack(self, path: str, pieces: AsyncIterator[bytes | bytearray], form: str | None = None) -> Unpacked:
        """Unpack an archive, of any of the forms unless one is named, into a directory, which is made.

        `pieces` may not be read to the end, where the archive is refused.

        Raises:
            ArchiveRefused: as its name says.
        """
        params = {"path": name_bytes(path), "format": form, "max_bytes": self._sandbox.limits.disk_bytes or NO_LIMIT}
        async with self._sandbox.job("unpack", params, feed=True) as job:
            async for piece in pieces:
                if not await job.feed(piece):
                    break
            else:
                await job.end_feed()
            result = await job.finish()
        return Unpacked(checks.integer(result, "entries"), checks.integer(result, "bytes"))

    async def backup(
        self, path: str, archive: str, picked: Picked, *, form: str = "tar.gz", gitignore: bool = False
    ) -> Backup:
        """Pack a directory into a file of the sandbox; the file is replaced when the archive is whole."""
        return await backups.save(self, path, archive, picked, form=form, gitignore=gitignore)

    async def restore(self, path: str, archive: str) -> Backup:
        """Put what an archive in the sandbox has in the place of what is in a directory, which is made if need be.

        Raises:
            ArchiveRefused: as its name says; the directory is as it was.
        """
        return await backups.restore(self, path, archive)

    # --- how init is asked ---

    def _job(self, do: str, path: str, /, **params: Any) -> FileJob:  # noqa: ANN401 - the link's parameters
        return self._sandbox.job(do, {"path": name_bytes(path), **params})

    async def _finish_job(self, do: str, path: str, /, **params: Any) -> dict[str, Any]:  # noqa: ANN401
        """Do a file job that gives one result, and return that."""
        async with self._job(do, path, **params) as job:
            return await job.finish()


def _changed(result: dict[str, Any]) -> Changed:
    return Changed(filefacts.parse_file(result), checks.integer(result, "entries"))


def _ticket(result: dict[str, Any]) -> int | str:
    ticket = result.get("ticket")
    if isinstance(ticket, bool) or not isinstance(ticket, int | str) or len(str(ticket)) > 64:
        raise RemoteProtocolError("cannot accept a ticket that is neither short text nor a number")
    return ticket
