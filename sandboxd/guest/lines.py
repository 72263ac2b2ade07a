"""A command line that is too long for an argument: the kernel takes 128 KiB of each, a shell has no bound.

Such a line lies in a memory file, from which its shell puts it into a variable, and then does what `-c` does with an
argument: `$0`, `$-`, the positional parameters, the numbers of lines in messages and how it ends are the same. What is
seen of it in `ps` is its beginning, as a comment.
"""

from __future__ import annotations

import os
from typing import Final

from .session_shells import quote

#: One digit, since not every shell takes more in a redirection; scripts get it closed.
LINE_FD: Final = 9
#: Runs a line that a variable holds; what follows is a comment.
EVAL: Final = 'eval "unset _sandboxd_command; $_sandboxd_command" # '
_MAIN: Final = ". /proc/self/fd/9; exec 9<&-; " + EVAL
_SHOWN_CHARS: Final = 1000


def argv(words: tuple[str, ...]) -> tuple[str, ...]:
    """Return what runs a line that its shell finds at `LINE_FD`; `words` are those of `-c`."""
    return (*words[:-1], _MAIN + beginning(words[-1]))


def beginning(line: str) -> str:
    """Return the beginning of a line, fit for a comment."""
    return " ".join(line[:_SHOWN_CHARS].split()) + " …"


def open_line(line: str) -> int:
    """Return a descriptor of what a shell is to source for `argv`."""
    return memory_file(f"_sandboxd_command={quote(line)}\n")


def memory_file(text: str) -> int:
    """Return a descriptor of a memory file that holds `text`."""
    fd = os.memfd_create("sandboxd-session", os.MFD_CLOEXEC)
    try:
        left = memoryview(text.encode())
        while left:
            left = left[os.write(fd, left) :]
    except BaseException:
        os.close(fd)
        raise
    return fd
