"""Watches a directory for changes: a file job that lives as long as its client.

Theory of operation. The kernel watches directories, one by one, and names what changes in each. Three things are made
good here:

- A directory that is new (made, or moved in) is watched first and read then, so nothing in it is missed; what the
  reading has told is remembered until the kernel's queue is empty, and not told again when its own event comes.
  Reading sees more than the events told so far: a directory may have left its place (it is `_missing` until its event
  says where it went), or its name may be another's by now (it is read again when that one's event comes). One that is
  met under its next name takes it at once, so a removal in it that is still queued is told under that name.
- The two halves of a rename carry a cookie. They are joined to one `rename`; a half alone is a `remove` or a
  `create` (the other side lies outside). A directory that was renamed keeps its watches, whose paths are rewritten.
- When the kernel's queue is full, events are lost: an `overflow` event says so, and the directories are read again, so
  that what comes after it is whole. A reader who sees it must list what it wants to know.

- What comes in by a rename from outside may take the place of a file, and the kernel does not say so. The names in
  each watched directory are remembered, by the number of its watch, so that this is a `write` and not a `create`.

Names of writes under way (`TEMPORARY`) are outside: their rename into place is such a `write`, or a `create`.
"""

from __future__ import annotations

import errno
import os
import select
import stat
import time
from typing import Any, Final

from ..errors import LimitExceeded
from ..linux import inotify
from ..linux.inotify import Happening, Inotify
from ..linux.kernel import SyscallError
from . import tree
from .file_operations import followed
from .frames import FrameWriter
from .jobs import Deps, Function
from .path_filter import PathFilter
from .paths import TEMPORARY, mapped, path_of

#: Directories of one watch: each costs the kernel about 1 KiB. The sandbox's own bound (a sysctl) may be lower.
MAX_DIRECTORIES: Final = 100_000
#: Names of one watch that are remembered: about 30 MiB. What comes in the place of one that is not is a `create`.
MAX_NAMES: Final = 250_000
#: How long the second half of a rename may take; the kernel queues both at once, almost always.
_PAIR_S: Final = 0.05
#: Directories that may be missing at once. The kernel queues 16,384 events by default: what more of them wait for is
#: lost.
_MAX_MISSING: Final = 20_000
_MASK: Final = (
    inotify.IN_CREATE
    | inotify.IN_MODIFY
    | inotify.IN_ATTRIB
    | inotify.IN_DELETE
    | inotify.IN_MOVED_FROM
    | inotify.IN_MOVED_TO
    | inotify.IN_DELETE_SELF
    | inotify.IN_MOVE_SELF
    | inotify.IN_EXCL_UNLINK
    | inotify.IN_ONLYDIR
)
_GONE: Final = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENAMETOOLONG)
_DIRECTORY: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


def watch(deps: Deps, params: dict[str, Any]) -> dict[str, Any]:
    """Give rows {type, path, is_folder, from} until `path` is gone: that is the result's `reason`, "removed".

    Types: ready (once, when everything is watched), create, write, chmod, remove, rename (`from` is the old path),
    overflow. With `include` and `exclude`, patterns, only what they mean is told, and left out directories are not
    watched.
    """
    path = path_of(params)
    path_filter = PathFilter(params)
    with mapped(path, "watch"):
        _, _, facts = followed(deps.kernel, path)
        watcher = _Watcher(path.rstrip("/"), stat.S_ISDIR(facts.st_mode), params["recursive"], deps.writer, path_filter)
        watcher.start()
    watcher.run()
    return {"reason": "removed"}


