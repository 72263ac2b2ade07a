"""Which rootfs there are, as the launcher sees them.

`images/` puts a whole directory in its place by one rename, so a name with a `rootfs.json` is a whole rootfs.
"""

from __future__ import annotations

import contextlib
import json
import os
from typing import Any

from ..errors import InvalidRequest
from ..spec import check_rootfs


def exists(directory: str, name: str) -> bool:
    """Tell whether rootfs `name` is there and whole."""
    return os.path.isfile(f"{directory}/{name}/rootfs.json") and os.path.isdir(f"{directory}/{name}/private/tree")


def is_trusted(directory: str, name: str) -> bool:
    """Tell whether rootfs `name` was built by a recipe."""
    try:
        with open(f"{directory}/{name}/rootfs.json") as file:
            facts = json.load(file)
    except (OSError, ValueError):
        return False
    return isinstance(facts, dict) and facts.get("trusted") is True


def items(directory: str) -> list[dict[str, Any]]:
    """Return what the API tells of each rootfs."""
    found = []
    names = []
    with contextlib.suppress(FileNotFoundError):
        names = sorted(os.listdir(directory))
    for name in names:
        with contextlib.suppress(InvalidRequest, OSError, ValueError):
            check_rootfs(name)
            if not exists(directory, name):
                continue
            with open(f"{directory}/{name}/rootfs.json") as file:
                facts = json.load(file)
            keys = ("trusted", "built_at", "size_bytes", "recipe")
            found.append({"name": name, **{key: facts.get(key) for key in keys}})
    return found
