"""What escapes from JavaScript is told, whatever it does, without the worker's frames; ends are explained."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest

from sandboxd import CodeContext, CodeResult, Sandbox

pytestmark = pytest.mark.real
Run = Callable[..., CodeResult]
BOTH = pytest.mark.parametrize("language", ["js", "ts"])
#: What no traceback has: files of the worker, and of Node below it.
NOT_THE_CODES = ("sandboxd", "node:inspector", "node:events", "node:internal/streams", "task_queues")


@pytest.fixture(scope="module")
def contexts(shared: Sandbox) -> dict[str, CodeContext]:
    return {name: shared.create_code_context(name) for name in ("js", "ts")}


@pytest.fixture
def run(shared: Sandbox, contexts: dict[str, CodeContext]) -> Run:
    def run(code: str, language: str = "js") -> CodeResult:
        return shared.run_code(code, context=contexts[language], timeout=30)

    return run


def labels(rows: Sequence[tuple[str, ...]]) -> list[str]:
    return [f"{number}-{row[0][:40]!r}" for number, row in enumerate(rows)]


def own(name: str, body: str) -> str:
    """Return code that throws an error whose property `name` is a getter."""
    return f"throw Object.defineProperty(new RangeError('said'), '{name}', {{ get() {{ {body} }} }})"


UNPRINTABLE = "<it cannot be shown>"
THROWN = [
    ("throw null", "Uncaught", "null"),
    ("throw undefined", "Uncaught", "undefined"),
    ("throw {}", "Uncaught", "{}"),
    ("throw 'text'", "Uncaught", "'text'"),
    ("throw Symbol('s')", "Uncaught", "Symbol(s)"),
    ("throw 5n", "Uncaught", "5n"),
    ("throw Object.create(null)", "Uncaught", "[Object: null prototype] {}"),
    ("throw function named() {}", "Uncaught", "[Function: named]"),
    ("throw new Proxy({}, { get() { throw 1 }, getPrototypeOf() { throw 2 }, ownKeys() { throw 3 } })",
     "Uncaught", "{}"),
    ("throw new Proxy(new Error('p'), { get() { throw 1 }, getPrototypeOf() { throw 2 } })", "Uncaught", "Error: p"),
    ("throw new Proxy(new RangeError('p'), {})", "RangeError", "p"),
    ("const gone = Proxy.revocable({}, {}); gone.revoke(); throw gone.proxy", "Uncaught", "Revoked Proxy"),
    ("throw { get message() { throw 1 }, [Symbol.toStringTag]: 5 }", "Uncaught", "message"),
    ("throw { get [Symbol.toStringTag]() { throw new Error('tag') } }", "Uncaught", ""),
    ("throw { [Symbol.for('nodejs.util.inspect.custom')]() { throw new Error('custom') } }", "Uncaught", "custom"),
    (own("message", "throw new Error('getter')"), "RangeError", UNPRINTABLE),
    (own("message", "return Object.create(null)"), "RangeError", UNPRINTABLE),
    (own("message", "return Symbol('s')"), "RangeError", "Symbol(s)"),
    (own("name", "throw new Error('getter')"), "RangeError", "said"),
    (own("name", "return ''"), "RangeError", "said"),
    (own("name", "return Object.create(null)"), "RangeError", "said"),
    (own("stack", "throw new Error('getter')"), "RangeError", "said"),
    (own("stack", "return 5"), "RangeError", "said"),
    (own("cause", "throw new Error('getter')"), "RangeError", "said"),
    (own("constructor", "throw new Error('getter')"), "RangeError", "said"),
    ("throw Object.setPrototypeOf(new Error('said'), null)", "Error", "said"),
    ("throw Object.assign(new Error('said'), { name: 5, stack: null })", "5", "said"),
    ("class Own extends Error { get name() { return 'Own' } }; throw new Own('said')", "Own", "said"),
    ("class Bad extends Error { [require('util').inspect.custom]() { throw 1 } }; throw new Bad('said')",
     "Error", "said"),
    ("throw new AggregateError([new Error('a'), null, new Error('b')], 'all')", "AggregateError", "all"),
    ("await Promise.any([Promise.reject(1)])", "AggregateError", "All promises were rejected"),
    ("var one = new Error('one'), two = new Error('two', { cause: one }); one.cause = two; throw two", "Error", "two"),
    ("var self = new Error('self'); self.cause = self; self.errors = [self]; throw self", "Error", "self"),
    ("throw new DOMException('dom', 'AbortError')", "AbortError", "dom"),
    ("require('vm').runInNewContext('throw new TypeError(\"far\")')", "TypeError", "far"),
    ("require('vm').runInNewContext('throw null')", "Uncaught", "null"),
    ("(function f() { f() })()", "RangeError", "call stack"),
    ("throw new Error('long'.repeat(1_000_000))", "Error", "longlong"),
    ("Promise.reject(null); 1", "Uncaught", "null"),
    (f"Promise.reject({own('message', 'throw 1').removeprefix('throw ')}); 1", "RangeError", UNPRINTABLE),
    ("setTimeout(() => { throw { odd: 1 } }); await new Promise(r => setTimeout(r, 20))", "Uncaught", "{ odd: 1 }"),
    ("process.nextTick(() => { throw new Error('tick') }); await new Promise(r => setTimeout(r, 20))", "Error", "tick"),
    ("queueMicrotask(() => { throw new Error('micro') }); await new Promise(r => setTimeout(r, 20))", "Error", "micro"),
    ("new (require('events'))().emit('error', new Error('event'))", "Error", "event"),
    ("const thread = new (require('worker_threads').Worker)('throw new Error(\"there\")', { eval: true })\n"
     "await new Promise(r => thread.on('exit', r))", "Error", "there"),
    ("process.removeAllListeners(); process.removeAllListeners('uncaughtException')\n"
     "setTimeout(() => { throw new Error('bare') }); await new Promise(r => setTimeout(r, 20))", "Error", "bare"),
    ("var kept = Error.prepareStackTrace; Error.prepareStackTrace = () => { throw new Error('prepared') }\nnoSuchName",
     "ReferenceError", "noSuchName"),
    ("Error.prepareStackTrace = (_, trace) => trace\nnoSuchName", "ReferenceError", "noSuchName"),
    ("delete Error.prepareStackTrace; Error.stackTraceLimit = 100\nnoSuchName", "ReferenceError", "noSuchName"),
    ("throw new Error('outer', { cause: new Error('inner') })", "Error", "outer"),
    ("Error.stackTraceLimit = 0\nnoSuchName", "ReferenceError", "noSuchName"),
    ("Error.stackTraceLimit = 10; Error.prepareStackTrace = kept\nnoSuchName", "ReferenceError", "noSuchName"),
]  # fmt: skip


@pytest.mark.parametrize(("code", "ename", "evalue"), THROWN, ids=labels(THROWN))
def test_whatever_escapes_is_told(run: Run, code: str, ename: str, evalue: str) -> None:
    result = run(code)
    assert result.status == "error"
    assert result.error is not None
    assert result.error.ename == ename
    assert evalue in result.error.evalue
    assert "".join(result.error.traceback)
    assert not [part for part in NOT_THE_CODES if part in "".join(result.error.traceback)]
    assert run("40 + 2").text == "42"


STACKS = [
    "function far() { throw new Error('x') }\nfar()",
    "await 1\nfunction far() { throw new Error('x') }\nfar()",
    "async function far() { await 1; throw new Error('x') }\nawait far()",
    "async function far() { await new Promise(r => setTimeout(r, 1)); throw new Error('x') }\nawait far()",
    "function far() { throw new Error('x', { cause: new Error('y', { cause: new Error('z') }) }) }\nfar()",
    "function far() { throw new AggregateError([new Error('a'), new Error('b')], 'x') }\nfar()",
    "function far() { require('vm').runInNewContext('throw new Error()') }\nfar()",
    "function far() { JSON.parse('{') }\nfar()",
    "function far() { require('fs').readFileSync('/none') }\nfar()",
    "function far() { null.x }\n[1].forEach(far)",
    "function far() { Promise.reject(new Error('x')) }\nfar()",
    "function far() { throw new Error('x') }\nawait Promise.all([(async () => far())()])",
    "enum E { A }\nfunction far(x: number): never { throw new Error('x') }\nfar(E.A)",
]


@BOTH
@pytest.mark.parametrize("code", STACKS)
def test_a_traceback_is_that_of_the_code_alone(run: Run, language: str, code: str) -> None:
    if language == "js" and "enum" in code:
        code = code.split("\n", 1)[1].replace(": number", "").replace(": never", "").replace("E.A", "0")
    error = run(code, language).error
    assert error is not None
    for lines in (error.traceback, error.traceback_ansi):
        text = "\n".join(lines)
        assert "far" in text
        assert "cell-" in text
        assert not [part for part in NOT_THE_CODES if part in text]


def test_what_is_printed_of_a_stack_is_the_codes_too(run: Run) -> None:
    ways = ["console.log(far().stack)", "console.error(far())", "console.trace('here')", "console.log({ e: far() })"]
    ways += ["process.stdout.write(far().stack)", "const o = {}; Error.captureStackTrace(o); console.log(o.stack)"]
    ways += ["await 1; console.log(far().stack)", "setTimeout(() => console.log(far().stack), 1)"]
    run("function far() { return new Error('x') }").check()
    for way in ways:
        result = run(f"{way}; await new Promise(r => setTimeout(r, 20))")
        printed = result.stdout + result.stderr
        assert result.error is None
        assert "cell-" in printed, way
        assert not [part for part in NOT_THE_CODES if part in printed], way
    assert (run("far()").text or "").count("\n") == 2


SHOWN = [
    ("({ [DISPLAY]() { throw new Error('own') } })", "Jupyter.display", "Error: own"),
    ("({ async [DISPLAY]() { throw null } })", "Jupyter.display", "Uncaught null"),
    ("({ get [DISPLAY]() { throw new Error('own') } })", "Jupyter.display", "Error: own"),
    ("({ [DISPLAY]: () => null, a: 1 })", "a: 1", ""),
    ("({ [DISPLAY]: () => 5, a: 1 })", "a: 1", ""),
    ("({ [DISPLAY]: () => ({ get 'text/html'() { throw new Error('own') } }), a: 1 })", "a: 1", "own"),
    ("({ [DISPLAY]: () => ({ foo: 'x', 'a b/c': 'y', 'text/html': { toJSON() { throw 1 } } }), a: 1 })",
     "a: 1", ""),
    ("({ [DISPLAY]: () => new Proxy({}, { ownKeys() { throw new Error('own') } }), a: 1 })", "a: 1", "own"),
    ("({ [CUSTOM]() { throw new Error('own') }, a: 1 })", "a: 1", "Error: own"),
    ("({ [CUSTOM]() { throw new Proxy(new Error(''), { get() { throw 1 } }) }, a: 1 })", "a: 1", "Error"),
    ("new (class Odd { get [Symbol.toStringTag]() { throw new Error('own') } })()", "", ""),
    ("new Proxy({ a: 1 }, { get() { throw new Error('own') } })", "a: 1", ""),
    ("const list = [1]; list.push({ [CUSTOM]() { throw new Error('own') } }); list", "1", "Error: own"),
    ("process.once('uncaughtException', () => console.error('handled'))\n"
     "setTimeout(() => { throw new Error('x') }); await new Promise(r => setTimeout(r, 20)); 7", "7", "handled"),
    ("process.removeAllListeners('unhandledRejection')\n"
     "process.once('unhandledRejection', () => console.error('handled')); Promise.reject(1)\n"
     "await new Promise(r => setTimeout(r, 20)); 8", "8", "handled"),
    ("try { throw new Error('own') } catch (e) { console.error(e) }; 9", "9", "Error: own"),
]  # fmt: skip


@pytest.mark.parametrize(("code", "text", "printed"), SHOWN, ids=labels(SHOWN))
def test_what_was_merely_shown_is_printed(run: Run, code: str, text: str, printed: str) -> None:
    run("var DISPLAY = Symbol.for('Jupyter.display'), CUSTOM = require('util').inspect.custom").check()
    result = run(code)
    assert (result.status, result.error) == ("ok", None)
    assert text in (result.text or "")
    assert printed in result.stderr
    assert "sandboxd" not in result.stderr
    after = run(f"{{ {code} }}\nthrow new RangeError('real')").error
    assert after is not None
    assert (after.ename, after.evalue) == ("RangeError", "real")


def test_what_fails_while_it_is_displayed_leaves_the_other_formats(run: Run) -> None:
    bundle = "{ 'image/png': 5n, 'application/json': { a: 1n }, 'text/html': '<b>', nonsense: 1 }"
    for show in ("odd", "await display(odd); undefined"):
        result = run(f"var odd = {{ [Symbol.for('Jupyter.display')]: () => ({bundle}) }}; {show}")
        (shown,) = result.results
        assert (result.status, shown.html, shown.json) == ("ok", "<b>", None)
        assert "nonsense: " in (shown.note or "")
        assert "json: " in (shown.note or "")


ENDS = [
    *(
        "process.exit()",
        "process.exit(3)",
        "process.exit({})",
        "require('process').exit(0)",
        "require('node:process').exit()",
    ),
    *("import { exit } from 'node:process'; exit(1)", "import process from 'process'; process.exit(1)"),
    *(
        "const { exit } = process; exit(2)",
        "globalThis.process.exit.call(null)",
        "process.reallyExit(1)",
        "process.abort()",
    ),
    *("process.kill(process.pid)", "process.kill(process.pid, 9)", "process.kill(process.pid, 'SIGKILL')"),
    *("process.kill(process.pid, 'SIGINT')", "process.kill(process.pid, 'SIGSTOP')", "process.kill(0, 'SIGTERM')"),
    *("process.kill(-process.pid, 'SIGKILL')", "process.kill(-1)", "process.execve?.('/bin/true') ?? process.exit()"),
    "setTimeout(() => process.exit(1), 1); await new Promise(r => setTimeout(r, 30))",
    "Promise.resolve().then(() => process.exit(1)); await new Promise(r => setTimeout(r, 30))",
    "process.nextTick(process.exit); await new Promise(r => setTimeout(r, 30))",
    "(async () => { await 1; process.exit(1) })(); await new Promise(r => setTimeout(r, 30))",
    "await (async () => { await 1; process.exit(1) })()",
]


@BOTH
@pytest.mark.parametrize("code", ENDS)
def test_an_end_of_the_process_is_explained(run: Run, language: str, code: str) -> None:
    run("var kept = 'state'", language).check()
    result = run(code, language)
    assert (result.status, result.restarted) == ("error", False)
    assert result.error is not None
    assert result.error.ename == "ProcessExit"
    assert "a code context is not ended by process." in result.error.evalue
    assert not [part for part in NOT_THE_CODES if part in "".join(result.error.traceback)]
    assert run("kept", language).text == "'state'"


@pytest.mark.parametrize(
    ("code", "text"),
    [
        ("process.exitCode = 3; process.exitCode", "3"),
        ("process.kill(process.pid, 0)", "true"),
        ("process.kill(process.pid, 'SIGCONT')", "true"),
        ("process.kill(process.pid, 'SIGWINCH')", "true"),
        ("let heard = new Promise(r => process.once('SIGTERM', r)); process.kill(process.pid)\nawait heard",
         "'SIGTERM'"),
        ("heard = new Promise(r => process.once('SIGUSR2', r)); process.kill(process.pid, 'SIGUSR2')\nawait heard",
         "'SIGUSR2'"),
        ("heard = new Promise(r => process.once('SIGHUP', r)); process.kill(0, 'SIGHUP'); await heard", "'SIGHUP'"),
        ("const child = require('child_process').spawn('sleep', ['1000'])\nchild.kill()\n"
         "await new Promise(r => child.on('exit', (_, signal) => r(signal)))", "'SIGTERM'"),
        ("const other = require('child_process').spawn('sleep', ['1000'])\nprocess.kill(other.pid, 'SIGKILL')\n"
         "await new Promise(r => other.on('exit', (_, signal) => r(signal)))", "'SIGKILL'"),
        ("try { process.kill(2 ** 22, 'SIGTERM') } catch (e) { e.code }", "'ESRCH'"),
        ("try { process.kill(process.pid, 'SIGNONE') } catch (e) { e.code }", "'ERR_UNKNOWN_SIGNAL'"),
        ("try { process.exit(1) } catch (e) { e.name }", "'ProcessExit'"),
        ("let code = new (require('worker_threads').Worker)('process.exit(5)', { eval: true })\n"
         "await new Promise(r => code.on('exit', r))", "5"),
        ("require('child_process').spawnSync('node', ['-e', 'process.exit(6)']).status", "6"),
        ("[process.exit.name, process.abort.name, process.reallyExit.name].join()", "'exit,abort,reallyExit'"),
    ],
)  # fmt: skip
def test_what_ends_nothing_works_as_ever(run: Run, code: str, text: str) -> None:
    run("var kept = 'state'").check()
    result = run(code)
    assert (result.error, result.text) == (None, text)
    assert run("kept").text == "'state'"
