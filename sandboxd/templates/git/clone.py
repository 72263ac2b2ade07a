"""One clone: from an order to a directory, or to an error and nothing left.

Everything is made in a temporary directory that the order names, beside the target (inside it, where the target is an
empty directory), and comes to its place by renaming at the end. Whoever gave the order removes that directory should
this process be killed; any other end, it removes itself.
"""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import errno
import os
import re
import shutil
import ssl
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from dulwich.refs import Ref, check_ref_format

from ...errors import (
    DirectoryNotEmpty,
    FileExists,
    FileNotFound,
    FilePermissionDenied,
    GitError,
    GitProtocolError,
    GitRefNotFound,
    GitRefused,
    InternalError,
    InvalidRequest,
    SandboxdError,
)
from ...wire.exhausted import limit_error
from . import layout, submodules, transport
from .checkout import Checkout, Sparse
from .intake import PackIntake
from .objects import links_of, target_of
from .pack import COMMIT, MAX_OBJECT_BYTES, TAG, Pack
from .progress import Progress

_HEX: Final = re.compile(rb"[0-9a-f]{40}\Z")
#: What the kernel says of the target, and what that is to the caller.
_OS_ERRORS: Final = (
    ((errno.EACCES, errno.EPERM, errno.EROFS), FilePermissionDenied),
    ((errno.ENOTDIR, errno.ELOOP, errno.EEXIST), FileExists),
    ((errno.ENAMETOOLONG,), InvalidRequest),
    ((errno.ENOENT,), FileNotFound),
)
#: A tag of a tag of a tag …
_MAX_TAGS: Final = 16
MAX_SUGGESTIONS: Final = 5


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class CloneRequest:
    """What to clone. `target` is absolute; `temporary` is a name that nothing else has."""

    url: str
    target: str
    temporary: str
    ref: str | None = None
    depth: int | None = None
    single_branch: bool = False
    submodules: bool = False
    sparse: tuple[str, ...] = ()
    login: transport.Login | None = None
    stall_s: float = 60.0
    max_object_bytes: int = MAX_OBJECT_BYTES


@dataclasses.dataclass(frozen=True, slots=True)
class CloneTarget:
    """What the order's ref is on this server."""

    branch: bytes | None
    name: bytes | None
    tip: bytes | None


def clone(order: CloneRequest, context: ssl.SSLContext, tell: Callable[[dict[str, Any]], None]) -> dict[str, Any]:
    """Clone; `tell` takes progress. Returns {target_dir, branch, commit, objects, received_bytes, files}.

    Raises:
        SandboxdError: why it could not be done; nothing is left of it.
    """
    place = _Place(Path(order.target), order.temporary)
    try:
        place.prepare()
        address = transport.parse(order.url)
        carrier = transport.Transport(context, order.login, address, order.stall_s)
        found = Cloning(carrier, Progress(tell), order).run(address, place.directory, place.directory / ".git")
        place.move_into_place()
    except BaseException as error:
        place.discard()
        known = _known(error, order)
        if known is None:
            raise
        raise known from None
    return {"target_dir": order.target, **found}


def _known(error: BaseException, order: CloneRequest) -> SandboxdError | None:
    """Return what to tell of a failure; None for what is no error (an end from outside)."""
    if isinstance(error, SandboxdError):
        return error
    limit = limit_error(error, "clone into", order.target)
    if limit is not None:
        return limit
    if isinstance(error, RecursionError):
        return GitRefused(f"cannot clone {_printable_url(order)}: its directories are too deep", reason="too-deep")
    if isinstance(error, OSError):
        text = f"cannot clone into {order.target}: {error.strerror}"
        for numbers, kind in _OS_ERRORS:
            if error.errno in numbers:
                return kind(text, path=order.target)
        return GitError(text, path=order.target, errno=errno.errorcode.get(error.errno or 0))
    if isinstance(error, Exception):
        return InternalError(f"cannot clone {_printable_url(order)}: {type(error).__name__}: {error!s:.200}")
    return None


