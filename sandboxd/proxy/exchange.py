"""One request and its response, between a client's connection and a service's."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import h11
import trio

from ..errors import HeaderTooLarge, InvalidRequest, UpstreamBroken
from ..wire import http_heads
from ..wire.http_heads import MAX_HEAD_BYTES
from . import heads, plain, upstream
from .tunnel import tunnel
from .wires import READ_BYTES, Wire, WireBroken, splice

if TYPE_CHECKING:
    from ..runtime.ports import Port
    from ..runtime.previews import Previews
    from .connection import Connection
    from .heads import Asked
    from .plain import Head

#: Informational responses (RFC 9110, 15.2) before one answer; a service has a few to send.
MAX_INFORMATIONAL: Final = 32
#: Below this a body is copied: a splice has a pipe to fetch.
SPLICE_BYTES: Final = 128 * 1024
#: What h11 must have been told was asked, to read the answer to it; its bytes are never sent.
_PLAIN: Final = h11.Request(method="GET", target="/", headers=[("Host", "h")])
_HEAD: Final = h11.Request(method="HEAD", target="/", headers=[("Host", "h")])
_UPGRADE: Final = h11.Request(
    method="GET", target="/", headers=[("Host", "h"), ("Connection", "upgrade"), ("Upgrade", "x")]
)
_END: Final = h11.EndOfMessage()


class _Stale(Exception):
    """A connection that was used again turned out to be closed."""


class Exchange:
    """See the module. `started` says whether anything of the response has left."""

    def __init__(self, client: Connection, asked: Asked, port: Port, previews: Previews) -> None:
        self._client = client
        self._asked = asked
        self._port = port
        self._previews = previews
        self.started = False
        self._sent = asked.length == 0  # whether the service has the whole body
        self._refusal: Exception | None = None  # why the client's body was no body

    async def run(self) -> bool:
        """Do it; return whether the client's connection can be used again.

        Raises:
            PortClosed, UpstreamBroken, InvalidRequest, …: nothing has left if `started` is false.
            WireBroken: the client's connection is gone.
        """
        client, asked, port = self._client, self._asked, self._port
        sandbox = await self._previews.sandbox_of(port)  # frozen, it would hold us
        head = heads.forward(asked, client.front, sandbox.spec.name or sandbox.id)
        reused = upstream.take(port) if asked.is_idempotent else None
        if reused is not None:
            try:
                return await self._on(reused, head, is_reused=True)
            except _Stale:
                pass
        wire = await upstream.make(self._previews, sandbox, port)
        return await self._on(wire, head, is_reused=False)

    async def _on(self, wire: Wire, head: bytes, *, is_reused: bool) -> bool:
        keep = False
        self._client.waits_for_service = True
        try:
            if self._asked.length == 0 and not is_reused:
                await self._send_up(wire, head)
            elif self._asked.length == 0:
                try:
                    await wire.send(head)
                except WireBroken:
                    raise _Stale from None
            elif self._asked.length is not None and self._asked.length <= len(self._client.buffer):
                body = self._client.take(self._asked.length)
                await self._send_up(wire, head + body)
                self._port.bytes_in += len(body)
                self._sent = True
            else:
                await self._send_up(wire, head)
                return await self._both_ways(wire)
            again, keep = await self._respond(wire, is_reused=is_reused)
            return again
        finally:
            self._client.waits_for_service = False
            if keep:
                upstream.give_back(self._port, wire)
            else:
                wire.close()

    async def _send_up(self, wire: Wire, data: bytes) -> None:
        try:
            await wire.send(data)
        except WireBroken:
            return  # it may have answered already; reading tells

    # --- a request with a body --------------------------------------------------------------------------

    async def _both_ways(self, wire: Wire) -> bool:
        """Send the body while the response is awaited: either may come first, and a large body needs both."""
        again = False
        failure: Exception | None = None
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._pump, wire, nursery.cancel_scope)
            try:
                again, _ = await self._respond(wire, is_reused=False)
            except (UpstreamBroken, WireBroken) as error:
                failure = error
            nursery.cancel_scope.cancel()
        if self._refusal is not None:
            raise self._refusal
        if failure is not None:
            raise failure
        return again and self._sent

    async def _pump(self, wire: Wire, whole: trio.CancelScope) -> None:
        try:
            if self._asked.length is None:
                await self._pump_chunks(wire)
            else:
                await self._pump_bytes(wire, self._asked.length)
            self._sent = True
        except _Refused as refused:
            self._refusal = refused.error
            whole.cancel()
        except WireBroken:
            return  # the service does not read on: its response tells why

    async def _from_client(self) -> bytes:
        try:
            data = await self._client.receive()
        except WireBroken as error:
            raise _Refused(error) from None
        if not data:
            raise _Refused(WireBroken("the client disconnected in the middle of its request"))
        return data

    async def _pump_bytes(self, wire: Wire, left: int) -> None:
        client, port = self._client, self._port
        while left:
            if not client.buffer and client.wire.is_plain and left >= SPLICE_BYTES:
                if await splice(client.wire, wire, left, self._passed_in) < left:
                    raise _Refused(WireBroken("the client disconnected in the middle of its request"))
                return
            data = client.take(left) if client.buffer else await self._from_client()
            if len(data) > left:
                client.buffer, data = data[left:], data[:left]
            left -= len(data)
            await wire.send(data)
            port.bytes_in += len(data)
            client.touch()

    def _passed_in(self, size: int) -> None:
        self._port.bytes_in += size
        self._client.touch()

    async def _pump_chunks(self, wire: Wire) -> None:
        reader = self._client.reader
        pieces: list[bytes | bytearray] = []
        while True:
            try:
                event = reader.next_event()
            except h11.RemoteProtocolError as error:
                raise _Refused(InvalidRequest(f"cannot accept the request: {error}")) from None
            if isinstance(event, h11.Data):
                pieces += (b"%x\r\n" % len(event.data), event.data, b"\r\n")
                self._port.bytes_in += len(event.data)
                await self._client.wire.turn.rest()
                continue
            if isinstance(event, h11.EndOfMessage):
                end = heads.last_chunk(event.headers.raw_items(), self._client.front.secret)
                await wire.send(b"".join([*pieces, end]))
                self._client.buffer = reader.trailing_data[0]
                return
            if pieces:
                await wire.send(b"".join(pieces))
                pieces.clear()
            reader.receive_data(await self._from_client())
            self._client.touch()

    # --- the response -----------------------------------------------------------------------------------

    async def _respond(self, wire: Wire, *, is_reused: bool) -> tuple[bool, bool]:
        """Pass the response on; return whether the client's connection, and the service's, can be used again."""
        client, asked = self._client, self._asked
        head, early, reader = await self._read_head(wire, is_reused=is_reused)
        if head.first == b"101":
            client.waits_for_service = False
            await self._switch(wire, early, head)
            return False, False
        try:
            answered = heads.measure(head, asked.method)
        except ValueError:
            raise self._broken("its answer has no length") from None
        again = asked.keep_alive and self._sent and not client.is_ending
        if answered.length is None and not answered.chunked:
            again = again and not asked.old
        data = heads.backward(head, answered, old=asked.old, close=not again)
        self.started = True
        # A client that leaves is noticed by the sweeper while nothing comes; what comes is noticed by the write.
        if answered.length is not None:
            clean = await self._pass_bytes(wire, data, early, answered.length)
        elif reader is not None and answered.chunked:
            clean = await self._pass_chunks(wire, reader, data)
        else:
            clean = False
            await self._pass_rest(wire, data, early)
        return again and self._sent, clean and answered.reusable and self._sent

    def _broken(self, why: str) -> UpstreamBroken:
        return UpstreamBroken(f"cannot answer from port {self._port.spec.port}: {why}", port=self._port.spec.port)

    async def _read_head(self, wire: Wire, *, is_reused: bool) -> tuple[Head, bytes, h11.Connection | None]:
        """Return the response's head (or the one that switches protocols), what came after it, and h11 if it read."""
        data = await self._hear(wire, is_reused=is_reused)
        self._check_head(data)
        head = plain.response(data) if self._asked.upgrade is None else None
        if head is not None:
            return head, data[head.size :], None
        reader = h11.Connection(h11.CLIENT, max_incomplete_event_size=MAX_HEAD_BYTES)
        reader.send(_UPGRADE if self._asked.upgrade is not None else _HEAD if self._asked.method == b"HEAD" else _PLAIN)
        if self._asked.upgrade is not None:
            reader.send(_END)
        reader.receive_data(data)
        informed = 0
        while True:
            await wire.turn.rest()
            self._check_head(reader.trailing_data[0])
            try:
                event = reader.next_event()
            except h11.RemoteProtocolError as error:
                raise self._broken(f"it does not speak HTTP/1.1 ({error})") from None
            if event is h11.NEED_DATA:
                reader.receive_data(await self._hear(wire, is_reused=False))
            elif isinstance(event, h11.InformationalResponse) and event.status_code != 101:
                informed += 1
                if informed > MAX_INFORMATIONAL:
                    raise self._broken(f"it sent over {MAX_INFORMATIONAL} informational responses")
                if not self._asked.old:
                    await self._client.wire.send(heads.backward(heads.of_response(event), None, old=False, close=False))
            elif isinstance(event, h11.Response | h11.InformationalResponse):
                http_heads.bound_trailer(reader)
                return heads.of_response(event), reader.trailing_data[0], reader
            else:
                raise self._broken("it ended before its answer began")

    def _check_head(self, data: bytes) -> None:
        try:
            http_heads.check(data)
        except (HeaderTooLarge, InvalidRequest) as error:
            raise self._broken(f"its answer's head is refused ({error.message})") from None

    async def _hear(self, wire: Wire, *, is_reused: bool) -> bytes:
        """Return what the service says.

        Raises:
            UpstreamBroken: it has closed the connection; `_Stale` on one that was used before.
        """
        try:
            data = await wire.receive(soon=False)
        except WireBroken:
            data = b""
        if not data:
            if is_reused:
                raise _Stale
            raise self._broken("it closed the connection before it had answered")
        return data

    async def _switch(self, wire: Wire, early: bytes, head: Head) -> None:
        client = self._client
        self.started = True
        await client.wire.send(heads.backward(head, None, old=False, close=False) + early)
        self._port.bytes_out += len(early)
        await tunnel(client, wire, self._port)

    async def _pass_bytes(self, wire: Wire, head: bytes, early: bytes, length: int) -> bool:
        """Pass a body of known length; return whether the service sent that and nothing more."""
        client, port = self._client, self._port
        body, extra = early[:length], len(early) > length
        await client.wire.send(head + body)
        port.bytes_out += len(body)
        left = length - len(body)
        while left:
            try:
                if client.wire.is_plain and left >= SPLICE_BYTES:
                    gone = await splice(wire, client.wire, left, self._passed_out)
                    if gone < left:
                        raise WireBroken("the service disconnected in the middle of its answer")
                    return True
                data = await wire.receive(min(left, READ_BYTES))
            except WireBroken:
                data = b""
            if not data:
                raise WireBroken("the service disconnected in the middle of its answer")
            left -= len(data)
            await client.wire.send(data)
            self._passed_out(len(data))
        return not extra

    def _passed_out(self, size: int) -> None:
        self._port.bytes_out += size
        self._client.touch()

    async def _pass_chunks(self, wire: Wire, reader: h11.Connection, head: bytes) -> bool:
        """Pass a chunked body as it comes; return whether it came to its end with nothing after it."""
        client, old = self._client, self._asked.old
        pieces: list[bytes | bytearray] = [head]
        while True:
            try:
                event = reader.next_event()
            except h11.RemoteProtocolError as error:
                raise WireBroken(f"the service's chunks are not valid: {error}") from None
            if isinstance(event, h11.Data):
                pieces += (event.data,) if old else (b"%x\r\n" % len(event.data), event.data, b"\r\n")
                self._passed_out(len(event.data))
                await wire.turn.rest()
                continue
            if isinstance(event, h11.EndOfMessage):
                end = b"" if old else heads.last_chunk(event.headers.raw_items())
                await client.wire.send(b"".join([*pieces, end]))
                return not reader.trailing_data[0]
            if pieces:
                await client.wire.send(b"".join(pieces))
                pieces.clear()
            data = await wire.receive()
            if not data:
                raise WireBroken("the service disconnected in the middle of its answer")
            reader.receive_data(data)

    async def _pass_rest(self, wire: Wire, head: bytes, early: bytes) -> None:
        """Pass a body that only its end tells, in chunks where the client knows them."""
        client, old = self._client, self._asked.old
        pieces, data = [head], early
        while True:
            if data:
                pieces += [data] if old else [b"%x\r\n" % len(data), data, b"\r\n"]
                self._passed_out(len(data))
            if pieces:
                await client.wire.send(b"".join(pieces))
                pieces.clear()
            data = await wire.receive()
            if not data:
                break
        if not old:
            await client.wire.send(b"0\r\n\r\n")


class _Refused(Exception):
    """The client's body is over before its end."""

    def __init__(self, error: Exception) -> None:
        super().__init__(str(error))
        self.error = error


__all__ = ["Exchange"]
