"""The container's API without a daemon: its routes, its paths, where texts are cut, and charts in their shape."""

from __future__ import annotations

import pytest

from sandboxd.api.cloudflare import charts, container, container_routes
from sandboxd.api.cloudflare.problems import Refusal
from sandboxd.wire import utf8

#: The reference's, of which the last but one is refused.
THEIRS = """
POST /api/session/create|GET /api/session/list|POST /api/session/delete|POST /api/execute|POST /api/execute/stream
POST /api/read|POST /api/read/stream|POST /api/write|POST /api/delete|POST /api/rename|POST /api/move|POST /api/mkdir
POST /api/list-files|POST /api/exists|POST /api/port-watch|POST /api/process/start|GET /api/process/list
DELETE /api/process/kill-all|GET /api/process/<process>|DELETE /api/process/<process>|GET /api/process/<process>/logs
GET /api/process/<process>/stream|POST /api/git/checkout|GET /api/interpreter/health|POST /api/contexts
GET /api/contexts|DELETE /api/contexts/<context>|POST /api/execute/code|POST /api/backup/create|POST /api/backup/restore
POST /api/backup/upload-parts|POST /api/watch|POST /api/watch/check|GET /|GET /api/ping|GET /api/commands
GET /api/version
"""


def test_every_route_of_theirs_is_there() -> None:
    theirs = {row for line in THEIRS.strip().splitlines() for row in line.split("|")}
    ours = {
        f"{route.method} {route.path.removeprefix('/cloudflare/sandboxes/<name>')}" for route in container_routes.ROUTES
    }
    assert len(theirs) == 37
    assert ours - theirs == {"GET /ws", "GET /ws/pty", "GET /rpc"}
    assert not theirs - ours


@pytest.mark.parametrize(
    ("path", "base", "wanted"),
    [
        ("/a/b", "/workspace", "/a/b"),
        ("a", "/workspace", "/workspace/a"),
        ("../a", "/x/y", "/x/a"),
        ("/../../etc", "/", "/etc"),
        ("//a/./b//", "/", "/a/b"),
        (".", "/x", "/x"),
    ],
)
def test_paths(path: str, base: str, wanted: str) -> None:
    assert container.resolve(path, base) == wanted


@pytest.mark.parametrize("path", ["", "a\0", "/" + "a" * 4096])
def test_paths_that_are_none(path: str) -> None:
    with pytest.raises(Refusal) as caught:
        container.resolve(path)
    assert caught.value.code == "VALIDATION_FAILED"


def test_a_piece_of_text_ends_with_a_whole_character() -> None:
    text = "a\u00e9\u20ac\U0001f600"
    raw = text.encode()
    for cut in range(1, len(raw)):
        whole = cut - utf8.unfinished(raw[:cut])
        assert text.startswith(raw[:whole].decode())
        assert cut - whole < 4
    assert utf8.unfinished(b"\xff\xff\xff\xff") == 0
    halves = [raw[:3], raw[3:5], raw[5:9]]
    assert b"".join(utf8.whole_parts(halves)) == raw[:6]


def test_charts_in_their_shape() -> None:
    bars = [{"label": "a", "position": 0, "value": 3, "base": 0, "width": 1}]
    axis = {"label": "n (s)", "unit": "s", "scale": "linear", "limits": [0, 3], "ticks": [], "tick_labels": []}
    chart = {
        "type": "composed",
        "title": "T",
        "axes": [{"title": "T", "x": {**axis, "scale": "categorical"}, "y": axis}],
        "series": [
            {"type": "bar", "label": "B", "color": "#ff0000", "orientation": "horizontal", "bars": bars, "axes": 0},
            {"type": "line", "label": None, "color": None, "points": [[0, 1], [1, None]], "axes": 0},
            {"type": "pie", "label": None, "slices": [{"label": "x", "fraction": 0.5}], "axes": 0},
            {
                "type": "box",
                "label": None,
                "boxes": [{"label": "b", "min": 0, "q1": 1, "median": 2, "q3": 3, "max": 4}],
            },
        ],
    }
    found = charts.convert(chart, "cG5n")
    assert (found["type"], found["title"], found["library"], found["image"]) == ("bar", "T", "matplotlib", "cG5n")
    bar, line, pie, box = found["data"]
    assert (bar["orientation"], bar["x"], bar["y"], bar["name"]) == ("h", [3], ["a"], "B")
    assert (line["mode"], line["x"], line["y"]) == ("lines", [0, 1], [1, None])
    assert (pie["labels"], pie["values"]) == (["x"], [0.5])
    assert (box["median"], box["q1"]) == ([2], [1])
    assert found["layout"]["xaxis"]["type"] == "category"
    assert found["layout"]["yaxis"] == {"title": {"text": "n (s)"}, "range": [0, 3]}


@pytest.mark.parametrize(
    ("chart", "kind", "library"),
    [
        (
            {"type": "plotly", "spec": {"data": [{"type": "heatmap"}], "layout": {"title": {"text": "H"}}}},
            "heatmap",
            "plotly",
        ),
        ({"type": "plotly", "spec": {"data": [{"type": "scatter"}]}}, "line", "plotly"),
        ({"type": "plotly", "spec": {"data": []}}, "unknown", "plotly"),
        ({"type": "vega", "spec": {"mark": "bar"}}, "unknown", "altair"),
        ({"type": "odd", "series": "nonsense"}, "unknown", "matplotlib"),
        ([1], "unknown", "unknown"),
        ({"type": ["line"], "series": [{"type": "line", "points": 5}]}, "unknown", "unknown"),
        ({"type": "line", "series": [{"type": "line", "points": [[1]]}]}, "unknown", "unknown"),
        (
            {"type": "bar", "series": [{"type": "bar", "bars": [7]}], "axes": [{"x": {"scale": []}}]},
            "unknown",
            "unknown",
        ),
    ],
)
def test_charts_that_came_as_they_are(chart: object, kind: str, library: str) -> None:
    found = charts.convert(chart)
    assert (found["type"], found["library"]) == (kind, library)
    assert "data" in found
