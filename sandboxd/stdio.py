"""Standard input, output and error are open, whatever started us: each program of ours says so before all else.

A process may be started with a standard stream closed (`>&-`). The next descriptor that it opens, a connection to the
daemon say, then has that number, and what it prints goes there. So every entry point calls `open_standard` first.
"""

from __future__ import annotations

import errno
import io
import os
import sys
from typing import Final

#: descriptor, its name in `sys`, how it is opened: input is at its end, output is refused by the kernel (EBADF) so
#: that it cannot be lost unnoticed, and diagnostics, which whoever closed stderr does not want, go nowhere.
_STREAMS: Final = ((0, "stdin", os.O_RDONLY), (1, "stdout", os.O_RDONLY), (2, "stderr", os.O_WRONLY))


def open_standard() -> None:
    """Open those of descriptors 0, 1 and 2 that are closed, and give Python its objects for them.

    Raises:
        OSError: the null device cannot be opened.
    """
    for fd, name, flags in _STREAMS:
        if _is_open(fd):
            continue
        # The lowest number that is free is this one, for those below it are open by now.
        os.set_inheritable(os.open(os.devnull, flags), True)
        if getattr(sys, name, None) is None:
            setattr(sys, name, _text(fd, name))


def _text(fd: int, name: str) -> io.TextIOWrapper:
    """Return what a starting interpreter makes of an open descriptor."""
    raw = io.FileIO(fd, "r" if fd == 0 else "w", closefd=False)
    raw.name = f"<{name}>"
    buffer = io.BufferedReader(raw) if fd == 0 else io.BufferedWriter(raw)
    return io.TextIOWrapper(buffer, "utf-8", "backslashreplace" if fd == 2 else "surrogateescape")


def _is_open(fd: int) -> bool:
    try:
        os.fstat(fd)
    except OSError as error:
        if error.errno != errno.EBADF:
            raise
        return False
    return True
