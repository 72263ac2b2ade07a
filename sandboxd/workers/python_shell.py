"""What the Python worker adds to IPython's shell: where results go, which formats they have, figures, completion."""

import base64
import builtins
import collections
import contextlib
import itertools
import json
import os
import re
import sys

text_of = load("errors")["text_of"]  # noqa: F821 - the worker's own, given to each of its files

#: The media types that have a name of their own.
NAMES = {
    "text/plain": "text",
    "text/html": "html",
    "text/markdown": "markdown",
    "image/png": "png",
    "image/jpeg": "jpeg",
    "image/svg+xml": "svg",
    "application/pdf": "pdf",
    "text/latex": "latex",
    "application/json": "json",
    "application/javascript": "javascript",
    "application/vnd.sandboxd.chart+json": "chart",
    "application/vnd.sandboxd.data+json": "data",
}
BINARY = {"png", "jpeg", "pdf"}
JSON = {"json", "chart", "data"}
MAGIC = {"png": b"\x89PNG", "jpeg": b"\xff\xd8", "pdf": b"%PDF"}
MAX_RESULT_BYTES = 10 * 1024 * 1024
MAX_JSON_CHARS = 4 * 1024 * 1024 - 1
MAX_TEXT_CHARS = 1024 * 1024
#: How deep a dict or list may be nested to be told as JSON: the daemon and its clients have stacks too.
MAX_DEPTH = 200
#: What a float's digits take at most.
FLOAT_CHARS = 25
#: The kernel's MAX_ARG_STRLEN: what a shell's line may take as an argument.
MAX_ARGUMENT_BYTES = 131_072
#: Rows of a table that go along as data.
MAX_ROWS = 1000
CHART, DATA = "application/vnd.sandboxd.chart+json", "application/vnd.sandboxd.data+json"
#: What the daemon takes as the name of a format that has none of its own.
MEDIA_TYPE = re.compile(r"[a-z0-9][a-z0-9!#$&^_.+-]{0,99}/[a-z0-9!#$&^_.+-]{1,100}\Z")
#: Not a format, but what is to be said of the others.
NOTE = "text/vnd.sandboxd.note"


def to_formats(bundle):
    """Return the formats of a mimebundle, and a note on what was left out."""
    formats, notes = {}, [bundle[NOTE]] if NOTE in bundle else []
    for media_type, value in bundle.items():
        if value is None or media_type == NOTE:
            continue
        name = NAMES.get(media_type) or str(media_type).lower()
        try:
            if name not in NAMES.values() and not MEDIA_TYPE.match(name):
                raise ValueError("left out, it is not a media type")
            formats[name] = _value(name, value)
        except Exception as error:
            notes.append("%s: %s" % (name[:100], text_of(error)[:200]))
    _add_charts(formats)
    text = formats.get("text")
    if text is not None and len(text) > MAX_TEXT_CHARS:
        formats["text"] = text[:MAX_TEXT_CHARS]
        notes.append("text: the first %d of %d characters" % (MAX_TEXT_CHARS, len(text)))
    for name in sorted(formats, key=lambda name: len(formats[name]), reverse=True):
        size = len(formats[name])
        over = sum(map(len, formats.values())) > MAX_RESULT_BYTES or (name in JSON and size > MAX_JSON_CHARS)
        if name != "text" and over:
            del formats[name]
            notes.append("%s: left out, its %d bytes are over the bound" % (name, size))
    return formats, "; ".join(notes)[:2000] or None


def _value(name, value):
    if name in BINARY:
        if isinstance(value, str):
            return base64.b64decode(value)
        value = bytes(value)
        return value if value.startswith(MAGIC[name]) else base64.b64decode(value)
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace") if "/" not in name else value
    if name in JSON or not isinstance(value, str):
        if isinstance(value, str) and name in ("chart", "data"):
            return value  # ours, made as text
        return json.dumps(value, default=str, allow_nan=False)
    return value


