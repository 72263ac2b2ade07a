"""The options of a command: what every verb that runs one takes, and what the API calls it.

A verb takes them as keyword arguments, `**options: Unpack[CommandOptions]`, which type checkers and editors expand. Its
builder is decorated with `takes`, which does the same for `inspect.signature` and `help`.
"""

from __future__ import annotations

import base64
import functools
import inspect
import re
from typing import TYPE_CHECKING, Any, ParamSpec, TypedDict, TypeVar

from .calls import given

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

P = ParamSpec("P")
T = TypeVar("T")


class PlaceOptions(TypedDict, total=False):
    """Where something starts, in a session too: see `CommandOptions`."""

    cwd: str | None
    env: Mapping[str, str] | None


class StartOptions(PlaceOptions, total=False):
    """Where and as whom something starts: see `CommandOptions`."""

    user: str | int | None
    umask: str | None


class _RunOptions(TypedDict, total=False):
    timeout: float | None
    keep_orphans: bool


class SessionCommandOptions(PlaceOptions, _RunOptions, total=False):
    """The options of a command in a session, which has what is missing here: see `CommandOptions`."""


class CommandOptions(StartOptions, _RunOptions, total=False):
    """The options of a command.

    Attributes:
        cwd: where it starts, absolute; else the sandbox's.
        env: variables on top of the sandbox's.
        user: name or uid; else the sandbox's.
        umask: which permissions new files do not get, octal, such as "0027"; else "0022".
        timeout: seconds after which it is killed with all its children; else never.
        keep_orphans: whether processes that it leaves behind go on.
    """


_LINES = dict(re.findall(r"^ +(\w+)(:.*)$", (CommandOptions.__doc__ or "").partition("Attributes:")[2], re.MULTILINE))
#: The line of a docstring in whose place the options' own stand.
_PLACE = re.compile(r"^( +)options: .*$", re.MULTILINE)


def takes(kind: type[Any], **defaults: object) -> Callable[[Callable[P, T]], Callable[P, T]]:
    """Decorate a builder whose `**options` are of `kind`: each becomes an argument that can be seen.

    `defaults` are those that are not None.
    """
    annotations = {name: getattr(found, "__forward_arg__", found) for name, found in kind.__annotations__.items()}
    options = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=defaults.get(name), annotation=annotation)
        for name, annotation in annotations.items()
    ]

    def decorate(build: Callable[P, T]) -> Callable[P, T]:
        signature = inspect.signature(build)
        parameters = [*list(signature.parameters.values())[:-1], *options]
        names = {parameter.name for parameter in parameters}

        @functools.wraps(build)
        def checked(*args: P.args, **kwargs: P.kwargs) -> T:
            for name in kwargs.keys() - names:
                raise TypeError(f"{build.__name__}() got an unexpected keyword argument {name!r}")
            return build(*args, **kwargs)

        lines = "\n".join(rf"\g<1>{name}{_LINES[name]}" for name in annotations)
        checked.__doc__ = _PLACE.sub(lines, build.__doc__ or "", count=1)
        vars(checked)["__signature__"] = signature.replace(parameters=parameters)
        return checked

    return decorate


def options_json(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options that were given, under the API's names."""
    found = given(**options)
    if env := found.pop("env", None):
        found["env"] = dict(env)
    if "timeout" in found:
        found["timeout_s"] = found.pop("timeout")
    if "keep_orphans" in found:
        found["orphans"] = "keep" if found.pop("keep_orphans") else "kill"
    return found


def command_json(
    command: str | Sequence[str],
    options: Mapping[str, Any],
    *,
    stdin: bytes | str | bool | None = None,
    session: str | None = None,
) -> dict[str, Any]:
    """Return the JSON of a command: only what was given, since the daemon's defaults are the daemon's."""
    words = command if isinstance(command, str) else list(command)
    body = given(command=words, session=session) | options_json(options)
    if isinstance(stdin, bytes | bytearray | memoryview):
        # JSON holds text only; the encoding says nothing about the answer here, whose frames are bytes anyway.
        body["stdin"] = base64.b64encode(stdin).decode("ascii")
        body["encoding"] = "base64"
    elif stdin is not None and stdin is not False:
        body["stdin"] = stdin
    return body
