"""Headless Chromium over its debugging pipe: open a page, ask it, click, take a picture."""

from __future__ import annotations

import base64
import json
import os
import select
import shutil
import struct
import subprocess
import tempfile
import time
import zlib
from types import TracebackType
from typing import Any, Self

PROGRAM = shutil.which("chromium") or shutil.which("chromium-browser")


def colours(png: bytes) -> int:
    """Return how many different rows of pixels a PNG has: one for an empty page."""
    assert png.startswith(b"\x89PNG")
    data, place = b"", 8
    while place < len(png):
        (size,) = struct.unpack("!I", png[place : place + 4])
        if png[place + 4 : place + 8] == b"IDAT":
            data += png[place + 8 : place + 8 + size]
        place += size + 12
    raw = zlib.decompress(data)
    height = struct.unpack("!I", png[20:24])[0]
    stride = len(raw) // height
    return len({raw[start + 1 : start + stride] for start in range(0, len(raw), stride)})


class Navigated(Exception):
    """The page went away while it was asked."""


class Browser:
    """One browser with one page. It resolves names as on a machine without set-up."""

    def __init__(self) -> None:
        assert PROGRAM
        self._profile = tempfile.TemporaryDirectory(prefix="sandboxd-browser-", ignore_cleanup_errors=True)
        theirs_in, self._out = os.pipe()
        self._in, theirs_out = os.pipe()
        flags = [
            *("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run"),
            *("--disable-background-networking", "--disable-component-update", "--disable-sync", "--mute-audio"),
            *("--no-proxy-server", "--remote-debugging-pipe", f"--user-data-dir={self._profile.name}", "about:blank"),
        ]
        # The browser speaks on descriptors 3 and 4.
        line = f'exec "$@" 3<&{theirs_in} 4>&{theirs_out}'
        self._process = subprocess.Popen(
            ["bash", "-c", line, "bash", PROGRAM, *flags],
            pass_fds=(theirs_in, theirs_out),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        os.close(theirs_in)
        os.close(theirs_out)
        self._buffer = b""
        self._number = 0
        self.events: list[dict[str, Any]] = []
        self._session: str | None = None
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Network"):
            self.call(f"{domain}.enable")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.close(self._out)
        os.close(self._in)
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            os.killpg(self._process.pid, 9)
            self._process.wait()
        self._profile.cleanup()

    def _read(self, end: float) -> dict[str, Any]:
        while b"\0" not in self._buffer:
            ready, _, _ = select.select([self._in], [], [], max(0.0, end - time.monotonic()))
            assert ready, "the browser does not answer"
            data = os.read(self._in, 1 << 20)
            assert data, "the browser has ended"
            self._buffer += data
        raw, self._buffer = self._buffer.split(b"\0", 1)
        found: dict[str, Any] = json.loads(raw)
        return found

    def call(self, method: str, *, timeout: float = 60.0, **params: object) -> dict[str, Any]:
        """Ask by the DevTools protocol."""
        self._number += 1
        message: dict[str, Any] = {"id": self._number, "method": method, "params": params}
        if self._session is not None:
            message["sessionId"] = self._session
        data = json.dumps(message).encode() + b"\0"
        while data:
            data = data[os.write(self._out, data) :]
        end = time.monotonic() + timeout
        while (answer := self._read(end)).get("id") != self._number:
            self.events.append(answer)
        if "navigated" in answer.get("error", {}).get("message", ""):
            raise Navigated
        assert "error" not in answer, answer
        result: dict[str, Any] = answer["result"]
        return result

    def open(self, url: str) -> None:
        """Open a page and return when it has loaded."""
        self.events.clear()
        failed = self.call("Page.navigate", url=url).get("errorText")
        assert not failed, failed
        self.wait_for_event("Page.loadEventFired")

    def wait_for_event(self, method: str, timeout: float = 60.0) -> dict[str, Any]:
        """Return the first event of that name since `open`."""
        end = time.monotonic() + timeout
        while not (found := [event["params"] for event in self.events if event.get("method") == method]):
            self.events.append(self._read(end))
        params: dict[str, Any] = found[0]
        return params

    def ask(self, expression: str) -> Any:
        """Return the value of a JavaScript expression."""
        result = self.call("Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in result, result
        return result["result"].get("value")

    def wait_for(self, expression: str, timeout: float = 30.0) -> None:
        """Return when a JavaScript expression is true."""
        wait = f"new Promise((done, fail) => {{ const end = Date.now() + {timeout * 1000}; const look = () => "
        wait += f"({expression}) ? done(true) : Date.now() > end ? fail(new Error(document.body.innerText)) : "
        end = time.monotonic() + timeout
        while True:
            try:
                self.ask(wait + "setTimeout(look, 50); look(); })")
                return
            except Navigated:  # a click has led to another page, which may be the one that is waited for
                assert time.monotonic() < end

    def click(self, selector: str) -> None:
        """Click the middle of an element with the mouse."""
        box = self.ask(
            f"(() => {{ const r = document.querySelector({json.dumps(selector)}).getBoundingClientRect();"
            "return [r.x + r.width / 2, r.y + r.height / 2]; })()"
        )
        for kind in ("mousePressed", "mouseReleased"):
            self.call("Input.dispatchMouseEvent", type=kind, x=box[0], y=box[1], button="left", clickCount=1)

    def screenshot(self) -> bytes:
        """Return the page as a PNG."""
        return base64.b64decode(self.call("Page.captureScreenshot", format="png")["data"])
