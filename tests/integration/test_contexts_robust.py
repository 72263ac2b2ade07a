"""Code contexts against time, signals, death and lies (tests/README.md, rows 21, 25 and 26), in both interpreters."""

from __future__ import annotations

import contextlib
import pathlib
import struct
import threading
import time
from collections.abc import Iterator

import msgpack
import pytest

from sandboxd import (
    CodeContext,
    ContextExited,
    ContextNotFound,
    ContextRestarting,
    InterpreterMissing,
    LimitExceeded,
    Output,
    Sandbox,
    SandboxdError,
)
from sandboxd.client import Client
from tests.support.daemon import Daemon

pytestmark = [pytest.mark.real, pytest.mark.slow]
BOTH = pytest.mark.parametrize("language", ["python", "javascript"])
#: A state to find again, and how to look.
SET = {"python": "kept = 'state'", "javascript": "const kept = 'state'"}


@pytest.fixture(scope="module")
def box(daemon: Daemon) -> Iterator[Sandbox]:
    with daemon.client() as client, Sandbox.create(client=client) as sandbox:
        yield sandbox


@contextlib.contextmanager
def context_in(box: Sandbox, language: str) -> Iterator[CodeContext]:
    context = box.create_code_context(language)
    box.run_code(SET[language], context=context).check()
    yield context
    with contextlib.suppress(ContextNotFound):
        box.delete_code_context(context)


def assert_kept(box: Sandbox, context: CodeContext) -> None:
    assert box.run_code("kept", context=context, timeout=20).text == "'state'"


STUCK = {
    "python": [
        "while True: pass",
        "import time; time.sleep(1000)",
        "import asyncio; await asyncio.sleep(1000)",
        "import subprocess; subprocess.run(['sleep', '1000'])",
        "!sleep 1000",
        "import threading; threading.Event().wait()",
        "import queue; queue.Queue().get()",
        "import numpy as np\na = np.ones((300, 300))\nwhile True: a @ a",
        "while True: print('x' * 1000)",
        "while True: display(1)",
        "for i in iter(int, 1): pass",
    ],
    "javascript": [
        "while (true) {}",
        "await new Promise(() => {})",
        "await 0; while (true) {}",
        "setTimeout(() => { while (true) {} }, 5); await new Promise(r => setTimeout(r, 1e6))",
        "for (;;) { JSON.stringify([1]) }",
        "/(a+)+$/.test('a'.repeat(60) + '!')",
        "require('child_process').execSync('sleep 1000')",
        "while (true) console.log('x'.repeat(1000))",
        "while (true) await display(1)",
        "try { while (true) {} } catch { 1 } finally { 2 }",
        "setInterval(() => {}, 1); await new Promise(() => {})",
    ],
}


@pytest.mark.parametrize(("language", "code"), [(name, code) for name, codes in STUCK.items() for code in codes])
def test_a_timeout_interrupts_and_keeps_the_state(box: Sandbox, language: str, code: str) -> None:
    with context_in(box, language) as context:
        began = time.monotonic()
        result = box.run_code(code, context=context, timeout=0.5)
        assert time.monotonic() - began < 5.5
        assert (result.status, result.restarted) == ("timeout", False)
        assert result.error is not None
        assert result.error.ename == "KeyboardInterrupt"
        assert_kept(box, context)


@BOTH
def test_an_interrupt_ends_a_run_at_once_and_only_a_run(box: Sandbox, language: str) -> None:
    code = {"python": "print('on', flush=True)\nimport time; time.sleep(1000)"}
    code["javascript"] = "console.log('on'); await new Promise(() => {})"
    with context_in(box, language) as context:
        assert box.interrupt_code_context(context) is False
        with box.run_code_stream(code[language], context=context) as stream:
            first = next(iter(stream))
            assert isinstance(first, Output)
            assert first.text == "on\n"
            began = time.monotonic()
            assert box.interrupt_code_context(context) is True
            result = stream.wait()
        assert time.monotonic() - began < 2
        assert (result.status, result.restarted) == ("error", False)
        assert result.error is not None
        assert result.error.ename == "KeyboardInterrupt"
        assert_kept(box, context)


