"""The interpreter of a Python code context: IPython's InteractiveShell behind frames on two pipes.

Stands alone: the rootfs's own Python (3.9 or newer) runs it with IPython (8 or newer), and nothing of sandboxd is
imported. The daemon hands it in as descriptor 7, with `_SOURCES` (the files beside it, by name) before its first line.

    3 frames to us    4 frames from us    5 a byte for each frame that has been taken    6 which run to interrupt

What a program prints goes through descriptors 1 and 2, the shell's results through 4; so a frame goes out after all
that was printed before it was flushed, and the program goes on when the frame has been taken (see guest/worker.py).

Interrupts: SIGINT raises KeyboardInterrupt only while the user's code runs, never inside a frame.
"""

import os
import signal
import struct
import sys
import threading

IN, OUT, TICKS, INTERRUPTS = 3, 4, 5, 6
#: What one result may hold; larger formats are left out and told.
MAX_RESULT_BYTES = 10 * 1024 * 1024
MAX_JSON_BYTES = 4 * 1024 * 1024 - 1
MAX_TEXT_CHARS = 1024 * 1024 - 1
MAX_LINES = 2000
#: How often a line that is not finished is shown.
FLUSH_S = 0.1
_SOURCES = globals().get("_SOURCES", {})


# --- msgpack, as much of it as frames need ------------------------------------------------------------------


def pack(value):
    """Return `value` (None, bool, int of 64 bits, float, str, bytes, list, dict) as msgpack."""
    parts = []
    _pack(value, parts)
    return b"".join(parts)


def _pack(value, parts):
    if value is None or value is True or value is False:
        parts.append({None: b"\xc0", False: b"\xc2", True: b"\xc3"}[value])
    elif isinstance(value, int):
        parts.append(_pack_int(value))
    elif isinstance(value, float):
        parts.append(struct.pack(">Bd", 0xCB, value))
    elif isinstance(value, str):
        raw = value.encode("utf-8", "replace")
        parts.append(_header(len(raw), 0xA0, 32, (0xD9, 0xDA, 0xDB)))
        parts.append(raw)
    elif isinstance(value, (bytes, bytearray, memoryview)):
        parts.append(_header(len(value), 0, 0, (0xC4, 0xC5, 0xC6)))
        parts.append(bytes(value))
    elif isinstance(value, (list, tuple)):
        parts.append(_header(len(value), 0x90, 16, (None, 0xDC, 0xDD)))
        for item in value:
            _pack(item, parts)
    elif isinstance(value, dict):
        parts.append(_header(len(value), 0x80, 16, (None, 0xDE, 0xDF)))
        for key, item in value.items():
            _pack(key, parts)
            _pack(item, parts)
    else:
        raise TypeError("cannot pack a " + type(value).__name__)


def _pack_int(value):
    if 0 <= value < 128:
        return bytes([value])
    if -32 <= value < 0:
        return struct.pack(">b", value)
    return struct.pack(">BQ", 0xCF, value) if value > 0 else struct.pack(">Bq", 0xD3, value)


def _header(size, fix, fix_below, codes):
    if size < fix_below:
        return bytes([fix | size])
    if size < 256 and codes[0] is not None:
        return struct.pack(">BB", codes[0], size)
    if size < 65536:
        return struct.pack(">BH", codes[1], size)
    return struct.pack(">BI", codes[2], size)


def unpack(data):
    """Return the one value that `data` holds; raises ValueError for what frames never hold."""
    value, end = _unpack(data, 0)
    if end != len(data):
        raise ValueError("bytes after the value")
    return value


_FIXED = {0xCC: ">B", 0xCD: ">H", 0xCE: ">I", 0xCF: ">Q", 0xD0: ">b", 0xD1: ">h", 0xD2: ">i", 0xD3: ">q",
          0xCA: ">f", 0xCB: ">d"}  # fmt: skip
_SIZED = {0xD9: (">B", "s"), 0xDA: (">H", "s"), 0xDB: (">I", "s"), 0xC4: (">B", "b"), 0xC5: (">H", "b"),
          0xC6: (">I", "b"), 0xDC: (">H", "a"), 0xDD: (">I", "a"), 0xDE: (">H", "m"), 0xDF: (">I", "m")}  # fmt: skip


