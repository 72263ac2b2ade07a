"""Why there is no interpreter that takes code, as the error that its context's caller gets."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

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


def exited(worker: Worker | None, context_id: str, verb: str) -> ContextExited:
    """Return the error of what cannot be done, as `verb` says, with an interpreter that has ended."""
    facts: dict[str, Any] = {"context": context_id, "reason": "never started" if worker is None else worker.reason}
    if worker is not None and worker.exit is not None:
        facts |= {"exit_code": worker.exit.exit_code, "signal": worker.exit.signal}
    how = "its interpreter is gone" if worker is None else worker.how_it_ended()
    return ContextExited(f"cannot {verb.removeprefix('cannot ')} context {context_id}: {how}", **facts)
