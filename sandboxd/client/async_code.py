"""Code contexts in the asynchronous SDK: the methods that `AsyncSandbox` has of them, and a run's stream."""

from __future__ import annotations

import inspect
from collections import deque
from typing import TYPE_CHECKING, Any, Self

from sandboxd.errors import LocalProtocolError

from . import code_calls
from .async_stream import Body
from .code import callback_of
from .code_calls import RunReader
from .failures import mapped
from .stream import closed_stream

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Mapping
    from types import TracebackType

    from .async_client import AsyncClient
    from .calls import StreamCall
    from .code_calls import RunItem
    from .code_models import CodeContext, CodeError, CodeResult, Result


class AsyncCodeStream:
    """A run under way: `async with` starts it, `async for` gives what it shows, `wait` its end.

    The items are `Output` (a piece of stdout or stderr), `Result`, `CodeError` and `Cleared`. Leaving the block
    before the run's end (also by cancellation) interrupts the run, unless it is detached.

    Attributes:
        run_id, context_id: what the run and its context are called; empty before the block is entered.
        result: what came of it, once it is over.
    """

    def __init__(
        self, client: AsyncClient, call: StreamCall, callbacks: Mapping[str, Callable[[Any], object] | None]
    ) -> None:
        self._client = client
        self._call = call
        self._callbacks = callbacks
        self._pending: deque[RunItem] = deque()
        self._reader = RunReader()
        self._body: Body | None = None
        self._closed = False
        self.run_id = ""
        self.context_id = ""
        self.result: CodeResult | None = None

    def __repr__(self) -> str:
        state = self.result.status if self.result else "closed" if self._closed else "running"
        return f"<AsyncCodeStream {self.run_id or '(not entered)'} {state}>"

    @property
    def next_offset(self) -> int:
        """Where `follow_code` goes on if this stream breaks."""
        return self._reader.next_offset

    async def __aenter__(self) -> Self:
        if self._body is not None:
            raise LocalProtocolError("cannot enter the stream: it was entered before")
        response = await self._client.open(self._call)
        self._body = Body(response)
        self.run_id = self._reader.run_id = response.headers.get(code_calls.RUN_HEADER, "")
        self.context_id = self._reader.context_id = response.headers.get(code_calls.CONTEXT_HEADER, "")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    def __aiter__(self) -> AsyncIterator[RunItem]:
        return self

    async def __anext__(self) -> RunItem:
        while not self._pending:
            if self.result is not None:
                raise StopAsyncIteration
            await self._advance()
        item = self._pending.popleft()
        callback = callback_of(item, self._callbacks)
        if callback is not None:
            answer = callback()
            if inspect.isawaitable(answer):
                await answer
        return item

    async def wait(self) -> CodeResult:
        """Read to the end (the callbacks see all of it) and return what came of the run.

        Raises:
            DaemonUnavailable: the connection broke.
            LocalProtocolError: the stream was closed before, or never entered.
        """
        async for _ in self:
            pass
        if self.result is None:
            raise closed_stream()
        return self.result

    async def close(self) -> None:
        """Drop the connection; a run that is not over is interrupted, unless it is detached."""
        self._closed = True
        if self._body is not None:
            await self._body.close()

    async def _advance(self) -> None:
        if self._body is None:
            raise LocalProtocolError("cannot read the stream: enter it first, with 'async with'")
        if self._closed:
            raise closed_stream()
        try:
            with mapped(self._client.address):
                piece = await self._body.read()
            if piece is None:
                self.result = self._reader.close()
                await self.close()
            else:
                self._pending.extend(self._reader.feed(piece))
        except BaseException:
            await self.close()
            raise


