"""JavaScript and TypeScript code contexts in a real sandbox."""

from __future__ import annotations

import base64
from importlib import resources
from typing import Any

import msgpack
import pytest

from sandboxd import CodeContext, CodeResult, InvalidRequest, Output, Result, Sandbox

pytestmark = pytest.mark.real


@pytest.fixture(scope="module")
def contexts(shared: Sandbox) -> dict[str, CodeContext]:
    return {name: shared.create_code_context(name) for name in ("js", "ts")}


@pytest.fixture
def run(shared: Sandbox, contexts: dict[str, CodeContext]) -> Any:
    def run(code: str, language: str = "js", **options: Any) -> CodeResult:
        return shared.run_code(code, context=contexts[language], timeout=20, **options)

    return run


BOTH = pytest.mark.parametrize("language", ["js", "ts"])


@BOTH
@pytest.mark.parametrize(
    ("code", "text"),
    [
        ("1 + 1", "2"),
        ("const a = 20; a * 2 + 2", "42"),
        ("'text'", "'text'"),
        ("({a: [1, {b: 2}]})", "{ a: [ 1, { b: 2 } ] }"),
        ("await Promise.resolve(3)", "3"),
        ("let v = await new Promise(r => setTimeout(() => r(5), 5)); v", "5"),
        ("Promise.resolve(4)", "Promise { 4 }"),
        ("function f() { return 6 }; f()", "6"),
        ("for (let i = 0; i < 3; i++) { i * 2 }", "4"),
        ("10n ** 20n", "100000000000000000000n"),
        ("[-0, NaN]", "[ -0, NaN ]"),
        ("const nothing = 1", None),
        ("undefined", None),
        ("new Map([[1, 2]])", "Map(1) { 1 => 2 }"),
        ("typeof require('fs').readFileSync", "'function'"),
        ("const fs = require('node:fs'); typeof fs.statSync", "'function'"),
        ("(await import('node:path')).sep", "'/'"),
        ("const s = 'import(1)'; s + `${typeof (await import('fs')).statSync}` // import(2)", "'import(1)function'"),
        ("import a, * as b from 'fs'; a === b.default", "true"),
        ("import os from 'os'; os.EOL", "'\\n'"),
        ("import * as p from 'path'\nimport d, {join as j} from \"path\"\nd === p.default && j('a')", "'a'"),
        ("import {\n  sep, // one\n  join,\n} from 'path';\nsep + join('x', 'y')", "'/x/y'"),
        ("export const e = 7; e", "7"),
        ("export default class K {}\nnew K()", "K {}"),
        ("import.meta.dirname", "'/workspace'"),
        ("__dirname + process.cwd()", "'/workspace/workspace'"),
        ("", None),
    ],
)  # fmt: skip
def test_values(run: Any, language: str, code: str, text: str | None) -> None:
    result = run(code, language)
    assert (result.error, result.text) == (None, text)


@BOTH
def test_declarations_persist_and_may_be_declared_again(run: Any, language: str) -> None:
    run("const c = 1; let l = 2; class K { x = 1 }; var w = 3; function g() { return c }", language).check()
    assert run("[c, l, new K().x, w, g()]", language).text == "[ 1, 2, 1, 3, 1 ]"
    run("const c = 10; let l = 20; class K { x = 100 }; var w = 30; function g() { return -1 }", language).check()
    assert run("[c, l, new K().x, w, g()]", language).text == "[ 10, 20, 100, 30, -1 ]"
    assert run("let inside = 1;\nlet inside = 2", language).error.ename == "SyntaxError"


KINDS = {
    "let": "let NAME = () => 1",
    "const": "const NAME = () => 1",
    "class": "class NAME { static call() { return 1 } }; NAME.y = 1",
    "var": "var NAME = () => 1",
    "function": "function NAME() { return 1 }",
}


