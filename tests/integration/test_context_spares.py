"""Spare Node interpreters: that one is indistinguishable from a fresh start, and never used where it would lie."""

from __future__ import annotations

import json
import pathlib
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from sandboxd import CodeContext, Sandbox
from tests.support.daemon import Daemon
from tests.support.waiting import wait_until

pytestmark = pytest.mark.real

#: What a program can tell of the process that it is in, but for numbers of processes and times.
FACTS = r"""
const fs = require('fs');
const status = Object.fromEntries(fs.readFileSync('/proc/self/status', 'utf8').trim().split('\n')
  .map((line) => line.split(':\t')));
const words = ['Uid', 'Gid', 'Groups', 'CapInh', 'CapPrm', 'CapEff', 'CapBnd', 'CapAmb', 'NoNewPrivs', 'Seccomp',
  'Seccomp_filters', 'SigBlk', 'SigIgn', 'SigCgt', 'Umask', 'TracerPid', 'PPid'];
const links = (directory) => fs.readdirSync(`/proc/self/${directory}`)
  .map((name) => {
    try { return [name, fs.readlinkSync(`/proc/self/${directory}/${name}`).replace(/\d{3,}/, 'N')]; } catch { return [];
    }
  })
  .filter(([, target]) => target && !target.startsWith('/proc/'));
console.log(JSON.stringify({
  status: words.map((word) => [word, status[word]]), limits: fs.readFileSync('/proc/self/limits', 'utf8'),
  namespaces: fs.readdirSync('/proc/self/ns').map((name) => fs.readlinkSync(`/proc/self/ns/${name}`)),
  // Node's own, above those that it was given, have numbers by which of its threads was first.
  descriptors: links('fd').map(([name, target]) => [Number(name) < 8 ? name : '', target]).sort(),
  environ: fs.readFileSync('/proc/self/environ', 'utf8'), env: process.env,
  words: fs.readFileSync('/proc/self/cmdline', 'utf8'), argv: process.argv, execArgv: process.execArgv,
  cwd: [process.cwd(), fs.readlinkSync('/proc/self/cwd'), __dirname, import.meta.url], title: process.title,
  adjustment: fs.readFileSync('/proc/self/oom_score_adj', 'utf8'), session: fs.readFileSync('/proc/self/stat', 'utf8')
    .split(') ')[1].split(' ').slice(2, 4).map((id) => Number(id) === process.pid), umask: process.umask(),
  globals: Object.getOwnPropertyNames(globalThis), loaded: Object.keys(require.cache),
  listeners: process.eventNames().map(String),
  dumpable: fs.statSync('/proc/self/mem').uid, nice: require('os').getPriority(),
}))
"""


def spares(box: Sandbox) -> list[int]:
    """Return the pids, as the sandbox knows them, of interpreters that wait: those that are to die first."""
    found = box.exec("grep -lx 1000 /proc/[0-9]*/oom_score_adj 2>/dev/null").stdout
    return [int(line.split("/")[2]) for line in found.splitlines()]


def spare(box: Sandbox) -> int:
    """Return the pid of the one that waits, once it does."""
    found: list[int] = []

    def is_one() -> bool:
        """Another one may still be ending."""
        found[:] = spares(box)
        return len(found) == 1

    wait_until(is_one)
    return found[0]


def pid_of(box: Sandbox, context: CodeContext) -> int:
    return int(box.run_code("process.pid", context=context).text or "0")


def facts_of(box: Sandbox, context: CodeContext) -> dict[str, Any]:
    facts: dict[str, Any] = json.loads(box.run_code(FACTS, context=context).stdout)
    return facts


@pytest.fixture
def box(sandbox: Sandbox) -> Sandbox:
    """A sandbox in which an interpreter waits."""
    sandbox.create_code_context("javascript")
    spare(sandbox)
    return sandbox


def test_the_next_context_is_the_one_that_waited(box: Sandbox) -> None:
    for language, code in [("javascript", "1 + 1"), ("typescript", "enum E { A, B, C }; E.C"), ("javascript", "2")]:
        waiting = spare(box)
        context = box.create_code_context(language)
        assert box.run_code(code, context=context).text == "2"
        assert pid_of(box, context) == waiting
        assert context.version.startswith("Node.js v")


