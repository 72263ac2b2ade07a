"""A feature of the host, and the verdict over all of them."""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Iterable
from typing import Any, Final

NEEDS_ROOT: Final = "cannot be tested without root"
AS_ROOT: Final = "run it as root: sudo sandboxd doctor"
#: The controllers behind the limits that a sandbox has by default.
LIMIT_CONTROLLERS: Final = ("memory", "pids", "cpu")


class Status(enum.StrEnum):
    """How well a feature serves."""

    OK = "ok"
    DEGRADED = "degraded"
    MISSING = "missing"
    UNKNOWN = "unknown"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Feature:
    """One thing that sandboxes stand on.

    Attributes:
        name: stable, for programs; `kind:member` where there are several of a kind.
        found: what the host answered.
        means: what that is for the user.
        remedy: a command or a sentence; None when there is nothing to do.
        essential: whether no sandbox can be created while it is missing.
    """

    name: str
    status: Status
    found: str
    means: str
    remedy: str | None = None
    essential: bool = False

    def to_json(self) -> dict[str, str | None]:
        """Return the fields that `doctor --json` promises."""
        return {
            "name": self.name,
            "status": str(self.status),
            "found": self.found,
            "means": self.means,
            "remedy": self.remedy,
        }


def untried(name: str, means: str, *, essential: bool = False, why: str = NEEDS_ROOT) -> Feature:
    """Return a feature that could not be looked at."""
    remedy = AS_ROOT if why == NEEDS_ROOT else None
    return Feature(name=name, status=Status.UNKNOWN, found=why, means=means, remedy=remedy, essential=essential)


@dataclasses.dataclass(frozen=True, slots=True)
class Report:
    """Every feature, and what follows from them together."""

    features: tuple[Feature, ...]
    #: Whether the configuration lets sandboxes be created with limits that cannot be held.
    allow_unenforced: bool = False

    @property
    def ok(self) -> bool:
        """Whether sandboxes can be created: nothing essential is missing or unknown."""
        return not self._essential(Status.MISSING) and not self._essential(Status.UNKNOWN)

    @property
    def summary(self) -> str:
        """What works, in one line."""
        return f"sandboxes: {self._sandboxes()}; limits: {self._limits()}; disk limits: {self._disk()}"

    def to_json(self) -> dict[str, Any]:
        """Return the object that `doctor --json` prints."""
        return {"ok": self.ok, "summary": self.summary, "features": [item.to_json() for item in self.features]}

    def _essential(self, status: Status) -> list[str]:
        return [item.name for item in self.features if item.essential and item.status is status]

    def _status(self, name: str) -> Status | None:
        return next((item.status for item in self.features if item.name == name), None)

    def _sandboxes(self) -> str:
        missing = self._essential(Status.MISSING)
        if missing and missing != ["root"]:
            return f"no ({', '.join(name for name in missing if name != 'root')})"
        if not self.ok:
            return "unknown (not everything can be tested without root)"
        if not self.allow_unenforced and (self._without() or self._disk() != "yes"):
            return "yes, with --allow-unenforced"
        return "yes"

    def _without(self) -> list[str]:
        return [name for name in LIMIT_CONTROLLERS if self._status(f"cgroup:{name}") is not Status.OK]

    def _limits(self) -> str:
        without = self._without()
        if not without:
            return "yes"
        how = "not enforceable here" if len(without) == len(LIMIT_CONTROLLERS) else "partly"
        return f"{how} (cgroup2 has no {', '.join(without)})"

    def _disk(self) -> str:
        return "yes" if self._status("disk-limits") is Status.OK else "no"


def listed(words: Iterable[str]) -> str:
    """Return words for a sentence, `none` for no word."""
    return ", ".join(words) or "none"
