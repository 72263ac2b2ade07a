"""A matplotlib figure as data: type, title, axes and series, enough to draw it again with another library.

    {type, title, axes: [{title, x: {label, unit, scale, limits, ticks, tick_labels, offset}, y: {…}}],
     series: [{type, axes, label, color, …}]}

`axes` of a series is the index of its axes. By its type a series has `points` (line, scatter: [x, y] each), `bars`
({label, position, value, base, width}; `orientation` of the whole), `slices` (pie: {label, fraction}) or `boxes`
({label, min, q1, median, q3, max, outliers}). Points and bars that were drawn with error bars have `errors` beside
them: [low, high] for each along y (along x for horizontal bars, and where only those were drawn), or null. A bar's
`label` is its category or date, the bin of a histogram ("1.5 to 2"), else its position. Dates are ISO texts, widths on
an axis of dates are days, what is no number is null. `offset` is what matplotlib writes at an axis' end, such as 1e6.
More than MAX_POINTS points are thinned out evenly, and `points_total` tells how many there were.

Theory of operation. matplotlib keeps artists, and not what they stand for: a bar with an error is a rectangle, a
line for the error and two for its caps. So what belongs to a container (bars, stems, error bars) or to a box plot
is told with it, and its artists are then passed over. What seaborn draws is found again by where it lies: an unnamed
line straight across a bar's end is that bar's error. Coordinates that are no data, such as axhline's fractions of the
axes, become data by the artist's own transformation. An axes in three dimensions has no chart: what matplotlib keeps
of it is its projection.
"""

import math
import re

MAX_POINTS = 10000
MAX_TICKS = 100
MAX_SERIES = 200
#: Colours of one collection that are told as series of their own, where a legend names each.
MAX_COLORS = 32
_SUPERSCRIPTS = str.maketrans("0123456789+-\N{MINUS SIGN}n", "⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻⁻ⁿ")


def watch_boxes(axes_class):
    """Keep the numbers of box plots: what is drawn of them are only lines."""
    original = axes_class.bxp

    def bxp(self, bxpstats, positions=None, *args, **kwargs):
        drawn = original(self, bxpstats, positions, *args, **kwargs)
        try:
            artists = {id(artist) for group in drawn.values() for artist in group}
            stats = [dict(item) for item in bxpstats]
            places = list(range(1, len(stats) + 1) if positions is None else positions)
            upright = kwargs.get("orientation", "vertical") == "vertical" and kwargs.get("vert") in (None, True)
            kept = {"stats": stats, "positions": places, "upright": upright, "artists": artists}
            kept["drawn"] = drawn["boxes"]
            self.__dict__.setdefault("_sandboxd_boxes", []).append(kept)
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
    if ax.name == "3d":
        return []
    found, told = _of_containers(ax)
    slices = [patch for patch in ax.patches if type(patch).__name__ == "Wedge"]
    if slices:
        found.append({"type": "pie", "label": None, "slices": [_slice(wedge) for wedge in slices]})
    found += _lines(ax, [line for line in ax.lines if id(line) not in told], found)
    for collection in ax.collections:
        if type(collection).__name__ == "PathCollection":
            found += _scatter(collection)
    return [item for item in found if item.get("points") != []]  # a legend's own, which are nowhere


def _of_containers(ax):
    """Return the series of what matplotlib or pandas drew as one thing, and the ids of the artists that are told."""
    found, told = [], set()
    for kept in getattr(ax, "_sandboxd_boxes", ()):
        told |= kept["artists"]
        found.append(_boxes(ax, kept))
    for container in ax.containers:
        kind = type(container).__name__
        if kind == "BarContainer":
            found.append(_bars(ax, container))
            told |= _error_artists(container.errorbar) if container.errorbar is not None else set()
        elif kind == "StemContainer":
            told |= {id(container.markerline), id(container.baseline)}
            found.append({**_line(ax, container.markerline), "type": "scatter", "label": _label(container)})
    bars_errors = {id(item.errorbar) for item in ax.containers if type(item).__name__ == "BarContainer"}
    for container in ax.containers:
        if type(container).__name__ == "ErrorbarContainer" and id(container) not in bars_errors:
            told |= _error_artists(container)
            found += _errorbar(ax, container)
    return found, told


