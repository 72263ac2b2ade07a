"""POST /api/git/checkout: a clone, by /v1's own."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from ...errors import InvalidRequest, NotAvailable, SandboxdError
from ...git_spec import CloneSpec
from ..call import answer
from . import container, problems
from . import container_sessions as sessions
from .container import Body
from .problems import Refusal

if TYPE_CHECKING:
    from quart_trio.wrappers import TrioResponse

    from ..call import Call

#: Theirs for a clone's failures; another failure of git's, or of the directory that it is to go to, is the last.
_CODES: Final = {
    "git-authentication": "GIT_AUTH_FAILED",
    "git-repository-not-found": "GIT_REPOSITORY_NOT_FOUND",
    "git-ref-not-found": "GIT_BRANCH_NOT_FOUND",
    "git-unreachable": "GIT_NETWORK_ERROR",
    "git-protocol-error": "GIT_NETWORK_ERROR",
}
_FAILED: Final = "GIT_CLONE_FAILED"
#: Failures that are not git's alone and read better under their own code.
_OWN: Final = frozenset(("server-busy", "quota-exceeded", "file-permission-denied"))


class CheckoutIn(Body, frozen=True):
    """A repository to clone."""

    repo_url: str
    branch: str | None = None
    target_dir: str | None = None
    depth: int | None = None
    timeout_ms: float | None = None
    session_id: str | None = None


async def checkout(call: Call, name: str) -> TrioResponse:
    """Clone a repository; a clone that fails leaves nothing behind."""
    sandbox = await container.reach(call, name)
    model = await container.read(call, CheckoutIn)
    target = model.target_dir
    if target is not None:
        target = container.resolve(target, await sessions.base_of(sandbox, target, model.session_id), "targetDir")
    try:
        spec = CloneSpec(
            url=model.repo_url,
            ref=model.branch,
            target_dir=target,
            depth=model.depth,
            timeout_s=container.check_time(model.timeout_ms),
        )
    except (InvalidRequest, NotAvailable) as error:
        code = "INVALID_GIT_URL" if error.facts.get("field") == "url" else "VALIDATION_FAILED"
        raise Refusal(code, error.message, **error.facts) from None
    about = {"repository": spec.url, "branch": model.branch, "targetDir": spec.target(sandbox.spec.cwd)}
    try:
        async with sandbox.git.clone(spec) as clone:
            result = await clone.finish()
    except SandboxdError as error:
        raise _told(error, {key: value for key, value in about.items() if value is not None}) from error
    return answer(
        {
            "success": True,
            "repoUrl": spec.url,
            "branch": result.branch or model.branch or "HEAD",
            "targetDir": result.target_dir,
            "timestamp": problems.timestamp(),
        }
    )


def _told(error: SandboxdError, about: dict[str, str]) -> SandboxdError | Refusal:
    if error.kind in _OWN:
        return error
    return Refusal(_CODES.get(error.kind, _FAILED), error.message, **error.facts, **about)
