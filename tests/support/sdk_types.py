"""What a type checker sees at call sites of the SDK; test_client_verbs.py runs mypy --strict on it, nobody runs it.

A line that mypy must refuse has a `type: ignore` with the error's kind: one that is not needed is an error itself.
"""

from collections.abc import Sequence
from typing import Any, Literal, assert_type

from sandboxd import AsyncClient, AsyncSandbox, AsyncSession, Client, Sandbox, Session
from sandboxd.client import (
    AsyncCodeStream,
    AsyncEventStream,
    AsyncExecStream,
    AsyncFileStream,
    AsyncLogStream,
    AsyncPty,
    AsyncWatchStream,
    CodeContext,
    CodeResult,
    CodeStream,
    EventStream,
    ExecResult,
    ExecStream,
    ExitStatus,
    ExposedPort,
    FileChange,
    FileInfo,
    FileStream,
    GitCheckout,
    LogStream,
    OutputChunk,
    ProcessInfo,
    Pty,
    SandboxInfo,
    SandboxStats,
    SearchResult,
    SessionInfo,
    WaitResult,
    WatchStream,
)


def simple(box: Sandbox, client: Client) -> None:
    assert_type(box.stat_file("/a", follow=True), FileInfo)
    assert_type(box.move_file(b"/a", "/b", overwrite=False), FileInfo)
    assert_type(box.search_files("/a", name="*.py"), SearchResult)
    assert_type(box.exec(["true"], timeout=1), ExecResult)
    assert_type(
        box.exec("true", cwd="/", env={"A": "b"}, user=1, umask="0027", stdin=b"x", keep_orphans=True), ExecResult
    )
    assert_type(box.run_code("1", on_stdout=print), CodeResult)
    assert_type(box.complete_code("c", "import o"), dict[str, Any])
    assert_type(box.list_code_contexts(), list[CodeContext])
    assert_type(box.git_checkout("https://x/y"), GitCheckout)
    assert_type(box.start_process("true", restart="on-failure"), ProcessInfo)
    assert_type(box.wait_for_port("p", 80), WaitResult)
    assert_type(box.expose_port(80), ExposedPort)
    assert_type(box.create_preview_link(80), str)
    assert_type(box.stats(), SandboxStats)
    assert_type(box.update(env={"A": None}), SandboxInfo)
    assert_type(box.create_session(shell="sh"), Session)
    assert_type(client.info(), dict[str, Any])
    assert_type(client.metrics(sandboxes=False), str)


def streams(box: Sandbox, client: Client, session: Session) -> None:
    assert_type(box.exec_stream("true", detach=True), ExecStream)
    assert_type(session.exec_stream("true"), ExecStream)
    assert_type(box.run_code_stream("1"), CodeStream)
    assert_type(box.stream_process_logs("p"), LogStream)
    assert_type(box.open_pty(cols=100), Pty)
    assert_type(box.read_file_stream("/a", length=3), FileStream)
    assert_type(box.watch("/a"), WatchStream)
    assert_type(client.events(types=["failed"]), EventStream)
    with box.exec_stream("true") as command:
        for chunk in command:
            assert_type(chunk, OutputChunk)
        assert_type(command.wait(), ExitStatus)
        command.write_stdin(b"x")
    for change in box.watch("/a"):
        assert_type(change, FileChange)


async def simple_async(box: AsyncSandbox, client: AsyncClient, session: AsyncSession) -> None:
    assert_type(await box.stat_file("/a", follow=True), FileInfo)
    assert_type(await box.exec("true"), ExecResult)
    assert_type(await session.exec("true"), ExecResult)
    assert_type(await session.refresh(), SessionInfo)
    assert_type(await box.freeze(), SandboxInfo)
    assert_type(await box.get_session("s"), AsyncSession)
    assert_type(await client.info(), dict[str, Any])
    async with box.exec_stream("true") as command:
        async for chunk in command:
            assert_type(chunk, OutputChunk)
        assert_type(await command.wait(), ExitStatus)
        await command.send_signal("TERM")


def streams_async(box: AsyncSandbox, client: AsyncClient) -> None:
    assert_type(box.exec_stream("true"), AsyncExecStream)
    assert_type(box.run_code_stream("1"), AsyncCodeStream)
    assert_type(box.stream_process_logs("p"), AsyncLogStream)
    assert_type(box.open_pty(), AsyncPty)
    assert_type(box.read_archive("/a", format="zip"), AsyncFileStream)
    assert_type(box.watch("/a"), AsyncWatchStream)
    assert_type(client.events(), AsyncEventStream)


async def refused(box: Sandbox, other: AsyncSandbox, session: Session) -> None:
    box.chmod("/a")  # type: ignore[call-arg]
    box.chmod("/a", "755")  # type: ignore[arg-type]
    box.mkdir("/a", True)  # type: ignore[call-arg]
    box.expose_port(80, title="x")  # type: ignore[call-arg]
    box.start_process("true", restart="always")  # type: ignore[arg-type]
    box.watch("/a", include=3)  # type: ignore[arg-type]
    session.exec("true", user="root")  # type: ignore[call-arg]
    session.exec("true", umask="0027")  # type: ignore[call-arg]
    box.exec("true", umask=0o27)  # type: ignore[arg-type]
    session.open_pty(keep_orphans=True)  # type: ignore[call-arg]
    box.exec("true", users="root")  # type: ignore[call-arg]
    box.exec("true", env=["A=b"])  # type: ignore[arg-type]
    box.create_session(timeout=1)  # type: ignore[call-arg]
    await other.start_process("true", cwd=3)  # type: ignore[arg-type]
    await box.thaw()  # type: ignore[misc]
    await other.stat_file(1)  # type: ignore[arg-type]
    str(other.thaw().state)  # type: ignore[attr-defined]


def passed_on(box: Sandbox, words: Sequence[str], how: Literal["never", "on-failure"]) -> ProcessInfo:
    return box.start_process(words, restart=how)
