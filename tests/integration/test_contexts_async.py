"""Code contexts by the asynchronous SDK, on trio."""

from __future__ import annotations

import pytest
import trio

from sandboxd import AsyncClient, AsyncSandbox, CodeError, Output
from tests.support.daemon import Daemon

pytestmark = pytest.mark.real


async def test_the_asynchronous_sdk(daemon: Daemon) -> None:
    async with AsyncClient(daemon.url) as client, AsyncSandbox.create(client=client) as sandbox:
        context = await sandbox.create_code_context("python")
        seen: list[object] = []

        async def slowly(text: str) -> None:
            await trio.lowlevel.checkpoint()
            seen.append(text)

        code = "print('a')\ndisplay(1)\n1 / 0"
        with_callbacks = await sandbox.run_code(
            code, context=context, on_stdout=slowly, on_result=seen.append, on_error=seen.append
        )
        without = await sandbox.run_code(code, context=context)
        assert seen[0] == "a\n"
        assert isinstance(seen[2], CodeError)
        assert (with_callbacks.stdout, with_callbacks.results) == (without.stdout, without.results)
        assert with_callbacks.status == without.status == "error"
        async with sandbox.run_code_stream("import time; print(1); time.sleep(1000)", context=context) as stream:
            assert await anext(aiter(stream)) == Output("stdout", "1\n")
        async with sandbox.follow_code(context, stream.run_id) as again:
            assert (await again.wait()).status == "error"  # leaving the block interrupted it
        with trio.move_on_after(0.3):
            await sandbox.run_code("while True: pass", context=context)
        assert (await sandbox.run_code("2", context=context)).text == "2"
        assert (await sandbox.complete_code(context, "pri"))["matches"]
        assert not (await sandbox.inspect_code(context, "nope"))["found"]
        assert await sandbox.interrupt_code_context(context) is False
        assert (await sandbox.restart_code_context(context)).state == "idle"
        assert [found.id for found in await sandbox.list_code_contexts()] == [context.id]
        await sandbox.delete_code_context(context)
        assert await sandbox.list_code_contexts() == []
