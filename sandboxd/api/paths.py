"""The path of a request as it is routed: by the slashes that were sent, not by those that a name has in it.

`%2F` is a part of a name (RFC 3986, 2.2). Were it decoded before the route is found, a name with a slash would be
another route, or none, where it should be a name that the handler refuses.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final
from urllib.parse import unquote

from werkzeug.routing import PathConverter

#: Stands for a slash of a name; text that was UTF-8 never has it.
_SLASH: Final = "\udc2f"
_ENCODED_SLASH: Final = re.compile("%2[fF]")


class AnyPath(PathConverter):
    """The rest of a path; names in it may have line ends, as files' may."""

    regex = "[^/](?s:.)*?"


def routed(path: str) -> str:
    """Return a path as it was sent as the router takes it."""
    return _SLASH.join(unquote(part) for part in _ENCODED_SLASH.split(path))


def plain(value: str) -> str:
    """Return a routed path, or an argument that was found in it, as the text that it means."""
    return value.replace(_SLASH, "/")


def arguments(found: Mapping[str, Any]) -> dict[str, Any]:
    """Return a route's arguments as handlers take them."""
    return {name: plain(value) if isinstance(value, str) else value for name, value in found.items()}
