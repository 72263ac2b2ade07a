"""Code contexts in the asynchronous SDK: the methods of `AsyncSandbox`, and a run's stream."""

from __future__ import annotations

from . import code_calls
from .async_stream import AsyncItemStream
from .code_calls import RunItem, RunRequest, RunStream
from .code_models import CodeResult
from .verbs import AsyncPart, async_verb, stream_verb


class AsyncCodeStream(RunStream, AsyncItemStream[RunRequest, RunItem, CodeResult]):
    """A run in progress: `async with` starts it, `async for` yields its output, `wait` waits for its end.

    The items are `Output` (a piece of stdout or stderr), `Result`, `CodeError` and `Cleared`. Leaving the block
    before the run's end (also by cancellation) interrupts the run, unless it is detached.

    Attributes:
        run_id, context_id: the ids of the run and its context; empty before the block is entered.
        result: the outcome, once the run has ended.
    """

    def __repr__(self) -> str:
        state = self.result.status if self.result else "closed" if self._closed else "running"
        return f"<AsyncCodeStream {self.run_id or '(not entered)'} {state}>"

    async def wait(self) -> CodeResult:
        """Read to the end, calling the callbacks, and return the result of the run.

        Raises:
            DaemonUnavailable: the connection broke.
            LocalProtocolError: the stream was already closed, or never entered.
        """
        return await self._finish()


class AsyncCodeMethods(AsyncPart):
    """The code context methods of `AsyncSandbox`."""

    create_code_context = async_verb(code_calls.create_code_context)
    list_code_contexts = async_verb(code_calls.list_code_contexts)
    get_code_context = async_verb(code_calls.get_code_context)
    delete_code_context = async_verb(code_calls.delete_code_context)
    interrupt_code_context = async_verb(code_calls.interrupt_code_context)
    restart_code_context = async_verb(code_calls.restart_code_context)
    complete_code = async_verb(code_calls.complete_code)
    inspect_code = async_verb(code_calls.inspect_code)
    run_code = async_verb(code_calls.run_code)
    run_code_stream = stream_verb(code_calls.run_code_stream, AsyncCodeStream)
    follow_code = stream_verb(code_calls.follow_code, AsyncCodeStream)
