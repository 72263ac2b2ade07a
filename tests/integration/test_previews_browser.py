"""Real web apps in a real browser, through previews: http.server, Flask with server-sent events, Vite's hot reload."""

from __future__ import annotations

import pathlib
import tempfile
from collections.abc import Iterator

import pytest

from sandboxd import Sandbox
from tests.support import browser, web
from tests.support.browser import Browser, colours
from tests.support.daemon import Daemon

pytestmark = [
    pytest.mark.real,
    pytest.mark.slow,
    pytest.mark.skipif(browser.PROGRAM is None, reason="needs Debian's chromium (make test installs it)"),
]

FLASK = '''
import queue
from flask import Flask, Response, request

app = Flask(__name__)
listeners = []

@app.get("/")
def page():
    return """<!doctype html><title>Flask</title><button>say</button><ul></ul><script>
      new EventSource("events").onmessage = (event) => {
        document.querySelector("ul").innerHTML += "<li>" + event.data + "</li>";
      };
      document.querySelector("button").onclick = () => fetch("say", {method: "POST", body: "clicked"});
    </script>"""

@app.post("/say")
def say():
    for listener in listeners:
        listener.put(request.get_data(as_text=True))
    return ""

@app.get("/events")
def events():
    mine = queue.Queue()
    listeners.append(mine)
    def stream():
        yield "data: ready\\n\\n"
        while True:
            yield f"data: {mine.get()}\\n\\n"
    return Response(stream(), mimetype="text/event-stream")

app.run("127.0.0.1", 5000, threaded=True)
'''

VITE = {
    "index.html": """<!doctype html><title>Vite</title><button>0</button><p></p>
<script type="module" src="/main.js"></script>""",
    "main.js": """
import { text } from "./text.js";
const button = document.querySelector("button");
button.onclick = () => { button.textContent = Number(button.textContent) + 1; };
document.querySelector("p").textContent = text;
if (import.meta.hot) {
  import.meta.hot.accept("./text.js", (next) => { document.querySelector("p").textContent = next.text; });
  document.title = "hot";
}
""",
    "text.js": 'export const text = "first";\n',
}


@pytest.fixture(scope="module")
def apps() -> Iterator[Sandbox]:
    directory = web.build()
    with tempfile.TemporaryDirectory(prefix="sandboxd-web-") as name:
        daemon = Daemon(pathlib.Path(name, "d"), rootfs_dir=str(directory))
        daemon.start()
        try:
            with daemon.client() as client, Sandbox.create(rootfs="web", client=client) as sandbox:
                yield sandbox
        finally:
            daemon.close()


@pytest.fixture(scope="module")
def page() -> Iterator[Browser]:
    with Browser() as page:
        yield page


def test_http_server(apps: Sandbox, page: Browser) -> None:
    url = apps.expose_port(8000).url
    page.open(url)
    assert "502 Bad Gateway" in page.ask("document.title")
    assert apps.id in page.ask("document.body.innerText")
    apps.write_file("/workspace/site/index.html", '<h1>Hello</h1><a href="other%20page.html">there</a>')
    apps.write_file("/workspace/site/other page.html", "<h1>Other</h1>" + "x" * 300_000)
    process = apps.start_process(["python3", "-m", "http.server", "8000", "--bind", "127.0.0.1"], cwd="/workspace/site")
    assert apps.wait_for_port(process.id, 8000, timeout=100).met
    page.open(url)
    assert page.ask("document.querySelector('h1').textContent") == "Hello"
    page.click("a")
    page.wait_for("document.querySelector('h1')?.textContent === 'Other'")
    page.wait_for("document.body.innerText.length > 300000")
    assert colours(page.screenshot()) > 5


def test_flask_with_server_sent_events(apps: Sandbox, page: Browser) -> None:
    apps.write_file("/workspace/app.py", FLASK)
    process = apps.start_process(["python3", "app.py"])
    assert apps.wait_for_port(process.id, 5000, timeout=100).met
    apps.expose_port(5000)
    page.open(apps.create_preview_link(5000))  # by cookie: no token in the address
    assert page.ask("location.host").startswith(f"5000-{apps.id}.localhost:")
    page.wait_for("document.querySelector('li')?.textContent === 'ready'")
    page.click("button")
    page.wait_for("document.querySelectorAll('li')[1]?.textContent === 'clicked'")
    assert colours(page.screenshot()) > 5
    assert page.ask("document.cookie") == ""


def test_vite_with_hot_reload(apps: Sandbox, page: Browser) -> None:
    for name, text in VITE.items():
        apps.write_file(f"/workspace/vite/{name}", text)
    command = [
        "node",
        "/opt/web/node_modules/vite/bin/vite.js",
        "--host",
        "127.0.0.1",
        "--port",
        "5173",
        "--strictPort",
    ]
    process = apps.start_process(command, cwd="/workspace/vite")
    assert apps.wait_for_port(process.id, 5173, timeout=60).met
    page.open(apps.expose_port(5173).url)
    page.wait_for("document.title === 'hot' && document.querySelector('p').textContent === 'first'")
    page.click("button")
    page.wait_for("document.querySelector('button').textContent === '1'")
    socket = page.wait_for_event("Network.webSocketHandshakeResponseReceived")
    assert socket["response"]["status"] == 101
    apps.write_file("/workspace/vite/text.js", 'export const text = "second";\n')
    page.wait_for("document.querySelector('p').textContent === 'second'")
    assert page.ask("document.querySelector('button').textContent") == "1"  # the page was not loaded anew
    assert colours(page.screenshot()) > 5
