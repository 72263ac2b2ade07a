"""Why an interpreter did not come to take code, as the error that its context's caller gets."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..errors import ContextExited, InterpreterMissing, LimitExceeded, SandboxdError

if TYPE_CHECKING:
    from .between_runs import BetweenRuns
    from .worker import Worker


def failure_of(worker: Worker, context_id: str, language: str, said: BetweenRuns) -> SandboxdError:
    """Return the error of a worker that is gone; `said` is what it printed."""
    known = worker.failure or worker.refusal
    if known is not None:
        return known
    why = f"cannot start a {language} context"
    if worker.exit is not None and worker.exit.oom_killed:
        return LimitExceeded(f"{why}: {worker.how_it_ended()}", limit="memory_bytes", oom_killed=True)
    if worker.missing is not None or (worker.exit is not None and worker.exit.exit_code in (126, 127)):
        lacks = worker.missing or said.text or "the rootfs has no such interpreter"
        return InterpreterMissing(f"{why}: {lacks}", language=language)
    return ContextExited(f"{why}: {worker.how_it_ended()}{said.quoted}", context=context_id, reason=worker.reason)
