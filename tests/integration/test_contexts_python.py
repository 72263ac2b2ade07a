"""Python code contexts in a real sandbox: state, formats, order, streams."""

from __future__ import annotations

import ast
import json
import textwrap

import pytest

from sandboxd import CodeContext, CodeError, InvalidRequest, Output, Result, Sandbox

pytestmark = pytest.mark.real


@pytest.fixture(scope="module")
def context(shared: Sandbox) -> CodeContext:
    return shared.create_code_context("py")


def test_the_last_expression_is_the_result(shared: Sandbox, context: CodeContext) -> None:
    result = shared.run_code("x = 20\nx * 2 + 2", context=context)
    assert (result.status, result.text, result.error) == ("ok", "42", None)
    assert [found.is_main for found in result.results] == [True]
    assert shared.run_code("x", context=context).text == "20"
    assert shared.run_code("y = 1", context=context).results == ()
    assert shared.run_code("x;", context=context).text is None


def test_contexts_do_not_share_state_and_are_listed(sandbox: Sandbox) -> None:
    first = sandbox.create_code_context("python", cwd="/tmp", env={"WHO": "first"})
    second = sandbox.create_code_context("py")
    assert (
        sandbox.run_code("import os\nv = 1\nos.getcwd(), os.environ['WHO']", context=first).text == "('/tmp', 'first')"
    )
    result = sandbox.run_code("v", context=second)
    assert result.status == "error"
    assert result.error is not None
    assert result.error.ename == "NameError"
    assert sandbox.run_code("import os; os.getcwd()", context=second).text == "'/workspace'"
    assert {found.id for found in sandbox.list_code_contexts()} == {first.id, second.id}
    assert sandbox.get_code_context(first).execution_count == 1
    sandbox.delete_code_context(first)
    assert [found.id for found in sandbox.list_code_contexts()] == [second.id]


def test_the_default_context_of_a_language_keeps_its_state(sandbox: Sandbox) -> None:
    assert sandbox.run_code("a = 5").ok
    assert sandbox.run_code("a + 1", language="py").text == "6"
    (found,) = sandbox.list_code_contexts()
    assert found.is_default
    assert found.language == "python"


def test_output_and_results_stay_in_order(shared: Sandbox, context: CodeContext) -> None:
    code = """
import os, subprocess, sys, ctypes
for n in range(20):
    print("a", n)
    display(n)
    subprocess.run(["echo", "child", str(n)])
    os.write(1, b"raw\\n")
    ctypes.CDLL(None).printf(b"c\\n")
    display(n)
"""
    with shared.run_code_stream(code, context=context) as stream:
        seen: list[str | None] = []
        for item in stream:
            assert isinstance(item, Output | Result)
            if isinstance(item, Output):
                seen += item.text.split("\n")[:-1]
            else:
                seen.append(item.text)
    expected = []
    for n in range(20):
        expected += [f"a {n}", str(n), f"child {n}", "raw", "c", str(n)]
    assert seen == expected


def test_output_arrives_while_the_code_runs(shared: Sandbox, context: CodeContext) -> None:
    code = """
import os, time
print("first", end="")
while not os.path.exists("/tmp/go"):
    time.sleep(0.02)
print("second")
"""
    with shared.run_code_stream(code, context=context, timeout=20) as stream:
        first = next(iter(stream))
        assert isinstance(first, Output)
        assert first.text == "first"
        shared.exec("touch /tmp/go").check()
        assert stream.wait().stdout == "firstsecond\n"


def test_stderr_is_apart(shared: Sandbox, context: CodeContext) -> None:
    result = shared.run_code("import sys; print('o'); print('e', file=sys.stderr)", context=context)
    assert (result.stdout, result.stderr) == ("o\n", "e\n")


def test_a_traceback_is_a_result(shared: Sandbox, context: CodeContext) -> None:
    seen: list[CodeError] = []
    result = shared.run_code("def f():\n    raise ValueError('no')\nf()", context=context, on_error=seen.append)
    assert result.status == "error"
    assert result.error is not None
    assert (result.error.ename, result.error.evalue) == ("ValueError", "no")
    assert "raise ValueError('no')" in "\n".join(result.error.traceback)
    assert "\x1b[" not in "".join(result.error.traceback)
    assert "\x1b[" in "".join(result.error.traceback_ansi)
    assert seen == [result.error]


