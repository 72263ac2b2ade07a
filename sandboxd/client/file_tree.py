"""File operations that take one request: each is a builder, and a method of `Sandbox` and of `AsyncSandbox`.

Operations that wait in their own way, or work on many files, are in `files.py` and `async_files.py`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from sandboxd.spec import name_bytes

from .calls import Call, nothing
from .file_calls import get, octal, parse_file, post, spell, spell_raw
from .verbs import AsyncPart, Part, async_verb, sync_verb

if TYPE_CHECKING:
    from .file_calls import FileInfo, SandboxPath
    from .models import Json


def stat_file(key: str, path: SandboxPath, *, follow: bool = False) -> Call[FileInfo]:
    """Return information about a file. A symbolic link is not followed unless `follow` is true."""
    return Call("GET", **get(key, path, "/stat", follow=follow), what="file", parse=parse_file)


def exists(key: str, path: SandboxPath) -> Call[bool]:
    """Return whether a path exists; a dangling symbolic link exists."""
    return Call("GET", **get(key, path, "/exists"), what="answer", parse=lambda value: bool(value["exists"]))


def delete_file(key: str, path: SandboxPath, *, recursive: bool = False) -> Call[None]:
    """Delete a file, a link or an empty directory; with `recursive`, a directory and its contents."""
    return Call("DELETE", **get(key, path, "", recursive=recursive), timeout_s=None, what="answer", parse=nothing)


def mkdir(key: str, path: SandboxPath, *, parents: bool = False, mode: int | None = None) -> Call[FileInfo]:
    """Create a directory. With `parents`, also create missing parents, and accept a directory that exists."""
    bits = None if mode is None else octal(mode)
    return Call(**post(key, "mkdir", path, parents=parents, mode=bits), what="file", parse=parse_file)


def rename_file(key: str, path: SandboxPath, new_path: SandboxPath, *, overwrite: bool = True) -> Call[FileInfo]:
    """Rename or move a file or directory; missing parent directories are created.

    Raises:
        FileExists: `new_path` exists, and `overwrite` is false.
    """
    request = post(key, "rename", path, **spell(new_path, "new_path"), overwrite=overwrite)
    return Call(**request, what="file", parse=parse_file)


def copy_file(key: str, path: SandboxPath, new_path: SandboxPath, *, overwrite: bool = True) -> Call[FileInfo]:
    """Copy a file, or a directory and its contents, within the sandbox. A directory's new path must not exist yet."""
    request = post(key, "copy", path, **spell(new_path, "new_path"), overwrite=overwrite)
    return Call(**request, what="answer", parse=_parse_inner)


def symlink(key: str, path: SandboxPath, target: SandboxPath) -> Call[FileInfo]:
    """Create a symbolic link at `path` that points to `target`."""
    raw = target if isinstance(target, bytes) else name_bytes(target)  # it need not be absolute, nor there
    return Call(**post(key, "symlink", path, **spell_raw(raw, "target")), what="file", parse=parse_file)


def chmod(key: str, path: SandboxPath, mode: int, *, recursive: bool = False) -> Call[FileInfo]:
    """Set a file's mode, such as 0o755."""
    request = post(key, "chmod", path, mode=octal(mode), recursive=recursive)
    return Call(**request, what="answer", parse=_parse_inner)


def chown(
    key: str,
    path: SandboxPath,
    user: str | int | None = None,
    group: str | int | None = None,
    *,
    recursive: bool = False,
) -> Call[FileInfo]:
    """Set a file's owner and group, by name or id; None leaves one unchanged."""
    request = post(key, "chown", path, recursive=recursive)
    request["body"] |= {"user": user, "group": group}
    return Call(**request, what="answer", parse=_parse_inner)


def truncate(key: str, path: SandboxPath, size: int) -> Call[FileInfo]:
    """Set a file's size in bytes: cut it, or extend it with a hole, which takes no disk space."""
    return Call(**post(key, "truncate", path, size=size), what="file", parse=parse_file)


def _parse_inner(value: Json) -> FileInfo:
    return parse_file(value["file"])


class FileTreePart(Part):
    """Methods of `Sandbox`."""

    stat_file = sync_verb(stat_file)
    exists = sync_verb(exists)
    delete_file = sync_verb(delete_file)
    mkdir = sync_verb(mkdir)
    rename_file = sync_verb(rename_file)
    move_file = rename_file
    copy_file = sync_verb(copy_file)
    symlink = sync_verb(symlink)
    chmod = sync_verb(chmod)
    chown = sync_verb(chown)
    truncate = sync_verb(truncate)


class AsyncFileTreePart(AsyncPart):
    """Methods of `AsyncSandbox`."""

    stat_file = async_verb(stat_file)
    exists = async_verb(exists)
    delete_file = async_verb(delete_file)
    mkdir = async_verb(mkdir)
    rename_file = async_verb(rename_file)
    move_file = rename_file
    copy_file = async_verb(copy_file)
    symlink = async_verb(symlink)
    chmod = async_verb(chmod)
    chown = async_verb(chown)
    truncate = async_verb(truncate)
