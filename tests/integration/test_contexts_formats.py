"""What Python's results look like: tables, figures as pictures and as data, specifications, pictures, formulas."""

from __future__ import annotations

from typing import Any

import pytest

from sandboxd import CodeContext, Result, Sandbox

pytestmark = pytest.mark.real
PNG = b"\x89PNG\r\n\x1a\n"


@pytest.fixture(scope="module")
def context(shared: Sandbox) -> CodeContext:
    context = shared.create_code_context("python")
    shared.run_code("import numpy as np, pandas as pd, matplotlib.pyplot as plt", context=context).check()
    return context


@pytest.fixture
def show(shared: Sandbox, context: CodeContext) -> Any:
    def show(code: str) -> tuple[Result, ...]:
        result = shared.run_code(code, context=context, timeout=60)
        assert result.error is None, "\n".join(result.error.traceback)
        return result.results

    return show


@pytest.fixture
def chart(show: Any) -> Any:
    def chart(code: str) -> dict[str, Any]:
        (result,) = show(code + "\nplt.show()")
        assert result.png.startswith(PNG)
        assert result.chart is not None
        found: dict[str, Any] = result.chart
        return found

    return chart


def test_a_table_is_html_and_records(show: Any) -> None:
    (result,) = show("pd.DataFrame({'a': [1, 2], 'b': ['x', None], 't': pd.to_datetime(['2026-01-02', None])})")
    assert result.is_main
    assert "<table" in result.html
    assert "a" in result.text
    assert [row["a"] for row in result.data] == [1, 2]
    assert [row["b"] for row in result.data] == ["x", None]
    assert result.data[0]["t"].startswith("2026-01-02T00:00:00")
    (result,) = show("pd.DataFrame({'n': range(5000)})")
    assert len(result.data) == 1000
    assert "first 1000 of 5000" in result.note
    (result,) = show("pd.DataFrame({('a', 'b'): [1]})")
    assert "<table" in result.html
    assert show("pd.Series([1, 2])")[0].text.startswith("0    1")


def test_figures_are_shown_at_show_and_at_the_end(show: Any) -> None:
    code = "plt.plot([1, 2]); plt.show()\nplt.plot([3, 4])\nfig, ax = plt.subplots(); _ = ax.bar([1], [2])"
    results = show(code)
    assert [found.chart["type"] for found in results] == ["line", "line", "bar"]
    assert all(found.png.startswith(PNG) for found in results)
    assert show("1") == show("1")
    assert len(show("2")) == 1  # nothing is left open
    shown = show("fig, ax = plt.subplots(); ax.plot([1]); fig")
    assert [(found.is_main, found.png is not None) for found in shown] == [(True, True)]
    assert show("fig = plt.figure()") == ()  # there is nothing on it


def test_svg_where_it_is_asked_for(show: Any) -> None:
    code = "from matplotlib_inline.backend_inline import set_matplotlib_formats\nset_matplotlib_formats('png', 'svg')"
    show(code)
    (result,) = show("plt.plot([1, 2])\nplt.show()")
    assert "<svg" in result.svg
    assert result.png.startswith(PNG)


def test_lines(chart: Any) -> None:
    found = chart(
        "plt.plot([0, 1, 2], [1.5, float('nan'), 3], label='first', color='red'); plt.plot([0, 1], [5, 6], '--')\n"
        "plt.title('Growth'); plt.xlabel('time (s)'); plt.ylabel('size [kg]'); plt.yscale('log'); plt.legend()"
    )
    assert (found["type"], found["title"]) == ("line", "Growth")
    (axes,) = found["axes"]
    assert (axes["x"]["label"], axes["x"]["unit"], axes["x"]["scale"]) == ("time (s)", "s", "linear")
    assert (axes["y"]["label"], axes["y"]["unit"], axes["y"]["scale"]) == ("size [kg]", "kg", "log")
    first, second = found["series"]
    assert (first["type"], first["label"], first["color"]) == ("line", "first", "#ff0000")
    assert first["points"] == [[0, 1.5], [1, None], [2, 3]]
    assert (second["label"], second["points"], second["axes"]) == (None, [[0, 5], [1, 6]], 0)
    assert len(axes["x"]["ticks"]) == len(axes["x"]["tick_labels"]) > 1
    low, high = axes["x"]["limits"]
    assert low <= 0
    assert high >= 2