# --- one kind each ---


def _line(ax, line):
    marks_only = line.get_linestyle() in ("None", "none", " ", "") and line.get_marker() not in (
        "None",
        "none",
        "",
        None,
    )
    return {
        "type": "scatter" if marks_only else "line",
        "label": _label(line) or _legend_name(ax, line.get_color()),
        "color": _color(line.get_color()),
        **_points(*_line_data(ax, line)),
    }


def _line_data(ax, line):
    """Return a line's x and y as data: some are in fractions of the axes (axhline), or sloped across it (axline)."""
    xs, ys = list(line.get_xdata(orig=True)), list(line.get_ydata(orig=True))
    transform = line.get_transform()
    sloped = type(line).__name__ == "AxLine"
    x_is_data, y_is_data = (False, False) if sloped else transform.contains_branch_seperately(ax.transData)
    if x_is_data and y_is_data:
        return _times(ax.xaxis, xs), _times(ax.yaxis, ys)
    there = (transform - ax.transData).transform(line.get_xydata())
    if not x_is_data:
        xs = _back(ax.xaxis, there[:, 0])
    if not y_is_data:
        ys = _back(ax.yaxis, there[:, 1])
    return xs, ys


def _scatter(collection):
    """Return a collection's points: one series, or one for each colour where the legend names them all."""
    offsets = collection.get_offsets()
    if not len(offsets):
        return []
    ax = collection.axes
    xs, ys = _back(ax.xaxis, offsets[:, 0]), _back(ax.yaxis, offsets[:, 1])
    colors = [_color(color) for color in collection.get_facecolor()]
    names = _legend(ax)
    kinds = list(dict.fromkeys(colors)) if len(colors) == len(offsets) else []
    label = _label(collection)
    if label is None and 1 < len(kinds) <= MAX_COLORS and all(kind in names for kind in kinds):
        series = []
        for kind in kinds:
            chosen = [at for at, color in enumerate(colors) if color == kind]
            points = _points([xs[at] for at in chosen], [ys[at] for at in chosen])
            series.append({"type": "scatter", "label": names[kind], "color": kind, **points})
        return series
    color = colors[0] if colors else None
    if label is None and len(set(colors)) == 1:
        label = names.get(color)
    return [{"type": "scatter", "label": label, "color": color, **_points(xs, ys)}]


def _bars(ax, container):
    horizontal = container.orientation == "horizontal"
    along, across = (ax.yaxis, ax.xaxis) if horizontal else (ax.xaxis, ax.yaxis)
    name = _bin_name if _is_histogram(container, horizontal, along) else _namer(along)
    bars = []
    for patch in container.patches[:MAX_POINTS]:
        x, y, width, height = patch.get_x(), patch.get_y(), patch.get_width(), patch.get_height()
        at, size, base, value = (y, height, x, width) if horizontal else (x, width, y, height)
        center = at + size / 2
        bars.append(
            {
                "label": name(center, size),
                "position": _plain(_dated(along, [center])[0]),
                "value": _plain(value),
                "base": _plain(_dated(across, [base])[0]),
                "width": _plain(size),
            }
        )
    color = _color(container.patches[0].get_facecolor()) if container.patches else None
    label = _label(container) or _legend_name(ax, color)
    orientation = "horizontal" if horizontal else "vertical"
    found = {"type": "bar", "label": label, "color": color, "orientation": orientation, "bars": bars}
    if container.errorbar is not None:
        spans = _spans(container.errorbar, 0 if horizontal else 1)
        found["errors"] = [spans[at] if at < len(spans) else None for at in range(len(bars))]
    return found


