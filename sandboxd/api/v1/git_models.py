"""The JSON of clones, as msgspec structs."""

from __future__ import annotations

import msgspec

from ..bodies import Input


class CloneIn(Input, frozen=True):
    """A repository to clone: `url` is https, http, git, or a path in the sandbox; `branch` may be a tag or a commit.

    `target_dir` defaults to the repository's name in the sandbox's cwd, `single_branch` to true if `depth` is given.
    `sparse` lists the directories to check out. A `token` takes the place of `password`.
    """

    url: str
    branch: str | None = None
    target_dir: str | None = None
    depth: int | None = None
    single_branch: bool | None = None
    submodules: bool = False
    sparse: list[str] | None = None
    username: str | None = None
    password: str | None = None
    token: str | None = None
    timeout_s: float | None = None


class CloneOut(msgspec.Struct, frozen=True, kw_only=True):
    """A finished clone: `branch` is null if a tag or a commit was requested, `commit` if the repository is empty."""

    target_dir: str
    branch: str | None
    commit: str | None
    objects: int
    received_bytes: int
    files: int


class CloneProgress(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A clone's progress: `done` of `total` objects (files, while checking out), and `percent` if it is known."""

    phase: str
    done: int
    total: int
    received_bytes: int
    percent: int | None = None
    submodule: str | None = None