def test_scatter(chart: Any) -> None:
    found = chart("plt.scatter([1, 2, 3], [4, 5, 6], label='dots', c='blue')")
    (series,) = found["series"]
    assert (found["type"], series["type"], series["label"]) == ("scatter", "scatter", "dots")
    assert series["points"] == [[1, 4], [2, 5], [3, 6]]
    assert chart("plt.plot([1, 2], [3, 4], 'o')")["series"][0]["type"] == "scatter"


def test_bars(chart: Any) -> None:
    found = chart("plt.bar(['a', 'b'], [3, 4], label='low'); plt.bar(['a', 'b'], [1, 2], bottom=[3, 4], label='high')")
    low, high = found["series"]
    assert (found["type"], low["orientation"]) == ("bar", "vertical")
    assert [(bar["label"], bar["value"], bar["base"]) for bar in low["bars"]] == [("a", 3, 0), ("b", 4, 0)]
    assert [(bar["label"], bar["value"], bar["base"]) for bar in high["bars"]] == [("a", 1, 3), ("b", 2, 4)]
    assert found["axes"][0]["x"]["scale"] == "categorical"
    assert [bar["position"] for bar in low["bars"]] == [0, 1]
    wide = chart("plt.barh(['x', 'y'], [5, 6])")["series"][0]
    assert wide["orientation"] == "horizontal"
    assert [(bar["label"], bar["value"]) for bar in wide["bars"]] == [("x", 5), ("y", 6)]
    assert len(chart("plt.hist([1, 1, 2, 3], bins=3)")["series"][0]["bars"]) == 3


def test_pie(chart: Any) -> None:
    found = chart("plt.pie([1, 3], labels=['quarter', 'rest']); plt.title('Shares')")
    assert (found["type"], found["title"]) == ("pie", "Shares")
    (series,) = found["series"]
    assert [(part["label"], part["fraction"]) for part in series["slices"]] == [
        ("quarter", pytest.approx(0.25)),
        ("rest", pytest.approx(0.75)),
    ]


def test_boxes(chart: Any) -> None:
    found = chart("plt.boxplot([[1, 2, 3, 4, 100], [5, 6, 7]], tick_labels=['a', 'b'])")
    assert found["type"] == "box"
    (series,) = found["series"]
    first, second = series["boxes"]
    assert (first["label"], first["median"], first["q1"], first["q3"]) == ("a", 3, 2, 4)
    assert (first["min"], first["max"], first["outliers"]) == (1, 4, [100])
    assert (second["label"], second["median"]) == ("b", 6)


