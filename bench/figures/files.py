"""How fast a large file goes into a sandbox, and comes out again."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Final

from bench.contender import Transfers, Unavailable
from bench.figures.exec import hold_each
from bench.figures.table import Budget, Table, fill

if TYPE_CHECKING:
    from bench.contender import Contender

_MEBI: Final = 1024 * 1024


def measure(contenders: Mapping[str, Contender], quick: bool) -> list[Table]:
    """Return the tables of both ways; the file is random, and lies on the disk that is copied to."""
    size = (256 if quick else 1024) * _MEBI
    up = Table("upload", f"a file of {size // _MEBI} MiB in", "MB/s", higher_is_better=True)
    down = Table("download", f"a file of {size // _MEBI} MiB out", "MB/s", higher_is_better=True)
    with contextlib.ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="sandboxd-bench-files-")))
        source = directory / "source"
        with source.open("wb") as file:
            for _ in range(size // _MEBI):
                file.write(os.urandom(_MEBI))
        held = hold_each(contenders, stack, [up, down])

        def rates(name: str) -> list[list[float]]:
            each = held[name]
            if not isinstance(each, Transfers):
                raise Unavailable("copies no files")
            back = directory / "back"
            seconds = each.put(source), each.get(back)
            if back.stat().st_size != size:
                raise Unavailable(f"gave {back.stat().st_size} of {size} bytes")
            back.unlink()
            os.sync()  # what one wrote must not be written out in the time of the next
            return [[size / seconds[0] / 1e6], [size / seconds[1] / 1e6]]

        fill([up, down], list(held), Budget(10, 2, 4) if quick else Budget(90, 3, 6), rates)
    return [up, down]
