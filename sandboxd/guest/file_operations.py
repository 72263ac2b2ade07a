"""The file operations that run as file jobs (`jobs.py`), but for search, archives and watches.

Paths come as text or bytes; facts of a file leave as a map (`row_of`), names as bytes.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from typing import Any, Final

from ..errors import FileExists, InvalidRequest
from ..linux.kernel import AT_FDCWD, RESOLVE_NO_MAGICLINKS, Kernel
from ..spec import check_mode, check_user
from . import tree, users
from .jobs import Deps, Function
from .paths import file_error, make_directory, mapped, open_directory, open_parent, path_of, require, shown, type_of

#: Entries of one page of a list.
MAX_PAGE: Final = 1000


def row_of(path: str, facts: os.stat_result, link: str | None) -> dict[str, Any]:
    """Return what is told of a file: its path, facts, and where it leads if it is a link."""
    return {
        "path": os.fsencode(path),
        "type": type_of(facts.st_mode),
        "size": facts.st_size,
        "mode": stat.S_IMODE(facts.st_mode),
        "uid": facts.st_uid,
        "gid": facts.st_gid,
        "mtime": facts.st_mtime,
        "target": None if link is None else os.fsencode(link),
    }


def look(directory: int, name: str, path: str) -> dict[str, Any]:
    """Return the row of one name in an open directory; a link is told, not followed."""
    facts = os.stat(name, dir_fd=directory, follow_symlinks=False)
    return row_of(path, facts, _link(directory, name, facts))


def _link(directory: int, name: str, facts: os.stat_result) -> str | None:
    if stat.S_ISLNK(facts.st_mode):
        with contextlib.suppress(OSError):
            return os.readlink(name, dir_fd=directory)
    return None


def stat_file(kernel: Kernel, params: dict[str, Any]) -> dict[str, Any]:
    """Return the row of `path`; with `follow` that of what a link leads to. Runs in init: it waits for nothing long.

    Raises:
        FileNotFound, NotAFile, FilePermissionDenied: as their names say.
    """
    path = path_of(params)
    if params.get("follow") or path == "/":
        with mapped(path, "look at"):
            fd = kernel.openat2(AT_FDCWD, path, os.O_PATH, RESOLVE_NO_MAGICLINKS)
        try:
            return row_of(path, os.fstat(fd), None)
        finally:
            os.close(fd)
    fd, name = open_parent(kernel, path, "look at")
    try:
        with mapped(path, "look at"):
            return look(fd, name, path)
    finally:
        os.close(fd)


def list_files(deps: Deps, params: dict[str, Any]) -> dict[str, Any]:
    """Give a directory's rows: `recursive`, `hidden`, at most `limit` behind the path `after` (relative, as bytes)."""
    path = path_of(params)
    limit = min(int(params["limit"]), MAX_PAGE)
    after = os.fsdecode(params["after"]) if params["after"] is not None else None
    with mapped(path, "list"):
        root = open_directory(deps.kernel, path)
        base = path.rstrip("/")
        last: str | None = None
        entries = tree.walk(
            root, recursive=params["recursive"], hidden=params["hidden"], after=after, at_most=limit + 1
        )
        for found, entry in enumerate(entries):
            if found == limit:
                return {"next": os.fsencode(last or "")}
            link = _link(entry.directory, entry.name, entry.facts)
            row = row_of(f"{base}/{entry.path}", entry.facts, link)
            deps.writer.row(row, len(row["path"]) + len(row["target"] or b""))
            last = entry.path
    return {"next": None}


def delete(deps: Deps, params: dict[str, Any]) -> dict[str, Any]:
    """Delete a file, a link (never its target) or an empty directory; with `recursive` a directory with all in it."""
    path = path_of(params)
    fd, name = open_parent(deps.kernel, path, "delete")
    with mapped(path, "delete"):
        if not stat.S_ISDIR(os.stat(name, dir_fd=fd, follow_symlinks=False).st_mode):
            os.unlink(name, dir_fd=fd)
        elif params["recursive"]:
            tree.delete_tree(fd, name)
        else:
            os.rmdir(name, dir_fd=fd)
    return {}