#: What each kind of drawing says: its code, and of each series what matters (`labels` are those of bars or boxes).
GALLERY: dict[str, tuple[str, list[dict[str, Any]]]] = {
    "bars with errors are no stray scatters": (
        "plt.bar(['A', 'B'], [1, 2], yerr=.5, capsize=3)",
        [{"type": "bar", "labels": ["A", "B"], "errors": [[0.5, 1.5], [1.5, 2.5]]}],
    ),
    "lying bars with errors": (
        "plt.barh(['A', 'B'], [1, 2], xerr=[.5, .25], capsize=3)",
        [{"type": "bar", "labels": ["A", "B"], "errors": [[0.5, 1.5], [1.75, 2.25]]}],
    ),
    "pandas' grouped bars": (
        "pd.DataFrame({'u': [1, 2], 'v': [3, 4]}, index=['a', 'b']).plot.bar()",
        [{"label": "u", "labels": ["a", "b"]}, {"label": "v", "labels": ["a", "b"]}],
    ),
    "bars grouped by hand": (
        "x = np.arange(2)\nfor i in range(3): plt.bar(x + i * .25, [1, 2], .25, label=f'g{i}')\n"
        "plt.xticks(x + .25, ['p', 'q'])",
        [{"label": f"g{number}", "labels": ["p", "q"]} for number in range(3)],
    ),
    "a bar's number": ("plt.bar([0.5, 10], [1, 2])", [{"labels": ["0.5", "10"]}]),
    "bars of whole numbers that touch": ("plt.bar([0, 1, 2], [1, 2, 3], width=1)", [{"labels": ["0", "1", "2"]}]),
    "bars on a logarithmic axis": ("plt.bar([1, 10], [1, 2]); plt.xscale('log')", [{"labels": ["1", "10"]}]),
    "bars over dates": (
        "plt.bar(pd.date_range('2026-01-01', periods=2), [1, 2])",
        [{"labels": ["2026-01-01T00:00:00", "2026-01-02T00:00:00"]}],
    ),
    "bins of a histogram": ("plt.hist([1, 1, 2, 4], bins=2)", [{"labels": ["1 to 2.5", "2.5 to 4"]}]),
    "seaborn's histogram": ("sns.histplot([1, 2, 3], bins=2)", [{"labels": ["1 to 2", "2 to 3"]}]),
    "lines across": (
        "plt.plot([10, 20], [1, 2]); plt.xlim(0, 40); plt.ylim(0, 4)\n"
        "plt.axhline(1.5); plt.axvline(12, 0, .5); plt.axline((0, 0), slope=.1)",
        [
            {"points": [[10, 1], [20, 2]]},
            {"points": [[0, 1.5], [40, 1.5]]},
            {"points": [[12, 0], [12, 2]]},
            {"points": [[0, 0], [40, 4]]},
        ],
    ),
    "a line across through a point is no error": (
        "plt.plot([1, 2, 3]); plt.axhline(2); plt.xlim(0, 2)",
        [{"points": [[0, 1], [1, 2], [2, 3]], "errors": None}, {"points": [[0, 2], [2, 2]]}],
    ),
    "points with errors": (
        "plt.errorbar([1, 2], [4, 5], yerr=[.5, .25], xerr=1, fmt='o', capsize=2, label='m')",
        [{"type": "scatter", "label": "m", "points": [[1, 4], [2, 5]], "errors": [[3.5, 4.5], [4.75, 5.25]]}],
    ),
    "stems": ("plt.stem([1, 2], [4, 5], label='s')", [{"type": "scatter", "label": "s", "points": [[1, 4], [2, 5]]}]),
    "seaborn's boxes": (
        "sns.boxplot(data=FRAME, x='g', y='v', hue='h')",
        [{"type": "box", "label": "m", "labels": ["a", "b"]}, {"type": "box", "label": "n", "labels": ["a", "b"]}],
    ),
    "seaborn's lying boxes": ("sns.boxplot(data=FRAME, y='g', x='v')", [{"type": "box", "labels": ["a", "b"]}]),
    "pandas' boxes": ("pd.DataFrame({'a': [1, 2], 'b': [4, 5]}).boxplot()", [{"type": "box", "labels": ["a", "b"]}]),
    "seaborn's bars": (
        "sns.barplot(data=FRAME, x='g', y='v', errorbar=('pi', 100), capsize=.1)",
        [{"type": "bar", "labels": ["a", "b"], "errors": [[0, 5], [2, 7]]}],
    ),
    "seaborn's estimates": (
        "sns.pointplot(data=FRAME, x='g', y='v', hue='h', errorbar=('pi', 100))",
        [
            {"type": "line", "label": "m", "points": [[0, 2], [1, 4]], "errors": [[0, 4], [2, 6]]},
            {"type": "line", "label": "n", "points": [[0, 3], [1, 5]], "errors": [[1, 5], [3, 7]]},
        ],
    ),
    "seaborn's lines": (
        "sns.lineplot(x=[1, 2, 1, 2], y=[1, 2, 3, 4], hue=list('mmnn'))",
        [{"label": "m", "points": [[1, 1], [2, 2]]}, {"label": "n", "points": [[1, 3], [2, 4]]}],
    ),
    "seaborn's scatter by colour": (
        "sns.scatterplot(x=[1, 2, 1], y=[1, 2, 3], hue=list('mmn'))",
        [{"label": "m", "points": [[1, 1], [2, 2]]}, {"label": "n", "points": [[1, 3]]}],
    ),
    "scatter over categories": ("plt.scatter(['a', 'b'], [1, 2])", [{"points": [["a", 1], ["b", 2]]}]),
    "masked points": (
        "plt.scatter(np.ma.array([1, 2], mask=[False, True]), [1, 2])",
        [{"points": [[1, 1], [None, None]]}],
    ),
    "pandas' periods": (
        "pd.Series([1, 2], index=pd.date_range('2026-01-01', periods=2, freq='MS')).plot()",
        [{"points": [["2026-01-01T00:00:00", 1], ["2026-02-01T00:00:00", 2]]}],
    ),
}


