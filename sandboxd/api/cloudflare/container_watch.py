"""/api/watch and /api/watch/check: changes below a directory, as they happen or since a version."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

from ...errors import InvalidRequest
from ...runtime.backups import is_version
from ...runtime.file_queries import Picked
from ..call import answer
from ..v1.file_models import shown
from . import container, problems
from .container import Body, Events, about, event
from .problems import Refusal

if TYPE_CHECKING:
    from collections.abc import Iterable

    from quart_trio.wrappers import TrioResponse

    from ...runtime.file_streams import Watch
    from ...runtime.filefacts import Change
    from ..call import Call

#: What nobody wants to hear of, unless patterns are given.
DEFAULT_EXCLUDE: Final = (".git", "node_modules", ".DS_Store")
#: Their patterns know `*`, `**` and `?`; the rest of what a glob can be is refused rather than read another way.
_NOT_PATTERN: Final = re.compile(r"[\[\]{}!\\,\0]")
_KINDS: Final = {"create": "create", "write": "modify", "chmod": "attrib", "remove": "delete"}
_ALL: Final = frozenset(("create", "modify", "delete", "move_from", "move_to", "attrib"))


class WatchIn(Body, frozen=True):
    """A directory to look at."""

    path: str
    recursive: bool | None = None
    include: list[str] | None = None
    exclude: list[str] | None = None
    events: list[str] | None = None
    since: str | None = None
    session_id: str | None = None


def _path(model: WatchIn) -> str:
    path = container.resolve(model.path)
    if path != container.WORKSPACE and not path.startswith(container.WORKSPACE + "/"):
        why = f"cannot watch {model.path}: path must be inside {container.WORKSPACE}"
        raise Refusal("PERMISSION_DENIED", why, path=model.path)
    return path


def _picked(model: WatchIn) -> Picked:
    if model.include and model.exclude:
        raise Refusal("VALIDATION_FAILED", "cannot watch: give include or exclude, not both", field="include")
    for field, patterns in (("include", model.include), ("exclude", model.exclude)):
        if any(_NOT_PATTERN.search(text) for text in patterns or ()):
            why = f"cannot accept {field}: the only wildcards are *, ** and ?"
            raise Refusal("VALIDATION_FAILED", why, field=field)
    exclude = model.exclude if model.exclude is not None else () if model.include else DEFAULT_EXCLUDE
    try:
        return Picked(include=tuple(model.include or ()), exclude=tuple(exclude))
    except InvalidRequest as error:
        raise container.invalid(error) from None


async def watch(call: Call, name: str) -> TrioResponse:
    """Tell what changes below a directory, until it is gone or the caller leaves."""
    sandbox = await container.reach(call, name)
    model = await container.read(call, WatchIn)
    path, picked = _path(model), _picked(model)
    wanted = frozenset(model.events) if model.events else _ALL
    if not wanted <= _ALL:
        raise Refusal(
            "VALIDATION_FAILED", f"cannot accept events: each must be one of {', '.join(sorted(_ALL))}", field="events"
        )
    with about(path=model.path):
        watched = sandbox.files.watch(path, picked, recursive=model.recursive is not False)
        await call.stack.enter_async_context(watched)
    return container.stream(_Changes(watched, path, wanted))


class _Changes(Events):
    """What a watch sees as their events."""

    def __init__(self, watched: Watch, path: str, wanted: frozenset[str]) -> None:
        self._watched = watched
        self._path = path
        self._wanted = wanted

    async def _next_pieces(self) -> tuple[Iterable[bytes], bool]:
        changes = await self._watched.next()
        if not changes:
            return (event("stopped", reason="the watched path is gone"),), True
        return [part for change in changes for part in self._parts(change)], False

    def _parts(self, change: Change) -> list[bytes]:
        path, is_folder = shown(change.path), change.is_folder
        if change.type == "ready":
            return [event("watching", path=self._path, watchId=f"watch-{id(self._watched):x}")]
        if change.type == "overflow":  # something was missed below the root: that is all that can be told
            return self._told("modify", self._path, True)
        if change.old_path is not None:
            old = shown(change.old_path)
            return [*self._told("move_from", old, is_folder), *self._told("move_to", path, is_folder)]
        return self._told(_KINDS[change.type], path, is_folder)

    def _told(self, kind: str, path: str, is_folder: bool) -> list[bytes]:
        if kind not in self._wanted:
            return []
        return [event("event", eventType=kind, path=path, isDirectory=is_folder)]


async def check(call: Call, name: str) -> TrioResponse:
    """Tell a directory's version, and whether it changed since another; one that cannot be compared is a "resync"."""
    sandbox = await container.reach(call, name)
    model = await container.read(call, WatchIn)
    path, picked = _path(model), _picked(model)
    recursive = model.recursive is not False
    with about(path=model.path):
        found = await sandbox.files.version(path, picked, recursive=recursive)
    if model.since is not None and not is_version(model.since, path, picked, recursive=recursive):
        status = {"status": "resync", "reason": "expired"}
    else:
        status = {"status": "unchanged" if model.since in (None, found.text) else "changed"}
    shown = {"success": True, **status, "version": found.text}
    return answer({**shown, "timestamp": problems.timestamp()})
