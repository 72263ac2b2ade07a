"""Which sandboxes there are: ids and unique names to `Sandbox`, in the order of their creation. No I/O."""

from __future__ import annotations

import bisect
from typing import TYPE_CHECKING, Final

from ..errors import InvalidRequest, NameTaken, SandboxNotFound, ServerBusy
from .lifecycle import SHOWN

if TYPE_CHECKING:
    from collections.abc import Iterator

    from .sandbox import Sandbox

DEFAULT_PAGE: Final = 100
MAX_PAGE: Final = 1000
#: Sandboxes at once: 65,536 ids each out of 2^32 host ids leave room for about 60,000; memory ends far earlier.
MAX_SANDBOXES: Final = 4096


class Registry:
    """The table of sandboxes."""

    def __init__(self, bound: int = MAX_SANDBOXES) -> None:
        self._bound = bound
        self._by_id: dict[str, Sandbox] = {}
        self._by_name: dict[str, Sandbox] = {}

    def __repr__(self) -> str:
        return f"<Registry {len(self._by_id)} sandboxes>"

    def __len__(self) -> int:
        return len(self._by_id)

    def __iter__(self) -> Iterator[Sandbox]:
        return iter(list(self._by_id.values()))

    def add(self, sandbox: Sandbox) -> None:
        """Enter a sandbox, its name included.

        Raises:
            NameTaken: another one has its name.
            ServerBusy: there are as many as there may be.
        """
        name = sandbox.spec.name
        if name is not None and name in self._by_name:
            raise NameTaken(
                f"cannot name a sandbox {name!r}: another sandbox has that name", name=name, id=self._by_name[name].id
            )
        if len(self._by_id) >= self._bound:
            raise ServerBusy(f"cannot create a sandbox: there are {self._bound} already", bound=self._bound)
        self._by_id[sandbox.id] = sandbox
        if name is not None:
            self._by_name[name] = sandbox

    def remove(self, sandbox: Sandbox) -> None:
        """Strike a sandbox out; its name is free again."""
        self._by_id.pop(sandbox.id, None)
        name = sandbox.spec.name
        if name is not None and self._by_name.get(name) is sandbox:
            del self._by_name[name]

    def rename(self, sandbox: Sandbox, name: str | None) -> None:
        """Enter a sandbox under another name, or none; its spec is its owner's to replace, in the same breath.

        Raises:
            NameTaken: another one has that name.
        """
        if name is not None and self._by_name.get(name, sandbox) is not sandbox:
            raise NameTaken(
                f"cannot name a sandbox {name!r}: another sandbox has that name", name=name, id=self._by_name[name].id
            )
        old = sandbox.spec.name
        if old is not None:
            self._by_name.pop(old, None)
        if name is not None:
            self._by_name[name] = sandbox

    def get(self, sandbox_id: str) -> Sandbox | None:
        """Return the sandbox with that id in whatever state, or None."""
        return self._by_id.get(sandbox_id)

    def named(self, name: str) -> Sandbox | None:
        """Return the sandbox that has this name in whatever state, or None."""
        return self._by_name.get(name)

    def find(self, ref: str) -> Sandbox:
        """Return the sandbox that has this id or else this name.

        Raises:
            SandboxNotFound: there is none, or it is being destroyed.
        """
        sandbox = self._by_id.get(ref) or self._by_name.get(ref)
        if sandbox is None or sandbox.state not in SHOWN:
            raise SandboxNotFound(f"cannot find sandbox {ref[:80]!r}", id=ref[:80])
        return sandbox

    def page(self, cursor: str | None, limit: int) -> tuple[list[Sandbox], str | None]:
        """Return up to `limit` sandboxes after `cursor`, and the cursor of the next page or None.

        A cursor names a place, not a sandbox, so it stays good when that sandbox goes.

        Raises:
            InvalidRequest: the cursor is none of ours, or the limit out of its bounds.
        """
        if not 1 <= limit <= MAX_PAGE:
            raise InvalidRequest(f"cannot list {limit} sandboxes: a page has 1 to {MAX_PAGE}", field="limit")
        ordered = sorted((s for s in self._by_id.values() if s.state in SHOWN), key=_place)
        start = 0 if cursor is None else bisect.bisect_right(ordered, _parse_cursor(cursor), key=_place)
        chosen = ordered[start : start + limit]
        more = start + limit < len(ordered)
        return chosen, _format_cursor(chosen[-1]) if more else None


def _place(sandbox: Sandbox) -> tuple[float, str]:
    return sandbox.created_at, sandbox.id


def _format_cursor(sandbox: Sandbox) -> str:
    return f"{sandbox.created_at.hex()}_{sandbox.id}"


def _parse_cursor(cursor: str) -> tuple[float, str]:
    when, _, sandbox_id = cursor.partition("_")
    try:
        return float.fromhex(when), sandbox_id
    except (ValueError, OverflowError):
        raise InvalidRequest(
            "cannot list sandboxes: the cursor is not one that a list returned", field="cursor"
        ) from None
