"""Options that many methods take, of a command and of a sandbox, and their names in the API.

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

    from sandboxd.spec import Limits

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
    """The options of a command in a session, which sets the other `CommandOptions` itself."""


class CommandOptions(StartOptions, _RunOptions, total=False):
    """The options of a command.

    Attributes:
        cwd: the working directory, absolute; default: the sandbox's.
        env: environment variables, added to the sandbox's.
        user: a name or a uid; default: the sandbox's.
        umask: the file mode creation mask in octal, such as "0027"; default: "0022".
        timeout: seconds after which the command and all its children are killed; default: never.
        keep_orphans: whether processes that the command leaves behind keep running.
    """


class SandboxOptions(TypedDict, total=False):
    """The options of a new sandbox; those not given take the daemon's defaults.

    Attributes:
        name: a unique name, 1 to 63 characters of a-z, 0-9 and inner dashes.
        rootfs: the name of a rootfs.
        env: environment variables for every command.
        cwd: the working directory of commands, absolute.
        user: the user that commands run as, a name or a uid.
        limits: `Limits(memory_bytes=, cpus=, pids=, disk_bytes=, io=IoLimits(…))` or the same as a mapping.
        labels: labels to attach.
        network: "none", "internet", or `{"mode": "allowlist", "allow": ["pypi.org:443", "10.1.0.0/16"]}` with, if
            you like, `receive_bytes_per_s`, `send_bytes_per_s` and `connections`.
        seccomp: the name of a seccomp profile: "default", "strict", or one that the operator added.
    """

    name: str | None
    rootfs: str | None
    env: Mapping[str, str] | None
    cwd: str | None
    user: str | int | None
    limits: Limits | Mapping[str, Any] | None
    labels: Mapping[str, str] | None
    network: str | Mapping[str, Any] | None
    seccomp: str | None


#: What a class says of its attributes: a name, a colon, and text that may go on in lines which stand further in.
_ATTRIBUTE = re.compile(r"^ {4}(\w+)(:.*(?:\n {5,}.*)*)$", re.MULTILINE)
#: The line of a docstring in whose place the options' own stand.
_PLACE = re.compile(r"^( +)options: .*$", re.MULTILINE)


def takes(
    kind: type[Any], documented: type[Any] = CommandOptions, **defaults: object
) -> Callable[[Callable[P, T]], Callable[P, T]]:
    """Decorate a function whose `**options` are of `kind`: each becomes an argument that can be seen.

    `documented` is the class whose docstring says what they are; `defaults` are those that are not None.
    """
    texts = dict(_ATTRIBUTE.findall(inspect.cleandoc(documented.__doc__ or "").partition("Attributes:")[2]))
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

        def spelled(place: re.Match[str]) -> str:
            lines = [f"{name}{texts[name]}".splitlines() for name in annotations]
            inner = place[1] + "    "
            return "\n".join(f"\n{inner}".join([place[1] + first, *map(str.strip, rest)]) for first, *rest in lines)

        checked.__doc__ = _PLACE.sub(spelled, build.__doc__ or "", count=1)
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