@pytest.mark.parametrize("name", GALLERY)
def test_a_chart_says_what_was_drawn_and_no_more(chart: Any, show: Any, name: str) -> None:
    code, expected = GALLERY[name]
    show("import seaborn as sns\nFRAME = pd.DataFrame({'g': list('aabb') * 2, 'h': list('mnmn') * 2, 'v': range(8)})")
    series = chart(code)["series"]
    assert len(series) == len(expected), series
    for item, wanted in zip(series, expected, strict=True):
        labels = [part["label"] for part in item.get("bars", item.get("boxes", []))]
        for field, value in wanted.items():
            found = labels if field == "labels" else item.get(field)
            assert found == value, (field, item)


def test_ticks_are_told_as_they_are_read(chart: Any) -> None:
    found = chart("plt.loglog([1, 100], [1e-2, 1]); plt.plot([], [])")["axes"][0]
    assert found["x"]["tick_labels"] == ["10⁰", "10¹", "10²"]
    assert found["y"]["tick_labels"] == ["10⁻²", "10⁻¹", "10⁰"]
    found = chart("plt.plot([-2, 2], [0, 3e7])")["axes"][0]
    assert float(found["x"]["tick_labels"][0]) == found["x"]["ticks"][0] == -2
    assert found["y"]["offset"] == "1e7"
    assert found["x"]["offset"] is None


def test_what_is_drawn_in_space_has_no_chart(show: Any) -> None:
    (result,) = show("plt.figure().add_subplot(projection='3d').scatter([1], [2], [3]); plt.show()")
    assert result.png.startswith(PNG)
    assert result.chart is None


@pytest.mark.parametrize(
    "before", ["pass", "sns.set_theme()", "plt.style.use('ggplot')", "plt.rcParams['font.family'] = 'serif'"]
)
def test_letters_of_east_asia_are_drawn(show: Any, before: str) -> None:
    show(
        "import warnings, seaborn as sns\nwith warnings.catch_warnings(), plt.rc_context():\n"
        f"    warnings.simplefilter('error')\n    {before}\n"
        "    plt.title('销售额 売上 매출 é')\n    plt.gcf().canvas.draw()"
    )


#: Writes DejaVu Sans under another name of as many letters, and asks for it.
LATER = """
import matplotlib.font_manager as fm, pathlib
data = pathlib.Path(fm.findfont('DejaVu Sans')).read_bytes()
directory = pathlib.Path({directory!r}).expanduser()
directory.mkdir(parents=True, exist_ok=True)
for code in ('ascii', 'utf-16-be'):
    data = data.replace('DejaVu Sans'.encode(code), {name!r}.encode(code))
(directory / '{name}-later.ttf').write_bytes(data)
print(fm.findfont({name!r}, fallback_to_default=False))
"""


@pytest.mark.parametrize("directory", ["~/.fonts", "~/.local/share/fonts/deep", "/usr/local/share/fonts"])
@pytest.mark.parametrize("program", [False, True], ids=["context", "program"])
def test_a_font_that_is_installed_later_is_found(
    shared: Sandbox, context: CodeContext, directory: str, program: bool
) -> None:
    code = LATER.format(directory=directory, name=f"{'Xyz'[len(directory) % 3]}ejaWu Sun{'sp'[program]}")
    if program:
        result = shared.exec(["python3", "-c", code])
        assert result.stdout.strip().endswith("later.ttf"), result.stderr
    else:
        assert shared.run_code(code, context=context).check().stdout.strip().endswith("later.ttf")


