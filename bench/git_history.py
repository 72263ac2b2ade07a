"""Make git repositories with a history, always the same, by `git fast-import`.

`make(path, ...)` gives a bare repository: a tree of source-like files, commits that change a few of them, side branches
that are merged, tags of both kinds, a symbolic link, an executable file, names that are no ASCII, one large file.
"""

from __future__ import annotations

import random
import subprocess
from pathlib import Path

WORDS = [
    "".join(parts)
    for parts in (
        (a, b, c)
        for a in ("ba", "co", "di", "fu", "ge", "la", "mo", "ne", "pri", "sta")
        for b in ("ber", "con", "dul", "gat", "mis", "ran", "tel", "vor")
        for c in ("", "s", "ing", "ed", "er")
    )
]
LARGE = "assets/large.bin"
UNICODE = "docs/Füße und 日本語 — naïve.txt"


class _Stream:
    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)  # noqa: S311 - always the same, and no secret
        self.parts: list[bytes] = []
        self.mark = 0
        self.clock = 1_600_000_000

    def line(self, text: str) -> None:
        self.parts.append(text.encode() + b"\n")

    def data(self, data: bytes) -> None:
        self.parts.append(b"data %d\n" % len(data))
        self.parts.append(data + b"\n")

    def text(self, lines: int) -> list[str]:
        pick = self.random.choice
        return [
            "    " * self.random.randrange(4)
            + f"{pick(WORDS)} = {pick(WORDS)}({pick(WORDS)}, {self.random.randrange(10**6)})"
            for _ in range(lines)
        ]

    def commit(self, branch: str, parent: str | None, merge: str | None = None) -> str:
        self.mark += 1
        self.clock += 3600
        self.line(f"commit refs/heads/{branch}")
        self.line(f"mark :{self.mark}")
        self.line(f"committer Änne Example <anne@example.com> {self.clock} +0200")
        self.data(f"Change number {self.mark}: {' '.join(self.random.choices(WORDS, k=8))}\n".encode())
        if parent:
            self.line(f"from {parent}")
        if merge:
            self.line(f"merge {merge}")
        return f":{self.mark}"

    def file(self, path: str, data: bytes, mode: str = "100644") -> None:
        self.line(f'M {mode} inline "{path}"')
        self.data(data)


def stream(*, files: int = 60, commits: int = 200, large_bytes: int = 300_000, seed: int = 7) -> bytes:
    """Return the input of `git fast-import`: branches main, feature-x, release/1.0; tags v1.N (of both kinds)."""
    made = _Stream(seed)
    chance = made.random
    names = [f"src/{WORDS[i % 40]}/{WORDS[(i * 7) % 90]}/{WORDS[(i * 13) % 400]}_{i}.py" for i in range(files)]
    texts = {name: made.text(chance.randrange(40, 240)) for name in names}
    tip = made.commit("main", None)
    for name in names:
        made.file(name, "\n".join(texts[name]).encode())
    made.file("README.md", b"# A history\n")
    made.file("bin/run.sh", b"#!/bin/sh\necho run\n", "100755")
    made.file("link.md", b"README.md", "120000")
    made.file(UNICODE, "Grüße\n".encode())
    made.file(LARGE, chance.randbytes(large_bytes))
    for number in range(1, commits):
        if number % 40 == 0:  # a side branch, merged
            side = made.commit("side", tip)
            made.file(f"side/{number}.txt", f"side {number}\n".encode())
            tip = made.commit("main", tip, side)
            made.file(f"side/{number}.txt", f"side {number}\n".encode())
            continue
        tip = made.commit("main", tip)
        for name in chance.sample(names, k=min(2, len(names))):
            lines = texts[name]
            for _ in range(3):
                lines[chance.randrange(len(lines))] = made.text(1)[0]
            made.file(name, "\n".join(lines).encode())
        if number % 50 == 0:
            made.line(f"tag v1.{number // 50}")
            made.line(f"from {tip}")
            made.line(f"tagger Änne Example <anne@example.com> {made.clock} +0200")
            made.data(f"Version 1.{number // 50}\n".encode())
    for branch in ("feature-x", "release/1.0"):
        made.commit(branch, tip)
        made.file("branch.txt", branch.encode())
    made.line(f"reset refs/tags/light\nfrom {tip}\n")
    return b"".join(made.parts)


def make(path: Path, *, files: int = 60, commits: int = 200, large_bytes: int = 300_000, seed: int = 7) -> None:
    """Make a bare repository with that history at `path`."""
    history = stream(files=files, commits=commits, large_bytes=large_bytes, seed=seed)
    _git(path, "init", "-q", "--bare", "-b", "main", str(path))
    _git(path, "-C", str(path), "fast-import", "--quiet", given=history)
    _git(path, "-C", str(path), "update-ref", "-d", "refs/heads/side")
    _git(path, "-C", str(path), "repack", "-q", "-a", "-d", "-f")


def _git(path: Path, *args: str, given: bytes | None = None) -> None:
    subprocess.run(["git", *args], input=given, check=True, env={"PATH": "/usr/bin:/bin", "HOME": "/nonexistent"})
