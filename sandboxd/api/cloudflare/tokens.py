"""The bearer token of a WebSocket: browsers, and the npm client, cannot send a header with one.

There the token may come in the query, under the name that RFC 6750 gives it. No request's query is logged.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from ..access import BEARER, TokenPlace, bearer

if TYPE_CHECKING:
    from werkzeug.sansio.request import Request

PARAMETER: Final = "access_token"


def of_handshake(request: Request) -> str | None:
    """Return the token of a handshake; one in the query stands where no header has one."""
    return bearer(request) if "Authorization" in request.headers else request.args.get(PARAMETER)


PLACE: Final = TokenPlace(BEARER.form, bearer, of_handshake)