@pytest.mark.parametrize("user", ["root", 1234])
def test_nothing_but_times_tells_it_from_a_fresh_start(daemon: Daemon, user: str | int) -> None:
    with daemon.client() as client, Sandbox.create(client=client, user=user, env={"A": "b"}) as box:
        fresh = box.create_code_context("javascript")
        waiting = spare(box)
        second = box.create_code_context("javascript")
        assert pid_of(box, second) == waiting
        assert pid_of(box, box.create_code_context("javascript", env={"NODE_NO": "spare"})) != waiting
        # The fresh one's second thread may not be all there yet.
        wait_until(lambda: facts_of(box, fresh) == facts_of(box, second))
        facts = facts_of(box, second)
        assert facts["env"] == {**facts["env"], "A": "b"}
        assert "SANDBOXD" not in facts["environ"]


def test_it_serves_only_the_same_variables_and_folder(box: Sandbox) -> None:
    waiting = spare(box)
    other = box.create_code_context("javascript", env={"A": "b"})
    assert pid_of(box, other) != waiting
    assert box.run_code("process.env.A", context=other).text == "'b'"
    wait_until(lambda: spares(box) and waiting not in spares(box))  # the next one is for such a context
    waiting = spare(box)
    assert pid_of(box, box.create_code_context("javascript", cwd="/tmp", env={"A": "b"})) != waiting
    wait_until(lambda: spares(box) and waiting not in spares(box))
    waiting = spare(box)
    assert pid_of(box, box.create_code_context("javascript", cwd="/tmp", env={"A": "b"})) == waiting