def _add_charts(formats):
    """Give plotly's and Vega's own specifications the form of a chart too."""
    for name in list(formats):
        kind = "plotly" if "plotly" in name else "vega" if "vega" in name else None
        if kind and "chart" not in formats and name.endswith("json") and len(formats[name]) < MAX_JSON_CHARS - 100:
            formats["chart"] = '{"type":"%s","spec":%s}' % (kind, formats[name])


# --- a dict or list as JSON ---


def to_json(value):
    """Return the JSON text of a dict or list; None for any other value, and for one that JSON does not take."""
    if not issubclass(type(value), (dict, list)):
        return None
    try:
        if not _is_small_and_plain(value):
            return None
        text = json.dumps(value, allow_nan=False)
    except Exception:
        return None
    return text if len(text) <= MAX_JSON_CHARS else None


def _is_small_and_plain(value):
    """Tell, before it costs anything, whether a value may be JSON that is within the bound.

    A level at a time, and none that is too large: what holds itself, or one thing a million times, ends this soon.
    """
    room, level = MAX_JSON_CHARS, [value]
    for _ in range(MAX_DEPTH):
        dicts = [one for one in level if issubclass(type(one), dict)]
        lists = [one for one in level if not issubclass(type(one), dict)]
        if not all(_is_plain(kind) for kind in set(map(type, level))):
            return False
        room -= 2 * (2 * sum(map(len, dicts)) + sum(map(len, lists)))  # each thing in it, and a comma or colon
        if room < 0:
            return False
        things = list(itertools.chain.from_iterable(itertools.chain(lists, dicts, map(dict.values, dicts))))
        kinds = set(map(type, things))
        room -= sum(map(str.__len__, _of(str, kinds, things)))
        room -= sum(map(int.bit_length, _of(int, kinds, things))) // 4  # a digit has more than three bits
        floats = _of(float, kinds, things)
        if len(floats) * FLOAT_CHARS > room:  # the only values whose text is slow to make
            for digits in map(float.__repr__, floats):
                room -= len(digits)
                if room < 0:
                    return False
        if room < 0 or not all(issubclass(kind, (str, int, float, type(None), dict, list, tuple)) for kind in kinds):
            return False
        level = _of((dict, list, tuple), kinds, things)
        if not level:
            return True
    return False


def _of(base, kinds, things):
    wanted = {kind for kind in kinds if issubclass(kind, base)}
    return [thing for thing in things if type(thing) in wanted] if wanted else []


def _is_plain(kind):
    """Tell whether a kind of dict, list or tuple hands out what it holds as its base does, without code of a user's."""
    bases = (collections.OrderedDict, collections.defaultdict, dict, list, tuple)
    base = next(base for base in bases if issubclass(kind, base))
    names = ("__iter__", "__len__", "__getattribute__", *(("items",) if issubclass(kind, dict) else ()))
    return all(getattr(kind, name) is getattr(base, name) for name in names)


def make_shell(base, session):
    """Return the shell's class."""
    from IPython.core.displayhook import DisplayHook
    from IPython.core.displaypub import DisplayPublisher
    from traitlets import default

    class Shell(load("errors")["Telling"], _make_commands(base, session)):  # noqa: F821 - the worker's own
        """A shell without a terminal; its directories below the user's home are made when somebody asks for them."""

        displayhook_class = _make_hook(DisplayHook, session)
        display_pub_class = _make_publisher(DisplayPublisher, session)

        def init_ipython_dir(self, ipython_dir):
            pass

        def init_profile_dir(self, profile_dir):
            pass

        @default("ipython_dir")
        def _ipython_dir_default(self):
            from IPython.paths import get_ipython_dir

            return get_ipython_dir()

        @default("profile_dir")
        def _profile_dir_default(self):
            from IPython.core.profiledir import ProfileDir

            return ProfileDir.create_profile_dir_by_name(self.ipython_dir, "default")

        def _tee(self, channel):
            # IPython's own keeps all that is printed, for a notebook, and runs nothing once there is no such stream.
            return contextlib.nullcontext()

        def ask_exit(self):
            raise SystemExit("a code context is not ended by exit(): delete it, or call os._exit")

        def enable_gui(self, gui=None):
            pass

    return Shell


