"""POST …/exec: what to send, and the reader of its raw frames (see `calls`)."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Final, Unpack

from sandboxd.errors import RemoteProtocolError
from sandboxd.wire import raw

from .calls import RAW_TYPE, StreamCall, Streamed, sandbox_path
from .failures import from_problem
from .models import ExecResult, ExitStatus, OutputChunk, parse_exit, read, with_output
from .options import CommandOptions, command_json, takes
from .text import Carry

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    import httpx

    from .calls import Request

PROCESS_HEADER: Final = "Sandboxd-Process"


class ExecRequest(Streamed[OutputChunk, ExitStatus]):
    """A command: its output as it comes, then its exit.

    Attributes:
        sandbox: the sandbox's id.
        process_id: the process's id; empty before the answer begins.
    """

    def __init__(
        self,
        sandbox: str,
        call: StreamCall,
        on_stdout: Callable[[str], object] | None = None,
        on_stderr: Callable[[str], object] | None = None,
    ) -> None:
        super().__init__(call)
        self.sandbox = sandbox
        self.process_id = ""
        self._callbacks = {"stdout": on_stdout, "stderr": on_stderr}
        self._result: ExitStatus | None = None
        self._decoder = raw.RawDecoder()
        self._carries = {"stdout": Carry(), "stderr": Carry()}

    def begin(self, response: httpx.Response) -> None:
        content_type = response.headers.get("content-type", "").partition(";")[0].strip()
        self.process_id = str(response.headers.get(PROCESS_HEADER, ""))
        if content_type != RAW_TYPE or not self.process_id:
            raise RemoteProtocolError(
                "cannot understand the daemon's answer to exec: it is not a raw stream of a process"
            )

    def callback(self, item: OutputChunk) -> Callable[[], object] | None:
        return text_callback(item, self._callbacks)

    def feed(self, data: bytes) -> list[OutputChunk]:
        chunks: list[OutputChunk] = []
        for frame_type, payload in self._decoder.feed(data):
            if frame_type == raw.STDOUT:
                chunks.append(OutputChunk("stdout", payload, *self._carries["stdout"].take(payload)))
            elif frame_type == raw.STDERR:
                chunks.append(OutputChunk("stderr", payload, *self._carries["stderr"].take(payload)))
            else:
                chunks += self._end(frame_type, payload)
        return chunks

    def close(self) -> ExitStatus:
        self._decoder.close()
        if self._result is None:
            raise RemoteProtocolError("cannot read the raw stream: it ended without an exit frame")
        return self._result

    def _end(self, frame_type: int, payload: bytes) -> Iterator[OutputChunk]:
        try:
            value = json.loads(payload)
        except ValueError as error:
            raise RemoteProtocolError("cannot read the raw stream: its last frame is not JSON") from error
        if frame_type == raw.PROBLEM:
            raise from_problem(value)
        self._result = read("exit event", lambda item: parse_exit(self.process_id, item), value)
        # Half a character at the very end has no piece that finishes it: it gets one of its own.
        stdout, stderr = self._carries["stdout"].finish(), self._carries["stderr"].finish()
        if stdout:
            yield OutputChunk("stdout", b"", stdout)
        if stderr:
            yield OutputChunk("stderr", b"", stderr)


def text_callback(
    chunk: OutputChunk, callbacks: Mapping[str, Callable[[str], object] | None]
) -> Callable[[], object] | None:
    """Return the callback for a chunk's text, or None if there is no text or no callback."""
    callback = callbacks.get(chunk.stream)
    if callback is None or not (text := chunk.text):
        return None
    return lambda: callback(text)


class WholeExec(Streamed[OutputChunk, ExecResult]):
    """A command whose whole output is kept until it ends."""

    def __init__(self, request: ExecRequest) -> None:
        super().__init__(request.call)
        self._request = request
        self._output: dict[str, list[bytes]] = {"stdout": [], "stderr": []}

    def begin(self, response: httpx.Response) -> None:
        self._request.begin(response)

    def feed(self, data: bytes) -> tuple[()]:
        for chunk in self._request.feed(data):
            self._output[chunk.stream].append(chunk.data)
        return ()

    def close(self) -> ExecResult:
        status = self._request.close()
        return with_output(status, b"".join(self._output["stdout"]), b"".join(self._output["stderr"]))


def exec_call(
    key: str,
    command: str | Sequence[str],
    options: Mapping[str, Any],
    *,
    stdin: bytes | str | bool | None = None,
    session: str | None = None,
    detach: bool = False,
) -> StreamCall:
    """POST …/exec, answered by raw frames. It has no read timeout, since a command may be silent for any time."""
    body = command_json(command, options, stdin=stdin, session=session)
    if detach:
        body["detach"] = True
    return StreamCall("POST", sandbox_path(key, "/exec"), body=body, accept=RAW_TYPE, timeout_s=None)


@takes(CommandOptions, keep_orphans=False)
def exec(  # noqa: A001 - the verb's name
    key: str, command: str | Sequence[str], *, stdin: bytes | str | None = None, **options: Unpack[CommandOptions]
) -> Request[ExecResult]:
    """Run a command, wait for it to end, and return how it ended and all its output.

    A program that fails, or is not found (exit code 127), is a result, not an error. All output is held in memory; use
    `exec_stream` for output of unknown size.

    Args:
        command: a string for `sh -c`, or a list of program and arguments.
        stdin: the command's standard input, up to 4 MiB as JSON; default: /dev/null.
        options: those of `CommandOptions`.

    Raises:
        InvalidRequest: a value is wrong; `field` names it.
    """
    return WholeExec(ExecRequest(key, exec_call(key, command, options, stdin=stdin)))


@takes(CommandOptions, keep_orphans=False)
def exec_stream(
    key: str,
    command: str | Sequence[str],
    *,
    on_stdout: Callable[[str], object] | None = None,
    on_stderr: Callable[[str], object] | None = None,
    stdin: bytes | str | bool | None = None,
    detach: bool = False,
    **options: Unpack[CommandOptions],
) -> ExecRequest:
    """Start a command and return its stream. Use it as a context manager; iterate over it, or `wait()`.

    In asynchronous code, `async with` starts the command, and callbacks may be coroutine functions.

    Args as of `exec`, and:
        on_stdout: called with each piece of standard output as text, while you iterate or wait.
        on_stderr: the same for standard error.
        stdin: True leaves it open for the stream's `write_stdin` and `close_stdin`.
        detach: whether the command keeps running when the stream is closed early.
    """
    call = exec_call(key, command, options, stdin=stdin, detach=detach)
    return ExecRequest(key, call, on_stdout, on_stderr)
