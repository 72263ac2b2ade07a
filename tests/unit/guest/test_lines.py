"""Command lines over the kernel's bound of an argument, run by real shells and compared with `-c`."""

from __future__ import annotations

import os
import re
import shutil
import subprocess

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sandboxd.guest import lines
from sandboxd.guest.session_shells import quote

SHELLS = [pytest.param(name, marks=pytest.mark.skipif(not shutil.which(name), reason="no such shell")) for name in
          ("sh", "bash")]  # fmt: skip


def run(argv: tuple[str, ...], line: str | None = None) -> tuple[int, bytes, bytes]:
    """Run a shell; where there is a long line it finds it at its descriptor."""
    fds = []
    if line is not None:
        fds = [lines.open_line(line)]
        argv = ("sh", "-c", f'exec {lines.LINE_FD}</proc/self/fd/{fds[0]}; exec "$@"', "sh", *argv)
    try:
        done = subprocess.run(argv, capture_output=True, check=False, timeout=30, pass_fds=fds)
    finally:
        for fd in fds:
            os.close(fd)
    return done.returncode, done.stdout, re.sub(rb"( -c:| eval:)", b"", done.stderr)


@pytest.mark.parametrize("shell", SHELLS)
@pytest.mark.parametrize(
    "line",
    [
        'echo "$0" "$-" "$#" "$@"', "echo 'it''s' \"quoted\" `echo x` $((1+1))", "nothing-of-that-name", "exit 7",
        "kill -TERM $$", "echo one\necho two\nnothing-of-that-name", "if", "cat /proc/self/fd/9", "set -- a b; echo $2",
        "", "# nothing", "echo $LINENO\n\necho $LINENO", "printf '%s' \"$_sandboxd_command\"",
    ],
)  # fmt: skip
def test_a_long_line_is_what_an_argument_would_be(shell: str, line: str) -> None:
    words = (shell, "-c", line)
    assert run(lines.argv(words), line) == run(words)


@pytest.mark.parametrize("shell", SHELLS)
def test_a_line_over_the_kernels_bound(shell: str) -> None:
    content = "ü$`\\" * 60_000 + "'"
    line = f"printf %s {quote(content)}"
    with pytest.raises(OSError, match="Argument list too long"):
        run((shell, "-c", line))
    assert run(lines.argv((shell, "-c", line)), line) == (0, content.encode(), b"")


@given(st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=3000))
def test_the_beginning_is_a_comment_on_one_line(line: str) -> None:
    shown = lines.beginning(line)
    assert shown.endswith(" …")
    assert len(shown.splitlines()) <= 1
    assert len(shown) <= 1002
    assert shown[:-2].split() == line[:1000].split()


def test_what_ps_shows_is_the_beginning() -> None:
    argv = lines.argv(("sh", "-x", "-c", "echo  hello\nexit 3" + " " * 2000 + "unseen"))
    assert argv[:3] == ("sh", "-x", "-c")
    assert argv[3].endswith("# echo hello exit 3 …")
    assert "\n" not in argv[3]


@pytest.mark.parametrize("text", ["", "ü" * 1_000_000])
def test_a_memory_file_holds_all_of_it(text: str) -> None:
    before = len(os.listdir("/proc/self/fd"))
    fd = lines.memory_file(text)
    assert not os.get_inheritable(fd)
    with open(fd, "rb") as file:
        assert os.pread(fd, 1 << 22, 0) == text.encode()
        assert file.tell() == len(text.encode())
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_memory_file_that_cannot_be_written_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(UnicodeEncodeError):
        lines.memory_file("\ud800")

    def full(*_: object) -> int:
        raise OSError(28, "full")

    with monkeypatch.context() as patch, pytest.raises(OSError, match="full"):
        patch.setattr(os, "write", full)
        lines.memory_file("x")
    assert len(os.listdir("/proc/self/fd")) == before