def test_several_axes_and_kinds(chart: Any) -> None:
    found = chart(
        "fig, (a, b) = plt.subplots(1, 2); a.plot([1, 2]); a.set_title('A'); b.bar([1], [2]); b.set_title('B')\n"
        "fig.suptitle('Both')"
    )
    assert (found["type"], found["title"]) == ("composed", "Both")
    assert [axes["title"] for axes in found["axes"]] == ["A", "B"]
    assert [(series["type"], series["axes"]) for series in found["series"]] == [("line", 0), ("bar", 1)]
    assert chart("plt.bar([1, 2], [3, 4]); plt.plot([1, 2], [3, 4])")["type"] == "composed"


def test_dates_and_many_points(chart: Any) -> None:
    found = chart("plt.plot(pd.date_range('2026-01-01', periods=3), [1, 2, 3])")
    assert found["axes"][0]["x"]["scale"] == "datetime"
    assert found["series"][0]["points"][0] == ["2026-01-01T00:00:00", 1]
    found = chart("plt.plot(np.arange(100_000))")
    assert found["series"][0]["points_total"] == 100_000
    assert len(found["series"][0]["points"]) == 10_000


def test_pandas_and_seaborn_draw_charts_too(chart: Any) -> None:
    assert chart("pd.DataFrame({'a': [1, 2], 'b': [3, 4]}).plot()")["series"][0]["label"] == "a"
    frame = "pd.DataFrame({'g': list('aabb'), 'v': [1, 2, 3, 4]})"
    found = chart(f"import seaborn as sns\nsns.boxplot(data={frame}, x='g', y='v')")
    assert found["type"] == "box"
    assert sum(len(series["boxes"]) for series in found["series"]) == 2
    assert chart("sns.barplot(x=['a', 'b'], y=[1, 2])")["type"] in ("bar", "composed")


def test_a_figure_that_cannot_be_read_is_a_picture_still(show: Any) -> None:
    (result,) = show("plt.imshow(np.zeros((3, 3)))\nplt.show()")
    assert result.png.startswith(PNG)
    assert result.chart is None


def test_plotly_and_altair(show: Any) -> None:
    (result,) = show("import plotly.express as px\npx.line(x=[1, 2], y=[3, 4], title='P')")
    assert result.chart["type"] == "plotly"
    assert result.chart["spec"]["layout"]["title"]["text"] == "P"
    assert result.extra["application/vnd.plotly.v1+json"] == result.chart["spec"]
    (result,) = show("px.bar(x=[1], y=[2]).show()")
    assert result.chart["type"] == "plotly"
    (result,) = show("import altair as alt\nalt.Chart(pd.DataFrame({'a': [1]})).mark_bar().encode(x='a')")
    assert result.chart["type"] == "vega"
    assert result.chart["spec"]["mark"] == {"type": "bar"}


PLOTLY_WAYS = [
    *(
        "f",
        "display(f)",
        "f.show()",
        "f.show('notebook')",
        "f.show(renderer='browser')",
        "pio.show(f)",
        "pio.show(f, 'png')",
    ),
    *("pio.show(f.to_dict())", "pio.show(go.FigureWidget(f))", "go.FigureWidget(f)", "go.FigureWidget(f).show()"),
    *("from plotly.offline import iplot; iplot(f)", "iplot(f.to_dict())", "iplot([go.Bar(x=['a'], y=[7])])"),
    "import plotly; plotly.offline.init_notebook_mode(); plotly.offline.init_notebook_mode(connected=True); iplot(f)",
    *("_ = plotly.offline.plot(f, filename='/tmp/p.html')", "f.write_html('/tmp/p.html', auto_open=True)"),
    *("pio.renderers.default = 'notebook'; pio.show(f)", "f", "pio.renderers.default = 'browser+svg'; f.show()"),
    *("pio.renderers.render_on_display = True; display(f)", "px.bar(x=['a'], y=[7])", "px.bar(x=['a'], y=[7]).show()"),
    "pio.renderers.default = ''; iplot(f, config={'scrollZoom': True})",
]


