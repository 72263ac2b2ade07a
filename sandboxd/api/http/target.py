"""The target of a request, for requests and handshakes alike: its path as it is routed, and what no target may be.

A path is routed by the slashes that were sent, not by those that a name has in it: `%2F` is a part of a name (RFC 3986,
2.2). Were it decoded before the route is found, a name with a slash would be another route, or none, where it should be
a name that the handler refuses.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final
from urllib.parse import unquote_to_bytes

from werkzeug.routing import PathConverter

from ...errors import InvalidRequest

#: Stands for a slash of a name; neither UTF-8 nor what is none (which becomes \udc80 to \udcff) ever gives it.
_SLASH: Final = "\udc2f"
_ENCODED_SLASH: Final = re.compile(b"%2[fF]")


class AnyPath(PathConverter):
    """The rest of a path; names in it may have line ends, as files' may."""

    regex = "[^/](?s:.)*?"


def split(target: bytes) -> tuple[str, bytes]:
    """Return a target's path as the router takes it, and its query as it came.

    What is no UTF-8 in the path becomes surrogates: `check` refuses it once the caller may hear of it.
    """
    path, _, query = target.partition(b"?")
    parts = (unquote_to_bytes(part).decode("utf-8", "surrogateescape") for part in _ENCODED_SLASH.split(path))
    return _SLASH.join(parts), query


def plain(value: str) -> str:
    """Return a routed path, or an argument that was found in it, as the text that it means."""
    return value.replace(_SLASH, "/")


def arguments(found: Mapping[str, Any]) -> dict[str, Any]:
    """Return a route's arguments as handlers take them."""
    return {name: plain(value) if isinstance(value, str) else value for name, value in found.items()}


def check(path: str, query: bytes) -> None:
    """Let a target pass whose path (`plain`) and query are text.

    Names of files that are no UTF-8 go as `…_b64`: half of a guess at such a name would be another file's.

    Raises:
        InvalidRequest: one of them is no UTF-8 (`%ff`), or is a surrogate's (`%ed%a0%80`).
    """
    try:
        path.encode()
        unquote_to_bytes(query).decode()
    except UnicodeError:
        raise InvalidRequest("cannot understand the request: its target is not valid UTF-8") from None
