"""What failed in a run: which exception escaped from it, which were merely shown, and how to describe any of them.

The status of a run is that of what escaped from its code, as IPython's result says. What else passes through the
shell's `showtraceback` (a handled exception, a value whose `_repr_html_` fails) is printed to stderr and changes
nothing. Describing an exception runs code of its class, so each way to do it may fail, and the next one runs less.
"""

import builtins
import collections
import os
import re
import sys
import traceback
import types

#: What is told of an exception that cannot say it, as Python's own tracebacks do.
UNPRINTABLE = "<exception str() failed>"
NO_TERMINAL = "a debugger has nobody to ask: a code context has no terminal"
_COLOUR = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
#: Read from where they are: a class of the user's may have a `__name__`, a `__traceback__` of its own making.
_NAME = type.__dict__["__name__"]
_TRACE, _CAUSE, _CONTEXT = (BaseException.__dict__[name] for name in ("__traceback__", "__cause__", "__context__"))
_GROUP = getattr(builtins, "BaseExceptionGroup", ())  # from Python 3.11 on

#: An exception as it is told: the lines of its traceback have colours.
Description = collections.namedtuple("Description", "value ename evalue lines")


def name_of(value):
    """Return the name of an exception's class."""
    return str.__str__(_NAME.__get__(type(value)))


def text_of(value):
    """Return what an exception says, as an exact str; lets nothing but an interrupt through."""
    try:
        return str.__str__(str(value))
    except KeyboardInterrupt:
        raise
    except BaseException:
        return UNPRINTABLE


def describe_barely(value):
    """Return a description for which no code of the exception's class is run."""
    return Description(value, name_of(value), UNPRINTABLE, [name_of(value) + ": " + UNPRINTABLE])


def _attempt(way):
    """Return the lines that a way of formatting makes; None where it fails, or makes none."""
    try:
        lines = way()
        return "\n".join([lines] if isinstance(lines, str) else lines).rstrip("\n").split("\n")
    except KeyboardInterrupt:
        raise
    except BaseException:
        return None


def _has_group(value):
    """Tell whether an exception, or one that led to it, is a group; these may lead to each other in a circle."""
    seen, rest = set(), [value]
    while rest:
        one = rest.pop()
        if one is None or id(one) in seen:
            continue
        seen.add(id(one))
        if issubclass(type(one), _GROUP):
            return True
        rest += [_CAUSE.__get__(one), _CONTEXT.__get__(one)]
    return False


def clean(trace, inside):
    """Return a traceback without the worker's own frames, and without those below `inside` that it begins with."""
    entries = []
    while trace is not None:
        name = trace.tb_frame.f_code.co_filename
        if not name.startswith("<sandboxd") and (entries or trace.tb_next is None or not name.startswith(inside)):
            entries.append(trace)
        trace = trace.tb_next
    following = None
    for entry in reversed(entries):
        following = types.TracebackType(following, entry.tb_frame, entry.tb_lasti, entry.tb_lineno)
    return following


