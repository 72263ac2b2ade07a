"""Every kind of operation on a sandbox, to be asked of one that is at a limit."""

from __future__ import annotations

import http.client
import json
import pathlib
import socket
from typing import Any, NamedTuple

from sandboxd import Sandbox

SESSION, OTHER_SESSION, HOG = "kept", "new", "hog"
#: Kinds that name a limit, and their statuses.
NAMED = {"limit-exceeded": 422, "quota-exceeded": 507}


#: What is asked of interpreters that are there.
IN_CONTEXTS = {"a run in python", "a run in javascript", "a completion"}


class Answer(NamedTuple):
    """A status, and the problem or what else was said."""

    status: int
    body: dict[str, Any]
    text: str


class _Unix(http.client.HTTPConnection):
    def __init__(self, path: pathlib.Path) -> None:
        super().__init__("sandboxd", timeout=120)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(120)
        self.sock.connect(str(self._path))


def ask(path: pathlib.Path, method: str, route: str, body: Any = None) -> Answer:
    """Ask over the socket `path`; of a stream, what comes first."""
    link = _Unix(path)
    try:
        data = body if isinstance(body, bytes | None) else json.dumps(body)
        link.request(method, route, data, {"Content-Type": "application/json"})
        response = link.getresponse()
        is_stream = response.headers.get("Content-Type", "").startswith("text/event-stream")
        text = (response.read1(4096) if is_stream else response.read()).decode("utf-8", "replace")
        found = json.loads(text) if "json" in response.headers.get("Content-Type", "") else {}
        return Answer(response.status, found, text)
    finally:
        link.close()


def prepare(box: Sandbox, path: pathlib.Path) -> dict[str, str]:
    """Make what the operations work with, before there is a limit to be at; return the contexts' ids."""
    box.exec("head -c 12582912 /dev/zero > big && mkdir d && echo hi > f && echo x > d/y && tar czf a.tgz d").check()
    root = f"/v1/sandboxes/{box.id}"
    ask(path, "POST", f"{root}/sessions", {"id": SESSION})
    return {name: ask(path, "POST", f"{root}/contexts", {"language": name}).body["id"] for name in ("python", "js")}


def operations(contexts: dict[str, str], turn: int) -> dict[str, tuple[str, str, Any]]:
    """Return the operations by name: method, route below the sandbox, body."""
    tar = bytes(1024)
    return {
        "exec": ("POST", "/exec", {"command": "true"}),
        "exec of a list": ("POST", "/exec", {"command": ["true"]}),
        "a long line": ("POST", "/exec", {"command": "true # " + "x" * 200_000}),
        "exec in a session": ("POST", "/exec", {"command": "true", "session": SESSION}),
        "a process": ("POST", "/processes", {"command": "true"}),
        "a process with stdin": ("POST", "/processes", {"command": "cat", "stdin": True}),
        "a process in a session": ("POST", "/processes", {"command": "true", "session": SESSION}),
        "a terminal": ("POST", "/processes", {"command": "true", "terminal": {"cols": 80, "rows": 24}}),
        "a session": ("POST", "/sessions", {"id": OTHER_SESSION}),
        "a python context": ("POST", "/contexts", {"language": "python"}),
        "a javascript context": ("POST", "/contexts", {"language": "javascript"}),
        "a typescript context": ("POST", "/contexts", {"language": "typescript"}),
        "a run in a default context": ("POST", "/run", {"code": "1", "language": "typescript"}),
        "a run in python": ("POST", f"/contexts/{contexts['python']}/run", {"code": "print(1); 2"}),
        "a run in javascript": ("POST", f"/contexts/{contexts['js']}/run", {"code": "1"}),
        "a completion": ("POST", f"/contexts/{contexts['python']}/complete", {"code": "im"}),
        "reading": ("GET", "/files?path=/workspace/f", None),
        "writing": ("PUT", "/files?path=/workspace/new", b"x" * 3_000_000),
        "a stat": ("GET", "/files/stat?path=/workspace/f", None),
        "a list": ("GET", "/files/list?path=/workspace", None),
        "a directory": ("POST", "/files/mkdir", {"path": f"/workspace/made{turn}"}),
        "a copy": ("POST", "/files/copy", {"path": "/workspace/big", "new_path": f"/workspace/big{turn}"}),
        "a search": ("POST", "/files/search", {"path": "/workspace", "name": "*"}),
        "replacing": ("POST", "/files/replace", {"path": "/workspace/f", "pattern": "hi", "replacement": "ho"}),
        "packing": ("GET", "/files/archive?path=/workspace/d&format=tar", None),
        "unpacking": ("PUT", "/files/archive?path=/workspace/d&format=tar", tar),
        "a watch": ("GET", "/files/watch?path=/workspace", None),
        "a version": ("POST", "/files/changes", {"path": "/workspace"}),
        "a backup": ("POST", "/files/backup", {"path": "/workspace/d", "archive": "/workspace/b.tgz"}),
        "restoring": ("POST", "/files/restore", {"path": "/workspace/d", "archive": "/workspace/a.tgz"}),
        "a clone": ("POST", "/git/clone", {"url": "/workspace/d", "target_dir": "/workspace/clone"}),
        "waiting for a port": ("POST", "/ports/8000/wait", {"timeout_s": 0.1}),
        "a preview": ("POST", "/ports", {"port": 8000 + turn}),
    }


def ask_all(box: Sandbox, path: pathlib.Path, contexts: dict[str, str], turn: int = 0) -> dict[str, Answer]:
    """Ask for each operation, and hold every answer to what it may be: done, or a limit by name."""
    found = {}
    for name, (method, route, body) in operations(contexts, turn).items():
        answer = found[name] = ask(path, method, f"/v1/sandboxes/{box.id}{route}", body)
        kind = answer.body.get("kind")
        if kind == "context-exited" and name in IN_CONTEXTS:  # out of memory, the kernel ended its interpreter
            continue
        if answer.status >= 300 and name != "a clone":  # of a directory that is no repository
            assert NAMED.get(str(kind)) == answer.status, (name, answer)
            assert answer.body["limit"], (name, answer)
        assert answer.status != 500, (name, answer)
    return found
