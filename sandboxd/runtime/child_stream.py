"""The stream from a child inside a sandbox to the daemon: file jobs, clones and the interpreters of code contexts.

Theory of operation. Init forks or expects the child, and a request to init stays open for as long as the child lives:
that is the `ChildStream`. Its events are init's own. What the child says is frames: an interpreter's are forwarded by
init as events, while a file job and a clone have pipes of their own (`PipedChild`), which the daemon makes and passes
with the request. The daemon's end of a pipe is an open file description of its own, so changes that the other side
makes to its end (O_NONBLOCK, O_ASYNC) do not affect ours, and a read of an empty pipe waits in the loop like any other.

The same holds for all of them:

- If the request is not sent, the descriptors that it would have passed are closed.
- The decoder bounds each frame, and every loop over frames has a `Turn`, so a flood of tiny frames delays nobody.
- A frame that breaks the rules is a `RemoteProtocolError`, and the owner says whose fault that is. A file job is a fork
  of init, so init loses its link; a clone and an interpreter run what the user chose, so they alone end.
- A child with pipes says how it ended: `["end", {…}]` or `["fail", kind, message, facts]`. When its pipe ends without
  either, init knows why.
- Closing the stream cancels the request that is still open and closes every descriptor of ours.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, Final, Generic, Protocol, TypeVar

import trio

from ..errors import InternalError, ProtocolError, RemoteProtocolError, SandboxdError
from ..wire import framing
from .link_client import discard
from .strangers import Turn

if TYPE_CHECKING:
    from collections.abc import Awaitable

    from ..wire.messages import Event
    from .link_client import Stream

#: One read of a pipe, which holds 64 KiB until it is made larger.
_RECEIVE_BYTES: Final = 256 * 1024

Frame = TypeVar("Frame")
Result = TypeVar("Result")


class Owner(Protocol):
    """The sandbox that the child is in."""

    async def why_broken(self, error: ProtocolError) -> SandboxdError:
        """Return what a broken link means."""
        ...


class ChildStream(Generic[Frame]):
    """The request that a child lives by, and the decoder of what it says.

    Args:
        owner: who knows what a broken link means.
        decode: takes bytes and returns the frames that they complete, each decoded when it is asked for.
    """

    def __init__(self, owner: Owner, decode: Callable[[bytes], Iterator[Frame]]) -> None:
        self._owner = owner
        self._decode = decode
        self._turn = Turn()
        self._stream: Stream | None = None

    async def open(self, ask: Callable[[list[int]], Stream], fds: list[int]) -> None:
        """Make the request that `ask` returns for `fds`, which go with it or are closed.

        Raises:
            SandboxdError: why it could not be made.
        """
        try:
            stream = ask(fds)
            await stream.__aenter__()
        except BaseException as error:
            discard(fds)  # they never left
            if isinstance(error, ProtocolError):
                raise await self._owner.why_broken(error) from error
            raise
        self._stream = stream

    async def events(self) -> list[Event]:
        """Wait for init's next events and return them; an empty list is the end.

        Raises:
            SandboxdError: how the request failed.
        """
        assert self._stream is not None  # noqa: S101 - it was opened
        try:
            return await self._stream.next_batch()
        except ProtocolError as error:
            raise await self._owner.why_broken(error) from error

    async def follow(self, take: Callable[[Event], Awaitable[None]]) -> None:
        """Call `take` with each of init's events until the end.

        Raises:
            SandboxdError: how the request failed.
        """
        while batch := await self.events():
            self._turn.begin()
            for event in batch:
                await take(event)
                await self._turn.rest()

    async def take_frames(self, data: bytes, take: Callable[[Frame], None]) -> None:
        """Call `take` with each frame that these bytes complete.

        Raises:
            RemoteProtocolError: the child broke the rules.
        """
        for frame in self._decode(data):
            take(frame)
            await self._turn.rest()

    def close(self, *, cancel: bool = True) -> None:
        """Take no more events; cancels the request if it is open and `cancel` is true. Needs no await."""
        if self._stream is not None:
            self._stream.close(cancel=cancel)


class PipedChild(ChildStream[list[Any]], Generic[Result]):
    """A child that speaks over pipes of its own.

    Args:
        owner: who knows what a broken link means.
        limit: how large a frame may be.
        parse_end: returns the result that an end tells; raises RemoteProtocolError.
        parse_failure: returns the error that a kind, a message and facts tell; raises RemoteProtocolError.
        fail_protocol: hears that the child broke the rules, and returns what to tell the caller.

    Attributes:
        result: what its end told; None before, and where it failed.
        has_ended: whether it has told how it ended, one way or the other.
    """

    def __init__(
        self,
        owner: Owner,
        *,
        limit: int,
        parse_end: Callable[[dict[str, Any]], Result],
        parse_failure: Callable[[str, str, dict[str, Any]], SandboxdError],
        fail_protocol: Callable[[RemoteProtocolError], Awaitable[SandboxdError]],
    ) -> None:
        decoder = framing.FrameDecoder(limit=limit)

        def decode(data: bytes) -> Iterator[list[Any]]:
            decoder.feed(data)
            return iter(decoder.next_message, None)

        super().__init__(owner, decode)
        self._parse_end = parse_end
        self._parse_failure = parse_failure
        self._fail_protocol = fail_protocol
        self._frames: Iterator[list[Any]] = iter(())
        self._out: trio.lowlevel.FdStream
        self._into: trio.lowlevel.FdStream | None = None
        self.result: Result | None = None
        self.has_ended = False

    async def start(
        self, ask: Callable[[list[int]], Stream], fds: list[int], *, has_input: bool = False, pipe_bytes: int = 0
    ) -> None:
        """Make the pipes and the request, which takes `fds`, the child's end of its output, and that of its input.

        Raises:
            SandboxdError: why it could not be made; nothing is left open, `fds` neither.
        """
        try:
            theirs = self._make_pipes(has_input=has_input)
        except OSError as error:
            discard(fds)
            raise InternalError(f"cannot create a pipe: {error.strerror}") from error
        if pipe_bytes:
            _enlarge(self._out.fileno(), pipe_bytes)
        try:
            await self.open(ask, [*fds, *theirs])
        except BaseException:
            await self.close_pipes()
            raise

    def _make_pipes(self, *, has_input: bool) -> list[int]:
        """Keep our ends and return the child's."""
        out, theirs = os.pipe2(os.O_CLOEXEC)
        given = [theirs]
        if has_input:
            try:
                theirs_in, into = os.pipe2(os.O_CLOEXEC)
            except OSError:
                discard([out, theirs])
                raise
            given.append(theirs_in)
            self._into = trio.lowlevel.FdStream(into)
        self._out = trio.lowlevel.FdStream(out)
        return given

    async def send(self, data: bytes | memoryview) -> bool:
        """Write to its input; returns False when it takes no more (it has failed, and tells why)."""
        assert self._into is not None  # noqa: S101 - whoever sends has asked for it
        try:
            await self._into.send_all(data)
        except trio.BrokenResourceError:
            return False
        return True

    async def next_frame(self, kind: str) -> list[Any] | None:
        """Return the next frame, which must be `[kind, value]`; None after the end.

        Raises:
            SandboxdError: why the child failed, or what its breaking the rules means.
        """
        if self.has_ended:
            return None
        try:
            frame = await self._receive_frame()
            if len(frame) == 2 and frame[0] == kind:
                return frame
            self._take_end(frame)
        except RemoteProtocolError as error:
            raise await self._fail_protocol(error) from error
        return None

    def broken(self, what: str) -> Awaitable[SandboxdError]:
        """Return, when awaited, what to tell the caller whose child gave `what`."""
        return self._fail_protocol(RemoteProtocolError(f"the process gave {what}"))

    async def _receive_frame(self) -> list[Any]:
        await self._turn.rest()
        while (frame := next(self._frames, None)) is None:
            self._frames = self._decode(await self._receive())
            self._turn.begin()
        return frame

    async def _receive(self) -> bytes:
        try:
            data = await self._out.receive_some(_RECEIVE_BYTES)
        except (trio.BrokenResourceError, OSError) as error:
            raise InternalError(f"cannot read what the process reports: {error}") from error
        if not data:
            await self.events()  # why it ended without a word, init knows
            raise RemoteProtocolError("the process gave no result")
        return bytes(data)

    def _take_end(self, frame: list[Any]) -> None:
        if len(frame) == 2 and frame[0] == "end" and isinstance(frame[1], dict):
            self.result = self._parse_end(frame[1])
            self.has_ended = True
            return
        if len(frame) == 4 and frame[0] == "fail":
            kind, message, facts = frame[1:]
            if isinstance(kind, str) and isinstance(message, str) and isinstance(facts, dict):
                failure = self._parse_failure(kind, message, facts)
                self.has_ended = True
                raise failure
        raise RemoteProtocolError("the process gave a frame of an unknown kind")

    async def close_pipes(self) -> None:
        """Close our ends: a child that still writes gets SIGPIPE."""
        with trio.CancelScope(shield=True):
            await self._out.aclose()
            if self._into is not None:
                await self._into.aclose()


def _enlarge(fd: int, size: int) -> None:
    """Let a pipe hold more, where the kernel's bound for users allows it."""
    try:
        fcntl.fcntl(fd, fcntl.F_SETPIPE_SZ, size)
    except OSError:
        return