def _is_histogram(container, horizontal, axis):
    """Tell whether bars are bins: two or more, each beginning where the last one ends, on an axis of numbers."""
    if len(container.patches) < 2 or _scale(axis) in ("categorical", "datetime") or _fixed_names(axis):
        return False
    edges = [
        (patch.get_y(), patch.get_y() + patch.get_height())
        if horizontal
        else (patch.get_x(), patch.get_x() + patch.get_width())
        for patch in container.patches
    ]
    centers = [(low + high) / 2 for low, high in edges]
    if all(math.isclose(high - low, 1) for low, high in edges) and all(math.isclose(at, round(at)) for at in centers):
        return False  # one for each whole number
    return all(math.isclose(edges[at][1], edges[at + 1][0], abs_tol=1e-12) for at in range(len(edges) - 1))


def _bin_name(center, size):
    return "%s to %s" % (_short(center - size / 2), _short(center + size / 2))


def _errorbar(ax, container):
    line, _, columns = container.lines
    if line is None:
        return []
    found = {**_line(ax, line), "label": _label(container)}
    number = 1 if container.has_yerr else 0
    if columns and "points_total" not in found:
        spans = _spans(container, number)
        found["errors"] = [spans[at] if at < len(spans) else None for at in range(len(found["points"]))]
    return [found]


def _error_artists(container):
    line, caps, columns = container.lines
    return {id(artist) for artist in (line, *caps, *columns) if artist is not None}


def _spans(container, number):
    """Return [low, high] of each error bar along x (0) or y (1)."""
    columns = container.lines[2]
    if not columns:
        return []
    column = columns[-1] if number == 1 else columns[0]
    spans = []
    for segment in column.get_segments()[:MAX_POINTS]:
        values = [float(point[number]) for point in segment]
        spans.append([_plain(min(values)), _plain(max(values))] if values else None)
    return spans


def _lines(ax, lines, found):
    """Return the series of lines; unnamed ones straight across a bar's end or a point are that one's errors.

    seaborn draws the errors of bars and of estimates as lines of their own, with or without caps, and what is inside
    a violin.
    """
    series, straight = [], []
    for line in lines:
        item = _line(ax, line)
        if item["type"] == "line" and not _label(line) and _is_data(ax, line) and _is_straight(item["points"]):
            straight.append((len(series), item))
        series.append(item)
    owners = [(item, None) for item in found if item["type"] == "bar"]
    strange = {id(item) for _, item in straight}
    owners += [(item, item["color"]) for item in series if id(item) not in strange]
    taken = set()
    for at, item in straight:
        if any(color in (None, item["color"]) and _take_error(owner, item) for owner, color in owners):
            taken.add(at)
    if _has_violins(ax):
        taken |= {at for at, item in enumerate(series) if item["label"] is None and len(item["points"]) <= 2}
    return [item for at, item in enumerate(series) if at not in taken]


def _is_data(ax, line):
    return type(line).__name__ != "AxLine" and all(line.get_transform().contains_branch_seperately(ax.transData))


def _has_violins(ax):
    shaped = any("PolyCollection" in type(collection).__name__ for collection in ax.collections)
    return shaped and "categorical" in (_scale(ax.xaxis), _scale(ax.yaxis))


def _is_straight(points):
    """Tell whether points say nothing but from where to where: all of one x, or of one y, caps aside."""
    points = [point for point in points if None not in point]
    return 2 <= len(points) <= 8 and any(_middle(points, number) is not None for number in (0, 1))


def _middle(points, number):
    """Return the x (0) or y (1) that a straight line has, its caps lying evenly on both sides; else None."""
    try:
        values = [float(point[number]) for point in points]
        others = [float(point[1 - number]) for point in points]
    except (TypeError, ValueError):
        return None
    low, high = min(values), max(values)
    middle = (low + high) / 2
    on_it = [other for value, other in zip(values, others) if math.isclose(value, middle, abs_tol=1e-9)]
    is_long = len(on_it) >= 2 and max(on_it) > min(on_it)
    return middle if is_long and math.isclose(max(on_it), max(others)) else None


