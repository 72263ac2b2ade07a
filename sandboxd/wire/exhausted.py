"""What it means to a caller that the kernel has no more of something: one table, for every operation of every door.

A sandbox that is at a limit of its own is no fault of the daemon's: its operations are told so by kind and `limit`,
whichever system call it was that failed. Everything that maps an errno asks here first.
"""

from __future__ import annotations

import errno
import os
from typing import Final

from ..errors import InternalError, LimitExceeded, QuotaExceeded, SandboxdError

#: The limit by errno: pids.max, RLIMIT_NPROC and work/'s cgroup.max.descendants; memory.max, against which what a
#: process is made of counts; descriptors, init's own or the operation's.
_LIMITS: Final = {
    errno.EAGAIN: "pids",
    errno.ENOMEM: "memory_bytes",
    errno.EMFILE: "open files",
    errno.ENFILE: "open files",
}
_DISK: Final = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})


def limit_error(error: BaseException, verb: str, about: str = "") -> SandboxdError | None:
    """Return the error that tells which limit was reached; None where it was none.

    `verb` and `about` complete "cannot …"; `about` is a path, or nothing.
    """
    what = f"cannot {verb} {about}".rstrip()
    path = {"path": about} if about else {}
    if isinstance(error, MemoryError):
        return LimitExceeded(f"{what}: it needs more memory than is available", limit="memory_bytes", **path)
    if not isinstance(error, OSError) or error.errno is None:
        return None
    code = errno.errorcode.get(error.errno, str(error.errno))
    # Their limits have errnos of other things.
    if str(getattr(error, "syscall", "")).startswith(("inotify", "epoll")):
        limit = "watches" if error.errno in _DISK or error.errno in _LIMITS else None
    elif error.errno in _DISK:
        return QuotaExceeded(f"{what}: {os.strerror(error.errno).lower()}", limit="disk_bytes", errno=code, **path)
    else:
        limit = _LIMITS.get(error.errno)
    if limit is None:
        return None
    return LimitExceeded(f"{what}: the sandbox is at its limit of {limit}", limit=limit, errno=code, **path)


def known(error: BaseException, verb: str) -> SandboxdError:
    """Return what to tell of any failure of an operation: a limit, or else a fault of ours."""
    return limit_error(error, verb) or InternalError(f"cannot {verb}: {error}")
