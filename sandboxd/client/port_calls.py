"""…/ports: what to send, and how to read the answer (see `calls`)."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

from .calls import Call, nothing, sandbox_path
from .process_calls import parse_wait

if TYPE_CHECKING:
    from .models import Json
    from .process_calls import WaitResult

__all__ = ["ExposedPort"]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ExposedPort:
    """A port of a sandbox that browsers can open.

    Attributes:
        port: its number inside the sandbox.
        url: what to open; it holds the token.
        token: what lets a caller in, in the URL or as the header X-Sandboxd-Token; None when it is public.
        name: the caller's own name for it.
        public: whether anybody who reaches the daemon's preview listener may open it.
    """

    port: int
    url: str
    token: str | None
    name: str | None
    public: bool


def expose(key: str, port: int, *, name: str | None, token: str | None, public: bool) -> Call[ExposedPort]:
    """POST …/ports."""
    body: dict[str, Any] = {"port": port}
    for field, value in (("name", name), ("token", token), ("public", public or None)):
        if value is not None:
            body[field] = value
    return Call("POST", sandbox_path(key, "/ports"), body=body, what="port", parse=parse_port)


def show_all(key: str) -> Call[list[ExposedPort]]:
    """GET …/ports."""
    return Call(
        "GET", sandbox_path(key, "/ports"), what="ports", parse=lambda value: [*map(parse_port, value["items"])]
    )


def unexpose(key: str, port: int) -> Call[None]:
    """DELETE …/ports/{port}."""
    return Call("DELETE", sandbox_path(key, f"/ports/{int(port)}"), what="port", parse=nothing)


def wait(
    key: str,
    port: int,
    *,
    process: str | None,
    path: str | None,
    status: tuple[int, int] | None,
    timeout: float | None,
) -> Call[WaitResult]:
    """POST …/ports/{port}/wait; waits as long as the daemon does."""
    fields = {"process": process, "path": path, "status": status and list(status), "timeout_s": timeout}
    body = {name: value for name, value in fields.items() if value is not None}
    where = sandbox_path(key, f"/ports/{int(port)}/wait")
    return Call("POST", where, body=body, timeout_s=None, what="answer", parse=parse_wait)


def link(key: str, port: int) -> Call[str]:
    """POST …/ports/{port}/link."""
    return Call(
        "POST", sandbox_path(key, f"/ports/{int(port)}/link"), what="link", parse=lambda value: str(value["url"])
    )


def parse_port(value: Json) -> ExposedPort:
    """Read an exposed port."""
    return ExposedPort(
        port=int(value["port"]),
        url=str(value["url"]),
        token=value.get("token"),
        name=value.get("name"),
        public=bool(value["public"]),
    )
