"""What …/files can do with names: list, stat, exists, delete, mkdir, rename, copy, symlink, chmod, chown."""

from __future__ import annotations

import base64
from typing import TYPE_CHECKING, Final

from ...runtime.files import MAX_PAGE
from ...spec import MAX_PATH_BYTES, check_file_path, check_text, name_bytes, name_text
from ..call import answer, nothing
from ..pieces import answer_in_pieces
from . import file_models as models
from .rows import NEW, PATH, file_route

if TYPE_CHECKING:
    from quart_trio.wrappers import TrioResponse

    from ...runtime.filefacts import Changed
    from ...runtime.sandbox import Sandbox
    from ..call import Call


class MkdirIn(models.PathIn, frozen=True):
    """A directory to make; `parents` makes those above it, and takes one that is there."""

    parents: bool = False
    mode: str | None = None


class MoveIn(models.PathIn, frozen=True):
    """What to rename or copy, and to what."""

    new_path: str | None = None
    new_path_b64: str | None = None
    overwrite: bool = True


class SymlinkIn(models.PathIn, frozen=True):
    """A link to make; `target` is what it leads to, as it stands."""

    target: str | None = None
    target_b64: str | None = None


class ChmodIn(models.PathIn, frozen=True):
    """A mode to set: octal text such as "755"."""

    mode: str | None = None
    recursive: bool = False


class ChownIn(models.PathIn, frozen=True):
    """An owner to set: names or ids; what is absent stays."""

    user: str | int | None = None
    group: str | int | None = None
    recursive: bool = False


def query_path(call: Call) -> str:
    """Return the checked path that the query names."""
    return check_file_path(models.decode(call.query("path"), call.query("path_b64"), "path"))


async def listing(call: Call, sandbox: Sandbox) -> TrioResponse:
    """Show what is in a directory, sorted, a page at a time."""
    limit = max(1, min(call.query_int("limit", MAX_PAGE), MAX_PAGE))
    cursor = call.query("cursor")
    page = await sandbox.files.list(
        query_path(call),
        recursive=call.query_flag("recursive"),
        hidden=call.query_flag("hidden"),
        limit=limit,
        after=None if cursor is None else name_text(models.decode_b64(cursor, "cursor")),
    )
    following = None if page.after is None else base64.urlsafe_b64encode(name_bytes(page.after)).decode()
    return answer_in_pieces(models.FileList([models.file_info(facts) for facts in page.files], following))


async def stat(call: Call, sandbox: Sandbox) -> TrioResponse:
    """Show one file; a link itself, or with `follow` what it leads to."""
    return answer(models.file_info(await sandbox.files.stat(query_path(call), follow=call.query_flag("follow"))))


async def exists(call: Call, sandbox: Sandbox) -> TrioResponse:
    """Tell whether something has that name; a link that leads nowhere is something."""
    found = await sandbox.files.find(query_path(call))
    return answer(models.Exists(exists=found is not None, type=None if found is None else found.type))


async def delete(call: Call, sandbox: Sandbox) -> TrioResponse:
    """Delete a file, a link or an empty directory; with `recursive` a directory and all in it."""
    await sandbox.files.delete(query_path(call), recursive=call.query_flag("recursive"))
    return nothing()


async def mkdir(call: Call, sandbox: Sandbox) -> TrioResponse:
    """Make a directory."""
    model = await call.read(MkdirIn)
    made = await sandbox.files.mkdir(models.path_of(model), parents=model.parents, mode=model.mode)
    return answer(models.file_info(made.file), 201 if made.created else 200)


async def rename(call: Call, sandbox: Sandbox) -> TrioResponse:
    """Give a file or directory another name, also in another directory."""
    model = await call.read(MoveIn)
    path, new_path = models.path_of(model), _new_path_of(model)
    return answer(models.file_info(await sandbox.files.rename(path, new_path, overwrite=model.overwrite)))


async def copy(call: Call, sandbox: Sandbox) -> TrioResponse:
    """Copy a file, or a directory with all in it."""
    model = await call.read(MoveIn)
    path, new_path = models.path_of(model), _new_path_of(model)
    made = await sandbox.files.copy(path, new_path, overwrite=model.overwrite)
    counts = {"entries": made.entries, "bytes": made.bytes, "skipped": made.skipped}
    return answer(models.Copied(file=models.file_info(made.file), **counts), 201)


def _new_path_of(model: MoveIn) -> str:
    """Return the checked new path of a body."""
    return check_file_path(models.decode(model.new_path, model.new_path_b64, "new_path"), "new_path")


async def symlink(call: Call, sandbox: Sandbox) -> TrioResponse:
    """Make a symbolic link."""
    model = await call.read(SymlinkIn)
    target = models.decode(model.target, model.target_b64, "target")
    target = name_text(target) if isinstance(target, bytes) else check_text(target, "target", limit=MAX_PATH_BYTES)
    return answer(models.file_info(await sandbox.files.symlink(models.path_of(model), target)), 201)


async def chmod(call: Call, sandbox: Sandbox) -> TrioResponse:
    """Set a mode."""
    model = await call.read(ChmodIn)
    return _changed(await sandbox.files.chmod(models.path_of(model), model.mode, recursive=model.recursive))


async def chown(call: Call, sandbox: Sandbox) -> TrioResponse:
    """Set an owner."""
    model = await call.read(ChownIn)
    path = models.path_of(model)
    return _changed(await sandbox.files.chown(path, model.user, model.group, recursive=model.recursive))


def _changed(changed: Changed) -> TrioResponse:
    return answer(models.Changed(file=models.file_info(changed.file), entries=changed.entries))


ROUTES: Final = (
    file_route(
        "files.delete", "DELETE", "", delete, query=(*PATH, "recursive"), status=204, kinds=("directory-not-empty",)
    ),
    file_route(
        "files.list",
        "GET",
        "/list",
        listing,
        query=(*PATH, "recursive", "hidden", "cursor", "limit"),
        result=models.FileList,
    ),
    file_route("files.stat", "GET", "/stat", stat, query=(*PATH, "follow"), result=models.FileInfo),
    file_route("files.exists", "GET", "/exists", exists, query=PATH, result=models.Exists),
    file_route("files.mkdir", "POST", "/mkdir", mkdir, body=MkdirIn, result=models.FileInfo, status=201, kinds=NEW),
    file_route("files.rename", "POST", "/rename", rename, body=MoveIn, result=models.FileInfo, kinds=NEW),
    file_route("files.copy", "POST", "/copy", copy, body=MoveIn, result=models.Copied, status=201, kinds=NEW),
    file_route(
        "files.symlink", "POST", "/symlink", symlink, body=SymlinkIn, result=models.FileInfo, status=201, kinds=NEW
    ),
    file_route("files.chmod", "POST", "/chmod", chmod, body=ChmodIn, result=models.Changed),
    file_route("files.chown", "POST", "/chown", chown, body=ChownIn, result=models.Changed),
)