class AsyncCodeMethods:
    """What `AsyncSandbox` can do with code contexts."""

    if TYPE_CHECKING:

        @property
        def id(self) -> str:
            """The sandbox's id."""

        @property
        def client(self) -> AsyncClient:
            """The connections that it uses."""

    async def create_code_context(
        self, language: str = "python", *, cwd: str | None = None, env: Mapping[str, str] | None = None
    ) -> CodeContext:
        """Start an interpreter that keeps its state between runs.

        Args:
            language: python, javascript or typescript (py, js, ts).
            cwd: where it starts, absolute; else the sandbox's.
            env: variables on top of the sandbox's.

        Raises:
            InterpreterMissing: the rootfs lacks what the language needs.
        """
        return await self.client.send(code_calls.create(self.id, language, cwd, env))

    async def list_code_contexts(self) -> list[CodeContext]:
        """Return every context of the sandbox."""
        return await self.client.send(code_calls.show_all(self.id))

    async def get_code_context(self, context: CodeContext | str) -> CodeContext:
        """Return a context as it is now."""
        return await self.client.send(code_calls.get(self.id, context))

    async def delete_code_context(self, context: CodeContext | str) -> None:
        """End a context and all that it started."""
        await self.client.send(code_calls.delete(self.id, context))

    async def interrupt_code_context(self, context: CodeContext | str) -> bool:
        """Interrupt the present run, wait until it is over, and return whether there was one."""
        return await self.client.send(code_calls.interrupt(self.id, context))

    async def restart_code_context(self, context: CodeContext | str) -> CodeContext:
        """Start a context's interpreter anew, without its state."""
        return await self.client.send(code_calls.restart(self.id, context))

    async def complete_code(self, context: CodeContext | str, code: str, cursor: int | None = None) -> dict[str, Any]:
        """Return what may follow at the cursor: `matches`, which replace the code from `start` to `end`."""
        return await self.client.send(code_calls.ask(self.id, context, "complete", {"code": code, "cursor": cursor}))

    async def inspect_code(
        self, context: CodeContext | str, code: str, cursor: int | None = None, *, detail: bool = False
    ) -> dict[str, Any]:
        """Return what the name at the cursor is: `found`, `name`, `text`."""
        body = {"code": code, "cursor": cursor, "detail": detail}
        return await self.client.send(code_calls.ask(self.id, context, "inspect", body))

    async def run_code(  # noqa: PLR0913 - the fields of a run, all by keyword
        self,
        code: str,
        *,
        context: CodeContext | str | None = None,
        language: str | None = None,
        env: Mapping[str, str] | None = None,
        timeout: float | None = None,  # noqa: ASYNC109 - the daemon holds it, not this task
        on_stdout: Callable[[str], object] | None = None,
        on_stderr: Callable[[str], object] | None = None,
        on_result: Callable[[Result], object] | None = None,
        on_error: Callable[[CodeError], object] | None = None,
    ) -> CodeResult:
        """Run code to its end and return what came of it; an exception of the code's is a result, not an error.

        Args:
            code: up to 1 MiB of text.
            context: where; else the default context of `language`.
            language: python (the default), javascript or typescript.
            env: variables for this run only.
            timeout: seconds after which it is interrupted; the context keeps its state.
            on_stdout: called with each piece of standard output as it comes;
                what it returns is awaited if it can be.
            on_stderr: the same for standard error.
            on_result: called with each value that it shows.
            on_error: called with the exception that ended it.

        Raises:
            ContextExited: the context's interpreter has ended; restart it.
            InvalidRequest: a value is wrong; `field` names it.
        """
        if on_stdout is None and on_stderr is None and on_result is None and on_error is None:
            call = code_calls.run_whole(self.id, code, context=context, language=language, env=env, timeout=timeout)
            return await self.client.send(call)
        async with self.run_code_stream(
            code,
            context=context,
            language=language,
            env=env,
            timeout=timeout,
            on_stdout=on_stdout,
            on_stderr=on_stderr,
            on_result=on_result,
            on_error=on_error,
        ) as stream:
            return await stream.wait()

    def run_code_stream(  # noqa: PLR0913 - the fields of a run, all by keyword
        self,
        code: str,
        *,
        context: CodeContext | str | None = None,
        language: str | None = None,
        env: Mapping[str, str] | None = None,
        timeout: float | None = None,
        detach: bool = False,
        on_stdout: Callable[[str], object] | None = None,
        on_stderr: Callable[[str], object] | None = None,
        on_result: Callable[[Result], object] | None = None,
        on_error: Callable[[CodeError], object] | None = None,
    ) -> AsyncCodeStream:
        """Return a run's stream: `async with` starts it; with `detach` it goes on when that ends."""
        call = code_calls.run(
            self.id, code, context=context, language=language, env=env, timeout=timeout, detach=detach
        )
        callbacks = {"stdout": on_stdout, "stderr": on_stderr, "result": on_result, "error": on_error}
        return AsyncCodeStream(self.client, call, callbacks)

    def follow_code(self, context: CodeContext | str, run_id: str, start: int = 0) -> AsyncCodeStream:
        """Follow a run again from an offset on: one that was detached, or whose stream broke.

        Raises:
            RunNotFound: its context keeps it no longer.
        """
        return AsyncCodeStream(self.client, code_calls.follow(self.id, context, run_id, start), {})
