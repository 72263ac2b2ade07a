"""The template of git: clones a repository inside a sandbox, with dulwich, which the sandbox need not have.

Theory of operation. This package is imported in the template, on the host, once, and with it all that a clone may
need; `load` prepares OpenSSL. So nothing of a sandbox is ever imported, and no library or configuration of its loaded.
`work` runs in the template's child, which by then is a process of the sandbox like any other: its root, network, user,
limits and filter. It takes one order and speaks frames to the daemon, over a pipe that the daemon made
(`runtime/clone.py`):

    ["progress", map]                  any number (`progress.py` says of what)
    ["end", map] or ["fail", kind, message, facts]

    clone      from the order to a directory                  intake    the pack, checked while it comes
    transport  dulwich's protocols, bounded                pack      the pack, read
    names      host names, without the sandbox's libc      checkout  a tree's files, and nothing beside them
    submodules repositories in the repository              layout    .git
    local      a repository on the sandbox's disk          configfile its files of settings

The password comes with the order, over init's link, and is in this process's memory (not dumpable) and nowhere else:
no command line, no variable, no file.
"""

from __future__ import annotations

# What is imported here and not used is imported later, by its users, at the first need of it.
import encodings.idna
import glob
import os
import resource
import shlex
import signal
import socket
import ssl
import stringprep
import sys
import tempfile
import warnings
from types import FrameType
from typing import Any, Final

import dns.rdtypes.ANY.CNAME
import dns.rdtypes.ANY.OPT
import dns.rdtypes.ANY.SOA
import dns.rdtypes.IN.A
import dns.rdtypes.IN.AAAA
import dulwich.bitmap
import dulwich.commit_graph
import dulwich.diff_tree
import dulwich.filters
import dulwich.midx
import dulwich.reftable
import dulwich.repo
import dulwich.walk
import dulwich.worktree

from ...errors import InternalError, SandboxdError
from ...wire import framing
from . import names
from .clone import CloneRequest, clone
from .pack import MAX_OBJECT_BYTES
from .transport import Login

__all__ = ["load", "work"]

_LATER: Final = (
    encodings.idna,
    stringprep,
    dns.rdtypes.ANY.CNAME,
    dns.rdtypes.ANY.OPT,
    dns.rdtypes.ANY.SOA,
    dns.rdtypes.IN.A,
    dns.rdtypes.IN.AAAA,
    dulwich.bitmap,
    dulwich.commit_graph,
    dulwich.diff_tree,
    dulwich.filters,
    dulwich.midx,
    dulwich.reftable,
    dulwich.repo,
    dulwich.walk,
    dulwich.worktree,
    glob,
    shlex,
    tempfile,
    warnings,
)
#: The pipe's number once 0, 1 and 2 are /dev/null.
_PIPE: Final = 3
#: What a clone may map for its data where the sandbox has no smaller limit of memory.
MAX_MEMORY_BYTES: Final = 4 * 1024 * 1024 * 1024

_context: ssl.SSLContext


class _Stopped(BaseException):
    """Nobody waits for this clone any more, or not for so long."""


def load() -> None:
    """Prepare what would read files later; the imports are done by then."""
    global _context  # noqa: PLW0603 - made once, before any sandbox, for all children
    _context = ssl.create_default_context()


def work(given: Any) -> None:  # noqa: ANN401 - checked below
    """Do one order: see the module's theory of operation."""
    _take_pipe()
    sys.meta_path.clear()  # a module that `load` forgot is an error, and never code of the rootfs
    signal.signal(signal.SIGTERM, _stop)
    try:
        _send(["end", _clone(given)])
    except SandboxdError as error:
        _send(["fail", error.kind, error.message, error.facts])


def _clone(given: Any) -> dict[str, Any]:  # noqa: ANN401 - what init passed on from the daemon
    try:
        login = given.pop("login")
        limit = given.pop("memory_bytes") or MAX_MEMORY_BYTES
        given["sparse"] = tuple(given["sparse"])
        # A delta, its base and what they make are in memory at once.
        given["max_object_bytes"] = min(MAX_OBJECT_BYTES, limit // 4)
        order = CloneRequest(**given, login=Login(*login) if login else None)
    except (KeyError, TypeError) as error:
        raise InternalError(f"cannot read the order of a clone: {type(error).__name__}") from None
    _bound(limit)
    names.install()
    socket.setdefaulttimeout(order.stall_s)
    return clone(order, _context, lambda told: _send(["progress", told]))


def _take_pipe() -> None:
    """Move the pipe off the standard descriptors: what a library prints must reach no file that is opened later."""
    os.dup2(0, _PIPE, inheritable=False)
    null = os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)
    for fd in (0, 1, 2):
        os.dup2(null, fd)
    if null > _PIPE:
        os.close(null)


def _bound(limit: int) -> None:
    """Turn most ways to run out of memory into an error that can be told: the cgroup's way is a SIGKILL."""
    with open("/proc/self/statm", "rb") as file:
        held = int(file.read(128).split()[5]) * resource.getpagesize()  # the template's own, which costs nothing here
    hard = resource.getrlimit(resource.RLIMIT_DATA)[1]
    wanted = held + min(limit, MAX_MEMORY_BYTES)
    if hard != resource.RLIM_INFINITY:
        wanted = min(wanted, hard)
    resource.setrlimit(resource.RLIMIT_DATA, (wanted, hard))
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (4096 if hard == resource.RLIM_INFINITY else min(hard, 4096), hard))


def _stop(number: int, frame: FrameType | None) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    raise _Stopped


def _send(message: list[Any]) -> None:
    left = memoryview(framing.encode(message, limit=framing.MAX_REPLY_FRAME))
    while left:
        left = left[os.write(_PIPE, left) :]
