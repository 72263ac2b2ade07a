"""Search by name and by content, and replacement, as file jobs.

A caller's pattern may never finish. It then uses only the sandbox's own CPU time, in a separate process, until an alarm
at the deadline interrupts Python's matcher (which checks for signals every 4096 steps). Matches found until then are
kept, and the result says that it is incomplete. Content is read in blocks of whole lines, so memory is bounded whatever
the size; a line longer than a block is cut. Files with a NUL near their start count as binary and are skipped.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import re
import signal
import stat
from collections.abc import Iterator
from types import FrameType
from typing import Any, Final

from ..errors import Conflict, InvalidRequest
from . import globs
from .file_operations import followed, require_directory
from .jobs import Deps, Function
from .path_filter import Ignores
from .paths import TEMPORARY, mapped, path_of, same_file, shown, type_of
from .tree import Entry, walk

#: One block of a file, and so one line at most.
BLOCK_BYTES: Final = 4 * 1024 * 1024
#: Larger files are not rewritten: replacement holds a whole file, and what comes out of it.
MAX_REPLACE_BYTES: Final = 64 * 1024 * 1024
#: How often a file is rewritten anew that somebody else writes meanwhile.
_TRIES: Final = 5
#: How much of a line is told.
MAX_LINE_CHARS: Final = 500
#: Where a NUL means binary (as in git and grep).
_SNIFF_BYTES: Final = 8192
_OPEN: Final = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC


class _Deadline(BaseException):
    """The time is over."""


def _on_alarm(number: int, frame: FrameType | None) -> None:
    raise _Deadline


@dataclasses.dataclass(slots=True)
class _Rules:
    """Which files are meant."""

    name: globs.Pattern | None
    gitignore: bool
    hidden: bool


def search(deps: Deps, params: dict[str, Any]) -> dict[str, Any]:
    """Give rows {path, type} of names that match `name`, or {path, line, column, text} of lines that match `content`.

    The result says why it is not all (`truncated`: "limit" or "timeout", else None), and how many `files` were looked
    at.
    """
    content = _compile(params["content"], params) if params["content"] is not None else None
    limit = int(params["limit"])
    state = {"found": 0, "files": 0}
    truncated = None
    try:
        with _alarm(float(params["timeout_s"])):
            for path, entry in _files(deps, params, only_files=content is not None):
                state["files"] += 1
                if content is None:
                    deps.writer.row({"path": os.fsencode(path), "type": type_of(entry.facts.st_mode)}, len(path))
                    state["found"] += 1
                else:
                    for row in _lines(entry, path, content, limit - state["found"]):
                        deps.writer.row(row, len(row["path"]) + len(row["text"]))
                        state["found"] += 1
                if state["found"] >= limit:
                    truncated = "limit"
                    break
    except _Deadline:
        truncated = "timeout"
    return {"truncated": truncated, "files": state["files"]}


def replace(deps: Deps, params: dict[str, Any]) -> dict[str, Any]:
    """Replace `pattern` by `replacement` in every file meant; give rows {path, count} of those that changed.

    Each file is written anew and renamed into its place: whole, with its mode and owner, or not at all.
    """
    literal = not params["regex"]
    pattern = _compile(re.escape(params["pattern"]) if literal else params["pattern"], params)
    replacement: str = params["replacement"]
    template = replacement.replace("\\", "\\\\") if literal else replacement
    limit = int(params["limit"])
    found = {"files": 0, "count": 0}
    truncated = None
    try:
        with _alarm(float(params["timeout_s"])):
            for path, entry in _files(deps, params, only_files=True):
                if found["files"] >= limit:
                    truncated = "limit"
                    break
                count = _replace_one(entry, pattern, template)
                if count:
                    found["files"] += 1
                    found["count"] += count
                    deps.writer.row({"path": os.fsencode(path), "count": count}, len(path))
    except _Deadline:
        truncated = "timeout"
    return {"truncated": truncated, "files": found["files"], "count": found["count"]}


@contextlib.contextmanager
def _alarm(seconds: float) -> Iterator[None]:
    signal.signal(signal.SIGALRM, _on_alarm)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


def _compile(pattern: str, params: dict[str, Any]) -> re.Pattern[str]:
    flags = re.MULTILINE | (re.IGNORECASE if params["ignore_case"] else 0)
    try:
        with _alarm(float(params["timeout_s"])):
            return re.compile(pattern, flags)
    except (re.error, OverflowError, RecursionError, ImportError) as error:
        raise InvalidRequest(f"cannot use the pattern: {error}", field="content") from None
    except _Deadline:
        raise InvalidRequest("cannot use the pattern: it takes too long to compile", field="content") from None


# --- which files ---


def _files(deps: Deps, params: dict[str, Any], *, only_files: bool) -> Iterator[tuple[str, Entry]]:
    """Give what is meant below `path`, or `path` itself if it is a file, with its whole path."""
    path = path_of(params)
    name = globs.Pattern(params["name"]) if params["name"] is not None else None
    rules = _Rules(name, params["gitignore"], params["hidden"])
    with mapped(path, "search"):
        fd, last, facts = followed(deps.kernel, path)
    if not stat.S_ISDIR(facts.st_mode):
        if stat.S_ISREG(facts.st_mode):
            yield path, Entry(fd, last, last, facts)
        return
    root = require_directory(deps.kernel, path, "search")
    base = path.rstrip("/")
    entries = walk(root, hidden=rules.hidden)
    for entry in Ignores(root).pick(entries) if rules.gitignore else entries:
        if only_files and not stat.S_ISREG(entry.facts.st_mode):
            continue
        if rules.name is None or rules.name.matches(entry.path, is_folder=entry.is_folder):
            yield f"{base}/{entry.path}", entry


# --- content ---


def _open_file(entry: Entry) -> int | None:
    """Open a regular file that a walk met; None if it is something else by now."""
    with contextlib.suppress(OSError):
        fd = os.open(entry.name, _OPEN, dir_fd=entry.directory)
        if stat.S_ISREG(os.fstat(fd).st_mode):
            return fd
        os.close(fd)
    return None


def _lines(entry: Entry, path: str, pattern: re.Pattern[str], limit: int) -> Iterator[dict[str, Any]]:
    """Give a file's matching lines, `limit` at most; lines and columns count from 1, columns in characters."""
    fd = _open_file(entry)
    if fd is None:
        return
    line = 1
    try:
        for text in _blocks(fd):
            at = 0  # where counting stands
            told = -1
            for match in pattern.finditer(text):
                line += text.count("\n", at, match.start())
                at = match.start()
                if at >= len(text) and text.endswith("\n"):
                    break  # behind the last line there is none
                if line == told:
                    continue
                told = line
                begin = text.rfind("\n", 0, at) + 1
                end = text.find("\n", at)
                whole = text[begin : len(text) if end < 0 else end][:MAX_LINE_CHARS]
                yield {
                    "path": os.fsencode(path),
                    "line": line,
                    "column": at - begin + 1,
                    "text": shown(whole.removesuffix("\r")),
                }
                limit -= 1
                if limit <= 0:
                    return
            line += text.count("\n", at)
    finally:
        os.close(fd)


