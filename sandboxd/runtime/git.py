"""Git in one sandbox: its verbs."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .clone import Clone

if TYPE_CHECKING:
    from ..git_spec import CloneSpec
    from .sandbox import Sandbox


class Git:
    """What can be done with git in a sandbox; made by it."""

    def __init__(self, sandbox: Sandbox) -> None:
        self._sandbox = sandbox

    def __repr__(self) -> str:
        return f"<Git of {self._sandbox!r}>"

    def clone(self, spec: CloneSpec) -> Clone:
        """Return a clone of a repository: an async context manager starts it, and its end stops it."""
        return Clone(self._sandbox, spec)
