"""The messages of the link (daemon and init) and of the launcher's socket: one array each, checked on arrival.

Both sockets speak the same language: the daemon asks, the other side answers.

    HELLO   [0, version]                              first frame of either side
    REQUEST [1, id, op, params]                       daemon -> peer
    REPLY   [2, id, result, fds]                      peer -> daemon; ends the request
    FAILURE [3, id, kind, message, facts]             peer -> daemon; ends the request
    EVENT   [4, id, offset, time, type, data]         peer -> daemon; any number before the end of a stream
    CREDIT  [5, id, bytes]                            daemon -> peer; a stream may send that much more
    CANCEL  [6, id]                                   daemon -> peer; still answered by REPLY or FAILURE
"""

from __future__ import annotations

import dataclasses
from typing import Any, Final

from ..errors import RemoteProtocolError

#: Raised by one whenever a frame changes its meaning; a peer with another version is refused in its first frame.
VERSION: Final = 1

#: What an event takes of its stream's credit beside its data, so that a flood of empty events is bounded too.
EVENT_OVERHEAD: Final = 128


@dataclasses.dataclass(frozen=True, slots=True)
class Hello:
    """The first frame of each side."""

    version: int


@dataclasses.dataclass(frozen=True, slots=True)
class Request:
    """Asks for an operation; `id` is the daemon's and never used twice on a connection."""

    id: int
    op: str
    params: dict[str, Any]


@dataclasses.dataclass(frozen=True, slots=True)
class Reply:
    """Ends a request well; `fds` descriptors came (or go) with it."""

    id: int
    result: dict[str, Any]
    fds: int = 0


@dataclasses.dataclass(frozen=True, slots=True)
class Failure:
    """Ends a request with an error of `errors.py`."""

    id: int
    kind: str
    message: str
    facts: dict[str, Any]


@dataclasses.dataclass(frozen=True, slots=True)
class Event:
    """One event of a journal, on its way to a follower. `data` is bytes for output, a map for the rest."""

    id: int
    offset: int
    time: float
    type: str
    data: bytes | dict[str, Any]

    @property
    def cost(self) -> int:
        """What this event takes of its stream's credit."""
        return EVENT_OVERHEAD + (len(self.data) if isinstance(self.data, bytes) else 0)


@dataclasses.dataclass(frozen=True, slots=True)
class Credit:
    """Lets a stream send `bytes` more."""

    id: int
    bytes: int


@dataclasses.dataclass(frozen=True, slots=True)
class Cancel:
    """Says that nobody waits for a request any more."""

    id: int


Message = Hello | Request | Reply | Failure | Event | Credit | Cancel

_CLASSES: Final[tuple[type[Any], ...]] = (Hello, Request, Reply, Failure, Event, Credit, Cancel)
_CODES: Final = {cls: code for code, cls in enumerate(_CLASSES)}
#: The types of each class' fields, in order; `int` never takes a bool.
_SHAPES: Final[dict[type[Any], tuple[type | tuple[type, ...], ...]]] = {
    Hello: (int,),
    Request: (int, str, dict),
    Reply: (int, dict, int),
    Failure: (int, str, str, dict),
    Event: (int, int, float, str, (bytes, dict)),
    Credit: (int, int),
    Cancel: (int,),
}
_NAMES: Final = {cls: tuple(field.name for field in dataclasses.fields(cls)) for cls in _CLASSES}


def to_array(message: Message) -> list[Any]:
    """Return the array that stands for `message` on the wire."""
    cls = type(message)
    return [_CODES[cls], *(getattr(message, name) for name in _NAMES[cls])]


def from_array(array: list[Any]) -> Message:
    """Return the message that `array` stands for.

    Raises:
        RemoteProtocolError: no such message, or a field of the wrong type or sign.
    """
    code = array[0] if array else None
    if not isinstance(code, int) or isinstance(code, bool) or not 0 <= code < len(_CLASSES):
        raise RemoteProtocolError(f"cannot read a message of type {code!r:.40}")
    cls = _CLASSES[code]
    values = array[1:]
    shape = _SHAPES[cls]
    if len(values) != len(shape):
        raise RemoteProtocolError(f"cannot read a {cls.__name__} of {len(values)} fields: it has {len(shape)}")
    for value, wanted in zip(values, shape, strict=True):
        if not isinstance(value, wanted) or isinstance(value, bool) or (isinstance(value, int) and value < 0):
            raise RemoteProtocolError(f"cannot read a {cls.__name__}: a field is {value!r:.40}")
    message: Message = cls(*values)
    return message