def _make_commands(base, session):
    """Return a shell's class that runs commands of the system."""
    from IPython.utils.process import getoutput
    from IPython.utils.text import DollarFormatter, LSString, SList

    expander = _make_expander(DollarFormatter)

    class Commands(base):
        """`!command`, and what is made of it."""

        def system(self, cmd):
            # IPython's own runs it on a terminal, which mixes its two outputs, and swallows an interrupt.
            import subprocess

            session.channel.flush()
            shell = os.environ.get("SHELL") or None
            with fitting(self.var_expand(cmd, depth=1)) as command:
                self.user_ns["_exit_code"] = subprocess.call(command, shell=True, executable=shell)

        def getoutput(self, cmd, split=True, depth=0):
            if cmd.rstrip().endswith("&"):
                raise OSError("Background processes not supported.")
            with fitting(self.var_expand(cmd, depth=depth + 1)) as command:
                out = getoutput(command)
            return SList(out.splitlines()) if split else LSString(out)

        def var_expand(self, cmd, depth=0, formatter=None):
            return super().var_expand(cmd, depth + 1, formatter or expander)

    return Commands


def _make_expander(base):
    """Return what puts variables into a line; IPython's own takes time by the square of its length."""
    import re
    import string

    dollar = re.compile(r"\$(\$?[\w.]+)")

    class Expander(base):
        """`$name` (not within single quotes), `$$name` for `$name` itself, and `{expression}`, as IPython has them."""

        def parse(self, fmt_string):
            for text, field, spec, conversion in string.Formatter.parse(self, fmt_string):
                done, literal = 0, ""
                quotes, counted = text.count("'"), 0
                for found in dollar.finditer(text):
                    quotes -= text.count("'", counted, found.end())
                    counted = found.end()
                    if quotes % 2:
                        continue  # an odd number of quotes behind it: within some
                    if found[1].startswith("$"):
                        literal += text[done : found.start()] + found[1]
                    else:
                        yield literal + text[done : found.start()], found[1], "", None
                        literal = ""
                    done = found.end()
                yield literal + text[done:], field, spec, conversion

    return Expander()


@contextlib.contextmanager
def fitting(command):
    """Give a command as one that fits an argument: a longer one lies in a file meanwhile."""
    data = command.encode("utf-8", "surrogateescape")
    if len(data) < MAX_ARGUMENT_BYTES:
        yield command
        return
    import tempfile

    with tempfile.NamedTemporaryFile(prefix="sandboxd-") as file:
        file.write(data + b"\n")
        file.flush()
        yield ". " + file.name


def _make_hook(base, session):
    class Hook(base):
        """The value of the last expression."""

        _value = None

        def write_output_prompt(self):
            pass

        def compute_format_data(self, result):
            found = super().compute_format_data(result)
            self._value = result if session.wants_json else None
            return found

        def write_format_data(self, format_dict, md_dict=None):
            formats, note = to_formats(format_dict)
            value, self._value = self._value, None
            # Not in the bundle: IPython keeps each for as long as it lives.
            text = to_json(value) if "json" not in formats else None
            if text is not None and sum(map(len, formats.values())) + len(text) <= MAX_RESULT_BYTES:
                formats["json"] = text
            session.send_result(formats, main=True, note=note)

        def finish_displayhook(self):
            pass

    return Hook


def guard_formats(formatter, session):
    """Let what fails while a value is displayed be printed, and the rest of it shown."""
    format_all = formatter.format

    def guarded(value, *args, **kwargs):
        failures = session.failures
        before = failures.printed
        try:
            found, metadata = format_all(value, *args, **kwargs)
        except KeyboardInterrupt:
            raise
        except BaseException as error:
            failures.print(failures.describe(error))
            found, metadata = {}, {}
        if not found and failures.printed > before:
            found = {"text/plain": object.__repr__(value)}  # its own has failed
        # A bundle of the value's own making may be of a class that fails later.
        return dict.copy(found), metadata

    formatter.format = guarded