def _take_error(series, line):
    """Give `series` a line as the error of one of its bars or points; False when it lies at none of them."""
    points = [point for point in line["points"] if None not in point]
    if series["type"] == "bar":
        number = 1 if series["orientation"] == "horizontal" else 0
        places = [(bar["position"], _sum(bar["base"], bar["value"])) for bar in series["bars"]]
    else:
        number = 0 if _middle(points, 0) is not None else 1
        places = [(point[number], point[1 - number]) for point in series["points"]]
    middle = _middle(points, number)
    if middle is None:
        return False
    values = [float(point[1 - number]) for point in points]
    for at, (place, value) in enumerate(places):
        if _is_number(place) and _is_number(value) and math.isclose(place, middle, abs_tol=1e-6):
            errors = series.setdefault("errors", [None] * len(places))
            if errors[at] is None and min(values) <= value <= max(values):
                errors[at] = [min(values), max(values)]
                return True
    return False


def _is_number(value):
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _sum(base, value):
    return base + value if _is_number(base) and _is_number(value) else None


def _slice(wedge):
    return {
        "label": _label(wedge),
        "fraction": _plain((wedge.theta2 - wedge.theta1) / 360),
        "color": _color(wedge.get_facecolor()),
    }


def _boxes(ax, kept):
    name = _namer(ax.xaxis if kept["upright"] else ax.yaxis)
    colors = {_color(box.get_facecolor()) for box in kept["drawn"] if hasattr(box, "get_facecolor")}
    color = colors.pop() if len(colors) == 1 else None
    boxes = []
    for stats, position in zip(kept["stats"], kept["positions"]):
        label = stats.get("label")
        boxes.append(_box(stats, name(position) if label is None or label == "" else str(label)))
    return {"type": "box", "label": _legend_name(ax, color), "color": color, "boxes": boxes}


