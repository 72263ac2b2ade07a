"""…/ports: expose, list, unexpose, and one-time links; and their JSON."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from ...errors import InvalidRequest, NotAvailable
from ...runtime import waiting
from ...spec import check_process_id
from ...wire.times import rfc3339
from ..bodies import Input
from ..call import answer, nothing

if TYPE_CHECKING:
    from quart_trio.wrappers import TrioResponse

    from ...runtime.ports import Port
    from ...runtime.preview_urls import PreviewUrls
    from ...runtime.sandbox import Sandbox
    from ..call import Call


class PortIn(Input, frozen=True):
    """A port to expose. Unless it is public, a token is generated if none is given."""

    port: int
    name: str | None = None
    token: str | None = None
    public: bool = False


class PortOut(msgspec.Struct, frozen=True, kw_only=True):
    """An exposed port; `url` contains the token."""

    port: int
    url: str
    token: str | None
    name: str | None
    public: bool


class PortList(msgspec.Struct, frozen=True):
    """The exposed ports of a sandbox, by number; there is only one page."""

    items: list[PortOut]
    next: str | None = None


class PortWaitIn(Input, frozen=True):
    """What to wait for: a listener, or with `path` an answer whose status lies in the range `status`."""

    process: str | None = None
    path: str | None = None
    status: tuple[int, int] | None = None
    timeout_s: float | None = None


class PortWaitOut(msgspec.Struct, frozen=True):
    """The outcome of a wait; `reason` is port, timeout, or exit if a process was given; `status` is the answer's."""

    met: bool
    reason: str
    status: int | None
    exit_code: int | None
    signal: str | None


class LinkOut(msgspec.Struct, frozen=True, kw_only=True):
    """A link that opens a port once and sets a cookie in the browser; it does not contain the token."""

    url: str
    expires_at: str


def _urls(call: Call) -> PreviewUrls:
    urls = call.manager.previews.urls
    if urls is None:
        raise NotAvailable("cannot serve previews: the daemon's configuration turns them off (previews)")
    return urls


def _out(port: Port, urls: PreviewUrls) -> PortOut:
    spec = port.spec
    url = urls.url(port.sandbox_id, spec)
    return PortOut(port=spec.port, url=url, token=spec.token, name=spec.name, public=spec.public)


def _number(text: str) -> int:
    if not text.isascii() or not text.isdigit() or len(text) > 5:
        raise InvalidRequest("cannot accept port: it must be 1 to 65535", field="port")
    return int(text)


async def expose(call: Call, sandbox: Sandbox) -> TrioResponse:
    """Expose a port and return its URL; the service may start later."""
    urls, model = _urls(call), await call.read(PortIn)
    if model.public and model.token is not None:
        raise InvalidRequest("cannot accept token: a public port has no token", field="token")
    port = await call.manager.previews.expose(
        sandbox.id, model.port, name=model.name, token=model.token, public=model.public
    )
    return answer(_out(port, urls), 201, {"Location": f"/v1/sandboxes/{port.sandbox_id}/ports"})


async def show_all(call: Call, sandbox: Sandbox) -> TrioResponse:
    """List the exposed ports."""
    urls = _urls(call)
    return answer(PortList([_out(port, urls) for port in sandbox.ports]))


async def unexpose(call: Call, sandbox: Sandbox, port: str) -> TrioResponse:
    """Stop exposing a port; open connections are cut."""
    await call.manager.previews.unexpose(sandbox.id, _number(port))
    return nothing()


async def wait(call: Call, sandbox: Sandbox, port: str) -> TrioResponse:
    """Wait until something in the sandbox listens on a port, or answers a GET there. The port need not be exposed."""
    number, model = _number(port), await call.read(PortWaitIn)
    if model.process is not None:
        check_process_id(model.process, "process")
    if model.status is not None and model.path is None:
        raise InvalidRequest("cannot accept status: it needs path", field="status")
    statuses = waiting.GOOD_STATUSES if model.status is None else model.status
    found = await waiting.for_port(sandbox, model.process, number, model.path, model.timeout_s, statuses)
    ended = found.exit
    return answer(
        PortWaitOut(
            found.met,
            found.reason,
            found.status,
            ended.exit_code if ended else None,
            ended.signal if ended else None,
        )
    )


async def link(call: Call, sandbox: Sandbox, port: str) -> TrioResponse:
    """Create a one-time link to a port that has a token."""
    urls = _urls(call)
    found = sandbox.ports.find(_number(port))
    if found.spec.public:
        raise InvalidRequest("cannot create a link: the port is public; use its URL", field="port")
    code, ends = found.new_link()
    return answer(LinkOut(url=urls.link(found.sandbox_id, found.spec, code), expires_at=rfc3339(ends)), 201)