def _make_publisher(base, session):
    class Publisher(base):
        """What `display` shows."""

        def publish(self, data, metadata=None, source=None, *, transient=None, update=False, **kwargs):
            formats, note = to_formats(data)
            display_id = (transient or {}).get("display_id")
            session.send_result(
                formats, display_id=None if display_id is None else str(display_id)[:1000], update=update, note=note
            )

        def clear_output(self, wait=False):
            session.flush_main()
            session.channel.send({"op": "clear", "run": session.channel.run, "wait": bool(wait)})

    return Publisher


def set_up(shell, session):
    """Teach the shell the formats, refuse what needs a terminal, and watch for matplotlib."""
    builtins.input = _no_input
    shell.set_hook("show_in_pager", _page, 0)
    guard_formats(shell.display_formatter, session)
    for formatter in (shell.InteractiveTB, shell.SyntaxTB):  # the shell itself has no colours
        (getattr(formatter, "set_theme_name", None) or formatter.set_colors)("linux")
    sys.stdin = open(os.devnull)  # noqa: SIM115 - as long as the program
    bundles = shell.display_formatter.mimebundle_formatter
    for module in ("pandas", "pandas.core.frame"):
        bundles.for_type_by_name(module, "DataFrame", _table)
    bundles.for_type_by_name("polars.dataframe.frame", "DataFrame", _polars_table)
    bundles.for_type_by_name("matplotlib.figure", "Figure", lambda figure, **_: _figure(session, figure))
    for version in ("v5", "v6"):
        bundles.for_type_by_name("altair.vegalite.%s.api" % version, "TopLevelMixin", _altair)
    bundles.for_type_by_name("altair.jupyter.jupyter_chart", "JupyterChart", lambda widget, **_: _altair(widget.chart))
    # Pillow offers every picture as JPEG as well: twice the work, and not the picture.
    shell.display_formatter.formatters["image/jpeg"].for_type_by_name("PIL.Image", "Image", _jpeg_only)
    session.shown_figures = set()
    patches = {
        "matplotlib.pyplot": lambda module: patch_pyplot(module, session),
        **load("specs")["patches"](session),  # noqa: F821 - the worker's own
    }
    for name, patch in patches.items():
        if name in sys.modules:  # a template has imported it ahead
            patch(sys.modules[name])
    sys.meta_path.insert(0, ImportWatch(patches))


def _no_input(prompt="", *_):
    raise EOFError(
        "input() has nobody to ask: a code context has no terminal; put the value into the code, or run the program "
        "with exec and stdin"
    )


def _page(shell, data, start=0, screen_lines=0, pager_cmd=None):
    """Print what a terminal's pager would show."""
    text = data.get("text/plain", "") if isinstance(data, dict) else str(data)
    print(strip("\n".join(text.split("\n")[start:])))


# --- tables, specifications ---


def _table(frame, **_):
    rows = frame.head(MAX_ROWS)
    return _with_note({DATA: rows.to_json(orient="records", date_format="iso", default_handler=str)}, len(frame))


def _polars_table(frame, **_):
    return _with_note({DATA: frame.head(MAX_ROWS).write_json()}, len(frame))


def _with_note(bundle, rows):
    if rows > MAX_ROWS:
        bundle[NOTE] = "data: the first %d of %d rows" % (MAX_ROWS, rows)
    return bundle


def _altair(chart, **_):
    spec = chart.to_dict()
    version = "6" if "/v6" in spec.get("$schema", "") else "5"
    return {"application/vnd.vegalite.v%s+json" % version: spec}


def _jpeg_only(picture):
    return picture._repr_jpeg_() if picture.format == "JPEG" else None


