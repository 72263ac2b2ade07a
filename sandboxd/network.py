"""What a sandbox's network may be: a frozen value and pure checks (see allow.py for the entries of an allow list)."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Final

from .errors import InvalidRequest

if TYPE_CHECKING:
    from .allow import AllowList

MODES: Final = ("none", "internet", "allowlist")
#: A limit of connections names a chain of rules, one for each number in use.
MAX_CONNECTIONS: Final = 65_535


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class NetworkSpec:
    """A sandbox's network as asked for.

    Attributes:
        mode: "none" (its loopback only), "internet" (every public address), "allowlist"; None is the configuration's.
        allow: the entries of an allow list, as they are written canonically.
        receive_bytes_per_s, send_bytes_per_s: how fast its link is; None is no limit.
        connections: how many it may have at once; None is the configuration's.
    """

    mode: str | None = None
    allow: tuple[str, ...] = ()
    receive_bytes_per_s: int | None = None
    send_bytes_per_s: int | None = None
    connections: int | None = None

    def __post_init__(self) -> None:
        """Check every field."""
        if self.mode is not None and self.mode not in MODES:
            raise _fail("mode", f"the modes are {', '.join(MODES)}")
        if self.allow:
            object.__setattr__(self, "allow", self.allow_list.entries)
        if self.allow and self.mode in ("none", "internet"):
            raise _fail("allow", "it applies only to the mode allowlist")
        for name, low, high in (
            ("receive_bytes_per_s", 1024, 1 << 36),
            ("send_bytes_per_s", 1024, 1 << 36),
            ("connections", 1, MAX_CONNECTIONS),
        ):
            value = getattr(self, name)
            if value is None:
                continue
            if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
                raise _fail(name, f"it must be a whole number of {low} to {high}")
            if self.mode == "none":
                raise _fail(name, "a sandbox without a network has nothing to limit")

    @property
    def has_veth(self) -> bool:
        """Whether it has more than its loopback."""
        return self.mode not in (None, "none")

    @property
    def allow_list(self) -> AllowList:
        """What the entries mean."""
        from .allow import parse_allow  # noqa: PLC0415 - spec.py is in every init's memory; addresses need not be

        return parse_allow(self.allow)


def _fail(name: str, why: str) -> InvalidRequest:
    return InvalidRequest(f"cannot accept network.{name}: {why}", field=f"network.{name}")
