"""What a build tells whoever watches it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

__all__ = ["Progress", "ProgressCallback", "silent"]


@dataclass(frozen=True, slots=True)
class Progress:
    """A step begins (`line` is None), or the program that it runs printed a line."""

    number: int
    total: int
    step: str
    line: str | None = None


ProgressCallback: TypeAlias = Callable[[Progress], None]


def silent(progress: Progress) -> None:
    """Watch nothing."""
