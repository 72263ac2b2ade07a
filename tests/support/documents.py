"""Reads the READMEs as GitHub shows them: headings, links, tables, blocks of code."""

from __future__ import annotations

import dataclasses
import pathlib
import re
from collections.abc import Iterator

ROOT = pathlib.Path(__file__).parents[2]
#: What a checkout may have beside its own files.
NO_PARTS = {"__pycache__", "results", "_data"}
_FENCE = re.compile(r"(`{3,}|~{3,})\s*(\w*)")
NOT_RUN = re.compile(r"<!-- not run: .+ -->")


@dataclasses.dataclass(frozen=True, slots=True)
class Block:
    """A fenced block: its language, text and first line's number; the last line before it that is not empty."""

    language: str
    text: str
    line: int
    before: str


def is_part(path: pathlib.Path) -> bool:
    """Return whether an entry of a directory belongs to the tree."""
    if path.name in NO_PARTS or path.name.startswith("."):
        return False
    return path.is_file() or any(is_part(entry) for entry in path.iterdir())


def pages() -> Iterator[pathlib.Path]:
    """Return every README, the front page first."""
    yield ROOT / "README.md"
    for entry in sorted(ROOT.iterdir()):
        if is_part(entry) and entry.is_dir():
            yield from sorted(entry.rglob("README.md"))


def blocks(text: str) -> list[Block]:
    """Return the fenced blocks of a page."""
    found, language, lines, fence, before, first = [], "", list[str](), "", "", 0
    for number, line in enumerate(text.split("\n"), 1):
        match = _FENCE.match(line)
        if fence and line.startswith(fence):
            found.append(Block(language, "\n".join(lines) + "\n", first, before))
            fence, before = "", ""
        elif fence:
            lines.append(line)
        elif match:
            fence, language, lines, first = match[1], match[2], [], number + 1
        elif line.strip():
            before = line.strip()
    assert not fence, f"the block at line {first} has no end"
    return found


def prose(text: str) -> str:
    """Return a page without its fenced blocks."""
    return re.sub(r"^(`{3,}|~{3,})[^\n]*\n.*?^\1\s*$", "", text, flags=re.MULTILINE | re.DOTALL)


def inline_code(text: str) -> list[str]:
    """Return what stands in backticks in a page's prose."""
    return re.findall(r"`([^`\n]+)`", prose(text))


def links(text: str) -> list[str]:
    """Return the targets of a page's links."""
    return re.findall(r"\]\(([^)\s]+)\)", re.sub(r"`[^`\n]+`", "", prose(text)))


def anchors(text: str) -> set[str]:
    """Return the names that GitHub gives a page's headings."""
    found: set[str] = set()
    for heading in re.findall(r"^#{1,6} +(.+?) *#*$", prose(text), re.MULTILINE):
        shown = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).replace("`", "")
        name = re.sub(r"[^\w\- ]", "", shown.lower()).replace(" ", "-")
        number = 0
        while (unique := f"{name}-{number}" if number else name) in found:
            number += 1
        found.add(unique)
    return found


def tables(text: str, first: str) -> list[list[str]]:
    """Return the rows of all tables whose first column is called `first`, each a list of its cells."""
    rows: list[list[str]] = []
    header: list[str] | None = None
    for line in prose(text).split("\n"):
        if not line.startswith("|"):
            header = None
            continue
        cells = [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
        if header is None:
            header = cells
        elif header[0].lower() == first and not set(line) <= set("|-: "):
            assert len(cells) == len(header), line
            rows.append(cells)
    return rows