@pytest.mark.parametrize("before", KINDS)
@pytest.mark.parametrize("after", KINDS)
def test_any_declaration_may_follow_any_other(run: Any, before: str, after: str) -> None:
    name = f"{before}_{after}"
    run(KINDS[before].replace("NAME", name)).check()
    again = "if (true) { const inner = 1 }\n" + KINDS[after].replace("NAME", name).replace("1", "2")
    assert run(again).error is None
    assert run(f"{name}.call()").text == "2"


def test_inner_constants_stay_constant(run: Any) -> None:
    assert run("function f() { const x = 1; x = 2 }\nf()").error.ename == "TypeError"
    assert run("'const a = 1'").text == "'const a = 1'"


def test_contexts_are_apart(shared: Sandbox, contexts: dict[str, CodeContext]) -> None:
    other = shared.create_code_context("javascript", cwd="/tmp", env={"A": "b"})
    shared.run_code("const only = 1; globalThis.also = 2", context=contexts["js"]).check()
    assert shared.run_code("typeof only + typeof also", context=other).text == "'undefinedundefined'"
    assert shared.run_code("[process.cwd(), process.env.A]", context=other).text == "[ '/tmp', 'b' ]"
    shared.delete_code_context(other)


def test_files_of_the_working_folder_are_imported(shared: Sandbox, run: Any) -> None:
    shared.write_file("/workspace/mine.mjs", "export default 1; export const two = 2")
    shared.write_file("/workspace/old.cjs", "module.exports = {three: 3}")
    shared.write_file("/workspace/node_modules/pack/index.js", "exports.four = 4")
    code = "import one, {two} from './mine.mjs'\nconst {three} = require('./old.cjs')\nimport {four} from 'pack'\n"
    assert run(code + "[one, two, three, four, (await import('./mine.mjs')).two]").text == "[ 1, 2, 3, 4, 2 ]"
    assert run("import x from './none.mjs'").error.ename == "Error"


def test_console_prints_as_node_does(run: Any) -> None:
    code = """
console.log('a', {b: [1, 2]}, 'c%d', 1); console.log('%s is %d', 'x', 5)
console.error('e'); console.warn('w'); console.info('i'); console.debug('d')
console.table([{a: 1}]); console.group('g'); console.log('in'); console.groupEnd(); process.stdout.write('raw')
"""
    result = run(code)
    assert result.stdout.startswith("a { b: [ 1, 2 ] } c%d 1\nx is 5\ni\nd\n┌")
    assert result.stdout.endswith("g\n  in\nraw")
    assert result.stderr == "e\nw\n"


def test_output_and_results_stay_in_order(shared: Sandbox, contexts: dict[str, CodeContext]) -> None:
    code = """
const {execSync} = require('child_process')
for (let n = 0; n < 10; n++) {
  console.log('a', n); await display(n); execSync('echo child ' + n, {stdio: 'inherit'}); await display(n)
}"""
    with shared.run_code_stream(code, context=contexts["js"]) as stream:
        seen: list[str | None] = []
        for item in stream:
            assert isinstance(item, Output | Result)
            seen += item.text.split("\n")[:-1] if isinstance(item, Output) else [item.text]
    assert seen == [word for n in range(10) for word in (f"a {n}", str(n), f"child {n}", str(n))]


@BOTH
def test_errors(run: Any, language: str) -> None:
    result = run("function deep() {\n  throw new RangeError('far')\n}\ndeep()", language)
    assert (result.status, result.error.ename, result.error.evalue) == ("error", "RangeError", "far")
    trace = "\n".join(result.error.traceback)
    assert "at deep (cell-" in trace
    assert ":2:9" in trace
    assert "inspector" not in trace
    assert "base64" not in trace
    assert run("throw {odd: 1}", language).error.evalue == "{ odd: 1 }"
    assert run("noSuchName", language).error.ename == "ReferenceError"


