"""What OpenAI's agents do in a sandbox; run by the interpreter that has them. Prints what it saw as a line of JSON."""

from __future__ import annotations

import asyncio
import io
import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

from openai.types.responses import (
    ResponseCustomToolCall,
    ResponseFunctionToolCall,
    ResponseOutputMessage,
    ResponseOutputText,
)

from agents import ModelResponse, RunConfig, Runner, Usage
from agents.extensions.sandbox.cloudflare import CloudflareSandboxClient, CloudflareSandboxClientOptions
from agents.models.interface import Model
from agents.sandbox import Manifest, SandboxAgent, SandboxRunConfig
from agents.sandbox.entries import File
from agents.sandbox.errors import SandboxError
from agents.sandbox.snapshot import LocalSnapshotSpec

OPTIONS = CloudflareSandboxClientOptions(worker_url=os.environ["WORKER_URL"], api_key=os.environ["WORKER_KEY"])


class Scripted(Model):
    """A model whose answers are written down; it notes what it was told."""

    def __init__(self, turns: list[Any]) -> None:
        self.turns = turns
        self.heard: list[Any] = []

    async def get_response(self, *args: Any, **options: Any) -> ModelResponse:
        self.heard.append(options["input"])
        return ModelResponse(output=[self.turns.pop(0)], usage=Usage(), response_id=None)

    def stream_response(self, *args: Any, **options: Any) -> Any:
        raise NotImplementedError


def call(number: int, name: str, **arguments: Any) -> ResponseFunctionToolCall:
    return ResponseFunctionToolCall(
        type="function_call", call_id=f"call-{number}", name=name, arguments=json.dumps(arguments), id=f"fc-{number}"
    )


def patch(number: int, text: str) -> ResponseCustomToolCall:
    return ResponseCustomToolCall(
        type="custom_tool_call", call_id=f"call-{number}", name="apply_patch", input=text, id=f"ct-{number}"
    )


def say(text: str) -> ResponseOutputMessage:
    content = [ResponseOutputText(type="output_text", text=text, annotations=[])]
    return ResponseOutputMessage(id="m", type="message", role="assistant", status="completed", content=content)


async def agent() -> Any:
    """A whole run of an agent: a shell command, a patch, another command that sees it, an answer."""
    model = Scripted(
        [
            call(1, "exec_command", cmd="ls; cat notes/todo.txt; echo $((6*7))", yield_time_ms=1500),
            patch(2, "*** Begin Patch\n*** Add File: made.py\n+print('made by the agent')\n*** End Patch"),
            call(3, "exec_command", cmd="python3 made.py", yield_time_ms=1500),
            say("done"),
        ]
    )
    manifest = Manifest(entries={"notes/todo.txt": File(content=b"write it\n")})
    result = await Runner.run(
        SandboxAgent(name="worker", model=model, instructions="work", default_manifest=manifest),
        "go",
        run_config=RunConfig(
            sandbox=SandboxRunConfig(client=CloudflareSandboxClient(), options=OPTIONS), tracing_disabled=True
        ),
    )
    outputs = [item["output"] for item in model.heard[-1] if str(item.get("type")).endswith("call_output")]
    return {"final": result.final_output, "outputs": outputs}


async def session() -> Any:
    """The session's own methods."""
    seen: dict[str, Any] = {}
    client = CloudflareSandboxClient()
    made = await client.create(manifest=Manifest(environment={"value": {"GREETING": "hello"}}), options=OPTIONS)
    async with made as box:
        result = await box.exec("echo $GREETING; echo err >&2; exit 3")
        seen["exec"] = [result.stdout.decode(), result.stderr.decode(), result.exit_code]
        result = await box.exec("sleep 30", timeout=0.5)
        seen["timeout"] = result.exit_code
        data = bytes(range(256)) * 50
        await box.write(Path("/workspace/data.bin"), io.BytesIO(data))
        seen["read"] = (await box.read(Path("/workspace/data.bin"))).read() == data
        result = await box.exec("cat data.bin")
        seen["bytes"] = result.stdout == data
        for path, name in (("/workspace/none", "missing"), ("/etc/passwd", "outside")):
            try:
                await box.read(Path(path))
                seen[name] = "read"
            except SandboxError as error:
                seen[name] = type(error).__name__
        await box.exec("mkdir -p /workspace/sub; echo in the snapshot >/workspace/sub/file")
        tar = (await box.persist_workspace()).read()
        await box.exec("rm -rf /workspace/sub /workspace/data.bin")
        await box.hydrate_workspace(io.BytesIO(tar))
        seen["hydrated"] = (await box.exec("cat sub/file")).stdout.decode()
        seen["running"] = await box.running()
        started = await box.pty_exec_start("read line; echo got $line", tty=True, yield_time_s=1.0)
        update = await box.pty_write_stdin(session_id=started.process_id, chars="typed\n", yield_time_s=1.0)
        seen["pty"] = (started.output + update.output).decode()
        await box.pty_terminate_all()
    await client.delete(made)
    seen["deleted"] = await made.running()
    return seen


async def resume() -> Any:
    """A run that stops and goes on in a sandbox that is there, and in one that is gone."""
    seen: dict[str, Any] = {}
    client = CloudflareSandboxClient()
    with tempfile.TemporaryDirectory() as directory:
        made = await client.create(snapshot=LocalSnapshotSpec(base_path=Path(directory)), options=OPTIONS)
        await made.start()
        await made.exec("echo kept >/workspace/kept")
        await made.stop()
        state = made.state
        again = await client.resume(state)
        await again.start()
        seen["there"] = (await again.exec("cat /workspace/kept")).stdout.decode()
        await again.stop()
        await client.delete(again)
        anew = await client.resume(state)
        await anew.start()
        seen["gone"] = (await anew.exec("cat /workspace/kept")).stdout.decode()
        await client.delete(anew)
    return seen


async def refused() -> Any:
    """A wrong key."""
    try:
        await CloudflareSandboxClient().create(
            options=CloudflareSandboxClientOptions(worker_url=os.environ["WORKER_URL"], api_key="wrong")
        )
    except SandboxError as error:
        return str(error)
    return "let in"


PARTS = {"agent": agent, "session": session, "resume": resume, "refused": refused}
print(json.dumps(asyncio.run(PARTS[sys.argv[1]]())))
