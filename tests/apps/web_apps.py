"""Large web apps through previews, in a browser: Streamlit's WebSocket, JupyterLab's kernels.

Not part of `make test`: `make test-apps` names this file.
"""

from __future__ import annotations

import json

import pytest

from sandboxd import Sandbox
from tests.support.browser import Browser, colours

pytestmark = [pytest.mark.real, pytest.mark.slow]

STREAMLIT = """
import streamlit as st
if "count" not in st.session_state:
    st.session_state.count = 0
if st.button("more"):
    st.session_state.count += 1
st.write(f"count is {st.session_state.count}")
"""

#: What JupyterLab's own page does, without its mouse paths: a kernel over REST, a cell over its WebSocket.
KERNEL = """
(async () => {
  const base = new URL("/", location.href);
  const token = %s;
  const made = await fetch(base + "api/kernels?token=" + token, {method: "POST", body: "{}"});
  const kernel = await made.json();
  const path = "api/kernels/" + kernel.id + "/channels?token=" + token;
  const socket = new WebSocket(base.href.replace("http", "ws") + path);
  await new Promise((done, fail) => { socket.onopen = done; socket.onerror = fail; });
  const header = {msg_id: "1", session: "s", username: "", date: new Date().toISOString(), msg_type: "execute_request",
                  version: "5.3"};
  socket.send(JSON.stringify({channel: "shell", header, parent_header: {}, metadata: {}, buffers: [],
    content: {code: "sum(range(10))", silent: false, store_history: true, user_expressions: {}, allow_stdin: false}}));
  return await new Promise((done) => {
    socket.onmessage = (event) => {
      const message = JSON.parse(event.data);
      if (message.header.msg_type === "execute_result") done(message.content.data["text/plain"]);
    };
  });
})()
"""


def test_streamlit(apps: Sandbox, page: Browser) -> None:
    apps.write_file("/workspace/app.py", STREAMLIT)
    command = ["python3", "-m", "streamlit", "run", "app.py", "--server.headless=true", "--server.port=8501"]
    process = apps.start_process([*command, "--browser.gatherUsageStats=false"])
    assert apps.wait_for_port(process.id, 8501, path="/_stcore/health", timeout=90).met
    page.open(apps.expose_port(8501).url)
    page.wait_for("document.body.innerText.includes('count is 0')", timeout=60)
    button = "[...document.querySelectorAll('button')].find((one) => one.innerText.trim() === 'more')"
    page.wait_for(f"{button} !== undefined")
    page.ask(f"{button}.id = 'more'")
    page.click("#more")
    page.wait_for("document.body.innerText.includes('count is 1')", timeout=60)
    assert colours(page.screenshot()) > 5


def test_jupyterlab(apps: Sandbox, page: Browser) -> None:
    command = [
        "python3",
        "-m",
        "jupyterlab",
        "--allow-root",
        "--no-browser",
        "--port=8888",
        "--IdentityProvider.token=t",
    ]
    process = apps.start_process([*command, "--ServerApp.allow_remote_access=true"], env={"HOME": "/root"})
    assert apps.wait_for_port(process.id, 8888, path="/api", timeout=90).met
    page.open(apps.expose_port(8888).url + "lab?token=t")
    page.wait_for("document.querySelector('#jp-top-panel, #jp-menu-panel') !== null", timeout=90)
    assert page.ask(KERNEL % json.dumps("t")) == "45"
    assert colours(page.screenshot()) > 5
