"""What …/files can do with names: list, stat, exists, delete, mkdir, rename, copy, symlink, chmod, chown."""

from __future__ import annotations

import base64
from typing import TYPE_CHECKING, Any, Final

from ...errors import FileNotFound, NotAFile
from ...runtime import checks, filefacts
from ...spec import check_file_path, check_mode, check_user, name_bytes
from ..call import answer, nothing
from ..pieces import answer_in_pieces
from . import file_models as models

if TYPE_CHECKING:
    from quart_trio.wrappers import TrioResponse

    from ...runtime.sandbox import Sandbox
    from ..call import Call

#: Entries of one page, at most and where nothing is asked for.
MAX_PAGE: Final = 1000


def query_path(call: Call) -> str:
    """Return the checked path that the query names."""
    return check_file_path(models.decode(call.query("path"), call.query("path_b64"), "path"))


async def listing(call: Call, sandbox: Sandbox) -> TrioResponse:
    """Show what is in a directory, sorted, a page at a time."""
    limit = max(1, min(call.query_int("limit", MAX_PAGE), MAX_PAGE))
    cursor = call.query("cursor")
    after = models.decode(None, cursor, "cursor") if cursor is not None else None
    params = {
        "path": name_bytes(query_path(call)),
        "recursive": call.query_flag("recursive"),
        "hidden": call.query_flag("hidden"),
        "limit": limit,
        "after": after,
    }
    items: list[models.FileInfo] = []
    async with sandbox.job("list", params) as job:
        while rows := await job.next_rows():
            items += [models.file_info(filefacts.parse(row)) for row in rows]
        result = job.result or {}
        following = None if result.get("next") is None else filefacts.name(result, "next")
    cursor = None if following is None else base64.urlsafe_b64encode(name_bytes(following)).decode()
    return answer_in_pieces(models.FileList(items[:limit], cursor))


async def stat(call: Call, sandbox: Sandbox) -> TrioResponse:
    """Show one file; a link itself, or with `follow` what it leads to."""
    row = await sandbox.stat(query_path(call), follow=call.query_flag("follow"))
    return answer(models.file_info(filefacts.parse(row)))


async def exists(call: Call, sandbox: Sandbox) -> TrioResponse:
    """Tell whether something has that name; a link that leads nowhere is something."""
    try:
        row = await sandbox.stat(query_path(call), follow=False)
    except (FileNotFound, NotAFile):
        return answer(models.Exists(exists=False, type=None))
    return answer(models.Exists(exists=True, type=filefacts.parse(row).type))


async def delete(call: Call, sandbox: Sandbox) -> TrioResponse:
    """Delete a file, a link or an empty directory; with `recursive` a directory and all in it."""
    params = {"path": name_bytes(query_path(call)), "recursive": call.query_flag("recursive")}
    await sandbox.run_job("delete", params)
    return nothing()


async def mkdir(call: Call, sandbox: Sandbox) -> TrioResponse:
    """Make a directory."""
    model = await call.read(models.MkdirIn)
    check_mode(model.mode)
    result = await sandbox.run_job(
        "mkdir", {"path": name_bytes(models.path_of(model)), "parents": model.parents, "mode": model.mode}
    )
    return answer(_file(result), 201 if checks.flag(result, "created") else 200)


async def rename(call: Call, sandbox: Sandbox) -> TrioResponse:
    """Give a file or directory another name, also in another directory."""
    params = await _two(call)
    return answer(_file(await sandbox.run_job("rename", params)))


async def copy(call: Call, sandbox: Sandbox) -> TrioResponse:
    """Copy a file, or a directory with all in it."""
    params = await _two(call)
    result = await sandbox.run_job("copy", params)
    counts = {name: checks.integer(result, name) for name in ("entries", "bytes", "skipped")}
    return answer(models.Copied(_file(result), **counts), 201)


async def _two(call: Call) -> dict[str, Any]:
    model = await call.read(models.MoveIn)
    path, new_path = name_bytes(models.path_of(model)), name_bytes(models.new_path_of(model))
    return {"path": path, "new_path": new_path, "overwrite": model.overwrite}


async def symlink(call: Call, sandbox: Sandbox) -> TrioResponse:
    """Make a symbolic link."""
    model = await call.read(models.SymlinkIn)
    target = models.decode(model.target, model.target_b64, "target")
    params = {
        "path": name_bytes(models.path_of(model)),
        "target": target if isinstance(target, bytes) else name_bytes(models.check_target(target)),
    }
    return answer(_file(await sandbox.run_job("symlink", params)), 201)


async def chmod(call: Call, sandbox: Sandbox) -> TrioResponse:
    """Set a mode."""
    model = await call.read(models.ChmodIn)
    check_mode(model.mode)
    params = {"path": name_bytes(models.path_of(model)), "mode": model.mode, "recursive": model.recursive}
    return _changed(await sandbox.run_job("chmod", params))


async def chown(call: Call, sandbox: Sandbox) -> TrioResponse:
    """Set an owner."""
    model = await call.read(models.ChownIn)
    params = {
        "path": name_bytes(models.path_of(model)),
        "user": None if model.user is None else check_user(model.user),
        "group": None if model.group is None else check_user(model.group, "group"),
        "recursive": model.recursive,
    }
    return _changed(await sandbox.run_job("chown", params))


def _changed(result: dict[str, Any]) -> TrioResponse:
    return answer(models.Changed(_file(result), checks.integer(result, "entries")))


def _file(result: dict[str, Any]) -> models.FileInfo:
    return models.file_info(filefacts.parse(checks.table(result, "file")))