@BOTH
def test_code_that_heeds_no_interrupt_costs_the_state(box: Sandbox, language: str) -> None:
    code = {
        "python": "import signal, time\nsignal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])\ntime.sleep(1000)",
        # Waits in a system call, and its child has another process group.
        "javascript": "require('child_process').execSync('exec setsid -w sleep 1000', {stdio: 'inherit'})",
    }
    with context_in(box, language) as context:
        result = box.run_code(code[language], context=context, timeout=0.3)
        assert (result.status, result.restarted) == ("timeout", True)
        assert result.error is not None
        assert "restarted" in result.error.evalue
        lost = box.run_code("kept", context=context).error
        assert lost is not None
        assert lost.ename in ("NameError", "ReferenceError")
        assert box.run_code("1 + 1", context=context).text == "2"


@BOTH
def test_a_stopped_interpreter_is_woken(box: Sandbox, language: str) -> None:
    code = {"python": "import os, signal; os.kill(os.getpid(), signal.SIGSTOP); 5"}
    code["javascript"] = "require('child_process').execSync(`kill -STOP ${process.pid}`); 5"
    with context_in(box, language) as context:
        assert box.run_code(code[language], context=context, timeout=0.3).status == "timeout"
        assert_kept(box, context)


@BOTH
def test_a_client_that_leaves_interrupts_its_run_unless_it_is_detached(box: Sandbox, language: str) -> None:
    code = {"python": "import time\nfor _ in range(%d): time.sleep(0.05)\nopen('/tmp/done-%s', 'w').close()"}
    code["javascript"] = (
        "await new Promise(r => setTimeout(r, %d * 50)); require('fs').writeFileSync('/tmp/done-%s', '')"
    )
    with context_in(box, language) as context:
        # A run that nobody interrupts would take ten minutes; one that goes on without us, a second.
        for detach, steps in ((False, 12_000), (True, 20)):
            name = f"{language}-{detach}"
            with box.run_code_stream(code[language] % (steps, name), context=context, detach=detach) as stream:
                pass
            with box.follow_code(context, stream.run_id) as again:
                assert again.wait().status == ("ok" if detach else "error")
            assert box.exec(["test", "-e", f"/tmp/done-{name}"]).exit_code == (0 if detach else 1)
        assert_kept(box, context)


@BOTH
def test_runs_wait_their_turn_and_contexts_do_not_wait_for_each_other(box: Sandbox, language: str) -> None:
    step = {
        "python": "order = globals().get('order', []) + [%d]\nimport time; time.sleep(0.1)\norder",
        "javascript": "globalThis.order = [...(globalThis.order ?? []), %d]\n"
        "await new Promise(r => setTimeout(r, 100)); order.join()",
    }
    with context_in(box, language) as context, context_in(box, language) as other:
        streams = []
        for n in range(4):
            streams.append(box.run_code_stream(step[language] % n, context=context))
        quick = time.monotonic()
        assert box.run_code("1", context=other).text == "1"
        assert time.monotonic() - quick < 0.35
        texts = [stream.wait().text for stream in streams]
        for stream in streams:
            stream.close()
        assert "".join(c for c in (texts[-1] or "") if c.isdigit()) == "0123"


