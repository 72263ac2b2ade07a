"""Memory files that nobody can change any more (include/uapi/linux/memfd.h, mm/memfd.c)."""

from __future__ import annotations

import fcntl
from typing import Final

#: include/uapi/linux/fcntl.h (Linux 5.1); the fcntl module has it from Python 3.13.
F_SEAL_FUTURE_WRITE: Final = 0x0010


def seal(fd: int) -> None:
    """Refuse every write, mapping for writing and change of size from now on.

    Only for a file that was never mapped for writing: such a mapping could still change it. F_SEAL_WRITE would refuse
    that too, but waits up to 150 ms for whatever else of the kernel holds a page of the file, and then fails with
    EBUSY. That is not ours to prevent: pages wait in a list of each processor's for a while after they are written.
    """
    seals = F_SEAL_FUTURE_WRITE | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_SEAL
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, seals)
