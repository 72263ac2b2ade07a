"""Waits for something of a process: its end, a port, a line of its log."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any, Final

import trio

from ..errors import InvalidRequest, ProtocolError
from ..spec import check_port, check_probe_path, check_seconds
from . import checks
from .execution import Exit, parse_exit
from .patterns import LineSearch

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from ..wire.messages import Event
    from .sandbox import Sandbox

#: The statuses that are good where nothing else is asked for.
GOOD_STATUSES: Final = (200, 399)


@dataclasses.dataclass(frozen=True, slots=True)
class Waited:
    """What a wait came to: `reason` is what ended it, `exit` how the process ended where that did.

    `status` is that of the HTTP answer where one was waited for.
    """

    met: bool
    reason: str
    exit: Exit | None = None
    line: str | None = None
    status: int | None = None


async def for_exit(sandbox: Sandbox, process: str, timeout_s: float | None) -> Waited:
    """Wait for a process's end.

    Raises:
        ProcessNotFound: there is none.
    """

    async def wait() -> Waited:
        return Waited(True, "exit", await _parsed(sandbox, await sandbox.ask("await_exit", process=process)))

    return await _in_time(wait, timeout_s)


async def for_port(
    sandbox: Sandbox,
    process: str | None,
    port: int,
    path: str | None,
    timeout_s: float | None,
    statuses: tuple[int, int] = GOOD_STATUSES,
) -> Waited:
    """Wait until somebody in the sandbox accepts on a TCP port, and answers `path` well where one is given.

    Args:
        sandbox: whose port.
        process: whose end ends the wait too; None waits for the port alone.
        port: its number.
        path: what a GET asks for; None is content with a listener.
        timeout_s: seconds; None waits for ever.
        statuses: the lowest and the highest status that is a good answer.

    Raises:
        ProcessNotFound: there is none.
        InvalidRequest: the port, the path or the statuses are none.
    """
    check_port(port)
    if path is not None:
        check_probe_path(path)
    if not 100 <= statuses[0] <= statuses[1] <= 599:
        raise InvalidRequest(
            "cannot accept status: it must be the lowest and the highest status, each 100 to 599", field="status"
        )

    async def wait() -> Waited:
        answer = await sandbox.ask("await_port", process=process, port=port, path=path, statuses=list(statuses))
        try:
            if checks.flag(answer, "met"):
                status = None if answer.get("status") is None else checks.integer(answer, "status", high=999)
                return Waited(True, "port", status=status)
            result = checks.table(answer, "result")
        except ProtocolError as error:
            raise await sandbox.why_broken(error) from error
        return Waited(False, "exit", await _parsed(sandbox, result))

    return await _in_time(wait, timeout_s)


async def for_log(sandbox: Sandbox, process: str, pattern: str, timeout_s: float | None) -> Waited:
    """Wait until a line of a process's output matches; what it printed before counts.

    Raises:
        ProcessNotFound: there is none.
        InvalidRequest: the pattern is none.
        LimitExceeded: the pattern costs too much.
    """
    search = LineSearch(pattern)

    async def wait() -> Waited:
        async with sandbox.processes.follow(process) as follow:
            while batch := await follow.next_batch():
                # No client may have many of these at once: they compete with nothing but themselves.
                line = await trio.to_thread.run_sync(_search, search, batch, limiter=sandbox.search_turns)
                if line is not None:
                    return Waited(True, "log", line=line)
            return Waited(False, "exit", follow.exit)

    return await _in_time(wait, timeout_s)


def _search(search: LineSearch, batch: list[Event]) -> str | None:
    for event in batch:
        if isinstance(event.data, bytes):
            line = search.feed(event.type, event.data)
            if line is not None:
                return line
    return search.pending()


async def _parsed(sandbox: Sandbox, result: dict[str, Any]) -> Exit:
    try:
        return parse_exit(result)
    except ProtocolError as error:
        raise await sandbox.why_broken(error) from error


async def _in_time(wait: Callable[[], Awaitable[Waited]], timeout_s: float | None) -> Waited:
    check_seconds(timeout_s, "timeout_s")
    with trio.move_on_after(float("inf") if timeout_s is None else timeout_s):
        return await wait()
    return Waited(False, "timeout")
