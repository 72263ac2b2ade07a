"""Git in the asynchronous SDK: the method that `AsyncSandbox` has of it."""

from __future__ import annotations

from . import git_calls
from .verbs import AsyncPart, async_verb


class AsyncGitPart(AsyncPart):
    """What `AsyncSandbox` can do with git."""

    git_checkout = async_verb(git_calls.git_checkout)
