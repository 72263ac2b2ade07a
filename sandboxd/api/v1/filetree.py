"""The operations of …/files on names: list, stat, exists, delete, mkdir, rename, copy, symlink, chmod and others."""

from __future__ import annotations

import base64
from typing import TYPE_CHECKING, Annotated, Final

from msgspec import Meta

from ...runtime.files import MAX_PAGE
from ...spec import MAX_PATH_BYTES, check_file_path, check_text, name_bytes, name_text
from ..call import answer, nothing
from ..pieces import answer_in_pieces
from ..query import Cursor, Limit
from . import file_models as models
from .rows import NEW, file_route

if TYPE_CHECKING:
    from quart_trio.wrappers import TrioResponse

    from ...runtime.filefacts import Changed
    from ...runtime.sandbox import Sandbox
    from ..call import Call


class MkdirIn(models.PathIn, frozen=True):
    """A directory to create; `parents` also creates missing parents, and accepts a directory that exists."""

    parents: bool = False
    mode: str | None = None


class MoveIn(models.PathIn, frozen=True):
    """A path to rename or copy, and the new path."""

    new_path: str | None = None
    new_path_b64: str | None = None
    overwrite: bool = True


class SymlinkIn(models.PathIn, frozen=True):
    """A symbolic link to create; `target` is stored as given."""

    target: str | None = None
    target_b64: str | None = None


class ChmodIn(models.PathIn, frozen=True):
    """A mode to set, as octal text such as "755"."""

    mode: str | None = None
    recursive: bool = False


class ChownIn(models.PathIn, frozen=True):
    """An owner and group to set, by name or id; an absent one stays unchanged."""

    user: str | int | None = None
    group: str | int | None = None
    recursive: bool = False


class TruncateIn(models.PathIn, frozen=True, kw_only=True):
    """A size to set, in bytes."""

    size: int


class DeleteQuery(models.PathIn, frozen=True):
    """What to delete."""

    recursive: Annotated[bool, Meta(description="true: include everything in it")] = False


class ListQuery(models.PathIn, frozen=True):
    """The page of a directory to return."""

    recursive: Annotated[bool, Meta(description="true: include everything in it")] = False
    hidden: Annotated[bool, Meta(description="true: include names that begin with a dot")] = False
    cursor: Cursor = None
    limit: Limit = MAX_PAGE


class StatQuery(models.PathIn, frozen=True):
    """The file to describe."""

    follow: Annotated[bool, Meta(description="true: describe the target of a link, not the link")] = False


async def listing(call: Call, sandbox: Sandbox, query: ListQuery) -> TrioResponse:
    """List a directory, sorted, a page at a time."""
    page = await sandbox.files.list(
        models.path_of(query),
        recursive=query.recursive,
        hidden=query.hidden,
        limit=max(1, min(query.limit, MAX_PAGE)),
        after=None if query.cursor is None else name_text(models.decode_b64(query.cursor, "cursor")),
    )
    following = None if page.after is None else base64.urlsafe_b64encode(name_bytes(page.after)).decode()
    return answer_in_pieces(models.FileList([models.file_info(facts) for facts in page.files], following))


async def stat(call: Call, sandbox: Sandbox, query: StatQuery) -> TrioResponse:
    """Describe one file. A symbolic link is described itself, or with `follow` its target."""
    return answer(models.file_info(await sandbox.files.stat(models.path_of(query), follow=query.follow)))


async def exists(call: Call, sandbox: Sandbox, query: models.PathIn) -> TrioResponse:
    """Return whether a path exists; a dangling symbolic link exists."""
    found = await sandbox.files.find(models.path_of(query))
    return answer(models.Exists(exists=found is not None, type=None if found is None else found.type))


async def delete(call: Call, sandbox: Sandbox, query: DeleteQuery) -> TrioResponse:
    """Delete a file, a link or an empty directory; with `recursive`, a directory and its contents."""
    await sandbox.files.delete(models.path_of(query), recursive=query.recursive)
    return nothing()


