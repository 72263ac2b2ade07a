"""`sandboxd events`: what happens to sandboxes, as it happens."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import click

from sandboxd.cli.failure import Interrupts
from sandboxd.cli.output import shown_line, write_all
from sandboxd.cli.params import client_of

if TYPE_CHECKING:
    from sandboxd.client.event_calls import SandboxEvent


@click.command()
@click.option("--sandbox", metavar="SANDBOX", help="Only events of this sandbox, an id or a name.")
@click.option("--type", "types", multiple=True, metavar="TYPE", help="Only events of this type. Repeatable.")
@click.option("--from", "start", type=click.IntRange(0), metavar="OFFSET", help="Start at this offset.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object per line.")
@click.pass_context
def events(
    ctx: click.Context, *, sandbox: str | None, types: tuple[str, ...], start: int | None, as_json: bool
) -> None:
    """Print the sandbox events that the daemon has kept, then new ones as they happen, until Ctrl-C.

    The types are created, destroyed, failed, frozen, thawed, degraded (part of the sandbox stopped working, or works
    again) and network-denied (the network refused a name or an address). A line `dropped` means that events were lost
    before they could be read.
    """
    with Interrupts(), client_of(ctx).events(sandbox=sandbox, types=types or None, start=start) as stream:
        for event in stream:
            line = json.dumps(_as_json(event)) if as_json else _line(event)
            write_all(1, line.encode() + b"\n")


def _as_json(event: SandboxEvent) -> dict[str, object]:
    whose = {} if event.sandbox is None else {"sandbox": event.sandbox, "sandbox_name": event.sandbox_name}
    return {"offset": event.offset, "time": event.time.timestamp(), "type": event.type, **whose, **event.facts}


def _line(event: SandboxEvent) -> str:
    from sandboxd.cli.file_text import utc  # noqa: PLC0415 - `--help` needs none of it

    facts = [f"{key}={value}" for key, value in event.facts.items() if value is not None]
    whose = [] if event.sandbox is None else [event.sandbox_name or event.sandbox]
    return shown_line(" ".join([utc(event.time), event.type, *whose, *facts]))
