"""The verbs on files that one request does: each is a builder, and a method of `Sandbox` and of `AsyncSandbox`.

What has to wait in a way of its own, and what works on many files, is in `files.py` and `async_files.py`.
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
    """Return what a file is; a link is told as such unless `follow`."""
    return Call("GET", **get(key, path, "/stat", follow=follow), what="file", parse=parse_file)


def exists(key: str, path: SandboxPath) -> Call[bool]:
    """Tell whether something has that name; a link that leads nowhere is something."""
    return Call("GET", **get(key, path, "/exists"), what="answer", parse=lambda value: bool(value["exists"]))


def delete_file(key: str, path: SandboxPath, *, recursive: bool = False) -> Call[None]:
    """Delete a file, a link or an empty directory; `recursive`: a directory with all that is in it."""
    return Call("DELETE", **get(key, path, "", recursive=recursive), timeout_s=None, what="answer", parse=nothing)


def mkdir(key: str, path: SandboxPath, *, parents: bool = False, mode: int | None = None) -> Call[FileInfo]:
    """Make a directory; with `parents` those above it too, and one that is there is no error."""
    bits = None if mode is None else octal(mode)
    return Call(**post(key, "mkdir", path, parents=parents, mode=bits), what="file", parse=parse_file)


def rename_file(key: str, path: SandboxPath, new_path: SandboxPath, *, overwrite: bool = True) -> Call[FileInfo]:
    """Give a file or directory another name; directories above the new one are made.

    Raises:
        FileExists: something has that name, and `overwrite` is false.
    """
    request = post(key, "rename", path, **spell(new_path, "new_path"), overwrite=overwrite)
    return Call(**request, what="file", parse=parse_file)


def copy_file(key: str, path: SandboxPath, new_path: SandboxPath, *, overwrite: bool = True) -> Call[FileInfo]:
    """Copy a file, or a directory with all that is in it (to a name that is free), within the sandbox."""
    request = post(key, "copy", path, **spell(new_path, "new_path"), overwrite=overwrite)
    return Call(**request, what="answer", parse=_parse_inner)


def symlink(key: str, path: SandboxPath, target: SandboxPath) -> Call[FileInfo]:
    """Make a link at `path` that leads to `target`."""
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
    """Set a file's owner, by names or ids; None leaves it."""
    request = post(key, "chown", path, recursive=recursive)
    request["body"] |= {"user": user, "group": group}
    return Call(**request, what="answer", parse=_parse_inner)


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
