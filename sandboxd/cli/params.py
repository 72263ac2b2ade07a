"""Types and options that several verbs share."""

from __future__ import annotations

import functools
import os
import re
from typing import TYPE_CHECKING, Any, Final

import click

if TYPE_CHECKING:
    from collections.abc import Callable

    from sandboxd.client import Client, Sandbox

_SIZE: Final = re.compile(r"(\d+(?:\.\d+)?)\s*([KMGT]?)(?:i?B)?\Z", re.IGNORECASE)
_FACTORS: Final = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}


class Size(click.ParamType[int]):
    """Bytes, as a number with K, M, G or T (powers of 1024)."""

    name = "size"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:  # noqa: ANN401
        """Return the number of bytes."""
        if isinstance(value, int):
            return value
        found = _SIZE.match(str(value).strip())
        if found is None:
            self.fail(f"{value!r} is not a size; give one such as 512M or 2G", param, ctx)
        return int(float(found[1]) * _FACTORS[found[2].upper()])


class KeyValue(click.ParamType[tuple[str, str]]):
    """`KEY=VALUE`; a bare KEY takes the value of this program's environment where `inherit` says so."""

    name = "key=value"

    def __init__(self, *, inherit: bool = False) -> None:
        self._inherit = inherit

    def convert(  # noqa: D102
        self,
        value: Any,  # noqa: ANN401 - click's own signature
        param: click.Parameter | None,
        ctx: click.Context | None,
    ) -> tuple[str, str]:
        if isinstance(value, tuple):
            return value
        key, equals, text = str(value).partition("=")
        if key and equals:
            return key, text
        if key and self._inherit and key in os.environ:
            return key, os.environ[key]
        self.fail(f"{value!r} is not KEY=VALUE", param, ctx)