EXITS = {
    "python": [
        ("import os; os._exit(3)", "exit code 3"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", "SIGKILL"),
        ("import ctypes; ctypes.string_at(0)", "SIGSEGV"),
        ("import os; os.close(4); import time; time.sleep(1000)", "closed its pipes"),
        ("import os; os.closerange(0, 100); import time; time.sleep(1000)", "closed its pipes"),
        ("import os; os.close(3); 1", ""),
        ("import os; os.write(4, b'\\xff' * 8); import time; time.sleep(1000)", "protocol"),
        ("import os; os.write(4, b'\\0\\0\\0\\2\\xc1\\xc1'); import time; time.sleep(1000)", "broke the protocol"),
    ],
    "javascript": [
        ("require('child_process').execSync(`kill -9 ${process.pid}`)", "SIGKILL"),
        ("require('child_process').execSync(`kill -ABRT ${process.pid}; sleep 1000`)", "SIGABRT"),
        ("require('fs').closeSync(4); await new Promise(() => {})", "closed its pipes"),
        ("require('fs').writeSync(4, Buffer.alloc(8, 255)); await new Promise(() => {})", "protocol"),
        (
            "require('fs').writeSync(4, Buffer.from([0, 0, 0, 2, 193, 193])); await new Promise(() => {})",
            "broke the protocol",
        ),
    ],
}


@pytest.mark.parametrize(("language", "code", "words"), [(n, *row) for n, rows in EXITS.items() for row in rows])
def test_an_interpreter_that_dies_is_told_and_restarted(box: Sandbox, language: str, code: str, words: str) -> None:
    with context_in(box, language) as context, context_in(box, "python") as neighbour:
        result = box.run_code(code, context=context, timeout=20)
        if not words:  # it dies when it wants the next run, which may come before that is noticed, or after
            assert result.status == "ok"
            with contextlib.suppress(ContextExited):
                result = box.run_code("1", context=context, timeout=20)
        if words or result.status != "ok":
            assert (result.status, result.restarted) == ("exited", False)
            assert result.error is not None
            assert result.error.ename == "ContextExited"
            assert words in result.error.evalue
        with pytest.raises(ContextExited) as caught:
            box.run_code("1", context=context)
        assert caught.value.context == context.id
        assert box.get_code_context(context).state == "exited"
        assert box.restart_code_context(context).state == "idle"
        assert box.run_code("1 + 1", context=context).text == "2"
        assert_kept(box, neighbour)


DEATHS = {
    "python": "import os; os._exit(3)",
    "javascript": "require('child_process').execSync(`kill -9 ${process.pid}`)",
    "typescript": "require('fs').closeSync(4); await new Promise(() => {})",
}
PID = {"python": "import os; os.getpid()", "javascript": "process.pid", "typescript": "process.pid"}


def default_of(box: Sandbox, language: str) -> CodeContext:
    return next(one for one in box.list_code_contexts() if one.is_default and one.language == language)


@pytest.mark.parametrize("language", DEATHS)
def test_a_default_context_that_died_begins_anew_and_says_so(box: Sandbox, language: str) -> None:
    for _ in range(2):
        box.run_code("var kept = 1" if language != "python" else "kept = 1", language=language).check()
        died = box.run_code(DEATHS[language], language=language, timeout=20)
        assert (died.status, died.restarted) == ("exited", False)
        again = box.run_code("kept", language=language)
        assert (again.status, again.restarted) == ("error", True)
        after = box.run_code("1 + 1", language=language)
        assert (after.text, after.restarted, after.context) == ("2", False, died.context)


@pytest.mark.parametrize("language", DEATHS)
def test_a_default_context_that_died_between_two_runs_begins_anew(box: Sandbox, language: str) -> None:
    pid = box.run_code(PID[language], language=language).text
    context = default_of(box, language)
    # Before it has read the next run, which is in its pipe: that one is for the next interpreter, and begins once.
    box.exec(f"kill -STOP {pid}").check()
    with box.run_code_stream("1 + 1", language=language) as stream:
        while box.get_code_context(context).state != "busy":
            pass
        box.exec(f"kill -KILL {pid}").check()
        result = stream.wait()
    assert (result.status, result.text, result.restarted) == ("ok", "2", True)
    # And long before the next run.
    pid = box.run_code(PID[language], language=language).text
    box.exec(f"kill -KILL {pid}").check()
    while box.get_code_context(context).state != "exited":
        pass
    with pytest.raises(ContextExited):
        box.complete_code(context, "1")
    results = [box.run_code("1 + 1", language=language) for _ in range(2)]
    assert [(one.text, one.restarted) for one in results] == [("2", True), ("2", False)]


def test_a_default_context_that_cannot_begin_anew_says_why_and_tries_again(client: Client) -> None:
    with Sandbox.create(client=client) as sandbox:
        sandbox.run_code(DEATHS["javascript"], language="js")
        sandbox.exec("mv $(command -v node) /tmp/node").check()
        for _ in range(2):
            with pytest.raises(InterpreterMissing):
                sandbox.run_code("1", language="js")
        sandbox.exec("mv /tmp/node /usr/local/bin/node").check()
        assert (sandbox.run_code("1", language="js").restarted) is True


def test_a_default_context_whose_interpreters_die_at_once_does_not_try_for_ever(client: Client) -> None:
    with Sandbox.create(client=client) as sandbox:
        sandbox.run_code(DEATHS["python"])
        where = "import IPython, os; print(os.path.dirname(IPython.__path__[0]))"
        where = sandbox.exec(["python3", "-c", where]).stdout.strip()
        dying = "import os\nwrite = os.write\ndef last(fd, data):\n    sent = write(fd, data)\n"
        dying += "    if b'ready' in bytes(data): os._exit(5)\n    return sent\n"
        sandbox.write_file(f"{where}/dying.py", f"{dying}os.write = last\n")
        sandbox.write_file(f"{where}/dying.pth", "import dying\n")
        for _ in range(2):
            try:
                ended = sandbox.run_code("1").status
            except ContextExited as error:
                ended = error.reason
            assert ended in ("exited", "exit")
        sandbox.exec(["rm", f"{where}/dying.pth"]).check()
        assert sandbox.run_code("1").text == "1"


SWALLOWED = [
    "n = 0\nwhile n < 2:\n    try: import time; time.sleep(1000)\n    except KeyboardInterrupt: n += 1",
    "class Odd(Exception):\n    n = 0\n    def __str__(self):\n        while self.n < 2:\n"
    "            try:\n                while True: pass\n            except KeyboardInterrupt: self.n += 1\n"
    "        return 'said'\nraise Odd",
]


@pytest.mark.parametrize("code", SWALLOWED)
def test_a_swallowed_interrupt_is_sent_again(box: Sandbox, code: str) -> None:
    with context_in(box, "python") as context:
        result = box.run_code(code, context=context, timeout=0.3)
        assert (result.status, result.restarted) == ("timeout", False)
        assert result.error is not None
        assert_kept(box, context)


JS_LOOP = "[require('util').inspect.custom]() { while (true) {} }"
JS_LOOPS = [
    f"({{ {JS_LOOP} }})",
    f"throw {{ {JS_LOOP} }}",
    f"Promise.reject({{ {JS_LOOP} }}); 1",
    f"setTimeout(() => {{ throw {{ {JS_LOOP} }} }}); await new Promise(() => {{}})",
    "({ [Symbol.for('Jupyter.display')]() { while (true) {} } })",
    "({ [Symbol.for('Jupyter.display')]: () => new Promise(() => {}) })",
    "({ [Symbol.for('Jupyter.display')]: () => ({ 'text/html': { toJSON() { while (true) {} } } }) })",
    "try { process.exit() } finally { while (true) {} }",
]
LOOPS = [
    "class Odd(Exception):\n    def __str__(self):\n        while True: pass\nraise Odd",
    "class Odd(SystemExit):\n    def __str__(self):\n        while True: pass\nraise Odd",
    "class Odd:\n    def __str__(self):\n        while True: pass\nexit(Odd())",
    "class Odd:\n    def __str__(self):\n        while True: pass\nraise SystemExit(Odd())",
    "class Odd(Exception):\n    def __repr__(self):\n        while True: pass\nraise ExceptionGroup('g', [Odd()])",
    "class Odd(Exception):\n    def _render_traceback_(self):\n        while True: pass\nraise Odd",
    "class Odd:\n    def _repr_html_(self):\n        while True: pass\nOdd()",
    "class Odd:\n    def __repr__(self):\n        while True: pass\nOdd()",
]


@pytest.mark.parametrize(
    ("language", "code"), [("python", code) for code in LOOPS] + [("javascript", code) for code in JS_LOOPS]
)
def test_an_end_that_loops_keeps_the_interpreter(box: Sandbox, language: str, code: str) -> None:
    with context_in(box, language) as context:
        result = box.run_code(code, context=context, timeout=0.3)
        assert result.error is not None
        assert result.restarted is False
        assert_kept(box, context)


def forged(message: object) -> list[int]:
    body = msgpack.packb(message)
    return list(struct.pack(">I", len(body)) + body)


@BOTH
def test_forged_frames_are_data_or_nothing(box: Sandbox, language: str) -> None:
    """What a program writes to the worker's pipe in its name concerns its own run at most."""
    old = forged({"op": "end", "run": 1, "status": "ok", "count": 9})
    write = {"python": "import os; os.write(4, bytes(%s)); 'after'"}
    write["javascript"] = "require('fs').writeSync(4, Buffer.from(%s)); 'after'"
    with context_in(box, language) as context:
        result = box.run_code(write[language] % old, context=context)
        assert (result.status, result.text) == ("ok", "'after'")
        assert_kept(box, context)
        lines = 'data: {"offset": 0}\\n\\nevent: end\\ndata: {"status": "ok"}\\n\\n'
        show = {"python": f"print('{lines}')", "javascript": f"console.log('{lines}')"}
        assert box.run_code(show[language], context=context).stdout == lines.replace("\\n", "\n") + "\n"


def test_an_end_that_names_no_error_has_one_all_the_same(box: Sandbox) -> None:
    find = "import gc\nchannel = next(one for one in gc.get_objects() if type(one).__name__ == 'Channel')\n"
    end = "channel.send({'op': 'end', 'run': channel.run, 'status': 'error', 'count': 1}, wait=False)"
    with context_in(box, "python") as context:
        result = box.run_code(find + end, context=context)
        assert result.status == "error"
        assert result.error is not None
        assert "did not say" in result.error.evalue
        assert_kept(box, context)


@BOTH
def test_a_flood_is_bounded_and_told(box: Sandbox, language: str) -> None:
    code = {
        "python": "import os\nfor _ in range(60): os.write(1, b'x' * 2**20)\nprint('end')",
        "javascript": "const b = Buffer.alloc(2**20, 'x'); for (let i = 0; i < 60; i++) process.stdout.write(b)",
    }
    with context_in(box, language) as context:
        result = box.run_code(code[language], context=context, timeout=60)
        assert (result.status, result.truncated) == ("ok", True)
        assert 8 * 2**20 < len(result.stdout) <= 16 * 2**20
        assert set(result.stdout) == {"x"}
        after = box.run_code("1", context=context)
        assert (after.text, after.stdout, after.truncated) == ("1", "", False)


def test_a_flood_of_small_writes_and_of_results(box: Sandbox) -> None:
    with context_in(box, "python") as context:
        code = "import os\nfor n in range(100000): os.write(1, b'y')"
        result = box.run_code(code, context=context, timeout=60)
        assert result.status == "ok"
        assert result.truncated or len(result.stdout) == 100_000
        result = box.run_code("for n in range(3000): display(n)", context=context, timeout=60)
        assert (result.status, result.truncated, len(result.results)) == ("ok", True, 1000)
        assert_kept(box, context)


@BOTH
def test_output_that_is_no_utf8_and_full_of_controls(box: Sandbox, language: str) -> None:
    data = [0xFF, 0xFE, 0x1B, 0x5B, 0x32, 0x4A, 0x0D, 0xC3]
    code = {
        "python": f"import os; os.write(1, bytes({data}))",
        "javascript": f"process.stdout.write(Buffer.from({data})); 1",
    }
    with context_in(box, language) as context:
        assert box.run_code(code[language], context=context).stdout == bytes(data).decode("utf-8", "replace")


@BOTH
def test_a_result_over_its_bound_is_text_and_a_note(box: Sandbox, language: str) -> None:
    code = {
        "python": "from IPython.display import HTML; HTML('x' * (11 * 2**20))",
        "javascript": "({[Symbol.for('Jupyter.display')]: () => ({'text/html': 'x'.repeat(11 * 2**20)})})",
    }
    with context_in(box, language) as context:
        (result,) = box.run_code(code[language], context=context).results
        assert result.html is None
        assert result.text
        assert "html: left out" in (result.note or "")
        text = {"python": "'x' * 3_000_000", "javascript": "'x'.repeat(3_000_000)"}
        (result,) = box.run_code(text[language], context=context).results
        assert len(result.text or "") <= 1024 * 1024
        assert language == "javascript" or "text: the first" in (result.note or "")


@BOTH
def test_a_large_picture_is_exact(box: Sandbox, language: str) -> None:
    code = {
        "python": "from IPython.display import *\nImage(data=b'\\x89PNG' + bytes(range(256)) * 20480, format='png')",
        "javascript": """
const part = Buffer.from([...Array(256).keys()])
const data = Buffer.concat([Buffer.from([0x89, 0x50, 0x4e, 0x47]), Buffer.alloc(5 * 2**20, part)]);
({[Symbol.for('Jupyter.display')]: () => ({'image/png': data.toString('base64')})})""",
    }
    with context_in(box, language) as context:
        (result,) = box.run_code(code[language], context=context).results
        assert result.png == b"\x89PNG" + bytes(range(256)) * 20480


@BOTH
def test_other_contexts_are_out_of_reach(box: Sandbox, language: str) -> None:
    """Memory, environment and descriptors of another context's interpreter, and of init."""
    secret = box.create_code_context(language, env={"SECRET": "of-another-context"})
    pid = {"python": "import os; os.getpid()", "javascript": "process.pid"}
    number = int(box.run_code(pid[language], context=secret).text or 0)
    look = """
found = []
for name in ("mem", "environ", "root/etc/passwd", "maps", "fd/0", "fd/4", "cwd/x", "auxv"):
    try:
        with open(f"/proc/PID/{name}", "rb") as file:
            found.append(name)
    except OSError as error:
        pass
print(found)
"""
    with context_in(box, "python") as context:
        for target in (number, 1):
            assert box.run_code(look.replace("PID", str(target)), context=context).stdout == "[]\n", target
        trace = f"""
import ctypes
libc = ctypes.CDLL(None, use_errno=True)
for pid in ({number}, 1):
    print(libc.ptrace(16, pid, 0, 0), end=" ")
"""
        assert box.run_code(trace, context=context).stdout == "-1 -1 "
    box.delete_code_context(secret)


def test_bounds_and_names(client: Client) -> None:
    with Sandbox.create(client=client) as sandbox:
        with pytest.raises(ContextNotFound):
            sandbox.run_code("1", context="c-none")
        with pytest.raises(ContextNotFound):
            sandbox.delete_code_context("c-none")
        path = f"/v1/sandboxes/{sandbox.id}/contexts"
        assert sandbox.client._http.get(f"{path}/x/runs/y").json()["kind"] == "context-not-found"
        context = sandbox.create_code_context()
        assert sandbox.client._http.get(f"{path}/{context.id}/runs/y").json()["kind"] == "run-not-found"


def test_only_so_many_contexts(client: Client) -> None:
    with Sandbox.create(client=client) as sandbox:
        for _ in range(16):
            sandbox.create_code_context()
        with pytest.raises(LimitExceeded):
            sandbox.create_code_context()
        sandbox.delete_code_context(sandbox.list_code_contexts()[0])
        sandbox.create_code_context()


def test_a_rootfs_without_what_a_language_needs(client: Client) -> None:
    with Sandbox.create(client=client) as sandbox:
        sandbox.exec("rm -rf $(python3 -c 'import IPython, os; print(os.path.dirname(IPython.__file__))')").check()
        with pytest.raises(InterpreterMissing, match="pip install ipython"):
            sandbox.create_code_context("python")
        sandbox.exec("rm $(command -v node)").check()
        with pytest.raises(InterpreterMissing, match="not found"):
            sandbox.run_code("1", language="js")
        assert sandbox.list_code_contexts() == []
        assert sandbox.exec("ls /proc | grep -c '^[0-9]'").exit_code == 0


@BOTH
def test_a_restart_gives_up_what_waits(box: Sandbox, language: str) -> None:
    code = {
        "python": "print('on'); import time; time.sleep(1000)",
        "javascript": "console.log('on'); await new Promise(() => {})",
    }
    with context_in(box, language) as context:
        with box.run_code_stream(code[language], context=context) as first:
            next(iter(first))
            errors: list[SandboxdError] = []

            def wait() -> None:
                try:
                    box.run_code("1", context=context)
                except SandboxdError as error:
                    errors.append(error)

            waiting = threading.Thread(target=wait)
            waiting.start()
            while len(box.client._http.get(f"/v1/sandboxes/{box.id}/contexts").json()["items"]) < 1:
                pass
            threading.Event().wait(0.2)
            box.restart_code_context(context)
            waiting.join()
            result = first.wait()
        assert (result.status, result.restarted) == ("exited", True)
        assert isinstance(errors[0], ContextRestarting)
        assert "rror" in str(box.run_code("kept", context=context).error)


def test_deleting_a_sandbox_ends_its_runs(client: Client) -> None:
    sandbox = Sandbox.create(client=client)
    with sandbox.run_code_stream("print('on'); import time; time.sleep(1000)") as stream:
        next(iter(stream))
        sandbox.destroy()
        with pytest.raises(SandboxdError):
            stream.wait()


def test_contexts_outlive_the_daemon(tmp_path: pathlib.Path) -> None:
    daemon = Daemon(tmp_path)
    daemon.start()
    try:
        with daemon.client() as client:
            sandbox = Sandbox.create(client=client)
            contexts = {name: sandbox.create_code_context(name, env={"A": "b"}) for name in SET}
            for name, context in contexts.items():
                sandbox.run_code(SET[name], context=context).check()
            stuck = sandbox.run_code_stream("print('on'); import time; time.sleep(1000)", context=contexts["python"])
            next(iter(stuck))
            daemon.signal(9)
            stuck.close()
        daemon.start()
        with daemon.client() as client:
            sandbox = Sandbox.connect(sandbox.id, client=client)
            assert {found.id for found in sandbox.list_code_contexts()} == {found.id for found in contexts.values()}
            for context in contexts.values():
                assert_kept(sandbox, context)
            assert sandbox.restart_code_context(contexts["python"]).env == {"A": "b"}
    finally:
        daemon.close()
