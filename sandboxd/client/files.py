"""A sandbox's files, for synchronous code: a part of `Sandbox`."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import IO, TYPE_CHECKING, Self

from . import file_calls, folders
from .content import FileContent, size_of_file, sync_content
from .failures import mapped
from .stream import FileStream

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Iterator, Sequence
    from types import TracebackType

    from .calls import StreamCall
    from .client import Client
    from .file_calls import (
        ArchiveFormat,
        Backup,
        Changes,
        FileChange,
        FileInfo,
        ReplaceResult,
        SandboxPath,
        SearchResult,
    )
    from .models import SandboxInfo


class FilesPart:
    """Methods of `Sandbox`. Paths are absolute; bytes stand for names that are no UTF-8.

    They raise `FileNotFound`, `NotAFile`, `FileExists`, `FilePermissionDenied` and `QuotaExceeded`, as the names say.
    """

    info: SandboxInfo

    @property
    def id(self) -> str:
        """The sandbox's id."""
        return self.info.id

    @property
    def client(self) -> Client:
        """The connections that it uses."""
        raise NotImplementedError

    # --- one file ---

    def read_file(self, path: SandboxPath) -> bytes:
        """Return a file's bytes; `path` is absolute.

        Raises:
            FileNotFound: there is no such file.
            NotAFile: it is a folder or a device.
        """
        with self.read_file_stream(path) as stream:
            return b"".join(stream)

    def read_text(self, path: SandboxPath, *, errors: str = "strict") -> str:
        """Return a file's text (UTF-8); raises as `read_file`, and `UnicodeDecodeError` unless `errors` says other."""
        return self.read_file(path).decode("utf-8", errors)

    def read_file_stream(self, path: SandboxPath, *, offset: int = 0, length: int | None = None) -> FileStream:
        """Open a file and return its bytes as a stream: a context manager to iterate over, with `size`.

        With `offset` and `length` only that part of it.
        """
        return FileStream(self.client, file_calls.read_file(self.id, path, offset, length))

    def download(self, path: SandboxPath, target: IO[bytes]) -> int:
        """Copy a file into the open file `target` as it arrives and return how many bytes."""
        count = 0
        with self.read_file_stream(path) as stream:
            for piece in stream:
                target.write(piece)
                count += len(piece)
        return count

    def write_file(self, path: SandboxPath, data: FileContent, *, mode: int | None = None) -> int:
        """Make or replace a file and return its size; folders above it are made.

        It appears when it is whole; until then the old one stays.

        Args:
            path: absolute.
            data: bytes, text (UTF-8), an open file, or an iterable of bytes, sent as they come.
            mode: such as 0o755; else that of the file that is replaced, or 0o644.

        Raises:
            QuotaExceeded: the sandbox's disk is full.
            FilePermissionDenied: the sandbox's own rights refuse it.
        """
        return self.client.send(file_calls.write_file(self.id, path, sync_content(data), mode, size_of_file(data)))

    def stat_file(self, path: SandboxPath, *, follow: bool = False) -> FileInfo:
        """Return what a file is; a link is told as such unless `follow`."""
        return self.client.send(file_calls.stat(self.id, path, follow=follow))

    def exists(self, path: SandboxPath) -> bool:
        """Tell whether something has that name; a link that leads nowhere is something."""
        return self.client.send(file_calls.exists(self.id, path))

    def delete_file(self, path: SandboxPath, *, recursive: bool = False) -> None:
        """Delete a file, a link or an empty folder; `recursive`: a folder with all that is in it."""
        self.client.send(file_calls.delete(self.id, path, recursive=recursive))

    def mkdir(self, path: SandboxPath, *, parents: bool = False, mode: int | None = None) -> FileInfo:
        """Make a folder; with `parents` those above it too, and one that is there is no error."""
        return self.client.send(file_calls.mkdir(self.id, path, parents=parents, mode=mode))

    def rename_file(self, path: SandboxPath, new_path: SandboxPath, *, overwrite: bool = True) -> FileInfo:
        """Give a file or folder another name; folders above the new one are made.

        Raises:
            FileExists: something has that name, and `overwrite` is false.
        """
        return self.client.send(file_calls.rename(self.id, path, new_path, overwrite=overwrite))

    move_file = rename_file

    def copy_file(self, path: SandboxPath, new_path: SandboxPath, *, overwrite: bool = True) -> FileInfo:
        """Copy a file, or a folder with all that is in it (to a name that is free), within the sandbox."""
        return self.client.send(file_calls.copy(self.id, path, new_path, overwrite=overwrite))

    def symlink(self, path: SandboxPath, target: SandboxPath) -> FileInfo:
        """Make a link at `path` that leads to `target`."""
        return self.client.send(file_calls.symlink(self.id, path, target))

    def chmod(self, path: SandboxPath, mode: int, *, recursive: bool = False) -> FileInfo:
        """Set a file's mode, such as 0o755."""
        return self.client.send(file_calls.chmod(self.id, path, mode, recursive=recursive))

    def chown(
        self,
        path: SandboxPath,
        user: str | int | None = None,
        group: str | int | None = None,
        *,
        recursive: bool = False,
    ) -> FileInfo:
        """Set a file's owner, by names or ids; None leaves it."""
        return self.client.send(file_calls.chown(self.id, path, user, group, recursive=recursive))

    # --- many files ---

    def list_files(self, path: SandboxPath, *, recursive: bool = False, hidden: bool = False) -> list[FileInfo]:
        """Return what is in a folder, sorted; `hidden`: names that begin with a dot too."""
        return list(self.iter_files(path, recursive=recursive, hidden=hidden))

    def iter_files(self, path: SandboxPath, *, recursive: bool = False, hidden: bool = False) -> Iterator[FileInfo]:
        """Give what is in a folder, as `list_files`, a page at a time."""
        cursor: str | None = None
        while True:
            call = file_calls.page(self.id, path, cursor, recursive=recursive, hidden=hidden)
            found, cursor = self.client.send(call)
            yield from found
            if cursor is None:
                return

    def search_files(
        self,
        path: SandboxPath,
        *,
        name: str | None = None,
        content: str | None = None,
        ignore_case: bool = False,
        gitignore: bool = False,
        hidden: bool = False,
        limit: int | None = None,
        timeout: float | None = None,
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
        return self.client.send(call)

    def replace_in_files(  # noqa: PLR0913 - the fields of a replacement, all by keyword
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
        timeout: float | None = None,
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
        return self.client.send(call)

    def watch(
        self,
        path: SandboxPath,
        *,
        recursive: bool = True,
        include: Sequence[str] = (),
        exclude: Sequence[str] = (),
    ) -> WatchStream:
        """Watch a folder or a file: a context manager to iterate over, which begins when it returns.

        `include` and `exclude` are patterns as in gitignore(5); folders that are left out are not watched.
        """
        call = file_calls.watch(self.id, path, recursive=recursive, include=include, exclude=exclude)
        return WatchStream(self.client, call)

    def check_changes(
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
        return self.client.send(file_calls.check_changes(self.id, path, since=since, **rules))

    def create_backup(
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
        return self.client.send(file_calls.backup(self.id, path, archive=archive, **fields))

    def restore_backup(self, path: SandboxPath, archive: str) -> Backup:
        """Put what an archive in the sandbox has in the place of what is in a folder.

        Raises:
            ArchiveRefused: it is damaged, or a member would leave the folder; the folder is as it was.
        """
        return self.client.send(file_calls.restore(self.id, path, archive))

    # --- archives and folders ---

    def read_archive(self, path: SandboxPath, *, format: ArchiveFormat = "tar") -> FileStream:  # noqa: A002
        """Return what is in a folder as an archive's bytes: a context manager to iterate over."""
        return FileStream(self.client, file_calls.read_archive(self.id, path, format))

    def write_archive(self, path: SandboxPath, data: FileContent, *, format: ArchiveFormat | None = None) -> int:  # noqa: A002
        """Unpack a tar, tar.gz or zip into a folder, which is made, and return how many entries it had.

        Raises:
            ArchiveRefused: it is damaged, or a member would leave the folder; `reason` and `member` say more.
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
        """Copy what is in a folder of this machine into a folder of the sandbox; returns how many entries.

        Links stay as they are: inside they lead to the sandbox's own files. What cannot be read, and sockets, FIFOs
        and devices, are left out and told to `on_left_out` (name, why); the rest is copied.

        Raises:
            OSError: this machine cannot read the folder, or something in it and there is no `on_left_out`.
        """
        packing = folders.Packing(Path(local), on_bytes, on_left_out)
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
        """Copy what is in a folder of the sandbox into a folder of this machine; returns what was left out.

        Left out are devices and links that lead out of the copy: nothing in a sandbox can make one that harms here.
        Holes of files stay holes.

        Raises:
            ArchiveRefused: it is larger than `max_bytes`, which is 64 GiB if not given.
            OSError: this machine refuses it; nothing was copied.
        """
        with self.read_archive(path) as stream:
            return folders.unpack(stream, Path(local), on_bytes, max_bytes)


class WatchStream:
    """Changes as they happen: a context manager to iterate over. The iteration ends when what is watched is gone."""

    def __init__(self, client: Client, call: StreamCall) -> None:
        self._client = client
        self._reader = file_calls.ChangeReader()
        self._response = client.open(call)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __iter__(self) -> Iterator[FileChange]:
        with contextlib.closing(self._response), mapped(self._client.address):
            for piece in self._response.iter_raw():
                yield from self._reader.feed(piece)
                if self._reader.over:
                    return

    def close(self) -> None:
        """Stop watching."""
        self._response.close()