def _unpack(data, at):  # noqa: PLR0911 - a row each
    code = data[at]
    at += 1
    if code < 0x80:
        return code, at
    if code >= 0xE0:
        return code - 256, at
    if code < 0x90:
        return _unpack_map(data, at, code & 15)
    if code < 0xA0:
        return _unpack_array(data, at, code & 15)
    if code < 0xC0:
        return _slice(data, at, code & 31).decode(), at + (code & 31)
    if code in (0xC0, 0xC2, 0xC3):
        return {0xC0: None, 0xC2: False, 0xC3: True}[code], at
    if code in _FIXED:
        form = _FIXED[code]
        return struct.unpack_from(form, data, at)[0], at + struct.calcsize(form)
    if code not in _SIZED:
        raise ValueError("unknown type %#x" % code)
    form, kind = _SIZED[code]
    (size,) = struct.unpack_from(form, data, at)
    at += struct.calcsize(form)
    if kind == "a":
        return _unpack_array(data, at, size)
    if kind == "m":
        return _unpack_map(data, at, size)
    raw = _slice(data, at, size)
    return (raw.decode() if kind == "s" else bytes(raw)), at + size


def _slice(data, at, size):
    raw = data[at : at + size]
    if len(raw) < size:
        raise ValueError("cut short")
    return raw


def _unpack_array(data, at, size):
    found = []
    for _ in range(size):
        item, at = _unpack(data, at)
        found.append(item)
    return found, at


def _unpack_map(data, at, size):
    found = {}
    for _ in range(size):
        key, at = _unpack(data, at)
        found[key], at = _unpack(data, at)
    return found, at


# --- frames -------------------------------------------------------------------------------------------------