def test_a_syntax_error_names_its_line(shared: Sandbox, context: CodeContext) -> None:
    result = shared.run_code("a = 1\nb = = 2", context=context)
    assert result.error is not None
    assert result.error.ename == "SyntaxError"
    assert "line 2" in "\n".join(result.error.traceback)


def test_top_level_await_magics_and_shell(shared: Sandbox, context: CodeContext) -> None:
    assert shared.run_code("import asyncio\nawait asyncio.sleep(0.01)\n7", context=context).text == "7"
    assert shared.run_code("asyncio.run(asyncio.sleep(0, 8))", context=context).text == "8"
    assert shared.run_code("%pwd", context=context).text == "'/workspace'"
    result = shared.run_code("!echo out; echo err >&2; exit 3", context=context)
    assert (result.stdout, result.stderr) == ("out\n", "err\n")
    assert shared.run_code("_exit_code", context=context).text == "3"
    assert shared.run_code("found = !echo a; echo b\nfound", context=context).text == "['a', 'b']"
    assert "usage" in shared.run_code("%pip --help", context=context).stdout.lower()
    assert shared.run_code("%%bash\necho $((1 + 1))", context=context).stdout == "2\n"
    captured = shared.run_code("%%capture c\nprint(1)\ndisplay(2)", context=context)
    assert (captured.stdout, captured.results) == ("", ())


def test_input_says_why_not(shared: Sandbox, context: CodeContext) -> None:
    result = shared.run_code("input('name? ')", context=context)
    assert result.error is not None
    assert "has nobody to ask" in result.error.evalue
    assert "sandboxd" not in "".join(result.error.traceback)
    assert shared.run_code("import sys; sys.stdin.read()", context=context).text == "''"


def test_variables_of_one_run(shared: Sandbox, context: CodeContext) -> None:
    code = "import os; os.environ.get('ONCE')"
    assert shared.run_code(code, context=context, env={"ONCE": "1"}).text == "'1'"
    assert shared.run_code(f"repr({code.split('; ')[1]})", context=context).text == "'None'"


def test_display_handles_and_clear_output(shared: Sandbox, context: CodeContext) -> None:
    code = "h = display(1, display_id='n')\nh.update(2)\ndisplay(3)"
    result = shared.run_code(code, context=context)
    assert [found.text for found in result.results] == ["2", "3"]
    code = "from IPython.display import clear_output\nprint(1); display(1); clear_output(); print(2); display(2)"
    result = shared.run_code(code, context=context)
    assert (result.stdout, [found.text for found in result.results]) == ("2\n", ["2"])
    code = "print(1); clear_output(wait=True)"
    assert shared.run_code(code, context=context).stdout == "1\n"


def test_threads_that_print_afterwards_are_seen_in_the_next_run(shared: Sandbox, context: CodeContext) -> None:
    code = """
import threading
go = threading.Event()
t = threading.Thread(target=lambda: (go.wait(), print("late")))
t.start()
threading.Timer(0.01, go.set).start()
"""
    assert shared.run_code(code, context=context).ok
    assert shared.run_code("t.join()", context=context).stdout == "late\n"