def _blocks(fd: int) -> Iterator[str]:
    """Give a text file in blocks of whole lines; nothing of a binary one."""
    rest = b""
    first = True
    while True:
        data = os.read(fd, BLOCK_BYTES - len(rest))
        if first and b"\0" in data[:_SNIFF_BYTES]:
            return
        first = False
        block = rest + data
        if not block:
            return
        cut = block.rfind(b"\n") + 1 if data else len(block)
        if not cut:
            if len(block) < BLOCK_BYTES:
                rest = block
                continue
            cut = len(block)
        rest = block[cut:]
        yield block[:cut].decode("utf-8", "surrogateescape")
        if not data:
            return


class _Changed(Exception):
    """Somebody else wrote the file while it was being rewritten."""


def _replace_one(entry: Entry, pattern: re.Pattern[str], template: str) -> int:
    """Rewrite one file; return how many matches were replaced.

    Raises:
        Conflict: somebody else writes it all the time.
    """
    for _ in range(_TRIES):
        with contextlib.suppress(_Changed):
            return _try_to_replace(entry, pattern, template)
    raise Conflict(f"cannot replace in {shown(entry.path)}: it is being written", path=shown(entry.path))


def _try_to_replace(entry: Entry, pattern: re.Pattern[str], template: str) -> int:
    fd = _open_file(entry)
    if fd is None:
        return 0
    try:
        facts = os.fstat(fd)
        if not 0 < facts.st_size <= MAX_REPLACE_BYTES:
            return 0
        with open(fd, "rb", closefd=False) as file:
            data = file.read(MAX_REPLACE_BYTES)
    finally:
        os.close(fd)
    if b"\0" in data[:_SNIFF_BYTES]:
        return 0
    try:
        text, count = pattern.subn(template, data.decode("utf-8", "surrogateescape"))
        if count:
            _rewrite(entry, facts, text.encode("utf-8", "surrogateescape"))
    except (re.error, IndexError) as error:
        raise InvalidRequest(f"cannot use the replacement: {error}", field="replacement") from None
    return count


def _rewrite(entry: Entry, facts: os.stat_result, data: bytes) -> None:
    temporary = f"{TEMPORARY}{os.urandom(8).hex()}"
    # No alarm in between: a temporary file must not stay.
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGALRM})
    try:
        fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600, dir_fd=entry.directory)
        try:
            with open(fd, "wb") as file:
                file.write(data)
                file.flush()
                os.fchown(fd, facts.st_uid, facts.st_gid)
                os.fchmod(fd, stat.S_IMODE(facts.st_mode))
            now = os.stat(entry.name, dir_fd=entry.directory, follow_symlinks=False)
            if not same_file(now, facts) or now.st_mtime_ns != facts.st_mtime_ns:
                raise _Changed
            os.rename(temporary, entry.name, src_dir_fd=entry.directory, dst_dir_fd=entry.directory)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(temporary, dir_fd=entry.directory)
            raise
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGALRM})


FUNCTIONS: Final[dict[str, Function]] = {"search": search, "replace": replace}