def _printable_url(order: CloneRequest) -> str:
    try:
        return transport.parse(order.url).url
    except GitError:
        return "the repository"


class _Place:
    """Where the clone comes to be, and then is."""

    def __init__(self, target: Path, temporary: str) -> None:
        self._target = target
        self._temporary = temporary
        self._made: list[Path] = []
        self._inside = False
        self.directory = target.parent / temporary

    def prepare(self) -> None:
        """Make the temporary directory.

        Raises:
            DirectoryNotEmpty, FileExists: the target is there.
            OSError: it cannot be made.
        """
        missing = []
        at = self._target.parent
        while not at.exists() and not at.is_symlink():
            missing.append(at)
            at = at.parent
        for directory in reversed(missing):
            directory.mkdir()
            self._made.append(directory)
        if os.path.lexists(self._target):
            self._look()
            self._inside = True
            self.directory = self._target / self._temporary
        self.directory.mkdir()

    def _look(self) -> None:
        try:
            with os.scandir(self._target) as entries:
                if next(entries, None) is not None:
                    raise DirectoryNotEmpty(
                        f"cannot clone into {self._target}: it is not empty", path=str(self._target)
                    )
        except NotADirectoryError:
            raise FileExists(
                f"cannot clone into {self._target}: it is not a directory", path=str(self._target)
            ) from None

    def move_into_place(self) -> None:
        """Bring what was made to its place.

        Raises:
            DirectoryNotEmpty, FileExists: something came there meanwhile.
        """
        if not self._inside:
            try:
                # Not os.rename: it would take the place of an empty directory that somebody has just made, or of a
                # file.
                if os.path.lexists(self._target):
                    raise FileExists(
                        f"cannot clone into {self._target}: it was created in the meantime", path=str(self._target)
                    )
                self.directory.rename(self._target)
            except OSError as error:
                if error.errno in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
                    raise FileExists(
                        f"cannot clone into {self._target}: it was created in the meantime", path=str(self._target)
                    ) from None
                raise
            return
        if os.listdir(self._target) != [self._temporary]:
            raise DirectoryNotEmpty(f"cannot clone into {self._target}: it is not empty", path=str(self._target))
        entries = sorted(os.listdir(self.directory), key=lambda name: name == ".git")  # .git last: then it is a clone
        moved = []
        try:
            for name in entries:
                (self.directory / name).rename(self._target / name)
                moved.append(name)
        except OSError:
            for name in moved:
                (self._target / name).rename(self.directory / name)
            raise
        self.directory.rmdir()

    def discard(self) -> None:
        """Remove what was made."""
        shutil.rmtree(self.directory, ignore_errors=True)
        for directory in reversed(self._made):
            with contextlib.suppress(OSError):
                directory.rmdir()