class _Watcher:
    """The state of one watch: which number stands for which directory."""

    def __init__(
        self, root: str, is_folder: bool, recursive: bool, writer: FrameWriter, path_filter: PathFilter
    ) -> None:
        self._root = root
        self._top = root if is_folder else root.rpartition("/")[0]
        self._is_folder = is_folder
        self._recursive = recursive
        self._writer = writer
        self._path_filter = path_filter
        self._inotify = Inotify()
        self._paths: dict[int, str] = {}
        self._numbers: dict[str, int] = {}
        self._names: dict[int, set[bytes]] = {}
        self._named = 0
        #: What reading a new directory has told already.
        self._told: set[str] = set()
        self._written: set[str] = set()
        #: Directories that had left their place before they could be watched, each until the event comes that says so.
        #: An empty queue does not end that: a rename is seen in the tree before the kernel queues its events.
        self._missing: set[str] = set()
        self._moved: tuple[Happening, str, float] | None = None
        self._over = False

    def start(self) -> None:
        """Watch everything, then say so."""
        if self._is_folder:
            self._add(self._root, tell=False)
        else:
            # Its directory is watched: a file that is written by a rename is another inode each time.
            self._recursive = False
            self._add(self._top, tell=False)
        self._tell("ready", self._root, self._is_folder)
        self._writer.flush()

    def run(self) -> None:
        """Tell what happens until the root is gone."""
        poll = select.poll()
        poll.register(self._inotify.fd, select.POLLIN)
        while not self._over:
            ready = poll.poll(int(_PAIR_S * 1000) if self._moved else None)
            if not ready:
                self._tell_moved_away()
            else:
                for happening in self._inotify.read():
                    self._on_happening(happening)
                if len(self._missing) > _MAX_MISSING:
                    self._overflow()
                if not poll.poll(0):
                    self._caught_up()
            self._writer.flush()

    def _caught_up(self) -> None:
        """The kernel's queue is empty; what happens now may come a moment after it can be seen in the tree."""
        self._told.clear()
        self._written.clear()
        if self._moved and time.monotonic() - self._moved[2] > _PAIR_S:
            self._tell_moved_away()

    # --- the kernel's events ---

    def _on_happening(self, happening: Happening) -> None:
        mask = happening.mask
        if mask & inotify.IN_Q_OVERFLOW:
            self._overflow()
            return
        directory = self._paths.get(happening.watch)
        if directory is None or happening.name.startswith(TEMPORARY.encode()):
            return
        if not happening.name:
            self._take_self(happening.watch, directory, mask)
            return
        path = f"{directory}/{os.fsdecode(happening.name)}"
        if self._moved and not (mask & inotify.IN_MOVED_TO and happening.cookie == self._moved[0].cookie):
            self._tell_moved_away()
            if happening.watch not in self._paths:
                return  # it lies in what has just left
        if not self._is_folder and path != self._root:
            self._tell_moved_away()
            return
        is_folder = bool(mask & inotify.IN_ISDIR)
        was_there = self._keep_names(happening)
        if mask & inotify.IN_MOVED_FROM:
            self._untell(path, is_folder)
            if not is_folder:
                self._vacate(path)
            self._moved = (happening, path, time.monotonic())
        elif mask & inotify.IN_MOVED_TO:
            self._take_moved_to(path, is_folder, was_there)
        elif mask & inotify.IN_CREATE:
            self._created(path, is_folder)
        else:
            self._changed(path, is_folder, mask)

    def _changed(self, path: str, is_folder: bool, mask: int) -> None:
        if mask & inotify.IN_DELETE:
            self._untell(path, is_folder)
            self._vacate(path)
            self._tell("remove", path, is_folder)
        elif mask & inotify.IN_MODIFY:
            if path not in self._written:  # one of a burst says as much as all of them
                self._written.add(path)
                self._tell("write", path, is_folder)
        elif mask & inotify.IN_ATTRIB:
            self._tell("chmod", path, is_folder)

    def _take_self(self, number: int, directory: str, mask: int) -> None:
        """Something happened to a watched directory itself; but for the root, its own directory says so too."""
        if mask & inotify.IN_IGNORED:
            self._forget(number)
        elif directory != self._top:
            return
        elif mask & (inotify.IN_DELETE_SELF | inotify.IN_MOVE_SELF | inotify.IN_UNMOUNT):
            self._tell("remove", self._root, self._is_folder)
            self._over = True
        elif mask & inotify.IN_ATTRIB and self._is_folder:
            self._tell("chmod", self._root, True)

    def _untell(self, path: str, is_folder: bool) -> None:
        """What has that name from now on is something new."""
        self._told.discard(path)
        if is_folder:
            self._told = {told for told in self._told if not told.startswith(path + "/")}

    def _vacate(self, path: str) -> None:
        """What had that name is gone. A directory that was watched under it: its event comes, and it is read.

        Reading has told what is in that directory already, and a reader takes it for gone by what is told next.
        """
        self._missing.discard(path)
        if path in self._numbers:
            self._forget(self._numbers[path])
            self._untell(path, True)

    def _take_moved_to(self, path: str, is_folder: bool, was_there: bool) -> None:
        moved, self._moved = self._moved, None
        if moved is None:
            if was_there and is_folder:
                self._vacate(path)  # an empty directory, and the kernel's word that it is gone comes behind this
            if was_there and not is_folder and path not in self._told:
                self._tell("write", path, is_folder)
            else:
                self._created(path, is_folder)
            return
        self._tell("rename", path, is_folder, moved[1])
        if is_folder:
            self._rebase(moved[1], path)

    def _tell_moved_away(self) -> None:
        """The second half of a rename has not come: it went outside."""
        if self._moved is None:
            return
        (happening, path, _), self._moved = self._moved, None
        is_folder = bool(happening.mask & inotify.IN_ISDIR)
        self._tell("remove", path, is_folder)
        if is_folder:
            self._take_missing(path)
            for number in [n for n, known in self._paths.items() if known == path or known.startswith(path + "/")]:
                self._inotify.unwatch(number)
                self._forget(number)

    def _created(self, path: str, is_folder: bool) -> None:
        if path in self._told:
            self._told.discard(path)
        else:
            self._tell("create", path, is_folder)
        if is_folder and self._recursive and path not in self._numbers and not self._is_left_out(path):
            self._add(path, tell=True)

    def _overflow(self) -> None:
        self._tell("overflow", self._root, self._is_folder)
        self._moved = None
        self._told.clear()
        self._missing.clear()
        if self._is_folder:
            for number in list(self._paths):
                self._inotify.unwatch(number)
            self._paths.clear()
            self._numbers.clear()
            self._names.clear()
            self._named = 0
            self._add(self._root, tell=False)

    # --- watches ---

    def _add(self, path: str, *, tell: bool) -> None:
        """Watch a directory and, where asked for, all below it; each is watched before it is read."""
        try:
            fd = os.open(path or "/", _DIRECTORY if path != self._top else _DIRECTORY & ~os.O_NOFOLLOW)
        except OSError as error:
            if path == self._top or error.errno not in _GONE:
                raise
            # Deleted, or a directory above it has another name by now: that event comes.
            self._missing.add(path)
            return
        try:
            self._watch(fd, path)
            if not self._is_folder:
                self._know(self._numbers[path], os.fsencode(self._root.rpartition("/")[2]))
                return
            if not self._recursive:
                with os.scandir(fd) as names:
                    for one in names:
                        self._know(self._numbers[path], os.fsencode(one.name))
                return
            for entry in tree.walk(fd):
                below = f"{path}/{entry.path}"
                directory = self._numbers.get(below.rpartition("/")[0])
                if directory is not None:
                    self._know(directory, os.fsencode(entry.name))
                if entry.is_folder and (self._is_left_out(below) or not self._watch_entry(entry, below)):
                    entry.descend = False
                if tell and below not in self._told:
                    self._told.add(below)
                    self._tell("create", below, entry.is_folder)
        finally:
            os.close(fd)

    def _watch_entry(self, entry: tree.Entry, path: str) -> bool:
        """Watch a directory that a walk met; False if it has left its place, which its event will tell.

        The walk goes on in what is opened here: a second open by name could miss it, or meet another directory.
        """
        try:
            entry.opened = os.open(entry.name, _DIRECTORY, dir_fd=entry.directory)
        except OSError as error:
            if error.errno not in _GONE:
                raise
            return False
        self._watch(entry.opened, path)
        return True

    def _watch(self, fd: int, path: str) -> None:
        """Watch the open directory that has this path: by descriptor, since a path may lead elsewhere by now."""
        if len(self._paths) >= MAX_DIRECTORIES:
            raise LimitExceeded(f"cannot watch more than {MAX_DIRECTORIES} directories", bound=MAX_DIRECTORIES)
        number = self._number_of(fd)
        self._forget(number)
        self._paths[number] = path
        self._numbers[path] = number
        self._missing.discard(path)

    def _number_of(self, fd: int) -> int:
        try:
            return self._inotify.watch(f"/proc/self/fd/{fd}", _MASK)
        except SyscallError as error:
            if error.errno != errno.ENOSPC:
                raise
            raise LimitExceeded(
                "cannot watch more directories: the sandbox has used up its inotify watches",
                bound="max_user_watches",
            ) from None

    def _forget(self, number: int) -> None:
        path = self._paths.pop(number, None)
        self._named -= len(self._names.pop(number, ()))
        if path is not None and self._numbers.get(path) == number:
            del self._numbers[path]

    # --- names ---

    def _know(self, number: int, name: bytes) -> bool:
        """Remember a name in a watched directory; return whether it was known."""
        names = self._names.setdefault(number, set())
        if name in names:
            return True
        if self._named < MAX_NAMES:
            names.add(name)
            self._named += 1
        return False

    def _keep_names(self, happening: Happening) -> bool:
        """Keep the names of a directory as an event says they are; return whether the event's name was known."""
        if happening.mask & (inotify.IN_CREATE | inotify.IN_MOVED_TO):
            return self._know(happening.watch, happening.name)
        names = self._names.get(happening.watch, set())
        was_there = happening.name in names
        if was_there and happening.mask & (inotify.IN_DELETE | inotify.IN_MOVED_FROM):
            names.discard(happening.name)
            self._named -= 1
        return was_there

    def _rebase(self, old: str, new: str) -> None:
        """A directory has a new name: so have the paths of its watches."""
        if not self._recursive:
            return
        for number, path in list(self._paths.items()):
            if path == old or path.startswith(old + "/"):
                self._numbers.pop(path, None)
                self._paths[number] = new + path[len(old) :]
                self._numbers[self._paths[number]] = number
        lost = self._take_missing(old)
        if self._is_left_out(new):
            return  # its watches stay, and what they see is not told
        if new not in self._numbers:
            self._add(new, tell=True)  # it was made and renamed before it could be watched
        elif not self._is_same(new):
            # Names were given anew faster than they could be read: whose is whose cannot be told any more.
            self._overflow()
            return
        for path in lost - {old}:
            self._add(new + path[len(old) :], tell=True)

    def _take_missing(self, path: str) -> set[str]:
        """Return, and forget, what is missing there and below."""
        taken = {known for known in self._missing if known == path or known.startswith(path + "/")}
        self._missing -= taken
        return taken

    def _is_same(self, path: str) -> bool:
        """Tell whether the directory with that path is the one that was watched under it; one that is gone may be."""
        try:
            fd = os.open(path, _DIRECTORY)
        except OSError:
            return True
        try:
            return self._number_of(fd) == self._numbers[path]
        finally:
            os.close(fd)

    def _is_left_out(self, path: str) -> bool:
        return self._path_filter.leaves_out(path.removeprefix(self._root + "/"), is_folder=True)

    def _is_meant(self, path: str, is_folder: bool) -> bool:
        if path == self._root:
            return True
        below = path.removeprefix(self._root + "/")
        path_filter = self._path_filter
        return path_filter.keeps(below, is_folder=is_folder) and not path_filter.leaves_out(below, is_folder=is_folder)

    def _tell(self, kind: str, path: str, is_folder: bool, source: str | None = None) -> None:
        if source is not None and not self._is_meant(source, is_folder):
            kind, source = "create", None  # it comes from where nobody looks
        if not self._is_meant(path, is_folder):
            if source is None:
                return
            kind, path, source = "remove", source, None
        row: dict[str, Any] = {"type": kind, "path": os.fsencode(path or "/"), "is_folder": is_folder}
        row["from"] = None if source is None else os.fsencode(source)
        self._writer.row(row, len(path) + len(source or ""))


FUNCTIONS: Final[dict[str, Function]] = {"watch": watch}
