"""A matplotlib figure as data: type, title, axes and series, enough to draw it again with another library.

    {type, title, axes: [{title, x: {label, unit, scale, limits, ticks, tick_labels}, y: {…}}],
     series: [{type, axes, label, color, …}]}

`axes` of a series is the index of its axes. By its type a series has `points` (line, scatter: [x, y] each), `bars`
({label, position, value, base, width}; `orientation` of the whole), `slices` (pie: {label, fraction}) or `boxes`
({label, min, q1, median, q3, max, outliers}). Dates are ISO texts, what is no number is null. More than MAX_POINTS
points are thinned out evenly, and `points_total` tells how many there were.
"""

import math
import re

MAX_POINTS = 10000
MAX_TICKS = 100
MAX_SERIES = 200


def watch_boxes(axes_class):
    """Keep the numbers of box plots: what is drawn of them are only lines."""
    original = axes_class.bxp

    def bxp(self, bxpstats, *args, **kwargs):
        drawn = original(self, bxpstats, *args, **kwargs)
        try:
            artists = {id(artist) for group in drawn.values() for artist in group}
            self.__dict__.setdefault("_sandboxd_boxes", []).append(([dict(item) for item in bxpstats], artists))
        except Exception:
            pass
        return drawn

    bxp.__wrapped__ = original
    bxp.__doc__ = original.__doc__
    axes_class.bxp = bxp


def chart_of(figure):
    """Return the chart of a figure, or None where nothing in it is of a known kind."""
    axes, series = [], []
    for ax in figure.axes[:MAX_SERIES]:
        found = _series(ax)
        if not found and not ax.get_title():
            continue  # a colour bar, or an empty one
        for item in found:
            item["axes"] = len(axes)
        pie = bool(found) and all(item["type"] == "pie" for item in found)
        axes.append({"title": ax.get_title() or None, **({} if pie else {"x": _axis(ax, "x"), "y": _axis(ax, "y")})})
        series += found
    if not series:
        return None
    kinds = {item["type"] for item in series}
    title = figure.get_suptitle() if hasattr(figure, "get_suptitle") else ""
    if not title and len(axes) == 1:
        title = axes[0]["title"]
    kind = kinds.pop() if len(kinds) == 1 and len({item["axes"] for item in series}) == 1 else "composed"
    return {"type": kind, "title": title or None, "axes": axes, "series": series[:MAX_SERIES]}


def _series(ax):
    found = []
    boxed = set()
    for stats, artists in getattr(ax, "_sandboxd_boxes", ()):
        boxed |= artists
        found.append({"type": "box", "label": None, "boxes": [_box(item) for item in stats]})
    slices = [patch for patch in ax.patches if type(patch).__name__ == "Wedge"]
    if slices:
        found.append({"type": "pie", "label": None, "slices": [_slice(wedge) for wedge in slices]})
    for container in ax.containers:
        if type(container).__name__ == "BarContainer":
            found.append(_bars(ax, container))
    for line in ax.lines:
        if id(line) not in boxed:
            found.append(_line(line))
    for collection in ax.collections:
        if type(collection).__name__ == "PathCollection":
            found.append(_scatter(collection))
    return [item for item in found if item]


# --- one kind each ---


def _line(line):
    xs, ys = line.get_xdata(orig=True), line.get_ydata(orig=True)
    marks_only = line.get_linestyle() in ("None", "none", " ", "") and line.get_marker() not in (
        "None",
        "none",
        "",
        None,
    )
    return {
        "type": "scatter" if marks_only else "line",
        "label": _label(line),
        "color": _color(line.get_color()),
        **_points(xs, ys),
    }


def _scatter(collection):
    offsets = collection.get_offsets()
    if not len(offsets):
        return None
    colors = collection.get_facecolor()
    color = _color(colors[0]) if len(colors) else None
    ax = collection.axes
    xs, ys = _back(ax.xaxis, offsets[:, 0]), _back(ax.yaxis, offsets[:, 1])
    return {"type": "scatter", "label": _label(collection), "color": color, **_points(xs, ys)}


