"""A version of a directory: a digest of what its files are, so that two versions tell whether anything changed between.

Nothing is watched and nothing kept: the version is computed from the tree when somebody asks. It holds each name with
its type, mode, owner, size and the times of its content and of its inode, which no program can set back; so it costs a
walk, not a reading. Of a directory it holds no times: they change with entries that are left out.
"""

from __future__ import annotations

import os
import stat
from _blake2 import blake2b  # hashlib's own: that would map OpenSSL into every init
from collections.abc import Iterator
from typing import Any, Final

from . import tree
from .file_operations import followed
from .jobs import Deps, Function
from .path_filter import PathFilter
from .paths import mapped, open_directory, path_of
from .tree import Entry

_DIGEST_BYTES: Final = 16


def changes(deps: Deps, params: dict[str, Any]) -> dict[str, Any]:
    """Return {version, entries} of what is below `path`, or of the one file."""
    path = path_of(params)
    with mapped(path, "look at"):
        directory, name, facts = followed(deps.kernel, path)
        entries: Iterator[Entry]
        if stat.S_ISDIR(facts.st_mode):
            root = open_directory(deps.kernel, path)
            entries = PathFilter(params).pick(tree.walk(root, recursive=params["recursive"]))
        else:
            entries = iter([Entry(directory, name, ".", facts)])
        digest = blake2b(digest_size=_DIGEST_BYTES)
        count = 0
        for entry in entries:
            digest.update(_line(entry))
            count += 1
    return {"version": digest.hexdigest(), "entries": count}


def _line(entry: Entry) -> bytes:
    one = entry.facts
    changing = () if entry.is_folder else (one.st_size, one.st_mtime_ns, one.st_ctime_ns, one.st_rdev)
    numbers = (one.st_mode, one.st_uid, one.st_gid, *changing)
    return os.fsencode(entry.path) + b"\0" + " ".join(map(str, numbers)).encode() + b"\0"


FUNCTIONS: Final[dict[str, Function]] = {"changes": changes}
