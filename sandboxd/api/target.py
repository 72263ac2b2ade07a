"""The target of a request, for requests and handshakes alike: its path as text, and what no target may be."""

from __future__ import annotations

from urllib.parse import unquote_to_bytes

from ..errors import InvalidRequest


def split(target: bytes) -> tuple[str, bytes]:
    """Return a target's path, unquoted, and its query as it came.

    What is no UTF-8 in the path becomes surrogates: `check` refuses it once the caller may hear of it.
    """
    path, _, query = target.partition(b"?")
    return unquote_to_bytes(path).decode("utf-8", "surrogateescape"), query


def check(path: str, query: bytes) -> None:
    """Let a target pass whose path and query are text.

    Names of files that are no UTF-8 go as `…_b64`: half of a guess at such a name would be another file's.

    Raises:
        InvalidRequest: one of them is no UTF-8 (`%ff`), or is a surrogate's (`%ed%a0%80`).
    """
    try:
        path.encode()
        unquote_to_bytes(query).decode()
    except UnicodeError:
        raise InvalidRequest("cannot understand the request: its target is no UTF-8") from None
