"""Fetching from a repository on the sandbox's own disk.

dulwich reads the repository: its references, its packs and where more of them are (alternates). What is to be sent is
found here, and of commits, trees and tags only what that takes is read, as C git does: dulwich's own search reads all
of an object as soon as it sees it, and fails at a date that is no number. Whatever else such an object says goes on as
it is; its bytes are its name.
"""

from __future__ import annotations

import os
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from typing import TYPE_CHECKING, Any, Final

from dulwich.pack import UnpackedObject, find_reusable_deltas, write_pack_data

from ...errors import GitRefused
from .objects import DIRECTORY, GITLINK, check_format, entries_of, links_of, target_of
from .pack import COMMIT, KINDS, TAG, TREE
from .repository import open_repository

if TYPE_CHECKING:
    from dulwich.object_store import DiskObjectStore

#: How often progress is told, in objects.
_TELL_EVERY: Final = 1000
#: Alternates of alternates of …; C git's own bound is 5.
_MAX_ALTERNATES: Final = 16
_KIND_OF: Final = {word: kind for kind, word in KINDS.items()}

Wants = Callable[[dict[bytes, bytes], int | None], list[bytes]]


def fetch(
    path: str, wants: Wants, sink: Callable[[bytes], int], progress: Callable[[bytes], None], depth: int | None
) -> tuple[dict[bytes, bytes], list[bytes]]:
    """Send what is wanted, with the history of `depth` commits, as a pack.

    Returns the symbolic references, and the commits at which the history ends.

    Raises:
        GitRefused: the repository is damaged, or of a kind that is not taken.
        NotGitRepository, OSError: it is none, or cannot be read.
    """
    with closing(open_repository(path)) as repository:
        check_format(repository.object_format.name)
        objects = _Objects(repository.object_store)
        refs: dict[bytes, bytes] = {
            name: sha for name, sha in repository.get_refs().items() if bytes.fromhex(sha.decode()) in objects
        }
        search = _Search(objects, repository.get_shallow(), progress)
        wanted = wants(refs, depth)
        search.run(wanted, depth)
        if wanted:
            records = objects.records(search.found)
            write: Any = sink
            write_pack_data(write, records, repository.object_format, num_records=len(search.found))
        symrefs: Any = repository.refs.get_symrefs()
        return symrefs, sorted(search.shallow)


class _Objects:
    """The objects of a repository, unread: kinds and bytes by binary names."""

    def __init__(self, store: DiskObjectStore) -> None:
        self._stores = [store]
        for known in self._stores:
            if len(self._stores) < _MAX_ALTERNATES:
                self._stores += known.alternates  # type: ignore[arg-type]  # they are such stores
        self._packs: list[Any] = [pack for known in self._stores for pack in known.packs]

    def __contains__(self, name: bytes) -> bool:
        return any(name in pack for pack in self._packs) or any(os.path.exists(path) for path in self._loose(name))

    def _loose(self, name: bytes) -> Iterator[str]:
        """Give where an object may lie as a file of its own."""
        text = name.hex()
        return (os.path.join(os.fsdecode(store.path), text[:2], text[2:]) for store in self._stores)

    def get(self, name: bytes) -> tuple[int, bytes]:
        """Return an object's kind and bytes.

        Raises:
            GitRefused: the repository does not have it, or it is damaged.
        """
        for place, pack in enumerate(self._packs):
            if name in pack:
                self._packs.insert(0, self._packs.pop(place))  # its neighbours are likely to be in it too
                kind, data = pack.get_raw(name)
                return kind, data
        for path in self._loose(name):
            try:
                with open(path, "rb") as file:
                    return _parse_loose(file.read(), name)
            except FileNotFoundError:
                continue
        raise GitRefused(f"cannot find object {name.hex()}: the repository does not have it", reason="missing-object")

    def records(self, names: Iterable[bytes]) -> Iterator[UnpackedObject]:
        """Give objects as a pack has them; deltas are taken as they are where their base is among them."""
        left = {name.hex().encode(): name for name in names}
        wanted: Any = left.keys()
        for record in find_reusable_deltas(self._stores[0], set(wanted)):
            del left[record.sha().hex().encode()]
            yield record
        for name in left.values():
            kind, data = self.get(name)
            yield UnpackedObject(kind, decomp_chunks=[data], sha=name)


def _parse_loose(raw: bytes, name: bytes) -> tuple[int, bytes]:
    head, found, data = zlib.decompress(raw).partition(b"\0")
    word, _, size = head.partition(b" ")
    if not found or word not in _KIND_OF or size != b"%d" % len(data):
        raise GitRefused(f"cannot read object {name.hex()}: it is damaged", reason="damaged")
    return _KIND_OF[word], data


class _Search:
    """Finds what a set of references leads to. Names are binary here."""

    def __init__(self, objects: _Objects, ends: Iterable[bytes], progress: Callable[[bytes], None]) -> None:
        self._objects = objects
        self._ends = {bytes.fromhex(name.decode()) for name in ends}
        self._progress = progress
        self.found: dict[bytes, None] = {}
        #: Commits whose parents are left out, by their names in hex.
        self.shallow: set[bytes] = set()

    def run(self, wanted: Iterable[bytes], depth: int | None) -> None:
        """Find all that these names (in hex) lead to.

        Raises:
            GitRefused: some of it is missing or damaged.
        """
        commits: list[bytes] = []
        for name in wanted:
            self._start(bytes.fromhex(name.decode()), commits)
        level = 1
        while commits:  # level by level: a commit's first visit is its nearest
            parents: list[bytes] = []
            for name in commits:
                if not self._add(name):
                    continue
                tree, above = links_of(self._read(name, COMMIT), name)
                self._tree(tree)
                if above and (name in self._ends or level == depth):
                    self.shallow.add(name.hex().encode())
                else:
                    parents += above
            commits, level = parents, level + 1

    def _start(self, name: bytes, commits: list[bytes]) -> None:
        kind, data = self._objects.get(name)
        while kind == TAG and self._add(name):
            name = target_of(data, name)
            kind, data = self._objects.get(name)
        if kind == COMMIT:
            commits.append(name)
        elif kind == TREE:
            self._tree(name)
        else:
            self._add(name)

    def _tree(self, name: bytes) -> None:
        waiting = [name]
        while waiting:
            name = waiting.pop()
            if not self._add(name):
                continue
            for _, mode, child in entries_of(self._read(name, TREE), name):
                if mode == DIRECTORY:
                    waiting.append(child)
                elif mode != GITLINK:
                    self._add(child)

    def _add(self, name: bytes) -> bool:
        if name in self.found:
            return False
        self.found[name] = None
        if len(self.found) % _TELL_EVERY == 0:
            self._progress(b"Counting objects: 0%% (%d/0)\r" % len(self.found))
        return True

    def _read(self, name: bytes, wanted: int) -> bytes:
        kind, data = self._objects.get(name)
        if kind != wanted:
            word = KINDS[wanted].decode()
            raise GitRefused(f"cannot read object {name.hex()}: it should be a {word}", reason=f"not-a-{word}")
        return data
