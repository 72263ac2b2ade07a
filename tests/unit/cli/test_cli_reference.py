"""sandboxd/cli/README.md against the command line: its table has every command."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

import click

import sandboxd
from sandboxd.cli.main import cli

if TYPE_CHECKING:
    from collections.abc import Iterator

_README = (Path(sandboxd.__file__).parent / "cli" / "README.md").read_text()
_TABLE = _README.partition("\n## Every verb\n")[2].partition("\n## ")[0]


def _commands(group: click.Group, words: tuple[str, ...]) -> Iterator[str]:
    context = click.Context(group)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        if isinstance(command, click.Group):
            yield from _commands(command, (*words, name))
        else:
            yield " ".join((*words, name))


def test_the_table_has_every_command() -> None:
    found = re.findall(r"^\| `([a-z -]+[a-z])\b[^`]*` \|", _TABLE, re.MULTILINE)
    assert sorted(found) == sorted(_commands(cli, ("sandboxd",)))
