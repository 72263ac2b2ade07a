"""The named files of an image that is a directory or an archive of them: manifests, configurations, layers."""

from __future__ import annotations

import hashlib
import json
import posixpath
from collections.abc import Callable
from typing import Any, Final, Protocol

from sandboxd.images.archive import Tape, members, shown
from sandboxd.images.readers import Budget, ImageRefused, Region

__all__ = ["ArchiveBlobs", "Blobs", "DirectoryBlobs", "read_blob", "read_json"]

#: Manifests, indexes and configurations; what registries allow.
MAX_JSON: Final = 4 * 1024 * 1024
_MAX_BLOBS: Final = 100_000
_MAX_LINKS: Final = 8


class Blobs(Protocol):
    """Where the files of an image are."""

    def open(self, name: str) -> tuple[Region, int] | None:
        """Return a reader of the file `name` and its size; None where there is none."""
        ...


class DirectoryBlobs:
    """Files of a directory that this process cannot see: `ask` returns a descriptor and its size, or None."""

    def __init__(self, ask: Callable[[str], tuple[int, int] | None]) -> None:
        self._ask = ask
        self._known: dict[str, tuple[int, int] | None] = {}

    def open(self, name: str) -> tuple[Region, int] | None:
        """Return a reader of the file `name` and its size."""
        if name not in self._known:
            self._known[name] = self._ask(name)
        found = self._known[name]
        return None if found is None else (Region(found[0], 0, found[1]), found[1])


class ArchiveBlobs:
    """Files of a tar archive in a regular file. Links among them are followed: old `docker save` shares layers so."""

    def __init__(self, fd: int, size: int) -> None:
        self._fd = fd
        self._files: dict[str, tuple[int, int]] = {}
        self._links: dict[str, str] = {}
        tape = Tape(Region(fd, 0, size), Budget(size, _MAX_BLOBS), hashed=False)
        for member in members(tape, marked=False):
            name = posixpath.normpath(member.name)
            if len(self._files) + len(self._links) >= _MAX_BLOBS:
                raise ImageRefused(f"it has over {_MAX_BLOBS} files", reason="too-many", limit=_MAX_BLOBS)
            if member.issym():
                self._links[name] = posixpath.normpath(posixpath.join(posixpath.dirname(name), member.linkname))
            elif member.islnk():
                self._links[name] = posixpath.normpath(member.linkname)
            elif member.isreg() and member.sparse is None:
                self._files[name] = (member.offset_data, member.size)

    def open(self, name: str) -> tuple[Region, int] | None:
        """Return a reader of the file `name` and its size."""
        name = posixpath.normpath(name)
        for _ in range(_MAX_LINKS):
            if name not in self._links:
                break
            name = self._links[name]
        if name not in self._files:
            return None
        offset, size = self._files[name]
        return Region(self._fd, offset, size), size


def read_blob(blobs: Blobs, name: str, digest: str | None = None) -> bytes | None:
    """Return a small file, None where there is none.

    Raises:
        ImageRefused: it is too large, or not what `digest` says.
    """
    found = blobs.open(name)
    if found is None:
        return None
    reader, size = found
    if size > MAX_JSON:
        raise ImageRefused(f"its {shown(name)} has {size} bytes (at most {MAX_JSON})", reason="too-large")
    parts = []
    while data := reader.read(MAX_JSON):
        parts.append(data)
    content = b"".join(parts)
    if digest is not None and f"sha256:{hashlib.sha256(content).hexdigest()}" != digest:
        raise ImageRefused(f"its {shown(name)} does not match its digest", reason="digest", digest=digest)
    return content


def read_json(blobs: Blobs, name: str, digest: str | None = None) -> Any:  # noqa: ANN401 - a stranger's JSON
    """Return a file's JSON value, None where there is no such file; raises as `read_blob`, and on malformed JSON."""
    content = read_blob(blobs, name, digest)
    if content is None:
        return None
    try:
        return json.loads(content)
    except (ValueError, RecursionError) as error:
        raise ImageRefused(f"its {shown(name)} is not JSON ({error})", reason="malformed") from None
