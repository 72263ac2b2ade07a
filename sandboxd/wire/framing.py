"""Length-prefixed msgpack frames, with the descriptors that travel beside them.

A frame is `length:u32 big-endian | msgpack`, its value an array. A frame that carries descriptors says how many
in its message (`wire/messages.py`); the kernel delivers them (SCM_RIGHTS) no later than the frame's first byte
is read, so a plain queue keeps them in order.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from typing import Any, Final, TypeVar

import msgpack

from ..errors import LocalProtocolError, RemoteProtocolError
from .sendqueue import ReceivedFds

HEADER: Final = struct.Struct(">I")

#: A request carries at most a JSON body (4 MiB) or a piece of stdin; the rest is slack for keys.
MAX_REQUEST_FRAME: Final = 5 * 1024 * 1024
#: init reads at most 256 KiB from a pipe at once, and its lists are paged; 1 MiB keeps a taken-over init cheap.
MAX_REPLY_FRAME: Final = 1024 * 1024
#: A peer that passes more descriptors than it announces is broken or hostile; the kernel's own cap is 253 a message.
MAX_PENDING_FDS: Final = 16
#: Requests come from the daemon: argv and env may have many entries.
_REQUEST_LIMITS: Final = {"max_array_len": 65_536, "max_map_len": 4096, "max_ext_len": 0}
#: Replies may come from a taken-over init. The longest list is the launcher's of its sandboxes, a row of 300 bytes.
_REPLY_LIMITS: Final = {"max_array_len": 4096, "max_map_len": 256, "max_ext_len": 0}
#: Arrays and maps in one reply: a million empty ones would fit its frame and take a third of a second.
MAX_CONTAINERS: Final = 16_384

_Container = TypeVar("_Container")


class _ContainerCount:
    """Counts the containers of one frame as they are built, and ends the build when there are too many."""

    __slots__ = ("_left",)

    def __init__(self) -> None:
        self._left = MAX_CONTAINERS

    def __call__(self, container: _Container) -> _Container:
        self._left -= 1
        if self._left < 0:
            raise ValueError(f"it holds more than {MAX_CONTAINERS} containers")
        return container


def encode(message: list[Any], *, limit: int) -> bytes:
    """Return the frame that holds `message`.

    Raises:
        LocalProtocolError: the frame would be over `limit` bytes.
    """
    body: bytes = msgpack.packb(message, use_bin_type=True)
    if len(body) > limit:
        raise LocalProtocolError(f"cannot send a frame of {len(body)} bytes: the limit is {limit}", size=len(body))
    return HEADER.pack(len(body)) + body


class FrameDecoder:
    """Turns chunks of bytes and descriptors into messages.

    Owns every descriptor fed to it until `take_fds` hands it out; `close` closes the rest.
    """

    def __init__(self, *, limit: int) -> None:
        self._limit = limit
        self._counts = limit <= MAX_REPLY_FRAME
        self._limits = _REPLY_LIMITS if self._counts else _REQUEST_LIMITS
        self._buffer = bytearray()
        self._start = 0
        self._fds = ReceivedFds(MAX_PENDING_FDS)

    def __repr__(self) -> str:
        return f"<FrameDecoder {len(self._buffer) - self._start} bytes, {len(self._fds)} fds pending>"

    def feed(self, data: bytes | bytearray | memoryview, fds: Iterable[int] = ()) -> None:
        """Take what one recvmsg gave.

        Raises:
            RemoteProtocolError: more descriptors are pending than any frame may announce.
        """
        if fds:
            self._fds.add(fds)
        if self._start:
            # One move per feed, not one per frame.
            del self._buffer[: self._start]
            self._start = 0
        self._buffer += data

    def next_message(self) -> list[Any] | None:
        """Return the next whole message, or None when more bytes are needed.

        Raises:
            RemoteProtocolError: the frame is over the bound or is no msgpack array.
        """
        available = len(self._buffer) - self._start
        if available < HEADER.size:
            return None
        (size,) = HEADER.unpack_from(self._buffer, self._start)
        if size > self._limit:
            raise RemoteProtocolError(f"cannot accept a frame of {size} bytes: the limit is {self._limit}", size=size)
        if available < HEADER.size + size:
            return None
        begin = self._start + HEADER.size
        hooks: dict[str, Any] = {}
        if self._counts and size > MAX_CONTAINERS:  # a smaller frame has no room for too many
            count = _ContainerCount()
            hooks = {"list_hook": count, "object_hook": count}
        with memoryview(self._buffer) as whole, whole[begin : begin + size] as body:
            try:
                message = msgpack.unpackb(
                    body, raw=False, strict_map_key=False, max_bin_len=size, **self._limits, **hooks
                )
            except (ValueError, TypeError, RecursionError, msgpack.exceptions.UnpackException) as error:
                raise RemoteProtocolError(f"cannot read a frame of {size} bytes: {error}") from error
        self._start = begin + size
        if not isinstance(message, list):
            raise RemoteProtocolError(f"cannot read a frame that holds a {type(message).__name__}, not an array")
        return message

    def take_fds(self, count: int) -> list[int]:
        """Hand over the `count` oldest descriptors; the caller owns them now.

        Raises:
            RemoteProtocolError: fewer came than the frame announced.
        """
        return self._fds.take(count)

    def close(self) -> None:
        """Close the descriptors that nobody took."""
        self._fds.close()
