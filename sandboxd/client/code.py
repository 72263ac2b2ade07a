"""Code contexts in the synchronous SDK: the methods that `Sandbox` has of them, and a run's stream."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Any, Self

from . import code_calls
from .code_calls import Output, RunReader
from .code_models import CodeContext, CodeError, CodeResult, Result
from .failures import mapped
from .stream import closed_stream

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from types import TracebackType

    from .calls import StreamCall
    from .client import Client
    from .code_calls import RunItem


class CodeStream:
    """A run under way: iterate over it for what it shows, or `wait` for its end.

    The items are `Output` (a piece of stdout or stderr), `Result`, `CodeError` and `Cleared`. It is a context
    manager: leaving before the run's end interrupts the run, unless it is detached.

    Attributes:
        run_id, context_id: what the run and its context are called.
        result: what came of it, once it is over.
    """

    def __init__(
        self, client: Client, call: StreamCall, callbacks: Mapping[str, Callable[[Any], object] | None]
    ) -> None:
        self._client = client
        self._callbacks = callbacks
        self._pending: deque[RunItem] = deque()
        self._reader = RunReader()
        self._response = client.open(call)
        self.run_id = self._reader.run_id = self._response.headers.get(code_calls.RUN_HEADER, "")
        self.context_id = self._reader.context_id = self._response.headers.get(code_calls.CONTEXT_HEADER, "")
        self._pieces = self._response.iter_raw()
        self._closed = False
        self.result: CodeResult | None = None

    def __repr__(self) -> str:
        state = self.result.status if self.result else "closed" if self._closed else "running"
        return f"<CodeStream {self.run_id} {state}>"

    @property
    def next_offset(self) -> int:
        """Where `follow_code` goes on if this stream breaks."""
        return self._reader.next_offset

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __iter__(self) -> Iterator[RunItem]:
        return self

    def __next__(self) -> RunItem:
        while not self._pending:
            if self.result is not None:
                raise StopIteration
            self._advance()
        item = self._pending.popleft()
        callback = callback_of(item, self._callbacks)
        if callback is not None:
            callback()
        return item

    def wait(self) -> CodeResult:
        """Read to the end (the callbacks see all of it) and return what came of the run.

        Raises:
            DaemonUnavailable: the connection broke.
            LocalProtocolError: the stream was closed before.
        """
        for _ in self:
            pass
        if self.result is None:
            raise closed_stream()
        return self.result

    def close(self) -> None:
        """Drop the connection; a run that is not over is interrupted, unless it is detached."""
        self._closed = True
        self._response.close()

    def _advance(self) -> None:
        if self._closed:
            raise closed_stream()
        try:
            with mapped(self._client.address):
                piece = next(self._pieces, None)
            if piece is None:
                self.result = self._reader.close()
                self.close()
            else:
                self._pending.extend(self._reader.feed(piece))
        except BaseException:
            self.close()
            raise


def callback_of(item: RunItem, callbacks: Mapping[str, Callable[[Any], object] | None]) -> Callable[[], object] | None:
    """Return the call that an item is to make, if somebody wants it."""
    value: Any = item
    if isinstance(item, Output):
        name, value = item.stream, item.text
    else:
        name = "result" if isinstance(item, Result) else "error" if isinstance(item, CodeError) else "clear"
    callback = callbacks.get(name)
    return None if callback is None else lambda: callback(value)


class CodeMethods:
    """What `Sandbox` can do with code contexts."""

    if TYPE_CHECKING:

        @property
        def id(self) -> str:
            """The sandbox's id."""

        @property
        def client(self) -> Client:
            """The connections that it uses."""

    def create_code_context(
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
        return self.client.send(code_calls.create(self.id, language, cwd, env))

    def list_code_contexts(self) -> list[CodeContext]:
        """Return every context of the sandbox."""
        return self.client.send(code_calls.show_all(self.id))

    def get_code_context(self, context: CodeContext | str) -> CodeContext:
        """Return a context as it is now."""
        return self.client.send(code_calls.get(self.id, context))

    def delete_code_context(self, context: CodeContext | str) -> None:
        """End a context and all that it started."""
        self.client.send(code_calls.delete(self.id, context))

    def interrupt_code_context(self, context: CodeContext | str) -> bool:
        """Interrupt the present run, wait until it is over, and return whether there was one."""
        return self.client.send(code_calls.interrupt(self.id, context))

    def restart_code_context(self, context: CodeContext | str) -> CodeContext:
        """Start a context's interpreter anew, without its state."""
        return self.client.send(code_calls.restart(self.id, context))

    def complete_code(self, context: CodeContext | str, code: str, cursor: int | None = None) -> dict[str, Any]:
        """Return what may follow at the cursor: `matches`, which replace the code from `start` to `end`."""
        return self.client.send(code_calls.ask(self.id, context, "complete", {"code": code, "cursor": cursor}))

    def inspect_code(
        self, context: CodeContext | str, code: str, cursor: int | None = None, *, detail: bool = False
    ) -> dict[str, Any]:
        """Return what the name at the cursor is: `found`, `name`, `text`."""
        body = {"code": code, "cursor": cursor, "detail": detail}
        return self.client.send(code_calls.ask(self.id, context, "inspect", body))

    def run_code(  # noqa: PLR0913 - the fields of a run, all by keyword
        self,
        code: str,
        *,
        context: CodeContext | str | None = None,
        language: str | None = None,
        env: Mapping[str, str] | None = None,
        timeout: float | None = None,
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
            on_stdout: called with each piece of standard output as it comes.
            on_stderr: the same for standard error.
            on_result: called with each value that it shows.
            on_error: called with the exception that ended it.

        Raises:
            ContextExited: the context's interpreter has ended; restart it.
            InvalidRequest: a value is wrong; `field` names it.
        """
        if on_stdout is None and on_stderr is None and on_result is None and on_error is None:
            call = code_calls.run_whole(self.id, code, context=context, language=language, env=env, timeout=timeout)
            return self.client.send(call)
        with self.run_code_stream(
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
            return stream.wait()

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
    ) -> CodeStream:
        """Start a run and return its stream; with `detach` it goes on when the stream is closed."""
        call = code_calls.run(
            self.id, code, context=context, language=language, env=env, timeout=timeout, detach=detach
        )
        callbacks = {"stdout": on_stdout, "stderr": on_stderr, "result": on_result, "error": on_error}
        return CodeStream(self.client, call, callbacks)

    def follow_code(self, context: CodeContext | str, run_id: str, start: int = 0) -> CodeStream:
        """Follow a run again from an offset on: one that was detached, or whose stream broke.

        Raises:
            RunNotFound: its context keeps it no longer.
        """
        return CodeStream(self.client, code_calls.follow(self.id, context, run_id, start), {})