async def mkdir(call: Call, sandbox: Sandbox) -> TrioResponse:
    """Create a directory."""
    model = await call.read(MkdirIn)
    made = await sandbox.files.mkdir(models.path_of(model), parents=model.parents, mode=model.mode)
    return answer(models.file_info(made.file), 201 if made.created else 200)


async def rename(call: Call, sandbox: Sandbox) -> TrioResponse:
    """Rename or move a file or directory."""
    model = await call.read(MoveIn)
    path, new_path = models.path_of(model), _new_path_of(model)
    return answer(models.file_info(await sandbox.files.rename(path, new_path, overwrite=model.overwrite)))


async def copy(call: Call, sandbox: Sandbox) -> TrioResponse:
    """Copy a file, or a directory and its contents."""
    model = await call.read(MoveIn)
    path, new_path = models.path_of(model), _new_path_of(model)
    made = await sandbox.files.copy(path, new_path, overwrite=model.overwrite)
    counts = {"entries": made.entries, "bytes": made.bytes, "skipped": made.skipped}
    return answer(models.Copied(file=models.file_info(made.file), **counts), 201)


def _new_path_of(model: MoveIn) -> str:
    """Return the checked new path of a body."""
    return check_file_path(models.decode(model.new_path, model.new_path_b64, "new_path"), "new_path")


async def symlink(call: Call, sandbox: Sandbox) -> TrioResponse:
    """Create a symbolic link."""
    model = await call.read(SymlinkIn)
    target = models.decode(model.target, model.target_b64, "target")
    target = name_text(target) if isinstance(target, bytes) else check_text(target, "target", limit=MAX_PATH_BYTES)
    return answer(models.file_info(await sandbox.files.symlink(models.path_of(model), target)), 201)


async def chmod(call: Call, sandbox: Sandbox) -> TrioResponse:
    """Set a file's mode."""
    model = await call.read(ChmodIn)
    return _changed(await sandbox.files.chmod(models.path_of(model), model.mode, recursive=model.recursive))


async def chown(call: Call, sandbox: Sandbox) -> TrioResponse:
    """Set a file's owner and group."""
    model = await call.read(ChownIn)
    path = models.path_of(model)
    return _changed(await sandbox.files.chown(path, model.user, model.group, recursive=model.recursive))


def _changed(changed: Changed) -> TrioResponse:
    return answer(models.Changed(file=models.file_info(changed.file), entries=changed.entries))


async def truncate(call: Call, sandbox: Sandbox) -> TrioResponse:
    """Set a file's size."""
    model = await call.read(TruncateIn)
    return answer(models.file_info(await sandbox.files.truncate(models.path_of(model), model.size)))


ROUTES: Final = (
    file_route("files.delete", "DELETE", "", delete, query=DeleteQuery, status=204, kinds=("directory-not-empty",)),
    file_route(
        "files.list",
        "GET",
        "/list",
        listing,
        query=ListQuery,
        result=models.FileList,
    ),
    file_route("files.stat", "GET", "/stat", stat, query=StatQuery, result=models.FileInfo),
    file_route("files.exists", "GET", "/exists", exists, query=models.PathIn, result=models.Exists),
    file_route("files.mkdir", "POST", "/mkdir", mkdir, body=MkdirIn, result=models.FileInfo, status=201, kinds=NEW),
    file_route("files.rename", "POST", "/rename", rename, body=MoveIn, result=models.FileInfo, kinds=NEW),
    file_route("files.copy", "POST", "/copy", copy, body=MoveIn, result=models.Copied, status=201, kinds=NEW),
    file_route(
        "files.symlink", "POST", "/symlink", symlink, body=SymlinkIn, result=models.FileInfo, status=201, kinds=NEW
    ),
    file_route("files.chmod", "POST", "/chmod", chmod, body=ChmodIn, result=models.Changed),
    file_route("files.chown", "POST", "/chown", chown, body=ChownIn, result=models.Changed),
    file_route(
        "files.truncate",
        "POST",
        "/truncate",
        truncate,
        body=TruncateIn,
        result=models.FileInfo,
        kinds=("quota-exceeded",),
    ),
)