class Cloning:
    """The work of one order; submodules are clones of their own with the same means."""

    def __init__(self, carrier: transport.Transport, progress: Progress, order: CloneRequest, level: int = 0) -> None:
        self._carrier = carrier
        self.progress = progress
        self._order = order
        self._level = level

    def run(self, address: transport.Address, files: Path, git: Path, worktree: str | None = None) -> dict[str, Any]:
        """Clone into directories that are there (`files`) and not yet there (`git`)."""
        order, progress = self._order, self.progress
        progress.phase("connecting")
        packs = layout.make_directories(git)
        intake = PackIntake(packs / "tmp.pack", progress.receiving, progress.resolving, order.max_object_bytes)
        wanted: list[CloneTarget] = []

        def choose(refs: transport.Refs) -> list[bytes]:
            wanted.append(_wanted(order, refs))
            return self._wants(refs, wanted[0], address)

        try:
            fetched = self._carrier.fetch(address, choose, intake.write, progress.server, order.depth)
            pack = intake.finish() if intake.received_bytes else None
        except GitProtocolError as error:
            if error.facts.get("reason") == "no-such-object" and wanted and wanted[0].tip is not None:
                raise _missing(order.ref or "", ()) from None
            raise
        finally:
            intake.close()
        try:
            return self._build(address, files, git, worktree, fetched, pack, wanted)
        finally:
            if pack is not None:
                pack.close()

    def _wants(self, refs: transport.Refs, wanted: CloneTarget, address: transport.Address) -> list[bytes]:
        wants = [] if wanted.tip is None else [wanted.tip]
        if not self._order.single_branch:
            wants += [sha for name, sha in refs.items() if name.startswith((layout.HEADS, layout.TAGS))]
            if address.scheme == "git" and len(wants) > 1 and wanted.tip not in refs.values():
                wants = wants[1:]  # an older protocol: no commit can be asked for by its name, but it may come
        return list(dict.fromkeys(wants))

    def _build(
        self,
        address: transport.Address,
        files: Path,
        git: Path,
        worktree: str | None,
        fetched: transport.Fetched,
        pack: Pack | None,
        wanted: list[CloneTarget],
    ) -> dict[str, Any]:
        target = wanted[0] if wanted else _wanted(self._order, fetched.refs)
        default = _default_branch(fetched)
        branch = target.branch
        if self._order.ref is None:
            branch = default
        commit, peeled = None, {}
        if pack is None:
            (git / "objects/pack/tmp.pack").unlink()
            if target.tip is not None:
                raise GitProtocolError(f"cannot clone {address.url}: the server sent no pack", reason="protocol")
        else:
            name = f"pack-{pack.checksum.hex()}"
            pack.write_index(git / f"objects/pack/{name}.idx")
            (git / "objects/pack/tmp.pack").rename(git / f"objects/pack/{name}.pack")
            peeled = _peel_tags(pack, fetched.refs)
            commit = _commit_of(pack, target.tip, self._order)
        sparse = Sparse(tuple(one.encode() for one in self._order.sparse)) if self._order.sparse else None
        layout.write(
            git,
            layout.RepositoryFacts(
                url=address.url,
                branch=branch,
                commit=commit,
                heads=_came(pack, fetched.refs, layout.HEADS),
                tags=_came(pack, fetched.refs, layout.TAGS),
                peeled=peeled,
                default_branch=default,
                single_branch=self._order.single_branch,
                shallow=[sha for sha in fetched.shallow if pack is not None and _is_in(pack, sha)],
                sparse=sparse.patterns() if sparse else None,
                worktree=worktree,
            ),
        )
        made = 0
        if pack is not None and commit is not None:
            made = self._check_out(address, pack, commit, files, git, sparse)
        return {
            "branch": None if branch is None else branch.decode("utf-8", "replace"),
            "commit": None if commit is None else commit.decode(),
            "objects": 0 if pack is None else len(pack.table),
            "received_bytes": self.progress.received_bytes,
            "files": made,
        }

    def _check_out(
        self, address: transport.Address, pack: Pack, commit: bytes, files: Path, git: Path, sparse: Sparse | None
    ) -> int:
        self.progress.phase("checking-out")
        checkout = Checkout(pack, sparse, self.progress.files)
        checkout.run(_tree_of(pack, commit), files)
        made = checkout.files
        if self._order.submodules and checkout.gitlinks:
            made += submodules.clone_all(self, address, files, git, checkout.gitlinks, self._level)
        checkout.write_index(git / "index")
        return made

    def below(self, commit: bytes) -> Cloning:
        """Return the means to clone a submodule at a commit."""
        order = dataclasses.replace(
            self._order, ref=commit.decode(), sparse=(), single_branch=self._order.depth is not None
        )
        return Cloning(self._carrier, self.progress, order, self._level + 1)


