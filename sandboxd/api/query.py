"""The parameters of a query."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..errors import InvalidRequest, UnknownField

if TYPE_CHECKING:
    from collections.abc import Collection

    from werkzeug.sansio.request import Request


def check_query(request: Request, known: Collection[str]) -> None:
    """Refuse parameters that the route does not have, and ones given twice."""
    if not request.query_string:
        return
    for name, values in request.args.lists():
        if name not in known:
            raise UnknownField(f"cannot accept query parameter {name[:80]!r}: there is none", field=name[:80])
        if len(values) > 1:
            raise InvalidRequest(f"cannot accept query parameter {name!r} twice", field=name)
