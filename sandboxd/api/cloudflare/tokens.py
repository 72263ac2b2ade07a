"""The bearer token of a WebSocket: browsers, and the npm client, cannot send a header with one.

There the token may come in the query, under the name that RFC 6750 gives it. No request's query is logged.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Final

from msgspec import Meta

from ..access import BEARER, TokenPlace, bearer
from ..bodies import Input

if TYPE_CHECKING:
    from werkzeug.sansio.request import Request


class SocketQuery(Input, frozen=True):
    """What a WebSocket's address may hold."""

    access_token: Annotated[str | None, Meta(description="the token, for clients that cannot send headers")] = None


def of_handshake(request: Request) -> str | None:
    """Return the token of a handshake; one in the query stands where no header has one."""
    return bearer(request) if "Authorization" in request.headers else request.args.get("access_token")


PLACE: Final = TokenPlace(BEARER.form, bearer, of_handshake)
