"""What a tar member may be: pure checks of its name, kind and owner."""

from __future__ import annotations

import tarfile
from typing import Final

from sandboxd.images.archive import shown
from sandboxd.images.readers import ImageRefused
from sandboxd.spec import ID_RANGE_WIDTH, MAX_PATH_BYTES

__all__ = ["check", "split"]

#: Deep enough for every node_modules; walks of the tree hold a descriptor a level.
MAX_DEPTH: Final = 256
#: A creation mounts on these, or writes below: a link would send it elsewhere.
_DIRECTORIES: Final = frozenset({("dev",), ("proc",), ("sys",), ("etc",)})
_FILES: Final = frozenset({("etc", "hostname"), ("etc", "hosts")})
_KINDS: Final = {
    tarfile.CHRTYPE: "a character device",
    tarfile.BLKTYPE: "a block device",
    tarfile.FIFOTYPE: "a FIFO",
    tarfile.GNUTYPE_SPARSE: "a sparse file",
}


def split(name: str, member: tarfile.TarInfo) -> tuple[str, ...]:
    """Return the parts of a member's (or its hard link's) name; none for the root.

    Raises:
        ImageRefused: the name is absolute, holds `..` or a NUL, or is too long or too deep.
    """
    if name.startswith("/") and name.strip("/"):
        raise _refuse(member, "absolute", f"has the absolute name {shown(name)}")
    parts = tuple(part for part in name.split("/") if part not in ("", "."))
    if ".." in parts:
        raise _refuse(member, "dot-dot", f"has .. in the name {shown(name)}")
    if "\0" in name:
        raise _refuse(member, "name", "has a NUL in its name")
    if len(parts) > MAX_DEPTH or len(name.encode("utf-8", "surrogateescape")) > MAX_PATH_BYTES:
        raise _refuse(
            member, "name", f"has a name over {MAX_PATH_BYTES} bytes or {MAX_DEPTH} directories: {shown(name)}"
        )
    return parts


def check(member: tarfile.TarInfo, parts: tuple[str, ...]) -> None:
    """Refuse a member that no rootfs may have.

    Raises:
        ImageRefused: its kind, its owner or its place is wrong.
    """
    if member.type in _KINDS or member.sparse is not None:
        raise _refuse(member, "kind", f"is {_KINDS.get(member.type, 'a sparse file')}")
    if not (member.isreg() or member.isdir() or member.issym() or member.islnk()):
        raise _refuse(member, "kind", f"is of the unknown kind {member.type!r}")
    for what, number in (("owner", member.uid), ("group", member.gid)):
        if not 0 <= number < ID_RANGE_WIDTH:
            raise _refuse(member, "owner", f"has the {what} {number}; a sandbox has the ids 0 to {ID_RANGE_WIDTH - 1}")
    if member.size < 0:
        raise _refuse(member, "header", f"has the size {member.size}")
    if not member.isdir() and (not parts or parts in _DIRECTORIES):
        raise _refuse(member, "no-folder", "must be a directory")
    if parts in _FILES and not member.isreg():
        raise _refuse(member, "no-file", "must be a regular file, not a link or a directory")
    if member.issym() and (
        not member.linkname
        or "\0" in member.linkname
        or len(member.linkname.encode("utf-8", "surrogateescape")) > MAX_PATH_BYTES
    ):
        raise _refuse(member, "link", "is a symbolic link to an invalid name")


def _refuse(member: tarfile.TarInfo, reason: str, why: str) -> ImageRefused:
    return ImageRefused(f"member {shown(member.name)} {why}", reason=reason, member=shown(member.name))