def mkdir(deps: Deps, params: dict[str, Any]) -> dict[str, Any]:
    """Make a directory; with `parents` those above it too, and one that is there is no error."""
    path = path_of(params)
    mode = check_mode(params["mode"])
    parents = params["parents"]
    if path == "/":
        raise FileExists("cannot create the directory /: it exists", path="/")
    fd, name = open_parent(deps.kernel, path, "create the directory", owner=deps.owner if parents else None)
    with mapped(path, "create the directory"):
        there = _exists(fd, name)
        if there and parents:
            os.close(open_directory(deps.kernel, path))
        elif there:
            raise FileExists(
                f"cannot create the directory {shown(path)}: something with that name exists", path=shown(path)
            )
        else:
            make_directory(name, fd, deps.owner, 0o755 if mode is None else mode)
        return {"created": not there, "file": look(fd, name, path)}


def _exists(directory: int, name: str) -> bool:
    try:
        os.stat(name, dir_fd=directory, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return True


def symlink(deps: Deps, params: dict[str, Any]) -> dict[str, Any]:
    """Make a link at `path` that leads to `target`, which need not exist."""
    path = path_of(params)
    target = params["target"]
    target = os.fsdecode(target)
    if not target or "\0" in target or len(os.fsencode(target)) > 4095:
        raise InvalidRequest("cannot accept target: it is empty, has a NUL or is too long", field="target")
    fd, name = open_parent(deps.kernel, path, "create the link", owner=deps.owner)
    with mapped(path, "create the link"):
        os.symlink(target, name, dir_fd=fd)
        os.chown(name, deps.owner.uid, deps.owner.gid, dir_fd=fd, follow_symlinks=False)
        return {"file": look(fd, name, path)}


def rename(deps: Deps, params: dict[str, Any]) -> dict[str, Any]:
    """Give `path` the name `new_path`, whose directories are made; across filesystems it is copied and deleted."""
    path, new_path = path_of(params), path_of(params, "new_path")
    source, target = _both(deps, path, new_path, "rename")
    try:
        tree.move(deps.kernel, source, target, overwrite=params["overwrite"])
        return {"file": look(target[0], target[1], new_path)}
    except OSError as error:
        raise _of_two(error, path, new_path, "rename") from error


def copy(deps: Deps, params: dict[str, Any]) -> dict[str, Any]:
    """Copy `path` to `new_path`, whose directories are made; it appears when it is whole. Links are copied as links."""
    path, new_path = path_of(params), path_of(params, "new_path")
    source, target = _both(deps, path, new_path, "copy")
    try:
        facts = os.stat(source[1], dir_fd=source[0], follow_symlinks=False)
        if stat.S_ISDIR(facts.st_mode) and _exists(*target):
            raise FileExists(f"cannot copy to {shown(new_path)}: something with that name exists", path=shown(new_path))
        copier = tree.place(deps.kernel, source, target, facts, overwrite=params["overwrite"])
        row = look(target[0], target[1], new_path)
    except OSError as error:
        raise _of_two(error, path, new_path, "copy") from error
    return {"file": row, "entries": copier.entries, "bytes": copier.bytes, "skipped": copier.skipped}


def _both(deps: Deps, path: str, new_path: str, verb: str) -> tuple[tuple[int, str], tuple[int, str]]:
    """Open the directories of a source and of a target; the source must exist before the target's are made."""
    source = open_parent(deps.kernel, path, verb)
    with mapped(path, verb):
        os.stat(source[1], dir_fd=source[0], follow_symlinks=False)
    return source, open_parent(deps.kernel, new_path, verb, owner=deps.owner)


def _of_two(error: OSError, path: str, new_path: str, verb: str) -> Exception:
    if error.errno == errno.EINVAL:
        return InvalidRequest(f"cannot {verb} {shown(path)}: {shown(new_path)} is inside it", field="new_path")
    about = new_path if error.errno in (errno.EEXIST, errno.ENOTEMPTY, errno.ENOSPC, errno.EDQUOT) else path
    return file_error(error, about, f"{verb} to" if about is new_path else verb)


def chmod(deps: Deps, params: dict[str, Any]) -> dict[str, Any]:
    """Set the mode of `path`; with `recursive` of all below it too. Links below are passed over."""
    mode = check_mode(params["mode"])
    if mode is None:
        raise InvalidRequest("cannot accept mode: it is missing", field="mode")

    def change(directory: int, name: str, facts: os.stat_result) -> None:
        if not stat.S_ISLNK(facts.st_mode):
            # By descriptor: fchmodat would follow a link that took the file's place a moment ago.
            fd = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=directory)
            try:
                if not stat.S_ISLNK(os.fstat(fd).st_mode):
                    os.chmod(f"/proc/self/fd/{fd}", mode)
            finally:
                os.close(fd)

    return _change(deps, params, "change the mode of", change)