def _wanted(order: CloneRequest, refs: transport.Refs) -> CloneTarget:
    """Return what is asked for, of what the server has.

    Raises:
        GitRefNotFound: it has no such.
    """
    if order.ref is None:
        return CloneTarget(None, b"HEAD", refs.get(b"HEAD"))
    name = order.ref.encode()
    for prefix in (b"", layout.HEADS, layout.TAGS):
        full = prefix + name
        if full in refs and (prefix or full.startswith(b"refs/")):
            branch = full.removeprefix(layout.HEADS) if full.startswith(layout.HEADS) else None
            return CloneTarget(branch, full, refs[full])
    if _HEX.match(name):
        return CloneTarget(None, None, name)
    shown = [
        full.removeprefix(layout.HEADS).removeprefix(layout.TAGS).decode("utf-8", "replace")
        for full in refs
        if full.startswith((layout.HEADS, layout.TAGS))
    ]
    raise _missing(order.ref, shown)


def _missing(ref: str, names: Any) -> GitRefNotFound:  # noqa: ANN401 - an iterable of str
    suggestions = difflib.get_close_matches(ref, names, n=MAX_SUGGESTIONS, cutoff=0.5)
    more = f" (similar names: {', '.join(suggestions)})" if suggestions else ""
    return GitRefNotFound(
        f"cannot check out {ref!r}: no such branch, tag or commit{more}", ref=ref, suggestions=suggestions
    )


def _default_branch(fetched: transport.Fetched) -> bytes | None:
    """Return the branch that the server's HEAD names; an old server tells only its commit."""
    named = fetched.symrefs.get(b"HEAD", b"")
    if named.startswith(layout.HEADS) and _is_good(named):
        return named.removeprefix(layout.HEADS)
    head = fetched.refs.get(b"HEAD")
    likely = [b"refs/heads/main", b"refs/heads/master", *sorted(fetched.refs)]
    for name in likely:
        if head is not None and name.startswith(layout.HEADS) and fetched.refs.get(name) == head and _is_good(name):
            return name.removeprefix(layout.HEADS)
    return None


def _is_good(name: bytes) -> bool:
    try:
        return bool(check_ref_format(Ref(name)))
    except (IndexError, ValueError):
        return False


def _came(pack: Pack | None, refs: transport.Refs, prefix: bytes) -> dict[bytes, bytes]:
    """Return the references of a kind whose objects are here and whose names may be written."""
    return {
        name.removeprefix(prefix): sha
        for name, sha in refs.items()
        if pack is not None and name.startswith(prefix) and _is_good(name) and _is_in(pack, sha)
    }


def _is_in(pack: Pack, sha: bytes) -> bool:
    return _HEX.match(sha) is not None and bytes.fromhex(sha.decode()) in pack


def _peel(pack: Pack, sha: bytes) -> tuple[int, bytes]:
    """Return (kind, hex) of what a tag stands for; of anything else, its own."""
    for _ in range(_MAX_TAGS):
        name = bytes.fromhex(sha.decode())
        kind, data = pack.get(name)
        if kind != TAG:
            return kind, sha
        sha = target_of(data, name).hex().encode()
    raise GitRefused(f"cannot read tag {sha.decode()}: it is the last of too many nested tags", reason="damaged-tag")


def _peel_tags(pack: Pack, refs: transport.Refs) -> dict[bytes, bytes]:
    peeled = {}
    for name, sha in refs.items():
        if name.startswith(layout.TAGS) and _is_in(pack, sha):
            with contextlib.suppress(GitProtocolError, GitRefused):  # what it stands for did not come, or is nothing
                target = _peel(pack, sha)[1]
                if target != sha:
                    peeled[sha] = target
    return peeled


def _commit_of(pack: Pack, tip: bytes | None, order: CloneRequest) -> bytes | None:
    if tip is None:
        return None
    if not _HEX.match(tip):
        raise GitProtocolError("cannot read a reference: its object has no name", reason="protocol")
    if bytes.fromhex(tip.decode()) not in pack:
        raise _missing(order.ref or "HEAD", ())
    kind, commit = _peel(pack, tip)
    if kind != COMMIT:
        raise InvalidRequest(f"cannot check out {order.ref!r}: it is not a commit", field="branch")
    return commit


def _tree_of(pack: Pack, commit: bytes) -> bytes:
    name = bytes.fromhex(commit.decode())
    return links_of(pack.get(name)[1], name)[0]
