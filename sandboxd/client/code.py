"""Code contexts in the synchronous SDK: the methods of `Sandbox`, and a run's stream."""

from __future__ import annotations

from . import code_calls
from .code_calls import RunItem, RunRequest, RunStream
from .code_models import CodeResult
from .stream import ItemStream
from .verbs import Part, stream_verb, sync_verb


class CodeStream(RunStream, ItemStream[RunRequest, RunItem, CodeResult]):
    """A run in progress: iterate over it for its output, or `wait` for its end.

    The items are `Output` (a piece of stdout or stderr), `Result`, `CodeError` and `Cleared`. It is a context
    manager: leaving before the run's end interrupts the run, unless it is detached.

    Attributes:
        run_id, context_id: the ids of the run and its context.
        result: the outcome, once the run has ended.
    """

    def __repr__(self) -> str:
        state = self.result.status if self.result else "closed" if self._closed else "running"
        return f"<CodeStream {self.run_id} {state}>"

    def wait(self) -> CodeResult:
        """Read to the end, calling the callbacks, and return the result of the run.

        Raises:
            DaemonUnavailable: the connection broke.
            LocalProtocolError: the stream was already closed.
        """
        return self._finish()


class CodeMethods(Part):
    """The code context methods of `Sandbox`."""

    create_code_context = sync_verb(code_calls.create_code_context)
    list_code_contexts = sync_verb(code_calls.list_code_contexts)
    get_code_context = sync_verb(code_calls.get_code_context)
    delete_code_context = sync_verb(code_calls.delete_code_context)
    interrupt_code_context = sync_verb(code_calls.interrupt_code_context)
    restart_code_context = sync_verb(code_calls.restart_code_context)
    complete_code = sync_verb(code_calls.complete_code)
    inspect_code = sync_verb(code_calls.inspect_code)
    run_code = sync_verb(code_calls.run_code)
    run_code_stream = stream_verb(code_calls.run_code_stream, CodeStream)
    follow_code = stream_verb(code_calls.follow_code, CodeStream)
