"""What the container says of itself: /, /api/ping, /api/version, /api/commands."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NoReturn

from quart_trio.wrappers import TrioResponse

from ...runtime.logs import STREAMS
from ...spec import CommandSpec
from ..call import answer
from . import container, names, problems
from .problems import Refusal

if TYPE_CHECKING:
    from ..call import Call
    from .tokens import SocketQuery

#: The version of theirs that is spoken here: their clients compare it with their own, and warn.
SPOKEN: Final = "0.12.10"
#: What their client's `transport` may be here.
TRANSPORTS: Final = ("http", "websocket")
#: The names of all programs in PATH.
_PROGRAMS: Final = (
    'IFS=:; for directory in $PATH; do for file in "$directory"/*; do [ -x "$file" ] && echo "${file##*/}"; done; done'
)
_MAX_BYTES: Final = 1024 * 1024


async def root(call: Call, name: str) -> TrioResponse:
    """Say who answers."""
    names.check_container_id(name)
    return TrioResponse(f"sandboxd {call.facts.version}\n", content_type="text/plain; charset=utf-8")


async def rpc(call: Call, name: str, query: SocketQuery) -> NoReturn:
    """Refuse the transport rpc, by a status after which their client does not try again by itself."""
    del call, query
    names.check_container_id(name)
    raise Refusal(
        "VALIDATION_FAILED",
        f"cannot use the transport rpc: choose {' or '.join(TRANSPORTS)} (SandboxOptions.transport, or the variable "
        "SANDBOX_TRANSPORT)",
        transport="rpc",
        transports=list(TRANSPORTS),
    )


async def ping(call: Call, name: str) -> TrioResponse:
    """Say that the sandbox answers; it comes to be, where it must."""
    sandbox = await container.reach(call, name)
    await sandbox.ping()
    return answer({"success": True, "status": "healthy", "message": "pong", "timestamp": problems.timestamp()})


async def version(call: Call, name: str) -> TrioResponse:
    """Tell which version of their API this is, and what gives it."""
    names.check_container_id(name)
    shown = {"success": True, "version": SPOKEN, "server": f"sandboxd {call.facts.version}"}
    return answer({**shown, "timestamp": problems.timestamp()})


async def commands(call: Call, name: str) -> TrioResponse:
    """List the programs that a command line finds."""
    sandbox = await container.reach(call, name)
    found = bytearray()
    async with sandbox.execute(CommandSpec(argv=CommandSpec.shell(_PROGRAMS), timeout_s=10.0), batched=True) as listing:
        while batch := await listing.next_batch():
            found += b"".join(one.data for one in batch if one.type == STREAMS[0] and isinstance(one.data, bytes))
            del found[_MAX_BYTES:]
    programs = sorted(set(found.decode("utf-8", "replace").split()))
    shown = {"success": True, "availableCommands": programs, "count": len(programs)}
    return answer({**shown, "timestamp": problems.timestamp()})
