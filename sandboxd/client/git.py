"""Git in the synchronous SDK: the method that `Sandbox` has of it."""

from __future__ import annotations

from . import git_calls
from .verbs import Part, sync_verb


class GitPart(Part):
    """What `Sandbox` can do with git."""

    git_checkout = sync_verb(git_calls.git_checkout)
