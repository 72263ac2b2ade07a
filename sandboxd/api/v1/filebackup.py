"""…/files/changes, /backup and /restore: versions of directories, and directories kept as archives in the sandbox."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Literal

from ...errors import InvalidRequest
from ...runtime.backups import is_version
from ...runtime.file_queries import Picked
from ...spec import check_file_path
from ..call import answer
from . import file_models as models
from .rows import file_route

if TYPE_CHECKING:
    from quart_trio.wrappers import TrioResponse

    from ...runtime.sandbox import Sandbox
    from ..call import Call


class ChangesIn(models.PathIn, frozen=True):
    """A directory whose version to return, and an earlier version to compare with (`since`)."""

    recursive: bool = True
    include: list[str] | None = None
    exclude: list[str] | None = None
    since: str | None = None


class BackupIn(models.PathIn, frozen=True, kw_only=True):
    """A directory to archive, and the path of the archive in the sandbox."""

    archive: str
    format: Literal["tar", "tar.gz", "zip"] = "tar.gz"
    exclude: list[str] | None = None
    gitignore: bool = False


class RestoreIn(models.PathIn, frozen=True, kw_only=True):
    """A directory whose contents to replace, and the archive in the sandbox to take them from."""

    archive: str


async def changes(call: Call, sandbox: Sandbox) -> TrioResponse:
    """Return a directory's version, and whether anything in it changed since an earlier one."""
    model = await call.read(ChangesIn)
    path = models.path_of(model)
    picked = Picked(include=tuple(model.include or ()), exclude=tuple(model.exclude or ()))
    since = model.since
    if since is not None and not is_version(since, path, picked, recursive=model.recursive):
        raise InvalidRequest(
            "cannot compare: that is not a version of this directory with these patterns", field="since"
        )
    found = await sandbox.files.version(path, picked, recursive=model.recursive)
    return answer(models.ChangesOut(found.text, None if since is None else since != found.text, found.entries))


async def backup(call: Call, sandbox: Sandbox) -> TrioResponse:
    """Save a directory's contents as an archive in the sandbox, which appears complete or not at all."""
    model = await call.read(BackupIn)
    path, archive = models.path_of(model), check_file_path(model.archive, "archive")
    picked = Picked(exclude=tuple(model.exclude or ()))
    made = await sandbox.files.backup(path, archive, picked, form=model.format, gitignore=model.gitignore)
    return answer(models.BackupOut(archive, made.size, made.entries), 201)


async def restore(call: Call, sandbox: Sandbox) -> TrioResponse:
    """Replace a directory's contents with an archive's; a damaged archive leaves the directory unchanged."""
    model = await call.read(RestoreIn)
    path, archive = models.path_of(model), check_file_path(model.archive, "archive")
    found = await sandbox.files.restore(path, archive)
    return answer(models.BackupOut(archive, found.size, found.entries))


ROUTES: Final = (
    file_route("files.changes", "POST", "/changes", changes, body=ChangesIn, result=models.ChangesOut),
    file_route(
        "files.backup",
        "POST",
        "/backup",
        backup,
        body=BackupIn,
        result=models.BackupOut,
        status=201,
        kinds=("quota-exceeded",),
    ),
    file_route(
        "files.restore",
        "POST",
        "/restore",
        restore,
        body=RestoreIn,
        result=models.BackupOut,
        kinds=("archive-refused", "quota-exceeded"),
    ),
)
