"""What escapes from a run is told, whatever it does; what was merely shown, or failed meanwhile, is not its error."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest

from sandboxd import CodeContext, CodeResult, Sandbox

pytestmark = pytest.mark.real
Run = Callable[[str], CodeResult]


@pytest.fixture(scope="module")
def context(shared: Sandbox) -> CodeContext:
    return shared.create_code_context("python")


@pytest.fixture
def run(shared: Sandbox, context: CodeContext) -> Run:
    def run(code: str) -> CodeResult:
        return shared.run_code(code, context=context, timeout=30)

    return run


def hostile(body: str, *, base: str = "Exception", do: str = "raise Odd('said')") -> str:
    """Return code that raises an exception of a class with `body`."""
    lines = body.replace("\n", "\n    ")
    return f"class Odd({base}):\n    {lines}\n{do}"


def labels(rows: Sequence[tuple[str, ...]]) -> list[str]:
    return [f"{number}-{row[0][:40]!r}" for number, row in enumerate(rows)]


UNPRINTABLE = "<exception str() failed>"
RAISED = [
    ("raise ExceptionGroup('g', [ValueError('a')])", "ExceptionGroup", "g (1 sub-exception)"),
    ("raise BaseExceptionGroup('g', [KeyboardInterrupt()])", "BaseExceptionGroup", "g (1 sub-exception)"),
    ("try: raise ExceptionGroup('g', [ValueError('a')])\nexcept* ValueError: 1 / 0", "ZeroDivisionError", "zero"),
    ("try: raise ExceptionGroup('g', [OSError()])\nexcept Exception as e: raise KeyError('k') from e", "KeyError", "k"),
    (
        "import asyncio\nasync def bad(): raise ValueError('in a task')\n"
        "async with asyncio.TaskGroup() as group: group.create_task(bad())",
        "ExceptionGroup",
        "1 sub-exception",
    ),
    ("import asyncio\nasync def bad(): raise OSError('late')\nawait asyncio.gather(bad())", "OSError", "late"),
    ("%nosuchmagic", "UsageError", "%nosuchmagic` not found"),
    ("%%nosuchmagic\nx", "UsageError", "%%nosuchmagic` not found"),
    ("%alias_magic", "UsageError", "required"),
    ("%run missing.py", "Exception", "`'missing.py'` not found"),
    ("%load missing.py", "ValueError", "missing.py"),
    ("%%bash\nexit 3", "CalledProcessError", "exit status 3"),
    ("breakpoint()", "BdbQuit", "no terminal"),
    ("import pdb; pdb.set_trace()", "BdbQuit", "no terminal"),
    ("exit()", "SystemExit", "is not ended by exit()"),
    ("import sys; sys.exit()", "SystemExit", ""),
    ("import sys; sys.exit('words')", "SystemExit", "words"),
    ("import sys; sys.exit(2**80)", "SystemExit", str(2**80)),
    ("raise KeyboardInterrupt", "KeyboardInterrupt", ""),
    ("raise BaseException('base')", "BaseException", "base"),
    ("raise GeneratorExit", "GeneratorExit", ""),
    ("raise StopIteration(1)", "StopIteration", "1"),
    ("import asyncio; raise asyncio.CancelledError", "CancelledError", ""),
    ("raise 5", "TypeError", "exceptions must derive"),
    ("raise ValueError('a' * 3_000_000)", "ValueError", "aaa"),
    ("raise ValueError('\\ud800')", "ValueError", "?"),
    ("class \u00c9rror(Exception): pass\nraise \u00c9rror", "\u00c9rror", ""),
    ("a b", "SyntaxError", "invalid syntax"),
    ("if 1:\nx", "IndentationError", "expected an indented block"),
    ("return 1", "SyntaxError", "outside function"),
    ("raise SyntaxError", "SyntaxError", "None"),
    ("raise SyntaxError('m', ('f', 'one', [], object()))", "SyntaxError", "m"),
    ("e = SyntaxError('m')\ne.lineno = e.text = e.offset = e.filename = object()\nraise e", "SyntaxError", "m"),
    ("e = IndentationError('m')\ne.text = 5; e.lineno = 'x'\nraise e", "IndentationError", "m"),
    ("a, b = KeyError('a'), KeyError('b')\na.__cause__, b.__cause__ = b, a\nraise a", "KeyError", "'a'"),
    ("a, b = OSError('a'), OSError('b')\na.__context__, b.__context__ = b, a\nraise a from None", "OSError", "a"),
    ("def deep(n): deep(n + 1)\ndeep(0)", "RecursionError", "recursion"),
    ("e = OSError('noted')\ne.__notes__ = 5\nraise e", "OSError", "noted"),
    ("e = OSError('noted')\ne.__notes__ = [object(), 1]\nraise e", "OSError", "noted"),
    (hostile("def __str__(self): raise ValueError"), "Odd", UNPRINTABLE),
    (hostile("def __str__(self): raise KeyboardInterrupt"), "Odd", UNPRINTABLE),
    (hostile("def __str__(self): raise SystemExit"), "Odd", UNPRINTABLE),
    (hostile("def __str__(self): return 5"), "Odd", UNPRINTABLE),
    (hostile("def __str__(self): return str(self)"), "Odd", UNPRINTABLE),
    (hostile("class S(str): __getitem__ = __len__ = None\ndef __str__(self): return self.S('sub')"), "Odd", "sub"),
    (hostile("def __repr__(self): raise ValueError"), "Odd", "said"),
    (hostile("def __bool__(self): raise OSError('bool')"), "Odd", "said"),
    (hostile("def __len__(self): return 0"), "Odd", "said"),
    (hostile("def __eq__(self, other): raise OSError\n__hash__ = None"), "Odd", "said"),
    (hostile("def __getattribute__(self, name): raise OSError(name)"), "Odd", "said"),
    (hostile("__class__ = property(lambda self: 1 / 0)"), "Odd", "said"),
    (hostile("__class__ = int"), "Odd", "said"),
    (hostile("__traceback__ = property(lambda self: 1 / 0)"), "Odd", "said"),
    (hostile("__cause__ = property(lambda self: self)"), "Odd", "said"),
    (hostile("__context__ = property(lambda self: 1 / 0)"), "Odd", "said"),
    (hostile("__notes__ = property(lambda self: 1 / 0)"), "Odd", "said"),
    (hostile("__suppress_context__ = property(lambda self: 1 / 0)"), "Odd", "said"),
    (hostile("__module__ = 5"), "Odd", "said"),
    (hostile("__qualname__ = 'a.b'"), "Odd", "said"),
    (hostile("def _render_traceback_(self): 1 / 0"), "Odd", "said"),
    (hostile("def _render_traceback_(self): return 5"), "Odd", "said"),
    (hostile("def _render_traceback_(self): return None"), "Odd", "said"),
    (hostile("def __str__(self): raise ValueError", base="SystemExit"), "Odd", UNPRINTABLE),
    (hostile("def __str__(self): raise ValueError", base="SyntaxError"), "Odd", UNPRINTABLE),
    (hostile("def __str__(self): raise ValueError", base="ExceptionGroup", do="raise Odd('g', [OSError()])"),
     "Odd", UNPRINTABLE),
    (hostile("pass", do="raise OSError('said') from Odd('cause')"), "OSError", "said"),
    (hostile("def __str__(self): 1 / 0", do="raise OSError('said') from Odd()"), "OSError", "said"),
    (hostile("def __str__(self): 1 / 0", do="raise ExceptionGroup('said', [Odd()])"), "ExceptionGroup", "said"),
    ("class Meta(type):\n    @property\n    def __name__(cls): 1 / 0\n"
     "class Odd(Exception, metaclass=Meta): pass\nraise Odd('said')", "Odd", "said"),
    ("class Meta(type):\n    def __getattribute__(cls, name): raise OSError(name)\n"
     "class Odd(Exception, metaclass=Meta): pass\nraise Odd('said')", "Odd", "said"),
    ("class Odd(Exception): pass\nOdd.__name__ = 'x' * 5000\nraise Odd('said')", "x" * 1000, "said"),
    ("get_ipython().showtraceback = lambda *_, **__: None\nraise OSError('said')", "OSError", "said"),
    ("del get_ipython().showtraceback\nimport sys\nsys.excepthook = None\nraise OSError('said')", "OSError", "said"),
    ("import sys\nsys.stderr = None\nraise OSError('said')", "OSError", "said"),
    ("import sys\nsys.stderr, shell = sys.__stderr__, get_ipython()\n"
     "kept, shell.InteractiveTB = shell.InteractiveTB, None\nraise OSError('said')", "OSError", "said"),
    ("shell.InteractiveTB = kept\nraise OSError('said')", "OSError", "said"),
    ("get_ipython().set_custom_exc((OSError,), lambda *_, **__: None)\nraise OSError('said')", "OSError", "said"),
    ("get_ipython().set_custom_exc((OSError,), lambda *_, **__: 1 / 0)\nraise OSError('said')", "OSError", "said"),
    ("get_ipython().set_custom_exc((), None)\nraise OSError('said')", "OSError", "said"),
]  # fmt: skip


@pytest.mark.parametrize(("code", "ename", "evalue"), RAISED, ids=labels(RAISED))
def test_whatever_escapes_is_told(run: Run, code: str, ename: str, evalue: str) -> None:
    result = run(code)
    assert result.status == "error"
    assert result.error is not None
    assert result.error.ename == ename
    assert evalue in result.error.evalue
    assert result.error.traceback
    assert "sandboxd" not in "".join(result.error.traceback)
    assert run("40 + 2").text == "42"


def test_a_handler_that_shows_what_it_was_given_shows_the_runs_error(run: Run) -> None:
    handler = "lambda shell, kind, value, trace, tb_offset=None: shell.showtraceback((kind, value, trace))"
    result = run(f"get_ipython().set_custom_exc((OSError,), {handler})\nraise OSError('said')")
    run("get_ipython().set_custom_exc((), None)").check()
    assert result.error is not None
    assert (result.error.ename, result.error.evalue, result.stderr) == ("OSError", "said", "")


REPR = "class Odd:\n    def %s: %s\n    def __repr__(self): return 'odd'\n"
SHOWN = [
    ("try: 1/0\nexcept Exception: get_ipython().showtraceback()\n40+2", "42", "ZeroDivisionError"),
    ("try: 1/0\nexcept Exception: get_ipython().showtraceback(exception_only=True)\n1", "1", "ZeroDivisionError"),
    ("try: raise ExceptionGroup('g', [OSError()])\nexcept Exception: get_ipython().showtraceback()\n1",
     "1", "g (1 sub-exception)"),
    ("try: compile('a b', 'f', 'exec')\nexcept SyntaxError: get_ipython().showsyntaxerror()\n2", "2", "SyntaxError"),
    ("import sys\ntry: 1/0\nexcept Exception: sys.excepthook(*sys.exc_info())\n3", "3", "ZeroDivisionError"),
    ("import traceback\ntry: 1/0\nexcept Exception: traceback.print_exc()\n4", "4", "ZeroDivisionError"),
    ("get_ipython().run_cell('1/0').success", "False", "ZeroDivisionError"),
    ("get_ipython().run_cell('a b').success", "False", "SyntaxError"),
    ("await get_ipython().run_cell_async('1/0', transformed_cell='1/0')\n5", "5", "ZeroDivisionError"),
    ("%tb\n6", "6", ""),
    ("!false\n_exit_code", "1", ""),
    ("import threading\nt = threading.Thread(target=lambda: 1/0); t.start(); t.join()\n7", "7", "ZeroDivisionError"),
    ("class D:\n    def __del__(self): 1/0\nd = D(); del d\n8", "8", "ZeroDivisionError"),
    ("def hook(*_): get_ipython().events.unregister('post_execute', hook); 1/0\n"
     "get_ipython().events.register('post_execute', hook)\n9", "9", "ZeroDivisionError"),
    (REPR % ("_repr_html_(self)", "1/0") + "Odd()", "odd", "ZeroDivisionError"),
    (REPR % ("_repr_html_(self)", "raise ExceptionGroup('g', [OSError()])") + "Odd()", "odd", "g (1 sub-exception)"),
    (REPR % ("_repr_html_(self)", "raise SystemExit(3)") + "Odd()", "Odd object at", "SystemExit: 3"),
    (REPR % ("_repr_html_(self)", "return 5") + "Odd()", "odd", "FormatterWarning"),
    (REPR % ("_repr_mimebundle_(self, **_)", "1/0") + "Odd()", "odd", "ZeroDivisionError"),
    (REPR % ("_repr_mimebundle_(self, **_)", "return {1: 2, 'text/x': 'x', 'a' * 300: '', 'é/é': ''}")
     + "Odd()", "odd", ""),
    (REPR % ("_ipython_display_(self)", "1/0") + "Odd()", "odd", "ZeroDivisionError"),
    (REPR % ("_repr_json_(self)", "return {'a': Odd}") + "Odd()", "odd", ""),
    ("class Odd:\n    def __repr__(self): 1/0\nOdd()", "Odd object at", "ZeroDivisionError"),
    ("class Odd:\n    def __repr__(self): return 5\nOdd()", "Odd object at", "TypeError"),
    ("class Odd:\n    def __repr__(self): 1/0\n[Odd()]", "list object at", "ZeroDivisionError"),
    ("class Odd:\n    _repr_html_ = property(lambda self: 1/0)\n    def __repr__(self): return 'odd'"
     "\nOdd()", "odd", ""),
    ("class Odd:\n    def __getattr__(self, name): raise OSError(name)\n    def __repr__(self): return 'odd'"
     "\nOdd()", "odd", ""),
    ("class Odd:\n    def _repr_html_(self): raise Worse\n    def __repr__(self): return 'odd'\n"
     "class Worse(Exception):\n    def __str__(self): raise OSError\nOdd()", "odd", "Worse"),
    ("class Odd(dict):\n    def items(self): 1/0\n    def _repr_mimebundle_(self, **_): return self"
     "\nOdd(a=1)", "{'a': 1}", ""),
]  # fmt: skip


@pytest.mark.parametrize(("code", "text", "printed"), SHOWN, ids=labels(SHOWN))
def test_what_was_merely_shown_is_printed(run: Run, code: str, text: str, printed: str) -> None:
    result = run(code)
    assert (result.status, result.error) == ("ok", None)
    assert text in (result.text or "")
    assert printed in result.stderr
    assert "\x1b" not in result.stderr
    # Nor does it hide what follows.
    after = run(code + "\nraise KeyError('real')")
    assert after.error is not None
    assert (after.error.ename, after.error.evalue) == ("KeyError", "'real'")


def test_what_fails_while_it_is_displayed_leaves_the_other_formats(run: Run) -> None:
    odd = "class Odd:\n    def _repr_html_(self): 1/0\n    def _repr_svg_(self): return '<svg/>'\n"
    for show in ("Odd()", "display(Odd())"):
        result = run(odd + "    def __repr__(self): return 'odd'\n" + show)
        (shown,) = result.results
        assert (result.status, shown.text, shown.svg, shown.html) == ("ok", "odd", "<svg/>", None)
        assert "ZeroDivisionError" in result.stderr
    result = run("import matplotlib.pyplot as plt\nplt.title('$\\\\frac{$'); plt.plot([1, 2])\n'after'")
    assert (result.status, result.text) == ("ok", "'after'")
    assert "ValueError" in result.stderr


@pytest.mark.parametrize(
    ("program", "options", "ename"),
    [
        ("1/0", "", "ZeroDivisionError"),
        ("import sys; sys.exit(3)", "", "SystemExit"),
        ("import sys; sys.exit(0)", "", None),
        ("import sys; sys.exit(3)", "-e ", None),
        ("try: 1/0\nexcept Exception: pass", "", None),
        ("raise ExceptionGroup('g', [OSError()])", "", "ExceptionGroup"),
        ("a b", "", "SyntaxError"),
        ("1/0", "-m ", "ZeroDivisionError"),
        ("import sys; sys.exit(0)", "-m ", None),
    ],
)
def test_a_program_that_fails_is_the_error_of_who_runs_it(
    shared: Sandbox, run: Run, program: str, options: str, ename: str | None
) -> None:
    shared.write_file("/workspace/failing.py", program)
    name = "failing" if "-m" in options else "failing.py"
    result = run(f"%run {options}{name}\nprint('after')")
    assert result.stdout == "after\n"
    assert (None if result.error is None else result.error.ename) == ename
    assert result.status == ("ok" if ename is None else "error")
    assert "Traceback" not in result.stderr
    later = run(f"%run {options}{name}\nraise KeyError('later')").error
    assert later is not None
    assert later.ename == "KeyError"
    if "exit" not in program:  # IPython has no such rule for programs of cells
        shared.write_file("/workspace/failing.ipy", program)
        result = run("%run failing.ipy")
        assert (None if result.error is None else result.error.ename) == ename
        assert "Traceback" not in result.stderr


PAGERS = [
    *("painted?", "painted??", "?painted", "%pinfo painted", "%pinfo2 painted", "%psource painted", "%pdef painted"),
    *("%pdoc painted", "%pfile painted", "%psearch pain*", "%pycat /etc/os-release", "help(painted)", "%quickref"),
    *("from IPython.core import page; page.page('\\x1b[31mred\\x1b[0m')", "page.page({'text/plain': '\\x1b[1mb'})"),
    *("get_ipython().show_usage()", "%page painted", "try: 1/0\nexcept Exception: pass\n%debug"),
]


def test_a_pager_prints_without_colours(run: Run) -> None:
    run("def painted(x):\n    'doc'\n    return x").check()
    for way in PAGERS:
        result = run(way)
        assert result.error is None, way
        assert result.results == (), way
        assert result.stdout.strip(), way
        assert "\x1b" not in result.stdout + result.stderr, way


def test_a_program_run_after_matplotlib_inline_shows_its_picture_alone(shared: Sandbox, run: Run) -> None:
    draw = "import matplotlib.pyplot as plt\nplt.plot([1, 2])\n"
    for end, pictures in (("plt.show()", 1), ("", 1), ("plt.close()", 0), ("plt.show(); plt.figure()", 1)):
        shared.write_file("/workspace/drawing.py", draw + end)
        shown = run("%matplotlib inline\n%run drawing.py").results
        assert [one.png is not None for one in shown if one.png] == [True] * pictures, end
        assert [one.text for one in shown if one.png is None] in ([], ["<Figure size 640x480 with 0 Axes>"]), end


def test_what_cannot_be_asked_about_is_not_found(shared: Sandbox, context: CodeContext, run: Run) -> None:
    """What fails while an object is looked at costs nobody an interpreter, whatever is raised."""
    run(
        "class Worse(BaseException):\n    def __repr__(self): raise SystemExit\n    __str__ = __repr__\n"
        "class Bad:\n    def __repr__(self): raise Worse\n    def __getattr__(self, name): raise Worse\n"
        "    def __dir__(self): raise Worse\n    __doc__ = property(__repr__)\nbad = Bad()"
    ).check()
    assert shared.inspect_code(context, "bad")["found"] is False
    assert shared.complete_code(context, "bad.x") == {"matches": [], "start": 5, "end": 5}
    assert run("40 + 2").text == "42"