def test_plotly_shows_one_specification_by_every_way_it_has(show: Any) -> None:
    show("import plotly.express as px, plotly.io as pio\nfrom plotly import graph_objects as go")
    show("f = go.Figure(go.Bar(x=['a'], y=[7]))")
    for way in PLOTLY_WAYS:
        (result,) = show(way)
        assert result.chart["type"] == "plotly", way
        (bar,) = result.chart["spec"]["data"]
        assert (bar["type"], list(bar["x"])) == ("bar", ["a"]), way
        assert result.extra["application/vnd.plotly.v1+json"] == result.chart["spec"], way
        assert "(…)" in result.text, way
        assert len(result.html or "") < 100_000, way
    assert result.chart["spec"]["config"] == {"scrollZoom": True}


def test_altair_shows_one_specification_by_every_way_it_has(show: Any) -> None:
    show("import altair as alt\nc = alt.Chart(pd.DataFrame({'a': [1]})).mark_bar().encode(x='a')")
    for way in (
        "c",
        "c.display()",
        "c.show()",
        "display(c)",
        "alt.layer(c)",
        "c | c",
        "alt.renderers.enable('html'); c",
    ):
        (result,) = show(way)
        assert result.chart["type"] == "vega", way
        assert "data" in result.chart["spec"] or "datasets" in result.chart["spec"], way


def test_the_protocols(show: Any) -> None:
    (result,) = show("from PIL import Image\nImage.new('RGB', (2, 2))")
    assert result.png.startswith(PNG)
    assert result.jpeg is None
    code = """
class Everything:
    def _repr_html_(self): return "<b>"
    def _repr_markdown_(self): return "*m*"
    def _repr_svg_(self): return "<svg/>"
    def _repr_latex_(self): return "$x$"
    def _repr_json_(self): return {"a": [1, None]}
    def _repr_javascript_(self): return "1"
    def _repr_pdf_(self): return b"%PDF-1.4 x"
    def _repr_jpeg_(self): return b"\\xff\\xd8 x"
    def __repr__(self): return "everything"
Everything()"""
    (result,) = show(code)
    assert (result.text, result.html, result.markdown, result.svg) == ("everything", "<b>", "*m*", "<svg/>")
    assert (result.latex, result.javascript, result.json) == ("$x$", "1", {"a": [1, None]})
    assert (result.pdf, result.jpeg) == (b"%PDF-1.4 x", b"\xff\xd8 x")
    bundle = "{'text/plain': 'b', 'application/x.own+json': {'k': 1}}"
    code = f"class B:\n    def _repr_mimebundle_(self, **_): return {bundle}\nB()"
    (result,) = show(code)
    assert (result.text, result.extra) == ("b", {"application/x.own+json": {"k": 1}})
    results = show("from IPython.display import *\ndisplay(HTML('<i>'), Markdown('_'), JSON({'a': 1}), Latex('$y$'))")
    assert [found.formats[-1] for found in results] == ["html", "markdown", "json", "latex"]


def test_a_broken_repr_is_printed_and_the_rest_shown(shared: Sandbox, context: CodeContext) -> None:
    code = (
        "class Bad:\n    def _repr_html_(self): raise ValueError('html')\n    def __repr__(self): return 'bad'\nBad()"
    )
    result = shared.run_code(code, context=context)
    assert (result.text, result.error) == ("bad", None)
    assert "ValueError: html" in result.stderr
    bundle = "{'image/png': 'not base64!', 'text/plain': 'odd'}"
    code = f"class Odd:\n    def _repr_mimebundle_(self, **_): return {bundle}\nOdd()"
    result = shared.run_code(code, context=context)
    assert result.results[0].text == "odd"
    assert "png" in (result.results[0].note or "")
    assert shared.run_code("1 + 1", context=context).text == "2"