class Failures:
    """What failed in the present run; `base` is the shell's class without what is ours."""

    def __init__(self, shell, base, session):
        from IPython.core.error import UsageError

        self.shell = shell
        self._session = session
        self._usage_error = UsageError
        self._inside = os.path.dirname(os.path.dirname(sys.modules[base.__module__].__file__)) + os.sep
        #: The shell's methods that show what escapes from a cell; `_run_cell` shows what escapes from them.
        ends = ("run_code", "run_ast_nodes", "run_cell_async", "showindentationerror")
        self._ends = {getattr(base, name).__code__ for name in ends}
        self._outermost = base._run_cell.__code__
        #: How many cells are being run inside each other.
        self.depth = 0
        #: Whether a program runs that consists of cells: whoever runs it tells what fails in it.
        self.in_program = False
        #: How many were shown and did not end a run.
        self.printed = 0
        self._escaped = []
        self._programs = []

    def describe(self, value, trace=None, *, only=False, as_syntax=False, with_stack=False):
        """Return the description of an exception, whatever its class does when it is asked."""
        for known in self._escaped:
            if known.value is value:
                return known  # IPython asks again, for its history
        try:
            trace = clean(_TRACE.__get__(value) if trace is None else trace, self._inside)
            name, text = name_of(value), text_of(value)
            if not text and name == "BdbQuit":
                text = NO_TERMINAL
            last = name + ": " + text if text else name
            ways = (
                lambda: self._by_ipython(value, text, trace, only, as_syntax, with_stack),
                lambda: "".join(traceback.format_exception(type(value), value, trace)),
                lambda: "".join(traceback.format_tb(trace)) + last,
            )
            lines = next(filter(None, map(_attempt, ways)), [last])
            return Description(value, name, text, lines)
        except KeyboardInterrupt:
            return describe_barely(value)  # its own code had to be interrupted, and is not run again

    def _by_ipython(self, value, text, trace, only, as_syntax, with_stack):
        kind, shell = type(value), self.shell
        if kind is self._usage_error:
            return "UsageError: " + text
        if only:
            head = "An exception has occurred, use %tb to see the full traceback.\n"
            return [head, *shell.InteractiveTB.get_exception_only(kind, value)]
        if as_syntax or issubclass(kind, SyntaxError):
            stack = traceback.extract_tb(trace) if with_stack else []
            return shell.SyntaxTB.structured_traceback(kind, value, stack)
        if text is UNPRINTABLE or _has_group(value):
            return None  # IPython would tell what failed in `__str__`, and knows nothing of groups
        if hasattr(value, "_render_traceback_"):
            return value._render_traceback_()
        return shell.InteractiveTB.structured_traceback(kind, value, trace, tb_offset=0)

    def show(self, value, trace, caller, **how):
        """Take what the frame `caller` has the shell show: keep what escapes from the run, print the rest."""
        if self._session.cancelling:
            return
        escapes = caller.f_code in self._ends or self._is_escaping(value, caller)
        if escapes and self.depth <= 1:
            self._escaped.append(self.describe(value, trace, **how))
        elif escapes and self.in_program:
            return
        elif caller.f_code is not self._outermost or self.depth > 1:
            self.print(self.describe(value, trace, **how))

    def _is_escaping(self, value, frame):
        """Tell whether a handler of the user's (`set_custom_exc`) shows what it was given."""
        while frame is not None and frame.f_code not in self._ends:
            frame = frame.f_back
        result = frame.f_locals.get("result") if frame is not None else None
        return getattr(result, "error_in_exec", None) is value

    def program_failed(self, value):
        """Take what escaped from a program that a magic has run: its failure is the run's, unless another follows."""
        self._programs.append(self.describe(value))

    def print(self, description):
        """Print what was shown and did not end the run."""
        self.printed += 1
        try:
            print(_COLOUR.sub("", "\n".join(description.lines)), file=sys.stderr)
        except Exception:
            return  # of the user's own stream

    def failure_of_run(self, error):
        """Return the description of what ended the run, or None, and print the rest; `error` is that of its result."""
        found = None
        if error is not None:
            found = next((one for one in self._escaped if one.value is error), None)
            # Where IPython's own telling of what escaped has failed, its result has that failure.
            found = found or (self._escaped[0] if self._escaped else self.describe(error))
        elif self._programs:
            found = self._programs[0]
        rest = [one for one in (*self._escaped, *self._programs) if one is not found]
        self._escaped, self._programs = [], []
        for one in rest:
            self.print(one)
        return found


class Telling:
    """What the shell's class is made of beside IPython's: it hands over what it is to show; `failures` is set later."""

    def run_cell(self, *args, **kwargs):
        self.failures.depth += 1
        try:
            return super().run_cell(*args, **kwargs)
        finally:
            self.failures.depth -= 1

    def showtraceback(
        self, exc_tuple=None, filename=None, tb_offset=None, exception_only=False, running_compiled_code=False
    ):
        try:
            _, value, trace = self._get_exc_info(exc_tuple)
        except ValueError:
            print("No traceback available to show.", file=sys.stderr)
            return
        how = {"only": exception_only, "with_stack": running_compiled_code}
        self.failures.show(value, trace, sys._getframe(1), **how)
        if self.call_pdb:
            self.debugger(force=True)

    def showsyntaxerror(self, filename=None, running_compiled_code=False):
        _, value, trace = self._get_exc_info()
        how = {"as_syntax": True, "with_stack": running_compiled_code}
        self.failures.show(value, trace, sys._getframe(1), **how)

    def _showtraceback(self, etype, evalue, stb):
        text = stb if isinstance(stb, str) else "\n".join(map(str, stb))
        print(_COLOUR.sub("", text), file=sys.stderr)  # a library's own way to show one

    def _format_exception_for_storage(self, exception, *_, **__):
        found = self.failures.describe(exception)
        return {"ename": found.ename, "evalue": found.evalue, "traceback": found.lines}

    def safe_execfile(self, fname, *where, exit_ignore=False, raise_exceptions=False, shell_futures=False):
        how = {"exit_ignore": exit_ignore, "raise_exceptions": True, "shell_futures": shell_futures}
        try:
            super().safe_execfile(fname, *where, **how)
        except KeyboardInterrupt:
            raise
        except BaseException as error:
            if raise_exceptions:
                raise
            if not (exit_ignore and isinstance(error, SystemExit)):
                self.failures.program_failed(error)

    def safe_execfile_ipy(self, fname, shell_futures=False, raise_exceptions=False):
        self.failures.in_program = True
        try:
            super().safe_execfile_ipy(fname, shell_futures=shell_futures, raise_exceptions=True)
        except KeyboardInterrupt:
            raise
        except BaseException as error:
            if raise_exceptions:
                raise
            self.failures.program_failed(error)
        finally:
            self.failures.in_program = False

    def safe_run_module(self, mod_name, where):
        import runpy

        try:
            where.update(runpy.run_module(str(mod_name), run_name="__main__", alter_sys=True))
        except KeyboardInterrupt:
            raise
        except BaseException as error:
            if not (isinstance(error, SystemExit) and not error.code):
                self.failures.program_failed(error)
