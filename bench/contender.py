"""What a figure can ask of each contender."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Protocol, runtime_checkable

if TYPE_CHECKING:
    from bench.figures.contexts import Interpreters
    from bench.figures.javascript import Scripts

#: What a cold run prints, and what `exec` runs.
ECHO = ("/bin/echo", "hi")
TRUE = ("/bin/true",)


class Unavailable(Exception):
    """A contender cannot run here; the text is the reason, in its own words where it gave any."""


@dataclasses.dataclass(frozen=True, slots=True)
class Cold:
    """One life: seconds to the first output, and to the end with everything given back."""

    first_s: float
    total_s: float
    phases: dict[str, float] = dataclasses.field(default_factory=dict)


class Held(Protocol):
    """A sandbox that is there and idle."""

    def exec(self) -> float:
        """Run /bin/true in it and return the seconds until its end is known."""

    def stdout(self, count: int) -> float:
        """Let a command in it write `count` bytes and return the seconds from the first to the last."""

    def end(self) -> None:
        """Give it back."""


class Starting(Held, Protocol):
    """A held sandbox that starts processes in the background."""

    def start(self) -> float:
        """Start /bin/true in the background and return the seconds until the contender has answered."""


class Keeping(Held, Protocol):
    """A held sandbox with sessions: shells whose state one command hands to the next."""

    def session_exec(self) -> float:
        """Run `:` in a session that has some state; return the seconds until its end is known."""


class Following(Held, Protocol):
    """A held sandbox whose processes' logs can be followed."""

    def follow(self, count: int) -> tuple[int, float]:
        """Let a background process write `count` bytes; return how many a follower got, and the seconds it took."""


class Echoing(Held, Protocol):
    """A held sandbox with terminals."""

    def echo(self, count: int) -> list[float]:
        """Type `count` keys into a terminal, each when the one before was shown; return the seconds of each."""


@runtime_checkable
class Transfers(Protocol):
    """A held sandbox that files go into and come out of."""

    def put(self, source: Path) -> float:
        """Copy a file of this machine in and return the seconds."""

    def get(self, target: Path) -> float:
        """Copy what was put last out to a file of this machine and return the seconds."""


class Contender:
    """Something that makes sandboxes. `figures` says for which figures it can be asked."""

    name: ClassVar[str]
    what: ClassVar[str]
    figures: ClassVar[frozenset[str]]

    def open(self) -> None:
        """Get ready and try it once.

        Raises:
            Unavailable: it cannot run here.
        """

    @property
    def note(self) -> str:
        """What a reader must know of how it ran here."""
        return ""

    @property
    def version(self) -> str:
        """Which version of it ran."""
        return ""

    @property
    def pid(self) -> int:
        """The root of all its processes."""
        raise NotImplementedError

    def cold(self) -> Cold:
        """Create, wait for the first output, destroy."""
        raise NotImplementedError

    def hold(self) -> Held:
        """Return a new idle sandbox."""
        raise NotImplementedError

    def clone(self, depth: int | None) -> float:
        """Clone the repository of bench/origin.py and return the seconds; None is all of its history."""
        raise NotImplementedError

    def scripts(self) -> Scripts:
        """Return a sandbox to start Node in."""
        raise NotImplementedError

    def interpreters(self) -> Interpreters:
        """Return a sandbox to start interpreters in."""
        raise NotImplementedError


def check_stream(expected: int, count: int) -> None:
    """Raise `Unavailable` if a stream lost bytes: a fast figure for half the output is none."""
    if count != expected:
        raise Unavailable(f"gave {count} of {expected} bytes")
