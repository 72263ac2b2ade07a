"""The plainest heads, read by one regular expression each.

h11 takes 50 µs for a request and its response, half of all that this proxy does for them. So a head of the shape that
browsers and servers send is read here, and everything else (chunks, old versions, folded lines, odd bytes, anything
twice that may be there once) is h11's to read or refuse. What is taken here h11 takes too, with the same meaning: a
test holds the two together.
"""

from __future__ import annotations

import re
from typing import Final, NamedTuple

_NAME: Final = rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+"
#: No control characters but the tab; stricter than h11.
_VALUE: Final = rb"[^\x00-\x08\x0a-\x1f\x7f]*"
_FIELDS: Final = rb"((?:" + _NAME + rb":" + _VALUE + rb"\r\n)*)\r\n"
_REQUEST: Final = re.compile(rb"([A-Z]{1,20}) ([!-~]+) HTTP/1\.1\r\n" + _FIELDS)
_RESPONSE: Final = re.compile(rb"HTTP/1\.1 ([2-5][0-9][0-9])(?: (" + _VALUE + rb"))?\r\n" + _FIELDS)
_FIELD: Final = re.compile(rb"(" + _NAME + rb"):[ \t]*(" + _VALUE + rb")\r\n")
_LENGTH: Final = re.compile(rb"[0-9]{1,15}\Z")


class Head(NamedTuple):
    """A head: of a request (`first` is the method, `second` the target) or a response (status and reason).

    Attributes:
        version: b"1.1" or b"1.0", or what else was said.
        size: how many bytes it had.
    """

    first: bytes
    second: bytes
    version: bytes
    headers: list[tuple[bytes, bytes]]
    size: int = 0


def request(data: bytes) -> Head | None:
    """Return the request's head at the beginning of `data`, or None: it is not all here, or not so plain."""
    return _head(_REQUEST.match(data), hosts=1)


def response(data: bytes) -> Head | None:
    """Return the response's head at the beginning of `data`, or None: it is not all here, or not so plain."""
    return _head(_RESPONSE.match(data), hosts=None)


def _head(match: re.Match[bytes] | None, *, hosts: int | None) -> Head | None:
    if match is None:
        return None
    first, second, fields = match.groups()
    headers = [(name, value.rstrip(b" \t")) for name, value in _FIELD.findall(fields)]
    names = [name.lower() for name, _ in headers]
    if b"transfer-encoding" in names or (hosts is not None and names.count(b"host") != hosts):
        return None
    lengths = names.count(b"content-length")
    if lengths and (lengths > 1 or not _LENGTH.match(headers[names.index(b"content-length")][1])):
        return None
    return Head(first, second or b"", b"1.1", headers, match.end())