# --- figures ---


class ImportWatch:
    """Waits for the imports of what we have something to say to, and says it at once."""

    def __init__(self, patches):
        self.patches = patches
        self.busy = False

    def find_spec(self, name, path=None, target=None):
        if name not in self.patches or self.busy:
            return None
        import importlib.util

        self.busy = True
        try:
            spec = importlib.util.find_spec(name)
        finally:
            self.busy = False
        if spec is None or spec.loader is None:
            return None
        execute = spec.loader.exec_module

        def exec_module(module):
            execute(module)
            self.patches[name](module)

        spec.loader.exec_module = exec_module
        return spec


def patch_pyplot(pyplot, session):
    """Make show() show every open figure here."""

    def show(*_, **__):
        flush_figures(session)
        # `%run` would draw the current figure again, and make one for that where there is none left.
        getattr(pyplot.draw_if_interactive, "__dict__", {})["called"] = False

    pyplot.show = show
    try:
        load("charts")["watch_boxes"](sys.modules["matplotlib.axes"].Axes)  # noqa: F821 - see _figure
    except (KeyError, AttributeError):
        pass


def flush_figures(session):
    """Show every open figure that was not shown, and close them all."""
    from matplotlib._pylab_helpers import Gcf

    managers = Gcf.get_all_fig_managers()
    for manager in managers:
        figure = manager.canvas.figure
        if id(figure) not in session.shown_figures and _has_content(figure):
            bundle, _ = session.shell.display_formatter.format(figure)
            formats, note = to_formats(bundle)
            session.send_result(formats, note=note)
    session.shown_figures.clear()
    if managers:
        sys.modules["matplotlib.pyplot"].close("all")


def _has_content(figure):
    return bool(figure.axes or figure.lines or figure.texts or figure.images or figure.patches or figure.artists)


def _figure(session, figure):
    """Return a figure as a picture and as a chart."""
    import io

    from matplotlib.backends.backend_agg import FigureCanvasAgg

    session.shown_figures.add(id(figure))
    if not _has_content(figure):
        return {}
    picture = io.BytesIO()
    canvas = figure.canvas
    try:
        if not hasattr(canvas, "print_png"):
            FigureCanvasAgg(figure)
        figure.savefig(picture, format="png", bbox_inches="tight")
    finally:
        if figure.canvas is not canvas:
            figure.set_canvas(canvas)
    found = {"image/png": picture.getvalue()}
    try:
        chart = load("charts")["chart_of"](figure)  # noqa: F821 - the worker's own, given to each of its files
    except Exception:
        chart = None
    if chart is not None:
        found[CHART] = json.dumps(chart, default=str, allow_nan=False)
    return found


# --- completion and inspection ---


def complete(shell, message):
    """Return what may follow at the cursor: names, and which part of the code they replace."""
    from IPython.core.completer import provisionalcompleter, rectify_completions

    code, cursor = message["code"], message["cursor"]
    with provisionalcompleter():
        found = list(rectify_completions(code, shell.Completer.completions(code, cursor)))[:500]
    if not found:
        return {"matches": [], "start": cursor, "end": cursor}
    start, names = found[0].start, [item.text for item in found]
    if code[start : start + 1] == "." and all(name.startswith(".") for name in names):
        start, names = start + 1, [name[1:] for name in names]
    return {"matches": names, "start": start, "end": found[0].end}


def inspect(shell, message):
    """Return what is known of the name at the cursor."""
    from IPython.utils.tokenutil import token_at_cursor

    name = token_at_cursor(message["code"], message["cursor"])
    try:
        bundle = shell.object_inspect_mime(name, detail_level=message["detail"]) if name else {}
    except KeyError:
        bundle = {}
    text = bundle.get("text/plain")
    if text is not None:
        text = strip(text)[: MAX_TEXT_CHARS // 4]
    return {"found": bool(bundle), "name": name, "text": text}


def strip(text):
    """Return `text` without terminal colours."""
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text)
