"""The parts of hypercorn that we build on, most of which are not its interface.

hypercorn's interface is an ASGI server. We use what is inside it: its protocol over h11 and its connection are the base
classes of `Http1` and `Wire`, because ASGI's way takes as long as all the rest of a small request. No other module
imports hypercorn; pyproject.toml bounds its version, and a test says which part an upgrade has taken away. Should one
go for good, `asgi.py` serves the same API over any ASGI server.
"""

from __future__ import annotations

import inspect
from typing import Any, Final

from hypercorn.config import Config
from hypercorn.events import Closed, Event, RawData, Updated
from hypercorn.protocol.events import Body, EndBody, Response, StreamClosed
from hypercorn.protocol.events import Event as StreamEvent
from hypercorn.protocol.h11 import H11Protocol
from hypercorn.trio.task_group import TaskGroup
from hypercorn.trio.tcp_server import TCPServer
from hypercorn.trio.worker_context import WorkerContext
from hypercorn.typing import ConnectionState
from hypercorn.utils import parse_socket_addr

__all__ = [
    "Body",
    "Closed",
    "Config",
    "ConnectionState",
    "EndBody",
    "Event",
    "H11Protocol",
    "RawData",
    "Response",
    "StreamClosed",
    "StreamEvent",
    "TCPServer",
    "TaskGroup",
    "Updated",
    "WorkerContext",
    "missing",
    "parse_socket_addr",
]

#: What `Http1` and `Wire` take from their base classes or replace there: methods, and arguments of the constructor.
_METHODS: Final[tuple[tuple[type[Any], tuple[str, ...]], ...]] = (
    (
        H11Protocol,
        (
            "handle",
            "stream_send",
            "_handle_events",
            "_send_h11_event",
            "_maybe_recycle",
            "_close_stream",
            "_check_protocol",
            "_create_stream",
        ),
    ),
    (TCPServer, ("protocol_send", "_read_data", "_close")),
    (TaskGroup, ("spawn",)),
)
_ARGUMENTS: Final[tuple[tuple[type[Any], tuple[str, ...]], ...]] = (
    (
        H11Protocol,
        ("app", "config", "context", "task_group", "connection_state", "ssl", "client", "server", "send"),
    ),
    (TCPServer, ("app", "config", "context", "state", "stream")),
)
#: What their constructors set.
_ATTRIBUTES: Final[tuple[tuple[type[Any], tuple[str, ...]], ...]] = (
    (
        H11Protocol,
        ("can_read", "config", "connection", "context", "keep_alive_requests", "send", "stream", "task_group"),
    ),
    (TCPServer, ("app", "config", "context", "idle_task", "send_lock", "state", "stream")),
    (WorkerContext, ("terminated",)),
    (
        Config,
        (
            "errorlog",
            "h11_max_incomplete_size",
            "include_date_header",
            "include_server_header",
            "keep_alive_max_requests",
            "keep_alive_timeout",
        ),
    ),
)


def missing() -> list[str]:
    """Return which of these parts the installed hypercorn lacks, as dotted names."""
    found = [f"{owner.__name__}.{name}" for owner, names in _METHODS for name in names if not hasattr(owner, name)]
    for owner, names in _ARGUMENTS:
        known = inspect.signature(owner).parameters
        found += [f"{owner.__name__}({name}=)" for name in names if name not in known]
    context, config = WorkerContext(None), Config()
    unused: Any = None
    made: dict[type[Any], Any] = {
        H11Protocol: H11Protocol(unused, config, context, unused, unused, False, None, None, unused),
        TCPServer: TCPServer(unused, config, context, unused, unused),
        WorkerContext: context,
        Config: config,
    }
    found += [
        f"{owner.__name__}.{name}" for owner, names in _ATTRIBUTES for name in names if not hasattr(made[owner], name)
    ]
    return found
