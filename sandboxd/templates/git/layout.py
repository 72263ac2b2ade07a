"""The directory `.git`: what C git finds in it after a clone, and nothing that could run."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from pathlib import Path
from typing import Final

HEADS: Final = b"refs/heads/"
TAGS: Final = b"refs/tags/"
_DESCRIPTION: Final = b"Unnamed repository; edit this file 'description' to name the repository.\n"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class RepositoryFacts:
    """What a repository is to know.

    Attributes:
        branch: the branch that is checked out, or None when none is.
        commit: what is checked out (hex), or None in an empty repository.
        heads, tags: the server's references that came, without their prefix; names to hex.
        peeled: of tags that are objects: the tag's hex to what it stands for.
        worktree: of a submodule: the way from its directory to its files.
    """

    url: str
    branch: bytes | None
    commit: bytes | None
    heads: dict[bytes, bytes]
    tags: dict[bytes, bytes]
    peeled: dict[bytes, bytes]
    default_branch: bytes | None
    single_branch: bool
    shallow: list[bytes]
    sparse: bytes | None
    worktree: str | None


def make_directories(root: Path) -> Path:
    """Make the directories; return the one for packs."""
    for name in ("objects/info", "refs/heads", "refs/tags", "info"):
        (root / name).mkdir(parents=True)
    packs = root / "objects/pack"
    packs.mkdir()
    return packs


def write(root: Path, facts: RepositoryFacts) -> None:
    """Write everything but objects and index."""
    head = b"ref: " + HEADS + facts.branch if facts.branch is not None else facts.commit or b"ref: refs/heads/main"
    (root / "HEAD").write_bytes(head + b"\n")
    (root / "config").write_bytes(_config(facts))
    (root / "description").write_bytes(_DESCRIPTION)
    (root / "info/exclude").write_bytes(b"")
    (root / "packed-refs").write_bytes(_packed(facts))
    if facts.shallow:
        (root / "shallow").write_bytes(b"".join(name + b"\n" for name in facts.shallow))
    if facts.sparse is not None:
        (root / "info/sparse-checkout").write_bytes(facts.sparse)
    if facts.default_branch is not None and facts.default_branch in facts.heads:
        directory = root / "refs/remotes/origin"
        directory.mkdir(parents=True)
        (directory / "HEAD").write_bytes(b"ref: refs/remotes/origin/" + facts.default_branch + b"\n")


def _packed(facts: RepositoryFacts) -> bytes:
    rows = {b"refs/remotes/origin/" + name: sha for name, sha in facts.heads.items()}
    rows |= {TAGS + name: sha for name, sha in facts.tags.items()}
    if facts.branch is not None and facts.commit is not None:
        rows[HEADS + facts.branch] = facts.commit
    lines = [b"# pack-refs with: peeled fully-peeled sorted \n"]
    for name in sorted(rows):
        lines.append(rows[name] + b" " + name + b"\n")
        if rows[name] in facts.peeled:
            lines.append(b"^" + facts.peeled[rows[name]] + b"\n")
    return b"".join(lines)


def _config(facts: RepositoryFacts) -> bytes:
    core = [
        (b"repositoryformatversion", b"0"),
        (b"filemode", b"true"),
        (b"bare", b"false"),
        (b"logallrefupdates", b"true"),
    ]
    if facts.worktree is not None:
        core.append((b"worktree", quoted(facts.worktree.encode())))
    if facts.sparse is not None:
        core += [(b"sparseCheckout", b"true"), (b"sparseCheckoutCone", b"true")]
    spec = b"+refs/heads/*:refs/remotes/origin/*"
    if facts.single_branch and facts.branch is not None:
        spec = b"+refs/heads/%b:refs/remotes/origin/%b" % (facts.branch, facts.branch)
    parts = [section(b"core", None, core)]
    origin = [(b"url", quoted(facts.url.encode())), (b"fetch", quoted(spec))]
    parts.append(section(b"remote", b"origin", origin))
    if facts.branch is not None:
        rows = [(b"remote", b"origin"), (b"merge", quoted(HEADS + facts.branch))]
        parts.append(section(b"branch", facts.branch, rows))
    return b"".join(parts)


def section(name: bytes, sub: bytes | None, rows: Iterable[tuple[bytes, bytes]]) -> bytes:
    """Return a section of a configuration file (git-config(1)); values come quoted where they must be."""
    head = name if sub is None else name + b" " + quoted(sub)
    return b"[%b]\n" % head + b"".join(b"\t%b = %b\n" % row for row in rows)


def quoted(value: bytes) -> bytes:
    """Return a value in quotes; what would end its line is left out (no caller has such)."""
    for character in (b"\n", b"\r", b"\0"):
        value = value.replace(character, b"")
    return b'"' + value.replace(b"\\", b"\\\\").replace(b'"', b'\\"') + b'"'
