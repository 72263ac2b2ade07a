"""A sandbox's files, for trio and asyncio: a part of `AsyncSandbox`."""

from __future__ import annotations

from pathlib import Path
from typing import IO, TYPE_CHECKING

import anyio.from_thread
import anyio.to_thread

from . import directories, file_calls
from .async_stream import AsyncFileStream, AsyncWatchStream
from .content import AsyncFileContent, async_content, size_of_file
from .file_tree import AsyncFileTreePart
from .files import FilesPart
from .verbs import async_verb, documented, stream_verb

if TYPE_CHECKING:
    import os
    from collections.abc import AsyncIterator, Callable, Iterator

    from .file_calls import ArchiveFormat, FileInfo, SandboxPath


class AsyncFilesPart(AsyncFileTreePart):
    """Methods of `AsyncSandbox`. Paths are absolute; pass bytes for names that are not valid UTF-8.

    They raise `FileNotFound`, `NotAFile`, `FileExists`, `FilePermissionDenied` and `QuotaExceeded`.
    """

    # --- one file ---

    read_file_stream = stream_verb(file_calls.read_file_stream, AsyncFileStream)

    @documented(FilesPart.read_file)
    async def read_file(self, path: SandboxPath) -> bytes:
        async with self.read_file_stream(path) as stream:
            return b"".join([piece async for piece in stream])

    @documented(FilesPart.read_text)
    async def read_text(self, path: SandboxPath, *, errors: str = "strict") -> str:
        return (await self.read_file(path)).decode("utf-8", errors)

    async def download(self, path: SandboxPath, target: IO[bytes]) -> int:
        """Copy a file into the open file `target` (written in a thread) as it arrives; return the number of bytes."""
        count = 0
        async with self.read_file_stream(path) as stream:
            async for piece in stream:
                await anyio.to_thread.run_sync(target.write, piece)
                count += len(piece)
        return count

    async def write_file(self, path: SandboxPath, data: AsyncFileContent, *, mode: int | None = None) -> int:
        """Create or replace a file and return its size; missing parent directories are created.

        The file appears once it is complete; until then the old one stays.

        Args:
            path: an absolute path.
            data: bytes, text (UTF-8), an open file (read in a thread), or a plain or async iterable of bytes.
            mode: permission bits, such as 0o755; default: those of the replaced file, or 0o644.

        Raises:
            QuotaExceeded: the sandbox's disk is full.
            FilePermissionDenied: the sandbox's own permissions do not allow it.
        """
        return await self.client.send(
            file_calls.write_file(self.id, path, async_content(data), mode, size_of_file(data))
        )

    # --- many files ---

    @documented(FilesPart.list_files)
    async def list_files(self, path: SandboxPath, *, recursive: bool = False, hidden: bool = False) -> list[FileInfo]:
        return [file async for file in self.iter_files(path, recursive=recursive, hidden=hidden)]

    @documented(FilesPart.iter_files)
    async def iter_files(
        self, path: SandboxPath, *, recursive: bool = False, hidden: bool = False
    ) -> AsyncIterator[FileInfo]:
        cursor: str | None = None
        while True:
            call = file_calls.page(self.id, path, cursor, recursive=recursive, hidden=hidden)
            found, cursor = await self.client.send(call)
            for file in found:
                yield file
            if cursor is None:
                return

    search_files = async_verb(file_calls.search_files)
    replace_in_files = async_verb(file_calls.replace_in_files)
    check_changes = async_verb(file_calls.check_changes)
    create_backup = async_verb(file_calls.create_backup)
    restore_backup = async_verb(file_calls.restore_backup)
    watch = stream_verb(file_calls.watch, AsyncWatchStream)

    # --- archives and directories ---

    read_archive = stream_verb(file_calls.read_archive, AsyncFileStream)

    @documented(FilesPart.write_archive)
    async def write_archive(
        self,
        path: SandboxPath,
        data: AsyncFileContent,
        *,
        format: ArchiveFormat | None = None,  # noqa: A002
    ) -> int:
        return await self.client.send(file_calls.write_archive(self.id, path, async_content(data), format))

    @documented(FilesPart.copy_in)
    async def copy_in(
        self,
        local: str | os.PathLike[str],
        path: SandboxPath,
        *,
        on_bytes: Callable[[int], object] = lambda count: None,
        on_left_out: Callable[[str, str], object] | None = None,
    ) -> int:
        packing = directories.Packing(Path(local), on_bytes, on_left_out)
        count = await self.write_archive(path, _in_threads(iter(packing)), format="tar")
        packing.check()
        return count

    @documented(FilesPart.copy_out)
    async def copy_out(
        self,
        path: SandboxPath,
        local: str | os.PathLike[str],
        *,
        on_bytes: Callable[[int], object] = lambda count: None,
        max_bytes: int | None = None,
    ) -> list[str]:
        async with self.read_archive(path) as stream:

            async def following() -> bytes:
                return await anext(stream, b"")

            pieces = iter(lambda: anyio.from_thread.run(following), b"")
            return await anyio.to_thread.run_sync(directories.unpack, pieces, Path(local), on_bytes, max_bytes)


async def _in_threads(pieces: Iterator[bytes]) -> AsyncIterator[bytes]:
    """Give what a plain iterator gives that reads from a disk."""
    while piece := await anyio.to_thread.run_sync(next, pieces, b""):
        yield piece