def _box(stats, label):
    return {
        "label": label,
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
    names = _tick_names(axis, ticks)
    offset = _as_text(axis.get_major_formatter().get_offset()) if names else ""
    return {
        "label": label or None,
        "unit": (unit.group(1) or unit.group(2)) if unit else None,
        "scale": _scale(axis),
        "limits": [_plain(value) for value in _back(axis, [low, high])],
        "ticks": [_plain(value) for value in _back(axis, ticks)],
        "tick_labels": names,
        "offset": offset or None,
    }


def _tick_names(axis, ticks):
    try:
        return [_as_text(name) for name in axis.get_major_formatter().format_ticks(ticks)]
    except Exception:
        return []


def _as_text(label):
    """Return a label as one reads it: of mathtext, as logarithmic ticks have it, only what is shown."""
    text = str(label)
    if "$" in text:
        text = re.sub(r"\\math\w+\{((?:[^{}]|\{[^{}]*\})*)\}", r"\1", text.replace("$", ""))
        text = re.sub(r"\^\{([^{}]*)\}|\^(\w)", lambda found: _raised(found.group(1) or found.group(2) or ""), text)
        text = text.replace("\\times", "\N{MULTIPLICATION SIGN}").replace("\\cdot", "·").replace("\\pi", "π")
        text = re.sub(r"\\[ ,;:!]", " ", text).strip()
    return text.replace("\N{MINUS SIGN}", "-")


def _raised(text):
    return text.translate(_SUPERSCRIPTS) if re.fullmatch("[0-9+\N{MINUS SIGN}n-]*", text) else "^(%s)" % text


def _converter(axis):
    return type(axis.get_converter() if hasattr(axis, "get_converter") else axis.converter).__name__


def _scale(axis):
    converter = _converter(axis)
    if "Category" in converter:
        return "categorical"
    if "Date" in converter or "Period" in converter:  # pandas has its own of both
        return "datetime"
    return axis.get_scale()


def _back(axis, values):
    """Return the numbers of an axis of dates as dates again, and of one of categories as their names."""
    if _scale(axis) == "categorical":
        names = {at: name for name, at in getattr(axis.units, "_mapping", {}).items()}
        return [names.get(value, value) for value in values]
    return _dated(axis, values)


def _dated(axis, values):
    """Return the numbers of an axis of dates as dates again."""
    if _scale(axis) != "datetime":
        return values
    if "Period" in _converter(axis):
        return _times(axis, values)
    from matplotlib.dates import num2date

    return [None if math.isnan(value) else num2date(value).replace(tzinfo=None) for value in values]


def _times(axis, values):
    """Return values of an axis of pandas' periods as the times at which they begin; others as they are."""
    if "Period" not in _converter(axis):
        return values
    from pandas import Period

    found = []
    for value in values:
        if isinstance(value, Period):
            found.append(value.start_time)
        elif hasattr(value, "isoformat"):
            found.append(value)
        else:
            found.append(Period(ordinal=round(float(value)), freq=axis.freq).start_time)
    return found


def _fixed_names(axis):
    """Return {location: label} of an axis whose ticks somebody named: categories, and set_xticks with labels."""
    formatter = axis.get_major_formatter()
    if type(formatter).__name__ not in ("FixedFormatter", "StrCategoryFormatter", "FuncFormatter"):
        return {}
    locations = [float(at) for at in axis.get_majorticklocs()]
    return dict(zip(locations, _tick_names(axis, locations)))


def _namer(axis):
    """Return a function that names a position: by the nearest named tick, as a date, or as its number.

    Bars of a group stand beside their tick, so near is whatever is closer to it than to the next one.
    """
    names = {at: name for at, name in _fixed_names(axis).items() if name}
    places = sorted(names)
    reach = min((places[at + 1] - places[at] for at in range(len(places) - 1)), default=1.0) / 2

    def name(position, size=0.0):
        position = float(position)
        nearest = min(places, key=lambda at: abs(at - position), default=None)
        if nearest is not None and abs(nearest - position) < reach:
            return names[nearest]
        place = _back(axis, [position])[0]
        return _short(place) if _is_number(place) or hasattr(place, "item") else str(_plain(place))

    return name


def _legend(ax):
    """Return {colour: name} of an axes' legend, where a colour has one name and nothing that is drawn has it itself."""
    legend = ax.get_legend()
    names, own = {}, _own_names(ax)
    for handle, text in zip(getattr(legend, "legend_handles", ()), legend.get_texts() if legend else ()):
        color = _handle_color(handle)
        names[color] = None if color in names else text.get_text()
    return {color: name for color, name in names.items() if color and name and name not in own}


def _own_names(ax):
    drawn = [line for line in ax.lines if len(line.get_xdata())]
    drawn += [item for item in ax.collections if type(item).__name__ == "PathCollection" and len(item.get_offsets())]
    drawn += [item for item in ax.containers if type(item).__name__ != "BoxPlotContainer"]
    return {str(item.get_label()) for item in drawn}


def _handle_color(handle):
    for getter in ("get_markerfacecolor", "get_facecolor", "get_color"):
        if hasattr(handle, getter):
            value = getattr(handle, getter)()
            if getter == "get_markerfacecolor" and handle.get_marker() in ("None", "none", "", None):
                continue
            return _color(value[0] if getattr(value, "ndim", 1) == 2 and len(value) else value)
    return None


def _legend_name(ax, color):
    return _legend(ax).get(_color(color)) if color is not None else None


# --- values ---


def _short(value):
    """Return a number as one would write it: six digits tell a bin or a position."""
    return "%g" % value


def _points(xs, ys):
    xs, ys = list(xs), list(ys)
    total = min(len(xs), len(ys))
    step = max(1, math.ceil(total / MAX_POINTS))
    chosen = range(0, total, step)
    found = {"points": [[_plain(xs[index]), _plain(ys[index])] for index in chosen]}
    return found if step == 1 else {**found, "points_total": total}


def _plain(value):
    """Return a value that JSON has: numbers as they are, times as ISO texts, NaN and the like as None."""
    if type(value).__name__ in ("MaskedConstant", "NaTType"):
        return None
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