class Channel:
    """Frames in and out, and the interrupts that must not cut one in two."""

    def __init__(self):
        self.pid = os.getpid()
        self.run = 0
        self.in_user_code = False
        self._lock = threading.RLock()
        self._shields = 0
        self._pending = False
        self._sent = self._taken = 0
        self._fflush = lambda: None
        for fd in (IN, OUT, TICKS, INTERRUPTS, 7):
            os.set_inheritable(fd, False)
        os.set_blocking(INTERRUPTS, False)

    def listen_to_interrupts(self):
        """Take SIGINT; a program that took it for itself gives it back at the next run."""
        signal.signal(signal.SIGINT, self._on_sigint)

    def _on_sigint(self, number, frame):
        if self._shields:
            self._pending = True
        elif self.in_user_code:
            raise KeyboardInterrupt

    def was_interrupted_early(self):
        """Return whether the run that is about to begin has been interrupted already."""
        early = False
        while True:
            try:
                data = os.read(INTERRUPTS, 4096)
            except (BlockingIOError, OSError):
                return early
            if not data:
                return early
            runs = struct.unpack(">%dQ" % (len(data) // 8), data[: len(data) // 8 * 8])
            early = early or self.run in runs

    def receive(self):
        """Return the next frame; ends the process where there are no more."""
        (size,) = struct.unpack(">I", self._read(4))
        return unpack(self._read(size))

    def _read(self, size):
        parts = []
        while size:
            data = os.read(IN, min(size, 1 << 20))
            if not data:
                os._exit(0)
            parts.append(data)
            size -= len(data)
        return b"".join(parts)

    def send(self, *messages, wait=True):
        """Send frames, after all that was printed; return when they have been taken, unless told not to wait."""
        if os.getpid() != self.pid:
            return  # a child of the user's has no voice of its own
        self.flush()
        views = []
        for message in messages:
            body = pack(message)
            views += [struct.pack(">I", len(body)), body]
        self._shields += 1
        try:
            with self._lock:
                self._write(views)
                self._sent += len(messages)
                while wait and self._taken < self._sent:
                    ticks = os.read(TICKS, 4096)
                    if not ticks:
                        os._exit(0)
                    self._taken += len(ticks)
        finally:
            self._shields -= 1
        if self._pending and not self._shields:
            self._pending = False
            if self.in_user_code and threading.current_thread() is threading.main_thread():
                raise KeyboardInterrupt

    @staticmethod
    def _write(parts):
        view = memoryview(b"".join(parts))
        while view:
            view = view[os.write(OUT, view) :]

    def flush(self):
        """Let all that was printed out of the buffers, those of C libraries too."""
        for stream in {id(s): s for s in (sys.stdout, sys.stderr, sys.__stdout__, sys.__stderr__)}.values():
            try:
                stream.flush()
            except Exception:
                continue
        self._fflush()

    def protect(self):
        """Be no business of the sandbox's other processes, and find C's own buffers."""
        if os.geteuid() == 0:
            # A change of the effective user makes a process neither dumpable nor ptraceable (commit_creds).
            try:
                os.seteuid(65534)
                os.seteuid(0)
            except OSError:
                pass
        try:
            import _ctypes

            libc = _ctypes.dlopen(None, 0)
            if os.geteuid() != 0:
                _ctypes.call_function(_ctypes.dlsym(libc, "prctl"), (4, 0, 0, 0, 0))  # PR_SET_DUMPABLE
            fflush = _ctypes.dlsym(libc, "fflush")
            self._fflush = lambda: _ctypes.call_function(fflush, (None,))
        except (ImportError, OSError, AttributeError):
            pass


class Flusher(threading.Thread):
    """Shows lines that are not finished, while code runs; printing itself pays nothing for it."""

    def __init__(self):
        super().__init__(name="sandboxd-flush", daemon=True)
        self.wanted = threading.Event()
        self._quiet = threading.Event()

    def run(self):
        idle = 0
        while True:
            if idle > 20:
                self.wanted.clear()
                self.wanted.wait()
                idle = 0
            idle += 1
            self._quiet.wait(FLUSH_S)
            for stream in (sys.stdout, sys.stderr):
                try:
                    stream.flush()
                except Exception:
                    continue


def load(name):
    """Return the names of a file beside this one, compiled at its first use."""
    found = _LOADED.get(name)
    if found is None:
        found = _LOADED[name] = {"__name__": "sandboxd_" + name, "load": load}
        exec(compile(_SOURCES[name], "<sandboxd " + name + ">", "exec"), found)
    return found


_LOADED = {}


# --- the shell ----------------------------------------------------------------------------------------------


class Session:
    """The shell and its runs."""

    def __init__(self, channel):
        self.channel = channel
        self.shell = None
        self.flusher = Flusher()
        self.main = None
        #: Whether the present run wants a dict or list as JSON too.
        self.wants_json = False
        self.failures = None
        self.cancelling = False
        self._error_sent = False
        self._loop = None

    def start(self):
        """Make the shell; raises ImportError where there is no IPython."""
        # The terminal's shell, which `import IPython` loads along, draws in prompt_toolkit: nobody here sees it.
        from IPython.core.interactiveshell import InteractiveShell
        from traitlets.config import Config

        session = self
        shell_names = load("shell")
        config = Config()
        config.HistoryManager.enabled = False
        config.HistoryAccessor.enabled = False
        config.HistoryManager.hist_file = ":memory:"  # its own would be in a directory that nobody may ever need
        config.Completer.use_jedi = False
        config.InteractiveShell.colors = "nocolor"  # what it prints; tracebacks have theirs
        config.InteractiveShell.color_info = False
        config.InteractiveShell.banner1 = config.InteractiveShell.banner2 = ""
        cls = shell_names["make_shell"](InteractiveShell, session)
        self.shell = cls.instance(config=config)
        self.failures = self.shell.failures = load("errors")["Failures"](self.shell, InteractiveShell, self)
        self.shell.loop_runner = self.run_coroutine
        shell_names["set_up"](self.shell, session)

    def move(self, channel):
        """Go on in a process of another sandbox than the shell was made in; nothing has been run in it yet."""
        self.channel = channel
        self.flusher = Flusher()
        shell = self.shell
        shell.starting_dir = os.getcwd()
        shell.user_ns["_dh"][:] = [shell.starting_dir]
        shell.home_dir = os.path.expanduser("~")
        sys.stdin = open(os.devnull)  # noqa: SIM115 - as long as the program

    def run_coroutine(self, coroutine):
        """Run a cell that awaits; one that is interrupted does not go on in the next cell."""
        import asyncio

        if self._loop is None or self._loop.is_closed():
            self._loop = asyncio.new_event_loop()
        asyncio.set_event_loop(self._loop)
        task = self._loop.create_task(coroutine)
        try:
            return self._loop.run_until_complete(task)
        except KeyboardInterrupt:
            self.cancelling = True
            task.cancel()
            try:
                self._loop.run_until_complete(asyncio.wait({task}, timeout=1))
            except RuntimeError:
                pass
            finally:
                self.cancelling = False
            raise

    def _begin_to_flush(self):
        if not self.flusher.is_alive():
            try:
                self.flusher.start()
            except RuntimeError:
                # The sandbox is at its limit of pids: what is printed is shown at the end, and the next run tries anew.
                self.flusher = Flusher()
        elif not self.flusher.wanted.is_set():
            self.flusher.wanted.set()

    def run(self, message):
        """Run one piece of code to its end, and say so."""
        channel = self.channel
        channel.run = message["run"]
        channel.listen_to_interrupts()
        self._error_sent = False
        self.main = None
        self.wants_json = message.get("json") is True
        env, message["env"] = message.get("env") or {}, None
        before = {name: os.environ.get(name) for name in env}
        os.environ.update(env)
        self._begin_to_flush()
        try:
            try:
                channel._pending = False
                channel.in_user_code = True
                if channel.was_interrupted_early():
                    raise KeyboardInterrupt
                self._execute(message["code"])
            except BaseException as error:  # IPython's own: an interrupt between two steps, say
                self.send_error(self.failures.failure_of_run(error))
            channel.in_user_code = False
        except BaseException as error:
            channel.in_user_code = False
            self.send_error(load("errors")["describe_barely"](error))
        if os.getpid() != channel.pid:
            os._exit(0)  # a child that the code forked, and forgot to end
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
        status = "error" if self._error_sent else "ok"
        end = {"op": "end", "run": channel.run, "status": status, "count": self.shell.execution_count - 1}
        main, self.main = self.main, None
        channel.send(*((main, end) if main else (end,)), wait=False)

    def _execute(self, code):
        """Run a cell, tell what escaped from it, and show its figures."""
        result = self.shell.run_cell(code, store_history=True)
        error = result.error_in_exec if result.error_before_exec is None else result.error_before_exec
        self.send_error(self.failures.failure_of_run(error))
        if "matplotlib.pyplot" in sys.modules:
            try:
                load("shell")["flush_figures"](self)
            except Exception as failed:
                self.failures.print(self.failures.describe(failed))

    def send_error(self, failed):
        """Tell what ended the run, if anything did; the first counts."""
        if failed is None or self._error_sent:
            return
        self._error_sent = True
        lines = [line[: MAX_TEXT_CHARS // 8] for line in failed.lines[:MAX_LINES]]
        while sum(map(len, lines)) > MAX_TEXT_CHARS and len(lines) > 1:
            del lines[len(lines) // 2]
        self.channel.send(
            {
                "op": "error",
                "run": self.channel.run,
                "ename": failed.ename[:1000],
                "evalue": failed.evalue[: MAX_TEXT_CHARS // 4],
                "traceback": [strip_ansi(line) for line in lines],
                "traceback_ansi": lines,
            }
        )

    def send_result(self, formats, *, main=False, display_id=None, update=False, note=None):
        """Show a value; that of the last expression goes out together with the end."""
        message = {
            "op": "result",
            "run": self.channel.run,
            "main": main,
            "formats": formats,
            "note": note,
            "display_id": display_id,
            "update": update,
        }
        if main:
            if self.main is not None:
                self.channel.send(self.main)
            self.main = message
        else:
            self.flush_main()
            self.channel.send(message)

    def flush_main(self):
        """Send the main result now: something is to come after it."""
        main, self.main = self.main, None
        if main is not None:
            self.channel.send(main)

    def answer(self, message):
        """Complete or inspect."""
        self.channel.run = message["run"]
        self.channel.listen_to_interrupts()
        try:
            self.channel.in_user_code = True
            value = load("shell")[message["op"]](self.shell, message)
            self.channel.in_user_code = False
        except BaseException:  # of an object that the user's code has made
            self.channel.in_user_code = False
            value = {"matches": [], "start": message["cursor"], "end": message["cursor"]}
            if message["op"] == "inspect":
                value = {"found": False, "name": "", "text": None}
        import json

        text = json.dumps(value)
        self.channel.send({"op": "reply", "run": self.channel.run, "value": text[:MAX_JSON_BYTES]}, wait=False)


def strip_ansi(text):
    """Return `text` without terminal colours."""
    if "\x1b" not in text:
        return text
    import re

    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text)


def main(session=None):
    """Serve until the pipe is closed; a template has made the session ahead."""
    channel = Channel()
    channel.listen_to_interrupts()
    channel.protect()
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(line_buffering=True, errors="backslashreplace")
    try:
        if session is None:
            session = Session(channel)
            session.start()
        else:
            session.move(channel)
    except ImportError as error:
        lacks = "it needs IPython: pip install ipython (%s)" % error
        channel.send({"op": "failed", "message": lacks[:2000]}, wait=False)
        os._exit(1)
    sys.path.insert(0, "")
    channel.send({"op": "ready", "version": "Python " + sys.version.split()[0]}, wait=False)
    while True:
        message = channel.receive()
        if message["op"] == "run":
            session.run(message)
        else:
            session.answer(message)


if __name__ == "__main__":
    main()
