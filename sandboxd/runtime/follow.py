"""A process's journal, followed from the daemon: a stream of checked events that can begin anywhere."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..errors import ProtocolError, RemoteProtocolError
from ..wire import modes
from . import checks
from .execution import EventCheck, Exit, parse_exit

if TYPE_CHECKING:
    from types import TracebackType

    from ..wire.messages import Event
    from .link_client import Stream
    from .sandbox import Sandbox


class Follow:
    """Made by `Processes`; an async context manager. `next_batch` gives events until an empty list.

    Attributes:
        exit: how the process ended, once that event has come. A follower of what comes after it sees none.
        next_offset: after the end, the offset that the process's next event has or would have.
        modes: after the end, those of a terminal that the output left which its log has dropped.
        running: after the end, whether the process was running then (a snapshot ends before it does).
    """

    def __init__(self, sandbox: Sandbox, stream: Stream, process_id: str) -> None:
        self._sandbox = sandbox
        self._stream = stream
        self._over = False
        self.process_id = process_id
        self.exit: Exit | None = None
        self.next_offset = 0
        self.running = True
        self.modes: dict[str, str] = {}
        stream.check = EventCheck(started=True)

    def __repr__(self) -> str:
        return f"<Follow {self.process_id} exit={self.exit}>"

    async def __aenter__(self) -> Follow:
        await self._stream.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stream.close(cancel=self.exit is None)  # after its exit the answer is on its way

    async def next_batch(self) -> list[Event]:
        """Return the events that are here, waiting for the first; an empty list is the end.

        Raises:
            ProcessNotFound: there is no such process.
            SandboxFailed, SandboxGone: the sandbox ended meanwhile.
        """
        if self._over:
            return []
        try:
            batch = await self._stream.next_batch()
            if not batch:
                self._end()
        except ProtocolError as error:
            raise await self._sandbox.why_broken(error) from error
        if batch:
            last = batch[-1]
            if last.type == "exit" and isinstance(last.data, dict):
                self.exit = parse_exit(last.data)
                self.next_offset = last.offset + 1
                self.running = False
                self._over = True
        return batch

    def _end(self) -> None:
        self._over = True
        result = self._stream.result or {}
        self.next_offset = checks.integer(result, "next")
        self.running = checks.flag(result, "running")
        if "modes" in result:
            found = modes.checked(result["modes"])
            if found is None:
                raise RemoteProtocolError("cannot accept a terminal's modes: they are malformed")
            self.modes = found
