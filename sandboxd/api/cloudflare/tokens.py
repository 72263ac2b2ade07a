"""The bearer token of a WebSocket: browsers, and the npm client, cannot send a header with one.

There the token may come in the query, under the name that RFC 6750 gives it. No request's query is logged.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from werkzeug.datastructures import Headers

from . import problems

if TYPE_CHECKING:
    from werkzeug.sansio.request import Request

PARAMETER: Final = "access_token"


def headers_of(request: Request) -> Headers:
    """Return a handshake's headers; a token in the query stands where no header has one."""
    token = request.args.get(PARAMETER)
    if token is None or not problems.is_face(request.path) or "Authorization" in request.headers:
        return request.headers
    return Headers([*request.headers.items(), ("Authorization", f"Bearer {token}")])
