"""C git, in a sandbox of ours: what a clone without sandboxd's own costs there."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from bench.contender import Contender
from bench.origin import Origin

if TYPE_CHECKING:
    from bench.workspace import Workspace


class CGit(Contender):
    """`git clone`, by exec in the sandbox that the server is in."""

    name: ClassVar[str] = "git"
    what: ClassVar[str] = "C git, run in the same sandbox"
    figures: ClassVar[frozenset[str]] = frozenset({"clone"})

    def __init__(self, workspace: Workspace) -> None:
        self._workspace = workspace

    @property
    def version(self) -> str:
        """What git says."""
        return self._workspace.share(Origin).sandbox.exec(["git", "--version"]).stdout.strip()

    def clone(self, depth: int | None) -> float:
        """Clone, and return the seconds."""
        return self._workspace.share(Origin).timed(depth, by_git=True)
