"""A sandbox's files, for trio and asyncio: a part of `AsyncSandbox`."""

from __future__ import annotations

from pathlib import Path
from typing import IO, TYPE_CHECKING

import anyio.from_thread
import anyio.to_thread

from . import file_calls, folders
from .async_stream import AsyncFileStream, AsyncWatchStream
from .content import AsyncFileContent, async_content, size_of_file

if TYPE_CHECKING:
    import os
    from collections.abc import AsyncIterator, Callable, Iterator, Sequence

    from .async_client import AsyncClient
    from .file_calls import ArchiveFormat, Backup, Changes, FileInfo, ReplaceResult, SandboxPath, SearchResult
    from .models import SandboxInfo


class AsyncFilesPart:
    """Methods of `AsyncSandbox`. Paths are absolute; bytes stand for names that are no UTF-8.

    They raise `FileNotFound`, `NotAFile`, `FileExists`, `FilePermissionDenied` and `QuotaExceeded`, as the names say.
    """

    info: SandboxInfo

    @property
    def id(self) -> str:
        """The sandbox's id."""
        return self.info.id

    @property
    def client(self) -> AsyncClient:
        """The connections that it uses."""
        raise NotImplementedError

    # --- one file ---

    async def read_file(self, path: SandboxPath) -> bytes:
        """Return a file's bytes; `path` is absolute.

        Raises:
            FileNotFound: there is no such file.
            NotAFile: it is a folder or a device.
        """
        async with self.read_file_stream(path) as stream:
            return b"".join([piece async for piece in stream])

    async def read_text(self, path: SandboxPath, *, errors: str = "strict") -> str:
        """Return a file's text (UTF-8); raises as `read_file`, and `UnicodeDecodeError` unless `errors` says other."""
        return (await self.read_file(path)).decode("utf-8", errors)

    def read_file_stream(self, path: SandboxPath, *, offset: int = 0, length: int | None = None) -> AsyncFileStream:
        """Return a file's bytes as a stream: `async with` opens it, then iterate over it; it has a `size`.

        With `offset` and `length` only that part of it.
        """
        return AsyncFileStream(self.client, file_calls.read_file(self.id, path, offset, length))

    async def download(self, path: SandboxPath, target: IO[bytes]) -> int:
        """Copy a file into the open file `target` (written in a thread) as it arrives; return how many bytes."""
        count = 0
        async with self.read_file_stream(path) as stream:
            async for piece in stream:
                await anyio.to_thread.run_sync(target.write, piece)
                count += len(piece)
        return count

    async def write_file(self, path: SandboxPath, data: AsyncFileContent, *, mode: int | None = None) -> int:
        """Make or replace a file and return its size; folders above it are made.

        It appears when it is whole; until then the old one stays.

        Args:
            path: absolute.
            data: bytes, text (UTF-8), an open file (read in a thread), or a plain or async iterable of bytes.
            mode: such as 0o755; else that of the file that is replaced, or 0o644.

        Raises:
            QuotaExceeded: the sandbox's disk is full.
            FilePermissionDenied: the sandbox's own rights refuse it.
        """
        return await self.client.send(
            file_calls.write_file(self.id, path, async_content(data), mode, size_of_file(data))
        )

    async def stat_file(self, path: SandboxPath, *, follow: bool = False) -> FileInfo:
        """Return what a file is; a link is told as such unless `follow`."""
        return await self.client.send(file_calls.stat(self.id, path, follow=follow))

    async def exists(self, path: SandboxPath) -> bool:
        """Tell whether something has that name; a link that leads nowhere is something."""
        return await self.client.send(file_calls.exists(self.id, path))

    async def delete_file(self, path: SandboxPath, *, recursive: bool = False) -> None:
        """Delete a file, a link or an empty folder; `recursive`: a folder with all that is in it."""
        await self.client.send(file_calls.delete(self.id, path, recursive=recursive))

    async def mkdir(self, path: SandboxPath, *, parents: bool = False, mode: int | None = None) -> FileInfo:
        """Make a folder; with `parents` those above it too, and one that is there is no error."""
        return await self.client.send(file_calls.mkdir(self.id, path, parents=parents, mode=mode))

    async def rename_file(self, path: SandboxPath, new_path: SandboxPath, *, overwrite: bool = True) -> FileInfo:
        """Give a file or folder another name; folders above the new one are made.

        Raises:
            FileExists: something has that name, and `overwrite` is false.
        """
        return await self.client.send(file_calls.rename(self.id, path, new_path, overwrite=overwrite))

    move_file = rename_file

    async def copy_file(self, path: SandboxPath, new_path: SandboxPath, *, overwrite: bool = True) -> FileInfo:
        """Copy a file, or a folder with all that is in it (to a name that is free), within the sandbox."""
        return await self.client.send(file_calls.copy(self.id, path, new_path, overwrite=overwrite))

    async def symlink(self, path: SandboxPath, target: SandboxPath) -> FileInfo:
        """Make a link at `path` that leads to `target`."""
        return await self.client.send(file_calls.symlink(self.id, path, target))

    async def chmod(self, path: SandboxPath, mode: int, *, recursive: bool = False) -> FileInfo:
        """Set a file's mode, such as 0o755."""
        return await self.client.send(file_calls.chmod(self.id, path, mode, recursive=recursive))

    async def chown(
        self,
        path: SandboxPath,
        user: str | int | None = None,
        group: str | int | None = None,
        *,
        recursive: bool = False,
    ) -> FileInfo:
        """Set a file's owner, by names or ids; None leaves it."""
        return await self.client.send(file_calls.chown(self.id, path, user, group, recursive=recursive))

    # --- many files ---

    async def list_files(self, path: SandboxPath, *, recursive: bool = False, hidden: bool = False) -> list[FileInfo]:
        """Return what is in a folder, sorted; `hidden`: names that begin with a dot too."""
        return [file async for file in self.iter_files(path, recursive=recursive, hidden=hidden)]

    async def iter_files(
        self, path: SandboxPath, *, recursive: bool = False, hidden: bool = False
    ) -> AsyncIterator[FileInfo]:
        """Give what is in a folder, as `list_files`, a page at a time."""
        cursor: str | None = None
        while True:
            call = file_calls.page(self.id, path, cursor, recursive=recursive, hidden=hidden)
            found, cursor = await self.client.send(call)
            for file in found:
                yield file
            if cursor is None:
                return

    async def search_files(
        self,
        path: SandboxPath,
        *,
        name: str | None = None,
        content: str | None = None,
        ignore_case: bool = False,
        gitignore: bool = False,
        hidden: bool = False,
        limit: int | None = None,
        timeout: float | None = None,  # noqa: ASYNC109 - the daemon holds it, not this task
    ) -> SearchResult:
        """Find files below `path` by name, or lines in them.

        Args:
            path: a folder, or one file.
            name: a pattern as in gitignore(5), such as "*.py" or "src/**/test_*".
            content: a regular expression of Python's, matched against lines.
            ignore_case: whether `content` does not tell A from a.
            gitignore: whether what git ignores there is left out.
            hidden: whether names that begin with a dot are looked at.
            limit: how many matches at most; 1000 if not given.
            timeout: seconds; what was found until then is returned. 30 if not given.
        """
        call = file_calls.search(
            self.id,
            path,
            name=name,
            content=content,
            ignore_case=ignore_case,
            gitignore=gitignore,
            hidden=hidden,
            limit=limit,
            timeout_s=timeout,
        )
        return await self.client.send(call)

    async def replace_in_files(  # noqa: PLR0913 - the fields of a replacement, all by keyword
        self,
        path: SandboxPath,
        pattern: str,
        replacement: str,
        *,
        regex: bool = False,
        name: str | None = None,
        ignore_case: bool = False,
        gitignore: bool = False,
        hidden: bool = False,
        limit: int | None = None,
        timeout: float | None = None,  # noqa: ASYNC109 - the daemon holds it, not this task
    ) -> ReplaceResult:
        r"""Replace a text in the files below `path`, or with `regex` a pattern (`\1` is its first group)."""
        call = file_calls.replace(
            self.id,
            path,
            pattern=pattern,
            replacement=replacement,
            regex=regex,
            name=name,
            ignore_case=ignore_case,
            gitignore=gitignore,
            hidden=hidden,
            limit=limit,
            timeout_s=timeout,
        )
        return await self.client.send(call)

    def watch(
        self,
        path: SandboxPath,
        *,
        recursive: bool = True,
        include: Sequence[str] = (),
        exclude: Sequence[str] = (),
    ) -> AsyncWatchStream:
        """Watch a folder or a file: `async with` begins it, then iterate over it.

        `include` and `exclude` are patterns as in gitignore(5); folders that are left out are not watched.
        """
        call = file_calls.watch(self.id, path, recursive=recursive, include=include, exclude=exclude)
        return AsyncWatchStream(self.client, call)

    async def check_changes(
        self,
        path: SandboxPath,
        *,
        since: str | None = None,
        recursive: bool = True,
        include: Sequence[str] = (),
        exclude: Sequence[str] = (),
    ) -> Changes:
        """Return a folder's version, and whether anything in it changed since the version `since`.

        `include` and `exclude` are patterns as in gitignore(5); a version is compared by the rules that it was made by.

        Raises:
            InvalidRequest: `since` is no version of this folder by these rules.
        """
        rules = {"include": list(include), "exclude": list(exclude), "recursive": recursive}
        return await self.client.send(file_calls.check_changes(self.id, path, since=since, **rules))

    async def create_backup(
        self,
        path: SandboxPath,
        archive: str,
        *,
        format: ArchiveFormat = "tar.gz",  # noqa: A002
        exclude: Sequence[str] = (),
        gitignore: bool = False,
    ) -> Backup:
        """Keep what is in a folder as an archive in the sandbox: the file `archive`, replaced when it is whole.

        `exclude` are patterns as in gitignore(5); with `gitignore`, what git ignores there is left out too.
        """
        fields = {"format": format, "exclude": list(exclude), "gitignore": gitignore}
        return await self.client.send(file_calls.backup(self.id, path, archive=archive, **fields))

    async def restore_backup(self, path: SandboxPath, archive: str) -> Backup:
        """Put what an archive in the sandbox has in the place of what is in a folder.

        Raises:
            ArchiveRefused: it is damaged, or a member would leave the folder; the folder is as it was.
        """
        return await self.client.send(file_calls.restore(self.id, path, archive))

    # --- archives and folders ---

    def read_archive(self, path: SandboxPath, *, format: ArchiveFormat = "tar") -> AsyncFileStream:  # noqa: A002
        """Return what is in a folder as an archive's bytes: `async with` opens it, then iterate over it."""
        return AsyncFileStream(self.client, file_calls.read_archive(self.id, path, format))

    async def write_archive(
        self,
        path: SandboxPath,
        data: AsyncFileContent,
        *,
        format: ArchiveFormat | None = None,  # noqa: A002
    ) -> int:
        """Unpack a tar, tar.gz or zip into a folder, which is made, and return how many entries it had.

        Raises:
            ArchiveRefused: it is damaged, or a member would leave the folder; `reason` and `member` say more.
        """
        return await self.client.send(file_calls.write_archive(self.id, path, async_content(data), format))

    async def copy_in(
        self,
        local: str | os.PathLike[str],
        path: SandboxPath,
        *,
        on_bytes: Callable[[int], object] = lambda count: None,
        on_left_out: Callable[[str, str], object] | None = None,
    ) -> int:
        """Copy what is in a folder of this machine into a folder of the sandbox; returns how many entries.

        Links stay as they are: inside they lead to the sandbox's own files. What cannot be read, and sockets, FIFOs
        and devices, are left out and told to `on_left_out` (name, why); the rest is copied.

        Raises:
            OSError: this machine cannot read the folder, or something in it and there is no `on_left_out`.
        """
        packing = folders.Packing(Path(local), on_bytes, on_left_out)
        count = await self.write_archive(path, _in_threads(iter(packing)), format="tar")
        packing.check()
        return count

    async def copy_out(
        self,
        path: SandboxPath,
        local: str | os.PathLike[str],
        *,
        on_bytes: Callable[[int], object] = lambda count: None,
        max_bytes: int | None = None,
    ) -> list[str]:
        """Copy what is in a folder of the sandbox into a folder of this machine; returns what was left out.

        Left out are devices and links that lead out of the copy: nothing in a sandbox can make one that harms here.
        Holes of files stay holes.

        Raises:
            ArchiveRefused: it is larger than `max_bytes`, which is 64 GiB if not given.
            OSError: this machine refuses it; nothing was copied.
        """
        async with self.read_archive(path) as stream:

            async def following() -> bytes:
                return await anext(stream, b"")

            pieces = iter(lambda: anyio.from_thread.run(following), b"")
            return await anyio.to_thread.run_sync(folders.unpack, pieces, Path(local), on_bytes, max_bytes)


async def _in_threads(pieces: Iterator[bytes]) -> AsyncIterator[bytes]:
    """Give what a plain iterator gives that reads from a disk."""
    while piece := await anyio.to_thread.run_sync(next, pieces, b""):
        yield piece
