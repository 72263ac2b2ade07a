"""A chart of ours (`workers/python_charts.py`) in their shape: a type, and traces and a layout as plotly has them."""

from __future__ import annotations

from typing import Any, Final

#: Their types; the rest is "unknown".
TYPES: Final = frozenset(("line", "bar", "scatter", "pie", "histogram", "heatmap"))
#: What a specification that came as it is was made with.
_LIBRARIES: Final = {"plotly": "plotly", "vega": "altair", "vegalite": "altair", "vega-lite": "altair"}


def convert(chart: Any, png: Any = None) -> dict[str, Any]:  # noqa: ANN401 - JSON
    """Return a chart as `{type, title?, data, layout?, library, image?}`; what is none of ours becomes "unknown".

    What a program shows as a chart is whatever it likes: nothing of it may fail here.
    """
    try:
        found = _convert(chart)
    except (TypeError, ValueError, LookupError, AttributeError):
        found = {"type": "unknown", "data": chart, "library": "unknown"}
    return found if png is None else {**found, "image": png}


def _convert(chart: Any) -> dict[str, Any]:  # noqa: ANN401 - JSON
    if not isinstance(chart, dict):
        return {"type": "unknown", "data": chart, "library": "unknown"}
    if "spec" in chart:
        return _passed(str(chart.get("type")), chart["spec"])
    series = [item for item in chart.get("series", ()) if isinstance(item, dict)]
    axes = [item for item in chart.get("axes", ()) if isinstance(item, dict)]
    found: dict[str, Any] = {
        "type": _type(chart, series),
        "data": [_trace(item) for item in series],
        "layout": _layout(chart, axes),
        "library": "matplotlib",
    }
    return {**found, "title": chart["title"]} if chart.get("title") else found


def _passed(kind: str, spec: Any) -> dict[str, Any]:  # noqa: ANN401 - JSON
    library = _LIBRARIES.get(kind, "unknown")
    if library != "plotly" or not isinstance(spec, dict):
        return {"type": "unknown", "data": spec, "library": library}
    data = spec.get("data", [])
    first = data[0] if isinstance(data, list) and data and isinstance(data[0], dict) else {}
    name = first.get("type", "scatter") if first else "unknown"
    if name == "scatter" and "lines" in str(first.get("mode", "lines")):
        name = "line"
    found = {"type": name if name in TYPES else "unknown", "data": data, "library": library}
    found |= {key: spec[key] for key in ("layout", "config") if key in spec}
    title = spec.get("layout", {}).get("title") if isinstance(spec.get("layout"), dict) else None
    text = title.get("text") if isinstance(title, dict) else title
    return {**found, "title": text} if text else found


def _type(chart: dict[str, Any], series: list[dict[str, Any]]) -> str:
    if chart.get("type") in TYPES:
        return str(chart["type"])
    kinds = [item.get("type") for item in series]
    return next((str(kind) for kind in kinds if kind in TYPES), "unknown")


def _trace(item: dict[str, Any]) -> dict[str, Any]:
    """Return one series as a trace."""
    kind = item.get("type")
    name = {"name": item["label"]} if item.get("label") else {}
    color = {"color": item["color"]} if item.get("color") else {}
    if kind in ("line", "scatter"):
        points = item.get("points", [])
        drawn = {"mode": "lines", "line": color} if kind == "line" else {"mode": "markers", "marker": color}
        return {"type": "scatter", "x": [p[0] for p in points], "y": [p[1] for p in points], **drawn, **name}
    if kind == "bar":
        bars = item.get("bars", [])
        labels, values = [bar.get("label") for bar in bars], [bar.get("value") for bar in bars]
        flat = item.get("orientation") == "horizontal"
        axes = {"x": values, "y": labels, "orientation": "h"} if flat else {"x": labels, "y": values}
        return {"type": "bar", **axes, "base": [bar.get("base") for bar in bars], "marker": color, **name}
    if kind == "pie":
        slices = item.get("slices", [])
        return {
            "type": "pie",
            "labels": [s.get("label") for s in slices],
            "values": [s.get("fraction") for s in slices],
        }
    if kind == "box":
        return _boxes(item.get("boxes", []))
    return {"type": str(kind), **{key: value for key, value in item.items() if key not in ("type", "axes")}}


def _boxes(boxes: list[dict[str, Any]]) -> dict[str, Any]:
    ours = {"lowerfence": "min", "q1": "q1", "median": "median", "q3": "q3", "upperfence": "max", "y": "outliers"}
    drawn = {theirs: [box.get(name) for box in boxes] for theirs, name in ours.items()}
    return {"type": "box", "x": [box.get("label") for box in boxes], **drawn}


def _layout(chart: dict[str, Any], axes: list[dict[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {"title": {"text": chart["title"]}} if chart.get("title") else {}
    for number, item in enumerate(axes, 1):
        for which in ("x", "y"):
            axis = item.get(which)
            if isinstance(axis, dict):
                found[f"{which}axis{number if number > 1 else ''}"] = _axis(axis)
    return found


def _axis(axis: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {"title": {"text": axis["label"]}} if axis.get("label") else {}
    kinds = {"log": "log", "datetime": "date", "categorical": "category"}
    if axis.get("scale") in kinds:
        found["type"] = kinds[str(axis["scale"])]
    if axis.get("limits") and axis.get("scale") != "log":
        found["range"] = axis["limits"]
    return found
