"""What a clone reads of commits, tags and trees: what leads to other objects, and no more.

C git clones a commit whose date is no number, or without an author, and so does this: nothing else of such an object
is looked at, and its bytes go on as they are. A mode that git does not know is one that it does, by its own rule.
"""

from __future__ import annotations

import re
import stat
from collections.abc import Iterator
from typing import Final

from dulwich.errors import ObjectFormatException
from dulwich.objects import parse_tree

from ...errors import GitRefused

DIRECTORY: Final = 0o040000
SYMLINK: Final = 0o120000
GITLINK: Final = 0o160000
FILE: Final = 0o100644
EXECUTABLE: Final = 0o100755
_COMMIT: Final = re.compile(rb"tree ([0-9a-fA-F]{40})\n((?:parent [0-9a-fA-F]{40}\n)*)")
_PARENT_BYTES: Final = len(b"parent \n") + 40
_TAG: Final = re.compile(rb"object ([0-9a-fA-F]{40})\n")


def check_format(name: str | None) -> None:
    """Let the names of a repository's objects pass if they are those that are known here.

    Raises:
        GitRefused: they are others.
    """
    if name not in (None, "sha1"):
        raise GitRefused(f"cannot clone a repository whose objects are named by {name}", reason="object-format")


def links_of(data: bytes, name: bytes) -> tuple[bytes, list[bytes]]:
    """Return a commit's tree and parents, by their binary names; `name` is its own.

    Raises:
        GitRefused: it is no commit.
    """
    found = _COMMIT.match(data)
    if found is None:
        raise GitRefused(f"cannot read commit {name.hex()}: it has no tree", reason="damaged-commit")
    rows = range(0, len(found[2]), _PARENT_BYTES)
    return _binary(found[1]), [_binary(found[2][row + 7 : row + 47]) for row in rows]


def target_of(data: bytes, name: bytes) -> bytes:
    """Return the binary name of what a tag stands for.

    Raises:
        GitRefused: it names no object.
    """
    found = _TAG.match(data)
    if found is None:
        raise GitRefused(f"cannot read tag {name.hex()}: it names no object", reason="damaged-tag")
    return _binary(found[1])


def _binary(name: bytes) -> bytes:
    return bytes.fromhex(name.decode("ascii"))


def entries_of(data: bytes, name: bytes) -> Iterator[tuple[bytes, int, bytes]]:
    """Give (name, mode, object's binary name) of each entry of a tree; a mode is one of those above.

    Raises:
        GitRefused: it is no tree.
    """
    try:
        parsed = parse_tree(data, 20)
    except (ObjectFormatException, ValueError) as error:
        raise GitRefused(f"cannot read tree {name.hex()}: {error}", reason="not-a-tree") from None
    for element, mode, sha in parsed:
        yield element, canonical(mode), _binary(sha)


def canonical(mode: int) -> int:
    """Return the mode that C git takes another one for (its canon_mode): what is of no kind is a gitlink."""
    kind = stat.S_IFMT(mode)
    if kind == stat.S_IFREG:
        return EXECUTABLE if mode & stat.S_IXUSR else FILE
    return kind if kind in (DIRECTORY, SYMLINK) else GITLINK
