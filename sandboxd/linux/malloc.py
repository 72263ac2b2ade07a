"""The C library's allocator: how freed memory comes back to the host. Where it is no glibc's, nothing is done.

An allocation over the threshold has pages of its own, which go back when it is freed. glibc raises that threshold by
itself with each such free, up to 32 MiB, and what is below it is kept in its heaps: a daemon that once held hundreds of
MiB keeps them. A fixed threshold keeps large ones out of the heaps, and `trim` gives back what is free within those.
"""

from __future__ import annotations

import ctypes
from typing import Final

#: malloc.h's numbers.
_M_TRIM_THRESHOLD: Final = -1
_M_MMAP_THRESHOLD: Final = -3
_M_ARENA_MAX: Final = -8
#: Above the pieces that every stream is made of (256 KiB): pages of their own cost such a one a third more time.
MMAP_THRESHOLD_BYTES: Final = 1024 * 1024
TRIM_THRESHOLD_BYTES: Final = 4 * 1024 * 1024
#: Heaps: threads wait for disks and names, and allocate little.
ARENAS: Final = 2

# Not PyDLL: a trim may take a while, and other threads are to run meanwhile.
_libc = ctypes.CDLL(None)


def set_up() -> None:
    """Say what comes back by itself. Before there are threads."""
    try:
        mallopt = _libc.mallopt
    except AttributeError:
        return
    mallopt(_M_ARENA_MAX, ARENAS)
    mallopt(_M_MMAP_THRESHOLD, MMAP_THRESHOLD_BYTES)
    mallopt(_M_TRIM_THRESHOLD, TRIM_THRESHOLD_BYTES)


def trim() -> None:
    """Give back the free pages of all heaps; for a thread, since it takes about 0.1 ms for each MiB."""
    try:
        malloc_trim = _libc.malloc_trim
    except AttributeError:
        return
    malloc_trim(ctypes.c_size_t(0))
