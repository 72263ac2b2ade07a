"""The JSON of clones, as msgspec structs."""

from __future__ import annotations

import msgspec

from ..bodies import Input


class CloneIn(Input, frozen=True):
    """A repository to clone: `url` is https, http, git, or a path of the sandbox; `branch` a tag or a commit too.

    `target_dir` is the repository's name in the sandbox's cwd if not said, `single_branch` true where there is a
    `depth`; `sparse` are the directories to check out. A `token` takes the place of `password`.
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
    """A clone that is there: `branch` is null where a tag or a commit is, `commit` in an empty repository."""

    target_dir: str
    branch: str | None
    commit: str | None
    objects: int
    received_bytes: int
    files: int


class CloneProgress(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """How far a clone is: `done` of `total` objects (files, while checking out); `percent` where that is known."""

    phase: str
    done: int
    total: int
    received_bytes: int
    percent: int | None = None
    submodule: str | None = None
