"""What a handler gets: the request, the domain, and a stack of resources to close after the answer."""

from __future__ import annotations

import contextlib
import dataclasses
from typing import TYPE_CHECKING, Any, Final, TypeVar

from quart.wrappers.response import ResponseBody
from quart_trio.wrappers import TrioResponse

from . import jsontext
from .bodies import Input, parse

if TYPE_CHECKING:
    from collections.abc import AsyncIterable, AsyncIterator
    from types import TracebackType

    from ..metrics import Metrics
    from ..runtime.budget import Hold
    from ..runtime.manager import Manager
    from ..runtime.sandbox import Sandbox
    from .http.body import ApiRequest, BoundedBody

_T = TypeVar("_T", bound=Input)
JSON_TYPE: Final = "application/json"


@dataclasses.dataclass(frozen=True, slots=True)
class DaemonFacts:
    """Facts about the daemon that the composition root passes to the API."""

    version: str
    settings: dict[str, Any]


class Call:
    """One request in progress.

    Attributes:
        routed: its path as the router takes it (paths.py).
        stack: closed once the answer is sent or abandoned, however the request ends.
    """

    def __init__(
        self, request: ApiRequest, manager: Manager, facts: DaemonFacts, metrics: Metrics, routed: str | None = None
    ) -> None:
        self.request = request
        self.routed = request.path if routed is None else routed
        self.manager = manager
        self.facts = facts
        self.metrics = metrics
        self.stack = contextlib.AsyncExitStack()

    def __repr__(self) -> str:
        return f"<Call {self.request.method} {self.request.path}>"

    def hold(self, sandbox: Sandbox) -> Hold:
        """Return a hold on the sandbox's memory budget for callers, until the answer is sent or abandoned."""
        return self.stack.enter_context(sandbox.share.hold())

    @property
    def body(self) -> BoundedBody:
        """The request's body."""
        body: BoundedBody = self.request.body  # type: ignore[assignment]  # ApiRequest.body_class
        return body

    async def read(self, model: type[_T]) -> _T:
        """Return the JSON body as a model.

        Raises:
            InvalidRequest, UnknownField, BodyTooLarge: the body is not acceptable.
        """
        return parse(await self.body.read_json(), model)

    def accepts(self) -> str:
        """Return which of the three forms of a command's answer the caller wants: json, sse or raw."""
        accept = self.request.headers.get("Accept", "")
        if "text/event-stream" in accept:
            return "sse"
        return "raw" if "application/octet-stream" in accept else "json"


def answer(value: Any, status: int = 200, headers: dict[str, str] | None = None) -> TrioResponse:  # noqa: ANN401 - anything that JSON holds
    """Return a JSON answer."""
    return TrioResponse(jsontext.encode(value, None), status, headers, content_type=JSON_TYPE)


def nothing() -> TrioResponse:
    """Return the answer 204."""
    response = TrioResponse(b"", 204)
    for name in ("Content-Type", "Content-Length"):  # a 204 has neither (RFC 9110, 8.6)
        response.headers.pop(name, None)
    return response


class Last(bytes):
    """The last piece of a streamed body: the sender need not wait to learn that nothing follows."""

    __slots__ = ()


class _Pieces(ResponseBody):
    """A body that comes in pieces. Their source is closed with the answer, whether or not it was exhausted."""

    def __init__(self, pieces: AsyncIterable[bytes]) -> None:
        self._pieces = aiter(pieces)

    async def __aenter__(self) -> AsyncIterator[bytes]:
        return self._pieces

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        close = getattr(self._pieces, "aclose", None)
        if close is not None:
            await close()


def streamed(body: AsyncIterable[bytes], status: int, headers: dict[str, str]) -> TrioResponse:
    """Return an answer whose body comes in pieces, one of which may be `Last`; a generator is closed at the end."""
    response = TrioResponse(b"", status)
    response.headers.pop("Content-Length", None)  # of the empty body that the constructor wants
    response.headers.update(headers)
    response.response = _Pieces(body)
    return response