def chown(deps: Deps, params: dict[str, Any]) -> dict[str, Any]:
    """Give `path` to `user` and `group` (names or ids; None leaves it); with `recursive` all below it too."""
    uid = gid = -1
    if params["user"] is not None:
        user = users.find_user(check_user(params["user"]))
        uid = user.uid
    if params["group"] is not None:
        gid = users.find_group(check_user(params["group"], "group"))
    if uid == gid == -1:
        raise InvalidRequest("cannot change the owner: neither user nor group is given", field="user")

    def change(directory: int, name: str, facts: os.stat_result) -> None:
        os.chown(name, uid, gid, dir_fd=directory, follow_symlinks=False)

    return _change(deps, params, "change the owner of", change)


def truncate(deps: Deps, params: dict[str, Any]) -> dict[str, Any]:
    """Set the size of the regular file `path`, whose links are followed: it is cut, or grows by a hole."""
    path = path_of(params)
    with mapped(path, "set the size of"):
        fd = deps.kernel.openat2(AT_FDCWD, path, os.O_PATH, RESOLVE_NO_MAGICLINKS)
        try:
            require(path, os.fstat(fd).st_mode, stat.S_IFREG, "set the size of")
            # What was looked at, and not opened before: opening a device may do something, and a FIFO may wait.
            os.truncate(f"/proc/self/fd/{fd}", params["size"])
            return {"file": row_of(path, os.fstat(fd), None)}
        finally:
            os.close(fd)


def _change(deps: Deps, params: dict[str, Any], verb: str, change: Any) -> dict[str, Any]:  # noqa: ANN401
    """Apply a change to a path, whose links are followed, and to all below it if that is asked for."""
    path = path_of(params)
    with mapped(path, verb):
        fd, name, facts = followed(deps.kernel, path)
        change(fd, name, facts)
        count = 1
        if params["recursive"] and stat.S_ISDIR(facts.st_mode):
            for entry in tree.walk(open_directory(deps.kernel, path)):
                with contextlib.suppress(FileNotFoundError):
                    change(entry.directory, entry.name, entry.facts)
                    count += 1
        return {"file": row_of(path, os.stat(name, dir_fd=fd, follow_symlinks=False), None), "entries": count}


def followed(kernel: Kernel, path: str) -> tuple[int, str, os.stat_result]:
    """Return the directory and name of what a path leads to in the end."""
    fd = kernel.openat2(AT_FDCWD, path, os.O_PATH, RESOLVE_NO_MAGICLINKS)
    facts = os.fstat(fd)
    real = os.readlink(f"/proc/self/fd/{fd}")
    os.close(fd)
    directory, _, name = real.rpartition("/")
    return open_directory(kernel, directory or "/"), name or ".", facts


def require_directory(kernel: Kernel, path: str, verb: str) -> int:
    """Return a descriptor of the directory `path`.

    Raises:
        FileNotFound, NotAFile: as their names say.
    """
    with mapped(path, verb):
        fd = kernel.openat2(AT_FDCWD, path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY, RESOLVE_NO_MAGICLINKS)
        require(path, os.fstat(fd).st_mode, stat.S_IFDIR, verb)
    return fd


FUNCTIONS: Final[dict[str, Function]] = {
    "list": list_files,
    "delete": delete,
    "mkdir": mkdir,
    "symlink": symlink,
    "rename": rename,
    "copy": copy,
    "chmod": chmod,
    "chown": chown,
    "truncate": truncate,
}