@pytest.mark.parametrize(
    ("code", "language", "line", "column"),
    [
        ("let x = 1\nlet y = = 2", "js", 2, 9),
        ("foo(", "js", 1, 5),
        ("'abc", "js", 1, 1),
        ("const a: number = 1\nconst b: = 2", "ts", 2, 10),
        ("@decorated class Q {}", "ts", 1, 1),
        ("const e = <div>x</div>", "ts", 1, 18),
    ],
)
def test_syntax_errors_name_line_and_column(run: Any, code: str, language: str, line: int, column: int) -> None:
    error = run(code, language).error
    assert error.ename == "SyntaxError"
    assert f"line {line}, column {column}" in error.evalue
    assert error.traceback[1] == code.split("\n")[line - 1]


@BOTH
def test_rejections_that_nobody_handles(run: Any, language: str) -> None:
    result = run("Promise.reject(new Error('lost')); 1", language)
    assert (result.status, result.error.evalue, result.text) == ("error", "lost", "1")
    first = run("setTimeout(() => Promise.reject(new Error('later')), 5); 1", language)
    assert first.ok
    late = run("await new Promise(r => setTimeout(r, 50))", language)
    assert "later" in (first.stderr + late.stderr + str(late.error))
    assert run("1", language).ok


@pytest.mark.parametrize(
    ("code", "text"),
    [
        ("let x: number = 4; x", "4"),
        ("enum Colour { Red, Green = 5 }\nColour.Green", "5"),
        ("namespace Space { export const inner = 1 }\nSpace.inner", "1"),
        ("class P { constructor(private x: number) {} get() { return this.x } }\nnew P(3).get()", "3"),
        ("interface I { a: number }\ntype T = I | null\nconst i: T = { a: 1 }; i", "{ a: 1 }"),
        ("abstract class B<T> { abstract f(): T }\nclass D extends B<number> { f() { return 2 } }\nnew D().f()", "2"),
        ("function id<T>(x: T): T { return x }\nid<string>('a') as string", "'a'"),
        ("const n = null as unknown as { v: number } | null; n?.v ?? 'none'", "'none'"),
        ("import os from 'os'; import type { X } from 'nowhere'; const e: string = os.EOL; e!", "'\\n'"),
        ("const v = { a: 1 } satisfies Record<string, number>; v.a", "1"),
        ("await (async (): Promise<number> => 9)()", "9"),
    ],
)
def test_typescript(run: Any, code: str, text: str) -> None:
    result = run(code, "ts")
    assert (result.error, result.text) == (None, text)


def test_formats(run: Any) -> None:
    png = b"\x89PNG\r\n\x1a\n" + bytes(range(256))
    code = f"""({{[Symbol.for('Jupyter.display')]() {{ return {{
        'text/html': '<b>x</b>', 'text/markdown': '*m*', 'image/svg+xml': '<svg/>', 'application/json': {{a: [1]}},
        'image/png': '{base64.b64encode(png).decode()}', 'application/vnd.vegalite.v5+json': {{mark: 'bar'}},
    }} }}}})"""
    (result,) = run(code).results
    assert result.is_main
    assert (result.html, result.markdown, result.svg, result.json) == ("<b>x</b>", "*m*", "<svg/>", {"a": [1]})
    assert result.png == png
    assert result.chart == {"type": "vega", "spec": {"mark": "bar"}}
    assert result.extra == {"application/vnd.vegalite.v5+json": {"mark": "bar"}}
    shown = run("await display({'text/html': '<i>'}, {raw: true, display_id: 'd'}); 1").results
    assert [(item.html, item.is_main, item.text) for item in shown] == [("<i>", False, None), (None, True, "1")]


def test_variables_of_one_run(run: Any) -> None:
    assert run("process.env.ONCE", env={"ONCE": "1"}).text == "'1'"
    assert run("process.env.ONCE").text is None