def stack(*options: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Return one decorator for several, the first outermost."""

    def decorate(function: Any) -> Any:  # noqa: ANN401 - click's decorators take and give anything
        for option in reversed(options):
            function = option(function)
        return function

    return decorate


#: What `--io` may name, under the API's names.
_IO: Final = {
    "read": "read_bytes_per_s",
    "write": "write_bytes_per_s",
    "read-iops": "read_iops",
    "write-iops": "write_iops",
}
#: Entries of an allow list: `run`, `create` and `update`.
allow_option = click.option(
    "--allow",
    multiple=True,
    metavar="ENTRY",
    help="Allow only this destination: a host name, *.name, an address or a CIDR, with an optional :PORT or :LOW-HIGH. "
    "Repeatable.",
)

#: A sandbox's limits: `run`, `create` and `update`.
limit_options = stack(
    click.option("--memory", type=Size(), metavar="SIZE", help="Memory limit, e.g. 512M."),
    click.option("--cpus", type=float, metavar="N", help="CPU limit, e.g. 1.5."),
    click.option("--pids", type=int, metavar="N", help="Maximum number of processes and threads."),
    click.option("--disk", type=Size(), metavar="SIZE", help="Disk space limit, e.g. 2G."),
    click.option(
        "--io",
        type=KeyValue(),
        multiple=True,
        metavar="WHAT=RATE",
        help="Disk rate limit per second: read=10M, write=10M, read-iops=500 or write-iops=500. Repeatable.",
    ),
)

#: What a sandbox is created with: `run` and `create`.
sandbox_options = stack(
    click.option("--rootfs", metavar="NAME", help="Root filesystem.  [default: default]"),
    limit_options,
    click.option("--seccomp", metavar="NAME", help="Seccomp profile: default, strict or a custom one."),
    click.option("--network", type=click.Choice(["none", "internet", "allowlist"]), help="Network access."),
    allow_option,
)

#: The session that a command runs in: `exec` and `process start`.
session_option = click.option(
    "-s", "--session", metavar="ID", help="Run in a session, with the shell state left by its previous command."
)


def _to_dict(_ctx: click.Context, _param: click.Parameter, pairs: tuple[tuple[str, str], ...]) -> dict[str, str]:
    return dict(pairs)


def _to_flag(_ctx: click.Context, _param: click.Parameter, value: str | None) -> bool | None:
    return None if value is None else value == "keep"


#: Variables: of whatever starts.
env_option = click.option(
    "-e",
    "--env",
    type=KeyValue(inherit=True),
    multiple=True,
    callback=_to_dict,
    metavar="KEY=VALUE",
    help="Set an environment variable. KEY alone copies the value from your environment.",
)

#: The SDK's `StartOptions`, an option each, which has its name.
_START: Final = (
    env_option,
    click.option("-w", "--workdir", "cwd", metavar="DIR", help="Working directory, an absolute path."),
    click.option("-u", "--user", metavar="USER", help="User to run as, a name or a uid."),
    click.option("--umask", metavar="MASK", help="File mode creation mask, in octal, e.g. 0027.  [default: 0022]"),
)
#: The SDK's `CommandOptions`, likewise.
_COMMAND: Final = (
    *_START,
    click.option(
        "--timeout", type=float, metavar="SECONDS", help="Kill the command after SECONDS; exit with status 124."
    ),
    click.option(
        "--orphans",
        "keep_orphans",
        type=click.Choice(["kill", "keep"]),
        callback=_to_flag,
        help="Kill or keep processes that outlive the command.  [default: kill; keep in a session]",
    ),
)


def _gathered(*options: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Return the decorator that adds options, and passes those that are given together, as `options`."""
    names = [param.name for param in stack(*options)(lambda: None).__click_params__]

    def decorate(function: Callable[..., Any]) -> Any:  # noqa: ANN401 - click's decorators give anything
        @functools.wraps(function)
        def gathered(*args: Any, **values: Any) -> Any:  # noqa: ANN401 - the verb's own
            taken = {name: values.pop(name) for name in names}
            given = {name: value for name, value in taken.items() if value is not None and value != {}}
            return function(*args, options=given, **values)

        return stack(*options)(gathered)

    return decorate


#: What starts: `session create` and `shell`.
start_options = _gathered(*_START)
#: A command: `run`, `exec` and `process start`.
command_options = _gathered(*_COMMAND)


def limits(
    memory: int | None, cpus: float | None, pids: int | None, disk: int | None, io: tuple[tuple[str, str], ...] = ()
) -> dict[str, Any]:
    """Return the limits that were given, under the API's names."""
    given = {"memory_bytes": memory, "cpus": cpus, "pids": pids, "disk_bytes": disk, "io": io_of(io) or None}
    return {key: value for key, value in given.items() if value is not None}


def network_of(mode: str | None, allow: tuple[str, ...]) -> dict[str, Any] | None:
    """Return the network that was given, under the API's names; entries alone mean an allow list."""
    if not allow:
        return None if mode is None else {"mode": mode}
    return {"mode": mode or "allowlist", "allow": list(allow)}


def io_of(words: tuple[tuple[str, str], ...]) -> dict[str, int]:
    """Return what `--io` said, under the API's names.

    Raises:
        click.UsageError: a rate has an unknown name or is no number.
    """
    found = {}
    for what, rate in words:
        if what not in _IO:
            raise click.UsageError(f"--io takes {', '.join(f'{name}=RATE' for name in _IO)}, not {what!r}.")
        found[_IO[what]] = Size().convert(rate, None, None)
    return found


def command_of(words: tuple[str, ...]) -> list[str]:
    """Return the command's words without the `--` that may stand before them.

    Raises:
        click.UsageError: there is no command.
    """
    command = list(words[1:] if words and words[0] == "--" else words)
    if not command:
        raise click.UsageError("Missing argument 'COMMAND...'.")
    return command


def line_of(words: list[str], session: str | None) -> str | list[str]:
    """Return the command to send: in a session one word alone is a line of its shell."""
    return words[0] if session is not None and len(words) == 1 else words


def client_of(ctx: click.Context) -> Client:
    """Return the connections to the daemon that the options name; closed when the command ends."""
    from sandboxd.client import Client  # noqa: PLC0415 - a verb's help needs no httpx

    settings = ctx.find_root().obj or {}
    return ctx.find_root().with_resource(Client(settings.get("url"), settings.get("token")))


def sandbox_of(ctx: click.Context, key: str) -> Sandbox:
    """Return the sandbox with that id or name.

    Raises:
        SandboxNotFound: there is none.
    """
    from sandboxd.client import Sandbox  # noqa: PLC0415 - a verb's help needs no httpx

    return Sandbox.connect(key, client=client_of(ctx))


def target_of(ctx: click.Context, key: str, session: str | None, options: dict[str, Any]) -> Any:  # noqa: ANN401
    """Return what runs a command: the sandbox, or its session, which has some of the options for all its commands.

    Raises:
        click.UsageError: `options` has one of those.
        SandboxNotFound, SessionNotFound: there is none.
    """
    if session is None:
        return sandbox_of(ctx, key)
    from sandboxd.client import CommandOptions, SessionCommandOptions  # noqa: PLC0415 - see above

    session_has = CommandOptions.__annotations__.keys() - SessionCommandOptions.__annotations__.keys()
    for name in sorted(options.keys() & session_has):
        raise click.UsageError(f"--{name} cannot be used with --session; give it to `sandboxd session create`.")
    return sandbox_of(ctx, key).get_session(session)