def _bars(ax, container):
    horizontal = container.orientation == "horizontal"
    names = _names(ax.yaxis if horizontal else ax.xaxis)
    bars = []
    for patch in container.patches[:MAX_POINTS]:
        x, y, width, height = patch.get_x(), patch.get_y(), patch.get_width(), patch.get_height()
        at, size, base, value = (y, height, x, width) if horizontal else (x, width, y, height)
        center = at + size / 2
        bars.append(
            {
                "label": _name_at(names, center),
                "position": _plain(center),
                "value": _plain(value),
                "base": _plain(base),
                "width": _plain(size),
            }
        )
    color = _color(container.patches[0].get_facecolor()) if container.patches else None
    orientation = "horizontal" if horizontal else "vertical"
    return {"type": "bar", "label": _label(container), "color": color, "orientation": orientation, "bars": bars}


def _slice(wedge):
    return {
        "label": _label(wedge),
        "fraction": _plain((wedge.theta2 - wedge.theta1) / 360),
        "color": _color(wedge.get_facecolor()),
    }


def _box(stats):
    return {
        "label": None if stats.get("label") is None else str(stats["label"]),
        "min": _plain(stats["whislo"]),
        "q1": _plain(stats["q1"]),
        "median": _plain(stats["med"]),
        "q3": _plain(stats["q3"]),
        "max": _plain(stats["whishi"]),
        "outliers": [_plain(value) for value in list(stats.get("fliers", ()))[:MAX_POINTS]],
    }


# --- axes ---


def _axis(ax, which):
    axis = ax.xaxis if which == "x" else ax.yaxis
    label = axis.get_label().get_text()
    unit = re.search(r"\(([^()]+)\)\s*$|\[([^\[\]]+)\]\s*$", label)
    low, high = axis.get_view_interval()
    ticks = [tick for tick in axis.get_majorticklocs() if min(low, high) <= tick <= max(low, high)][:MAX_TICKS]
    try:
        names = [str(name) for name in axis.get_major_formatter().format_ticks(ticks)]
    except Exception:
        names = []
    return {
        "label": label or None,
        "unit": (unit.group(1) or unit.group(2)) if unit else None,
        "scale": _scale(axis),
        "limits": [_plain(value) for value in _back(axis, [low, high])],
        "ticks": [_plain(value) for value in _back(axis, ticks)],
        "tick_labels": names,
    }


def _scale(axis):
    converter = type(axis.get_converter() if hasattr(axis, "get_converter") else axis.converter).__name__
    if "Category" in converter:
        return "categorical"
    if "Date" in converter:
        return "datetime"
    return axis.get_scale()


def _back(axis, values):
    """Return numbers of a date axis as dates again."""
    if _scale(axis) != "datetime":
        return values
    from matplotlib.dates import num2date

    return [num2date(value).replace(tzinfo=None) for value in values]


def _names(axis):
    locations = axis.get_majorticklocs()
    try:
        return dict(zip((round(float(at), 6) for at in locations), axis.get_major_formatter().format_ticks(locations)))
    except Exception:
        return {}


def _name_at(names, at):
    found = names.get(round(float(at), 6))
    return str(found) if found else str(_plain(at))


# --- values ---


def _points(xs, ys):
    xs, ys = list(xs), list(ys)
    total = min(len(xs), len(ys))
    step = max(1, math.ceil(total / MAX_POINTS))
    chosen = range(0, total, step)
    found = {"points": [[_plain(xs[index]), _plain(ys[index])] for index in chosen]}
    return found if step == 1 else {**found, "points_total": total}


def _plain(value):
    """Return a value that JSON has: numbers as they are, times as ISO texts, NaN and the like as None."""
    if hasattr(value, "isoformat"):
        return value.isoformat()
    if type(value).__name__ == "datetime64":
        time = value.astype("datetime64[us]").item()
        return None if time is None else time.isoformat()
    if hasattr(value, "item"):
        value = value.item()
    if value is None or isinstance(value, (bool, int, str)):
        return value
    try:
        number = float(value)
    except (TypeError, ValueError):
        return str(value)
    return number if math.isfinite(number) else None


def _label(artist):
    label = str(artist.get_label() or "")
    return None if not label or label.startswith("_") else label


def _color(value):
    from matplotlib.colors import to_hex

    try:
        return to_hex(value)
    except (ValueError, TypeError):
        return None
