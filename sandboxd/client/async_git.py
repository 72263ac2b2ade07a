"""Git in the asynchronous SDK: the method that `AsyncSandbox` has of it."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING

from . import git_calls
from .async_stream import Body
from .failures import mapped
from .git_calls import CloneOptions, CloneReader, GitCheckout

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from .async_client import AsyncClient
    from .git_calls import GitProgress


class AsyncGitPart:
    """What `AsyncSandbox` can do with git."""

    if TYPE_CHECKING:

        @property
        def id(self) -> str:
            """The sandbox's id."""

        @property
        def client(self) -> AsyncClient:
            """The connections that it uses."""

    async def git_checkout(  # noqa: PLR0913 - the options of a clone, all by keyword
        self,
        repo_url: str,
        *,
        branch: str | None = None,
        target_dir: str | None = None,
        depth: int | None = None,
        single_branch: bool | None = None,
        submodules: bool = False,
        sparse: Sequence[str] = (),
        username: str | None = None,
        password: str | None = None,
        token: str | None = None,
        timeout: float | None = None,  # noqa: ASYNC109 - the daemon keeps it
        on_progress: Callable[[GitProgress], object] | None = None,
    ) -> GitCheckout:
        """Clone a git repository into the sandbox; needs no git there. What fails leaves nothing behind.

        Args:
            repo_url: an https, http or git:// address, or an absolute path of the sandbox.
            branch: a branch, a tag, or a commit of 40 digits; else the repository's default branch.
            target_dir: where to, absolute or in the sandbox's cwd; else the repository's name there. A folder that is
                there must be empty.
            depth: how many commits of history; else all.
            single_branch: only what belongs to `branch`; else whether a depth is given.
            submodules: clone the submodules as well.
            sparse: folders to check out; else all.
            username: for https and http, with
            password: or with
            token: instead of a password; without a user name it goes with one that GitHub, GitLab and Gitea take.
            timeout: give up after so many seconds; else 600.
            on_progress: called with a `GitProgress` now and then; what it returns is awaited if it can be.

        Raises:
            GitAuthentication: the server wants a login, or does not take this one.
            GitRepositoryNotFound: nothing is at the address.
            GitRefNotFound: it has no such branch; `suggestions` are names like it.
            GitUnreachable, GitTimeout, GitProtocolError: of the server; `reason`.
            GitRefused: the repository has something that is not taken; `reason`.
            DirectoryNotEmpty, FileExists: the target is there.
        """
        options = CloneOptions(
            branch=branch,
            target_dir=target_dir,
            depth=depth,
            single_branch=single_branch,
            submodules=submodules,
            sparse=sparse,
            username=username,
            password=password,
            token=token,
            timeout_s=timeout,
        )
        if on_progress is None:
            return await self.client.send(git_calls.clone_whole(self.id, repo_url, options))
        reader = CloneReader()
        body = Body(await self.client.open(git_calls.clone(self.id, repo_url, options)))
        try:
            while True:
                with mapped(self.client.address):
                    piece = await body.read()
                if piece is None:
                    return reader.close()
                for told in reader.feed(piece):
                    answer = on_progress(told)
                    if inspect.isawaitable(answer):
                        await answer
        finally:
            await body.close()
