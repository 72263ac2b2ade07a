"""The operator's table of keys (systemd/README.md) says what `Config` says."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import pytest

from sandboxd.cli import doctor
from sandboxd.config import Config, load
from sandboxd.spec import Limits

README = Path(__file__).parents[2] / "systemd" / "README.md"
ROW = re.compile(r"\| `([a-z0-9_.]+)` \| ([^|]+) \| ([^|]+) \| ([^|]+) \|")
UNSET = "–"  # noqa: RUF001 - the table's own dash


def rows() -> dict[str, str]:
    """Return the default that the table gives for each key, as it is written."""
    text = README.read_text(encoding="utf-8")
    section = text.partition("\n## Configuration\n")[2].partition("\n## ")[0]
    table = [line for line in section.splitlines() if line.startswith("| `")]
    found = [ROW.fullmatch(line) for line in table]
    assert all(found), [line for line, match in zip(table, found, strict=True) if match is None]
    names = [match[1] for match in found if match]
    assert len(names) == len(set(names)), "a key stands twice"
    return {match[1]: match[3].strip() for match in found if match}


def defaults() -> dict[str, object]:
    """Return every key with its default; those of the table `limits` one by one."""
    config = Config()
    found = {item.name: getattr(config, item.name) for item in dataclasses.fields(Config) if item.name != "limits"}
    return found | {f"limits.{item.name}": getattr(config.limits, item.name) for item in dataclasses.fields(Limits)}


def test_the_table_has_exactly_the_keys_of_the_configuration() -> None:
    assert set(rows()) == set(defaults())


def test_a_dash_stands_where_there_is_no_default() -> None:
    table = rows()
    assert {key for key, text in table.items() if text == UNSET} == {
        key for key, value in defaults().items() if value is None
    }


def test_the_defaults_of_the_table_are_the_configuration_without_a_file(tmp_path: Path) -> None:
    file = tmp_path / "config.toml"
    given = [f"{key} = {text.strip('`')}" for key, text in rows().items() if text != UNSET]
    file.write_text("\n".join(given), encoding="utf-8")
    assert load(file, {}) == Config()


@pytest.mark.slow  # it tries things in children
def test_each_finding_of_the_doctor_has_a_row() -> None:
    section = README.read_text(encoding="utf-8").partition("\n## Troubleshooting\n")[2]
    named = set()
    for cell in (line.split("|")[1] for line in section.splitlines() if line.startswith("| ")):
        words = re.findall(r"`([^`]+)`", cell)
        named |= {word if not word.startswith(":") else words[0].partition(":")[0] + word for word in words}
    # Those that are a host's own: its rootfs, and the profiles beside the first.
    found = {item.name for item in doctor.examine(Config()).features}
    assert {name for name in found if not name.startswith(("rootfs:", "seccomp:"))} <= named
    assert {"rootfs:NAME", "seccomp:default"} <= named