def test_completion_and_inspection(shared: Sandbox, contexts: dict[str, CodeContext], run: Any) -> None:
    run("const myThing = {colour: 1, deeper: {most: 2}}").check()
    js = contexts["js"]
    assert shared.complete_code(js, "myTh") == {"matches": ["myThing"], "start": 0, "end": 4}
    assert shared.complete_code(js, "x = myThing.deeper.mo")["matches"] == ["most"]
    assert "push" in shared.complete_code(js, "[].pu".replace("[]", "Array.prototype"))["matches"]
    assert shared.complete_code(js, "process.exit().x")["matches"] == []  # nothing was called for it
    found = shared.inspect_code(js, "myThing.colour")
    assert (found["found"], found["text"]) == (True, "1")
    assert run("myThing.colour").text == "1"


@pytest.mark.parametrize(
    ("code", "text"),
    [
        ("const id = <T>(x: T) => x; id<string>('a')", "'a'"),
        ("function one<T>(x: T) { return x }\nvar string = 0\none<string>(7)", "7"),  # JavaScript too, and then false
        ("new Set<number>([1]).size", "1"),
        ("const typed: number = 4; typed", "4"),
        ("enum Side { Left, Right }; Side.Right", "1"),
        ("var untyped = 5; [untyped, 'a: b', `${untyped as number}`]", "[ 5, 'a: b', '5' ]"),
        ("let kept = 1;\nlet kept2: number = 2;\n[kept, kept2]", "[ 1, 2 ]"),
        ("import type { Stats } from 'no-such-package'; 3", "3"),
        ("type\nA = 1", None),
    ],
)  # fmt: skip
def test_types_are_seen_where_code_is_javascript_too(shared: Sandbox, code: str, text: str | None) -> None:
    """Code that V8 takes as it is never reaches the transformer, unless it could mean something else there."""
    fresh = shared.create_code_context("typescript")
    result = shared.run_code(code, context=fresh)
    if text is None:
        assert result.error is not None
        assert result.error.ename == "ReferenceError"
    else:
        assert (result.error, result.text) == (None, text)
    error = shared.run_code("let no: = 1", context=fresh).error
    assert error is not None
    assert error.ename == "SyntaxError"
    shared.delete_code_context(fresh)


def test_unknown_languages(shared: Sandbox) -> None:
    with pytest.raises(InvalidRequest):
        shared.create_code_context("node12")


def test_the_codec_is_msgpack(shared: Sandbox) -> None:
    """The worker's own codec against the one that wire/ uses, in Node itself."""
    sizes = [0, 1, 15, 16, 31, 32, 255, 256, 65535, 65536, 70_000]
    values: list[Any] = [
        None,
        True,
        False,
        0,
        1,
        127,
        128,
        255,
        256,
        65536,
        2**32,
        2**53 - 1,
        -1,
        -32,
        -33,
        -(2**40),
        1.5,
        -0.25,
    ]
    for size in sizes:
        values += ["é" * size, b"x" * size, [1] * size, {str(n): n for n in range(size)}]
    shared.write_file("/tmp/codec/codec.cjs", (resources.files("sandboxd") / "workers/node_codec.cjs").read_bytes())
    shared.write_file("/tmp/codec/values", msgpack.packb(values))
    program = """
import { pack, unpack } from './codec.cjs';
import fs from 'node:fs';
const values = unpack(fs.readFileSync('/tmp/codec/values'));
fs.writeFileSync('/tmp/codec/again', pack(values));
for (const bad of [[0xc1], [0xd9, 5, 1], [0x91], [0x01, 0x02], [0xdf, 255, 255, 255, 255]]) {
  try {
    unpack(Buffer.from(bad));
    console.log('took', bad);
  } catch (error) {
    if (!(error instanceof RangeError)) throw error;
  }
}
"""
    shared.write_file("/tmp/codec/main.mjs", program)
    result = shared.exec(["node", "main.mjs"], cwd="/tmp/codec")
    assert (result.exit_code, result.stdout, result.stderr) == (0, "", "")
    assert msgpack.unpackb(shared.read_file("/tmp/codec/again")) == values
