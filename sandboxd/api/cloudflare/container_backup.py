"""/api/backup/create and /restore: a directory kept as an archive in the sandbox. Uploads to R2 are not offered."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from ...errors import ArchiveRefused, FileNotFound, InvalidRequest
from ...runtime.file_queries import Picked
from ..call import answer
from . import container
from .container import Body, about
from .problems import Refusal

if TYPE_CHECKING:
    from quart_trio.wrappers import TrioResponse

    from ..call import Call

#: Where a directory that is backed up may be.
DIRECTORIES: Final = ("/workspace", "/home", "/tmp", "/var/tmp", "/app")  # noqa: S108 - names in a sandbox


class CreateIn(Body, frozen=True):
    """A directory to keep, and the file that it becomes. What archive that is, is ours: `compression` is not heeded."""

    dir: str
    archive_path: str
    gitignore: bool | None = None
    excludes: list[str] | None = None
    compression: Any = None
    session_id: str | None = None


class RestoreIn(Body, frozen=True):
    """A directory that is to be what an archive has."""

    dir: str
    archive_path: str
    session_id: str | None = None


class UploadIn(Body, frozen=True):
    """Parts of an archive to upload."""

    archive_path: str


def _directory(path: str) -> str:
    found = container.resolve(path, field="dir")
    if not any(found == directory or found.startswith(directory + "/") for directory in DIRECTORIES):
        why = f"cannot back up {path}: a directory below {', '.join(DIRECTORIES)} is"
        raise Refusal("INVALID_BACKUP_CONFIG", why, dir=path)
    return found


async def create(call: Call, name: str) -> TrioResponse:
    """Keep what is in a directory as an archive in the sandbox."""
    sandbox = await container.reach(call, name)
    model = await container.read(call, CreateIn)
    directory, archive = _directory(model.dir), container.resolve(model.archive_path, field="archivePath")
    try:
        picked = Picked(exclude=tuple(model.excludes or ()))
    except InvalidRequest as error:
        raise Refusal("INVALID_BACKUP_CONFIG", error.message, dir=model.dir, field="excludes") from None
    with about(dir=model.dir, path=model.dir):
        try:
            made = await sandbox.files.backup(directory, archive, picked, gitignore=bool(model.gitignore))
        except FileNotFound as error:
            raise Refusal("BACKUP_CREATE_FAILED", error.message) from None
    return answer({"success": True, "sizeBytes": made.size, "archivePath": model.archive_path})


async def restore(call: Call, name: str) -> TrioResponse:
    """Put what an archive in the sandbox has in the place of what is in a directory."""
    sandbox = await container.reach(call, name)
    model = await container.read(call, RestoreIn)
    directory, archive = _directory(model.dir), container.resolve(model.archive_path, field="archivePath")
    with about(dir=model.dir, path=model.archive_path):
        try:
            await sandbox.files.restore(directory, archive)
        except FileNotFound as error:
            raise Refusal("BACKUP_NOT_FOUND", error.message, backupId=model.archive_path) from None
        except ArchiveRefused as error:
            raise Refusal("BACKUP_RESTORE_FAILED", error.message, **error.facts) from None
    return answer({"success": True, "dir": model.dir})


async def upload(call: Call, name: str) -> TrioResponse:
    """Refuse: the archive stays in the sandbox, from which it can be read like any other file."""
    await container.reach(call, name)
    model = await container.read(call, UploadIn)
    why = "cannot upload the archive: R2 is not supported; read the archive as a file"
    raise Refusal("INVALID_BACKUP_CONFIG", why, archivePath=model.archive_path)
