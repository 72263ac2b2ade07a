"""What is installed in a tree, read from its files alone."""

from __future__ import annotations

from email.parser import HeaderParser
from pathlib import Path

__all__ = ["debian", "installed", "python"]


def installed(tree: Path) -> dict[str, dict[str, str]]:
    """Return the packages of a tree by kind, and by name their versions; raises OSError."""
    found = {"debian": debian(tree), "python": python(tree), "node": _node(tree)}
    return {kind: versions for kind, versions in found.items() if versions}


def debian(tree: Path) -> dict[str, str]:
    """Return what dpkg has installed; raises OSError."""
    status = tree / "var/lib/dpkg/status"
    versions: dict[str, str] = {}
    if not status.is_file():
        return versions
    for paragraph in status.read_text(encoding="utf-8").split("\n\n"):
        fields = dict(line.split(": ", 1) for line in paragraph.splitlines() if ": " in line and line[0] != " ")
        if fields.get("Status", "").endswith(" installed"):
            versions[fields["Package"]] = fields["Version"]
    return versions


def python(tree: Path) -> dict[str, str]:
    """Return what pip has installed below /usr/local; raises OSError."""
    versions: dict[str, str] = {}
    for metadata in sorted(tree.glob("usr/local/lib/python3*/dist-packages/*.dist-info/METADATA")):
        fields = HeaderParser().parsestr(metadata.read_text(encoding="utf-8", errors="replace"), headersonly=True)
        versions[str(fields["Name"]).lower()] = str(fields["Version"])
    return versions


def _node(tree: Path) -> dict[str, str]:
    header = tree / "usr/local/include/node/node_version.h"
    if not header.is_file():
        return {}
    defines = dict(
        line.split()[1:3]
        for line in header.read_text(encoding="utf-8").splitlines()
        if line.startswith("#define NODE_M") or line.startswith("#define NODE_PATCH")
    )
    parts = [defines.get(f"NODE_{part}_VERSION", "?") for part in ("MAJOR", "MINOR", "PATCH")]
    return {"node": ".".join(parts)}
