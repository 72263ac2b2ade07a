"""What follows an upgrade: bytes both ways until both sides have ended, each end passed on as it comes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import trio

from .wires import READ_BYTES, WireBroken, splice

if TYPE_CHECKING:
    from collections.abc import Callable

    from ..runtime.ports import Port
    from .connection import Connection
    from .wires import Wire

#: Moved by one splice before small messages are looked for again.
_BULK: Final = 1 << 30


async def tunnel(client: Connection, service: Wire, port: Port) -> None:
    """Pass bytes between a client and a service."""
    early, client.buffer = client.buffer, b""
    client.begin_tunnel()

    def came_in(size: int) -> None:
        port.bytes_in += size
        client.touch()

    def went_out(size: int) -> None:
        port.bytes_out += size
        client.touch()

    async with trio.open_nursery() as nursery:
        scope = nursery.cancel_scope
        nursery.start_soon(_copy, client.wire, service, early, came_in, scope)
        nursery.start_soon(_copy, service, client.wire, b"", went_out, scope)


async def _copy(
    source: Wire, target: Wire, early: bytes, passed: Callable[[int], None], both: trio.CancelScope
) -> None:
    """Copy until the source's end and pass that on; what breaks ends both ways."""
    plain = source.is_plain and target.is_plain
    data = early
    try:
        while True:
            if data:
                await target.send(data)
                passed(len(data))
            data = await source.receive(soon=False)
            if not data:
                break
            # A message is one read. What fills a whole one is bulk, and goes past us as long as it comes.
            if plain and len(data) == READ_BYTES:
                await target.send(data)
                passed(len(data))
                data = b""
                if await splice(source, target, _BULK, passed) < _BULK:
                    break
        await target.end()
    except WireBroken:
        both.cancel()