def test_completion_and_inspection(shared: Sandbox, context: CodeContext) -> None:
    shared.run_code("import os\nclass Thing:\n    'A thing.'\n    colour = 1", context=context).check()
    found = shared.complete_code(context, "x = os.path.jo")
    assert found == {"matches": ["join"], "start": 12, "end": 14}
    assert shared.complete_code(context, "Thing.col")["matches"] == ["colour"]
    assert "Thing" in shared.complete_code(context, "Thi + 1", 3)["matches"]
    seen = shared.inspect_code(context, "Thing")
    assert seen["found"]
    assert "A thing." in seen["text"]
    assert shared.inspect_code(context, "no_such_name") == {"found": False, "name": "no_such_name", "text": None}


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"language": "cobol"}, "language"),
        ({"cwd": "/no/such"}, "cwd"),
        ({"cwd": "relative"}, "cwd"),
        ({"env": {"A-B": "1"}}, "env.A-B"),
        ({"env": {"A": "\0"}}, "env.A"),
    ],
)
def test_contexts_that_cannot_be(shared: Sandbox, fields: dict[str, object], field: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        shared.create_code_context(**fields)  # type: ignore[arg-type]
    assert caught.value.field == field


def test_a_run_can_be_followed_again(shared: Sandbox, context: CodeContext) -> None:
    with shared.run_code_stream("print(1)\ndisplay(2)\n3", context=context) as stream:
        whole = stream.wait()
        again = shared.follow_code(context, stream.run_id)
    with again:
        assert again.wait() == whole
    with shared.follow_code(context, stream.run_id, start=2) as rest:
        assert [found.text for found in rest.wait().results] == ["3"]


def test_json_answers_are_the_same(shared: Sandbox, context: CodeContext) -> None:
    path = f"/v1/sandboxes/{shared.id}/contexts/{context.id}/run"
    http = shared.client._http
    found = http.post(path, json={"code": "print('é')\n{'a': 1}"}).json()
    assert found["stdout"] == "é\n"
    assert found["results"] == [{"is_main": True, "text": "{'a': 1}"}]
    assert found["error"] is None
    assert json.dumps(found)
    assert http.post(path, json={"code": "1", "colour": 2}).json()["kind"] == "unknown-field"
    assert http.post(path, json={"code": 5}).json()["field"] == "code"
    assert http.post(path, json={"code": "a\0"}).json()["field"] == "code"
    assert http.post(path, json={"code": "#" * (1024 * 1024 + 1)}).json()["field"] == "code"
    assert http.post(path, content=b"x" * 10_000_000).json()["kind"] == "body-too-large"


#: The CPU time of putting variables into a command, in seconds, for two lengths of which one is eight times the other.
_EXPAND = """
import time
def took(size):
    line, began = "echo " + {unit!r} * (size // len({unit!r})), time.process_time()
    get_ipython().var_expand(line)
    return time.process_time() - began
x = 1
took(1000)
(min(took(20_000) for _ in range(3)), min(took(160_000) for _ in range(3)))
"""


@pytest.mark.parametrize("unit", ["word ", ".", "'", "it's ", "$$x ", "'$x' ", "{{", "\\u20ac"])
def test_what_a_command_costs_grows_with_its_length_alone(shared: Sandbox, context: CodeContext, unit: str) -> None:
    result = shared.run_code(_EXPAND.format(unit=unit), context=context).check()
    short, long = ast.literal_eval(result.text or "")
    assert long < 24 * max(short, 0.001)  # by the square it was 64 times as much, and seconds


def test_variables_in_commands_are_ipythons_own(shared: Sandbox, context: CodeContext) -> None:
    code = """
    import random
    from IPython.utils.text import DollarFormatter
    rng, names = random.Random(1), {"x": 5, "a": "A B", "o": random}
    shell = get_ipython()
    shell.user_ns.update(names)
    pieces = ["$x", "$$x", "'", '"', " ", "{x+1}", "{{", "}}", "$a", "$", "\\u20ac", "$o.__name__", "{a!r}", "{x:1}"]
    for _ in range(3000):
        line = "".join(rng.choice(pieces) for _ in range(rng.randrange(9)))
        assert shell.var_expand(line) == shell.var_expand(line, 0, DollarFormatter()), line
    """
    shared.run_code(textwrap.dedent(code), context=context).check()
    local = "def f(deep):\n    !echo $deep {deep}\n    return get_ipython().getoutput('echo $deep')\nf(7)"
    result = shared.run_code(local, context=context)
    assert (result.stdout, result.text) == ("7 7\n", "['7']")


def test_a_command_may_be_longer_than_an_argument(shared: Sandbox, context: CodeContext) -> None:
    code = "y = 'q' * 200_000\n!printf %s {y} | wc -c\nfound = !echo {y}\nprint(len(found[0]))\n%sx echo {y} | wc -c"
    result = shared.run_code(code, context=context).check()
    assert (result.stdout, result.text) == ("200000\n200000\n", "['200001']")
    result = shared.run_code("!echo " + "w " * 100_000 + "; exit 3\n_exit_code", context=context)
    assert (len(result.stdout), result.text) == (200_000, "3")
    assert shared.exec("ls /tmp | grep -c ^sandboxd-").stdout == "0\n"
