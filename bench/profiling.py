"""Where sandboxd's own time goes: the SDK's phases, the daemon's word for creations, and the daemon's functions."""

from __future__ import annotations

import io
import pstats
from pathlib import Path
from typing import TYPE_CHECKING

from bench.stats import show_spread, spread

if TYPE_CHECKING:
    from bench.daemon import Daemon

_LINES = 30
#: Not what importing costs at the start.
_SERVING = r"^(?!.*(importlib|marshal|builtins|_imp|_compiler|_parser|typing|dataclasses|<listcomp>|<genexpr>))"


def phases(found: dict[str, list[float]]) -> str:
    """Return a line for each phase of the SDK's cold runs."""
    shown = [(name, spread(samples)) for name, samples in found.items()]
    lines = [f"  {name:14} {show_spread(each.scaled(1000) if each else None)} ms" for name, each in shown]
    return "\n".join(["A cold run of the SDK:", *lines])


def births(daemon: Daemon) -> str:
    """Return the daemon's own time for creations, launcher and link included."""
    found = spread(daemon.births())
    return f"Creations by the daemon's log: {show_spread(found.scaled(1000) if found else None)} ms"


def functions(output: Path) -> str:
    """Return the daemon's most expensive functions, by their own time."""
    text = io.StringIO()
    pstats.Stats(str(output), stream=text).strip_dirs().sort_stats("tottime").print_stats(_SERVING, _LINES)
    return text.getvalue().strip()
