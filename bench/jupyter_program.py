"""The program in a sandbox that measures ipykernel, or the Jupyter Kernel Gateway before it, from beside it.

It stands alone: the sandbox's own Python runs it with the peers' packages on its path. It is given orders as JSON
lines and answers each with seconds, or bytes for `memory`.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
import urllib.request
import uuid
from typing import Any

IMPORTS = "import numpy, pandas, matplotlib.pyplot; pandas.DataFrame({'a': [1]}).shape[0] + 1"


class Kernel:
    """One ipykernel behind jupyter_client's blocking client."""

    def __init__(self) -> None:
        from jupyter_client import KernelManager

        self.manager = KernelManager()
        self.manager.start_kernel()
        self.client = self.manager.client()
        self.client.start_channels()
        self.client.wait_for_ready(timeout=60)

    @property
    def pid(self) -> int:
        return int(self.manager.provisioner.process.pid)

    def run(self, code: str) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = []
        reply = self.client.execute_interactive(code, store_history=False, output_hook=found.append, timeout=60)
        assert reply["content"]["status"] == "ok", reply
        return [message["content"] for message in found]

    def end(self) -> None:
        self.client.stop_channels()
        self.manager.shutdown_kernel(now=True)


class Gateway:
    """The gateway's own process; kernels are asked for over HTTP and spoken to over a WebSocket."""

    process: subprocess.Popen[bytes] | None = None
    port = 0

    @classmethod
    def start(cls) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            cls.port = probe.getsockname()[1]
        argv = [sys.executable, "-m", "kernel_gateway", "--ip=127.0.0.1", f"--port={cls.port}"]
        cls.process = subprocess.Popen(argv, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        for _ in range(600):
            try:
                cls.ask("GET", "/api")
            except OSError:
                time.sleep(0.05)
            else:
                return
        raise OSError("the gateway does not answer")

    @classmethod
    def ask(cls, method: str, path: str) -> Any:  # noqa: ANN401 - JSON
        request = urllib.request.Request(f"http://127.0.0.1:{cls.port}{path}", method=method, data=b"{}")
        with urllib.request.urlopen(request, timeout=60) as answer:  # noqa: S310
            return json.loads(answer.read() or b"null")


class GatewayKernel:
    """One kernel of the gateway's."""

    def __init__(self) -> None:
        import websocket

        if Gateway.process is None:
            Gateway.start()
        self.id = Gateway.ask("POST", "/api/kernels")["id"]
        url = f"ws://127.0.0.1:{Gateway.port}/api/kernels/{self.id}/channels"
        self.socket = websocket.create_connection(url, timeout=60)

    def run(self, code: str) -> list[dict[str, Any]]:
        header = {"msg_id": uuid.uuid4().hex, "msg_type": "execute_request", "session": "s", "username": "", "date": ""}
        content = {"code": code, "silent": False, "store_history": False, "allow_stdin": False}
        message = {"header": header | {"version": "5.3"}, "parent_header": {}, "metadata": {}, "content": content}
        self.socket.send(json.dumps(message | {"channel": "shell", "buffers": []}))
        found = []
        replied = idle = False
        while not (replied and idle):
            answer = json.loads(self.socket.recv())
            if answer["parent_header"].get("msg_id") != header["msg_id"]:
                continue
            if answer["msg_type"] == "execute_reply":
                assert answer["content"]["status"] == "ok", answer
                replied = True
            elif answer["msg_type"] == "status":
                idle = answer["content"]["execution_state"] == "idle"
            else:
                found.append(answer["content"])
        return found

    def end(self) -> None:
        self.socket.close()
        Gateway.ask("DELETE", f"/api/kernels/{self.id}")


def started(make: type[Any], code: str) -> tuple[float, Any]:
    began = time.perf_counter()
    kernel = make()
    kernel.run(code)
    return time.perf_counter() - began, kernel


def pss(pid: int) -> int:
    with open(f"/proc/{pid}/smaps_rollup") as file:
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith("Pss:"))


def shown(messages: list[dict[str, Any]]) -> str:
    return next(str(item["data"]["text/plain"]) for item in messages if "text/plain" in item.get("data", {}))


def memory(make: type[Any]) -> float:
    kernels = [started(make, IMPORTS)[1] for _ in range(5)]
    try:
        # Any child of the kernel's own is part of what it costs; a gateway's kernels are found by their pid alone.
        pids = [int(shown(kernel.run("import os; os.getpid()"))) for kernel in kernels]
        return sum(map(pss, pids)) / len(pids)
    finally:
        for kernel in kernels:
            kernel.end()


def measure(make: type[Any], held: Any, order: dict[str, Any]) -> float:  # noqa: ANN401 - a kernel of `make`
    what = order["what"]
    if what in ("start", "imports"):
        elapsed, kernel = started(make, "1+1" if what == "start" else IMPORTS)
        kernel.end()
        return elapsed
    if what == "memory":
        return memory(make)
    if what == "prepare_png":
        magic = "\\x89PNG\\r\\n\\x1a\\n"
        held.run(f"import os; d = b'{magic}' + os.urandom({order['count']})\nfrom IPython.display import Image")
        return 0.0
    codes = {"round_trip": "1+1", "stdout": f"print('x' * {order.get('count')})", "png": "Image(data=d, format='png')"}
    code = codes[what]
    began = time.perf_counter()
    found = held.run(code)
    elapsed = time.perf_counter() - began
    if what == "stdout":
        count = sum(len(item.get("text", "")) for item in found)
        assert count == order["count"] + 1, f"gave {count} of {order['count'] + 1} characters"
    if what == "png":
        assert any(len(item.get("data", {}).get("image/png", "")) > order["count"] for item in found)
    return elapsed


def main() -> None:
    """Answer order by order."""
    make = {"kernel": Kernel, "gateway": GatewayKernel}[sys.argv[1]]
    held = started(make, "1+1")[1]
    print(json.dumps({"ready": True}), flush=True)
    for line in sys.stdin:
        try:
            answer: dict[str, Any] = {"value": measure(make, held, json.loads(line))}
        except Exception as error:
            answer = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(answer), flush=True)
    os._exit(0)


if __name__ == "__main__":
    main()
