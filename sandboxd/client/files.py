"""A sandbox's files, for synchronous code: a part of `Sandbox`."""

from __future__ import annotations

from pathlib import Path
from typing import IO, TYPE_CHECKING

from . import directories, file_calls
from .content import FileContent, size_of_file, sync_content
from .file_tree import FileTreePart
from .stream import FileStream, WatchStream
from .verbs import stream_verb, sync_verb

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Iterator

    from .file_calls import ArchiveFormat, FileInfo, SandboxPath


class FilesPart(FileTreePart):
    """Methods of `Sandbox`. Paths are absolute; pass bytes for names that are not valid UTF-8.

    They raise `FileNotFound`, `NotAFile`, `FileExists`, `FilePermissionDenied` and `QuotaExceeded`.
    """

    # --- one file ---

    read_file_stream = stream_verb(file_calls.read_file_stream, FileStream)

    def read_file(self, path: SandboxPath) -> bytes:
        """Return a file's bytes; `path` is absolute.

        Raises:
            FileNotFound: there is no such file.
            NotAFile: it is a directory or a device.
        """
        with self.read_file_stream(path) as stream:
            return b"".join(stream)

    def read_text(self, path: SandboxPath, *, errors: str = "strict") -> str:
        """Return a file's text (UTF-8). Raises as `read_file` does, and `UnicodeDecodeError`, depending on `errors`."""
        return self.read_file(path).decode("utf-8", errors)

    def download(self, path: SandboxPath, target: IO[bytes]) -> int:
        """Copy a file into the open file `target` as it arrives, and return the number of bytes."""
        count = 0
        with self.read_file_stream(path) as stream:
            for piece in stream:
                target.write(piece)
                count += len(piece)
        return count

    def write_file(self, path: SandboxPath, data: FileContent, *, mode: int | None = None) -> int:
        """Create or replace a file and return its size; missing parent directories are created.

        The file appears once it is complete; until then the old one stays.

        Args:
            path: an absolute path.
            data: bytes, text (UTF-8), an open file, or an iterable of bytes, sent as they come.
            mode: permission bits, such as 0o755; default: those of the replaced file, or 0o644.

        Raises:
            QuotaExceeded: the sandbox's disk is full.
            FilePermissionDenied: the sandbox's own permissions do not allow it.
        """
        return self.client.send(file_calls.write_file(self.id, path, sync_content(data), mode, size_of_file(data)))

    # --- many files ---

    def list_files(self, path: SandboxPath, *, recursive: bool = False, hidden: bool = False) -> list[FileInfo]:
        """Return a directory's entries, sorted; with `hidden`, also names that begin with a dot."""
        return list(self.iter_files(path, recursive=recursive, hidden=hidden))

    def iter_files(self, path: SandboxPath, *, recursive: bool = False, hidden: bool = False) -> Iterator[FileInfo]:
        """Yield a directory's entries as `list_files` does, fetched a page at a time."""
        cursor: str | None = None
        while True:
            call = file_calls.page(self.id, path, cursor, recursive=recursive, hidden=hidden)
            found, cursor = self.client.send(call)
            yield from found
            if cursor is None:
                return

    search_files = sync_verb(file_calls.search_files)
    replace_in_files = sync_verb(file_calls.replace_in_files)
    check_changes = sync_verb(file_calls.check_changes)
    create_backup = sync_verb(file_calls.create_backup)
    restore_backup = sync_verb(file_calls.restore_backup)
    watch = stream_verb(file_calls.watch, WatchStream)

    # --- archives and directories ---

    read_archive = stream_verb(file_calls.read_archive, FileStream)

    def write_archive(self, path: SandboxPath, data: FileContent, *, format: ArchiveFormat | None = None) -> int:  # noqa: A002
        """Unpack a tar, tar.gz or zip into a directory, created if missing, and return the number of entries.

        Raises:
            ArchiveRefused: the archive is damaged, or a member would leave the directory; see `reason` and `member`.
        """
        return self.client.send(file_calls.write_archive(self.id, path, sync_content(data), format))

    def copy_in(
        self,
        local: str | os.PathLike[str],
        path: SandboxPath,
        *,
        on_bytes: Callable[[int], object] = lambda count: None,
        on_left_out: Callable[[str, str], object] | None = None,
    ) -> int:
        """Copy a local directory's contents into a directory of the sandbox, and return the number of entries.

        FIFOs and devices are left out; `on_left_out` is called with the name and the reason of each. The rest is
        copied.

        Raises:
            OSError: the directory cannot be read, or something in it cannot and no `on_left_out` was given.
        """
        packing = directories.Packing(Path(local), on_bytes, on_left_out)
        count = self.write_archive(path, packing, format="tar")
        packing.check()
        return count

    def copy_out(
        self,
        path: SandboxPath,
        local: str | os.PathLike[str],
        *,
        on_bytes: Callable[[int], object] = lambda count: None,
        max_bytes: int | None = None,
    ) -> list[str]:
        """Copy a sandbox directory's contents into a local directory, and return what was left out.

        this machine. Sparse files stay sparse.

        Raises:
            ArchiveRefused: the copy would be larger than `max_bytes` (default: 64 GiB).
            OSError: a local file could not be written; nothing was copied.
        """
        with self.read_archive(path) as stream:
            return directories.unpack(stream, Path(local), on_bytes, max_bytes)