CHANGES = {
    "another node": "printf '#!/bin/sh\\nexport MARK=1\\nexec /usr/local/bin/node \"$@\"\\n' > /usr/local/sbin/node "
    "&& chmod +x /usr/local/sbin/node",
    "a library": "f=$(readlink -f /lib/x86_64-linux-gnu/libdl.so.2) && cp -p $f /root/x && mv /root/x $f",
    "the loader's cache": "cp /etc/ld.so.cache /root/x && mv /root/x /etc/ld.so.cache",
    "the loader's list": "touch /etc/ld.so.preload",
    "OpenSSL's configuration": "echo >> /etc/ssl/openssl.cnf",
    "the working directory": "mv /workspace /gone && mkdir /workspace",
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_sandbox_is_seen(box: Sandbox, change: str) -> None:
    waiting = spare(box)
    box.exec(CHANGES[change], cwd="/").check()
    context = box.create_code_context("javascript")
    assert pid_of(box, context) != waiting
    assert waiting not in spares(box)
    mark = box.run_code("process.env.MARK", context=context).text
    assert mark == ("'1'" if change == "another node" else None)


def test_a_wrapper_is_never_kept_waiting(sandbox: Sandbox) -> None:
    """What it would do the next time nobody can tell."""
    sandbox.exec(CHANGES["another node"]).check()
    for number in range(3):
        sandbox.exec(f"sed -i s/MARK=.*/MARK={number}/ /usr/local/sbin/node").check()
        context = sandbox.create_code_context("javascript")
        assert sandbox.run_code("process.env.MARK", context=context).text == f"'{number}'"
        deadline = time.monotonic() + 1.0
        while time.monotonic() < deadline:
            assert spares(sandbox) == []
    # One was tried after each, and ended when it said what it is.
    wait_until(lambda: sandbox.exec("cat /proc/[0-9]*/cmdline").stdout.count("filename: 'sandboxd:worker'") == 3)


@pytest.mark.parametrize("env", [{"NODE_OPTIONS": "--no-warnings"}, {"LD_LIBRARY_PATH": "/tmp"}, {"NODE_PATH": "/tmp"}])
def test_variables_that_name_files_keep_none_waiting(sandbox: Sandbox, env: dict[str, str]) -> None:
    sandbox.create_code_context("javascript", env=env)
    deadline = time.monotonic() + 1.2
    while time.monotonic() < deadline:
        assert spares(sandbox) == []


def test_one_that_was_killed_is_not_missed(box: Sandbox) -> None:
    context = box.create_code_context("javascript")
    waiting = spare(box)
    box.exec(f"kill -9 {waiting}").check()
    wait_until(lambda: not box.exec(f"ls -d /proc/{waiting}").stdout)
    other = box.create_code_context("javascript")
    assert box.run_code("1 + 1", context=other).text == "2"
    assert box.run_code("1 + 1", context=context).text == "2"


def test_one_that_hangs_is_replaced(box: Sandbox) -> None:
    waiting = spare(box)
    box.exec(f"kill -STOP {waiting}").check()
    began = time.monotonic()
    context = box.create_code_context("typescript")
    assert box.run_code("1 + 1", context=context).text == "2"
    assert time.monotonic() - began > 4
    wait_until(lambda: not box.exec(f"ls -d /proc/{waiting}").stdout)
    assert spare(box) not in (waiting, pid_of(box, context))


def test_one_that_dies_as_it_is_taken_is_replaced(box: Sandbox) -> None:
    waiting = spare(box)
    # It is stopped, so it is taken and begins nothing; then it dies.
    box.exec(f"kill -STOP {waiting}").check()
    with box.exec_stream(f"sleep 1; kill -9 {waiting}"):
        context = box.create_code_context("javascript")
        assert box.run_code("1 + 1", context=context).text == "2"
        assert pid_of(box, context) != waiting


def test_a_restarted_context_is_the_one_that_waited(box: Sandbox) -> None:
    (context,) = box.list_code_contexts()
    box.run_code("var x = 1", context=context).check()
    waiting = spare(box)
    box.restart_code_context(context)
    assert pid_of(box, context) == waiting
    assert box.run_code("typeof x", context=context).text == "'undefined'"


def test_a_frozen_sandbox_keeps_none(box: Sandbox) -> None:
    waiting = spare(box)
    box.freeze()
    box.thaw()
    wait_until(lambda: not box.exec(f"ls -d /proc/{waiting}").stdout)
    context = box.create_code_context("javascript")
    assert box.run_code("1 + 1", context=context).text == "2"


def test_it_can_be_interrupted_like_any(box: Sandbox) -> None:
    waiting = spare(box)
    context = box.create_code_context("javascript")
    result = box.run_code("while (true) {}", context=context, timeout=0.5)
    assert (result.status, result.restarted) == ("timeout", False)
    assert pid_of(box, context) == waiting


@pytest.fixture
def configured(tmp_path: pathlib.Path) -> Iterator[Callable[[int], Daemon]]:
    daemons = []

    def start(node_spare_s: int) -> Daemon:
        daemon = Daemon(tmp_path, config={"node_spare_s": node_spare_s})
        daemons.append(daemon)
        daemon.start()
        return daemon

    yield start
    for daemon in daemons:
        daemon.close()


def test_it_goes_when_nobody_comes(configured: Callable[[int], Daemon]) -> None:
    with configured(3).client() as client, Sandbox.create(client=client) as box:
        context = box.create_code_context("javascript")
        waiting = spare(box)
        wait_until(lambda: not box.exec(f"ls -d /proc/{waiting}").stdout)
        assert box.run_code("1 + 1", context=context).text == "2"


def test_it_can_be_turned_off(configured: Callable[[int], Daemon]) -> None:
    with configured(0).client() as client, Sandbox.create(client=client) as box:
        box.create_code_context("javascript")
        deadline = time.monotonic() + 1.2
        while time.monotonic() < deadline:
            assert spares(box) == []


@pytest.mark.slow
def test_it_outlives_the_daemon(own_daemon: Daemon) -> None:
    with own_daemon.client() as client:
        box = Sandbox.create(client=client)
        box.create_code_context("javascript")
        waiting = spare(box)
        own_daemon.stop()
        own_daemon.start()
    with own_daemon.client() as client:
        box = Sandbox.connect(box.id, client=client)
        assert pid_of(box, box.create_code_context("javascript")) == waiting
