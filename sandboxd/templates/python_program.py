"""The template of a rootfs's own Python: what code contexts import, loaded once; a child becomes a context's worker.

Stands alone, as base.py does: the launcher hands it in as descriptor 7 with `_SOURCES` (base.py, the worker's files)
before its first line, and the rootfs's own Python runs it as it would run a worker, so that a child differs from one by
nothing but its age. Where it would differ, in a sandbox that has changed what was loaded here, the child declines
(`StalenessCheck`), and init starts an interpreter of the sandbox's own.
"""

import ctypes
import gc
import importlib
import os
import site
import stat
import sys
import tempfile
import time

_SOURCES = globals().get("_SOURCES", {})


def run(name, **more):
    """Return the names of one of our files."""
    found = {"__name__": "sandboxd_" + name, **more}
    exec(compile(_SOURCES[name], "<sandboxd " + name + ">", "exec"), found)
    return found


BASE = run("base")
_NOT_ITS_PARTS = ("program", "base", "worker")
WORKER = run("worker", _SOURCES={name: text for name, text in _SOURCES.items() if name not in _NOT_ITS_PARTS})
Declined = BASE["Declined"]

#: Imported if they are there, in this order. A context cannot be without the first.
LIBRARIES = ("IPython.core.interactiveshell", "numpy", "pandas", "matplotlib.pyplot")
#: Files that would be read at the start, or at an import, if they were there: below the user's home, and anywhere.
HOME_FILES = (".config/matplotlib/matplotlibrc", ".config/matplotlib/stylelib", ".matplotlib/matplotlibrc")
SYSTEM_FILES = ("/etc/ld.so.preload",)


# --- loading ------------------------------------------------------------------------------------------------


def load():
    """Import and use, once, what contexts use; return the session that a child goes on with."""
    # matplotlib wants a directory of its own, and nothing here can be written to.
    make, tempfile.mkdtemp = tempfile.mkdtemp, lambda *_, **__: "/nonexistent"
    os.environ["MPLCONFIGDIR"] = "/nonexistent"
    for name in LIBRARIES:
        try:
            importlib.import_module(name)
        except ImportError:
            if name == LIBRARIES[0]:
                raise
    session = make_session()
    use(session.shell)
    tempfile.mkdtemp = make
    tempfile._name_sequence = None
    forget_directories()
    importlib.invalidate_caches()  # what that imports is there, then
    return session


def make_session():
    """Make the shell; its directories, descriptors and channel are those of the sandbox, and come later."""
    session = WORKER["Session"](None)
    session.start()
    sys.stdin.close()
    sys.stdin = sys.__stdin__
    return session


def use(shell):
    """Go once the ways of a first cell, a table and a figure, so that what they import late is there."""
    shell.run_cell("[1, 2]", store_history=False, silent=True)
    table = figure = None
    if "pandas" in sys.modules:
        pandas = sys.modules["pandas"]
        table = pandas.DataFrame({"x": [1, 2], "y": ["a", "b"]})
        table.describe()
        table.groupby("y").sum()
    if "matplotlib.pyplot" in sys.modules:
        pyplot = sys.modules["matplotlib.pyplot"]
        figure, axes = pyplot.subplots()
        axes.plot([1, 2], [3, 4], label="x")
        axes.set_title("x")
        axes.legend()
    for value in (1, table, figure):
        if value is not None:
            WORKER["load"]("shell")["to_formats"](shell.display_formatter.format(value)[0])
    if figure is not None:
        pyplot.close("all")
        # Fonts are open files, and a child would find something else at their numbers.
        for name in ("_get_font", "get_font"):
            function = getattr(sys.modules["matplotlib.font_manager"], name, None)
            if hasattr(function, "cache_clear"):
                function.cache_clear()


def open_descriptors():
    """Return the descriptors of this process."""
    found = set()
    for fd in range(256):
        try:
            os.fstat(fd)
            found.add(fd)
        except OSError:
            pass
    return found


def forget_directories():
    """Let matplotlib look for its directories anew: those of the template are not the sandbox's."""
    matplotlib = sys.modules.get("matplotlib")
    for name in ("get_configdir", "get_cachedir"):
        function = getattr(matplotlib, name, None)
        if hasattr(function, "cache_clear"):
            function.cache_clear()
        elif getattr(function, "__closure__", None):
            for variable, cell in zip(function.__code__.co_freevars, function.__closure__):
                if variable == "called":
                    cell.cell_contents = False


# --- whether a child would do -------------------------------------------------------------------------------


class Directory:
    """A directory that something was loaded from, or below which there is one.

    `entries` are the names in it, where Python looks for modules there; `files` what was loaded.
    """

    def __init__(self, path):
        facts = os.stat(path)
        self.path = path
        self.mtime, self.ctime = facts.st_mtime_ns, facts.st_ctime_ns
        self.below = {}
        self.files = {}
        self.entries = None


class StalenessCheck:
    """What was loaded, and from where; `check` finds out whether a sandbox has the same.

    A sandbox's root is an overlay: whatever is changed below a directory, it and all directories above it are copied up
    first, and their change times are new from then on. So one look at /usr tells of all that is below it, and where
    that has changed, only directories that did are looked into.
    """

    def __init__(self):
        self.root = Directory("/")
        self.absent = [path for path in SYSTEM_FILES if not os.path.lexists(path)]
        self.modules = {name.partition(".")[0] for name in sys.modules}
        self.libraries = set()
        for module in list(sys.modules.values()):
            path = getattr(module, "__file__", None)
            if isinstance(path, str) and path.startswith("/"):
                self._add(path)
        for path in loaded_libraries():
            self.libraries.add(os.path.basename(path))
            self._add(path)
        self._add(os.path.realpath(sys.executable))
        self.executable = sys.executable
        for path in sys.path:
            if os.path.isdir(path):
                self._directory(os.path.realpath(path)).entries = frozenset(os.listdir(path))
            elif path:
                self.absent.append(path)

    def _directory(self, path):
        directory = self.root
        for part in path.split("/"):
            if part:
                found = directory.below.get(part)
                if found is None:
                    found = directory.below[part] = Directory(directory.path.rstrip("/") + "/" + part)
                directory = found
        return directory

    def _add(self, path):
        path = os.path.realpath(path)
        try:
            facts = os.stat(path)
        except OSError:
            return
        directory, _, name = path.rpartition("/")
        self._directory(directory or "/").files[name] = (facts.st_size, facts.st_mtime_ns)

    def check(self, job):
        """Raise `Declined` unless an interpreter that starts in this sandbox for this job would load the same."""
        env, home = job["env"], job["env"].get("HOME") or job["home"]
        user_site = self._user_site(home)
        for path in (user_site, *self.absent, *(os.path.join(home, name) for name in HOME_FILES)):
            if os.path.lexists(path):
                raise Declined("there is " + path)
        if os.path.lexists(os.path.join(job["cwd"], "matplotlibrc")):
            raise Declined("there is a matplotlibrc")
        for directory in env.get("PATH", "").split(":"):
            path = os.path.join(directory, "python3")
            if path == self.executable:
                break
            if os.path.lexists(path):
                raise Declined("python3 is " + path)
        self._compare(self.root)

    @staticmethod
    def _user_site(home):
        version = "python%d.%d" % sys.version_info[:2]
        return os.path.join(home, ".local", "lib", version, "site-packages")

    def _compare(self, directory):
        try:
            facts = os.stat(directory.path)
        except OSError:
            raise Declined(directory.path + " is gone") from None
        if not stat.S_ISDIR(facts.st_mode):
            raise Declined(directory.path + " is no directory")
        if (facts.st_ctime_ns, facts.st_mtime_ns) == (directory.ctime, directory.mtime):
            return
        for name, (size, mtime) in directory.files.items():
            path = directory.path + "/" + name
            try:
                found = os.stat(path)
            except OSError:
                raise Declined(path + " is gone") from None
            if (found.st_size, found.st_mtime_ns) != (size, mtime):
                raise Declined(path + " is another")
        if facts.st_mtime_ns != directory.mtime:
            self._compare_names(directory)
        for below in directory.below.values():
            self._compare(below)

    def _compare_names(self, directory):
        """Look at what was put into a directory: something that would be found before what was loaded?"""
        if directory.entries is not None:
            for name in frozenset(os.listdir(directory.path)) - directory.entries:
                stem = name.partition(".")[0]
                if stem in self.modules or stem in ("sitecustomize", "usercustomize") or name.endswith(".pth"):
                    raise Declined("there is " + directory.path + "/" + name)
        if directory.path in ("/usr", "/usr/bin") and os.path.lexists(directory.path + "/pyvenv.cfg"):
            raise Declined("there is a pyvenv.cfg")
        if not directory.files.keys() & self.libraries:
            for name in self.libraries:
                if ".so" in name and name not in directory.files and os.path.lexists(directory.path + "/" + name):
                    raise Declined("there is " + directory.path + "/" + name)


class _Object(ctypes.Structure):
    _fields_ = [("address", ctypes.c_void_p), ("name", ctypes.c_char_p)]


def loaded_libraries():
    """Return the paths of the shared objects in this process (there is no /proc to read them from)."""
    found = []

    def note(item, size, data):
        name = item.contents.name
        if name and name.startswith(b"/"):
            found.append(os.fsdecode(name))
        return 0

    kind = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(_Object), ctypes.c_size_t, ctypes.c_void_p)
    ctypes.CDLL(None).dl_iterate_phdr(kind(note), None)
    return found


# --- a child ------------------------------------------------------------------------------------------------


def free_threads():
    """Let the numeric libraries have as many threads as there are processors, in a child and when it needs them."""
    for path in loaded_libraries():
        if "openblas" not in os.path.basename(path):
            continue
        library = ctypes.CDLL(path)
        for prefix in ("", "scipy_"):
            for suffix in ("", "64_", "_64", "_"):
                function = getattr(library, prefix + "openblas_set_num_threads" + suffix, None)
                if function is not None:
                    function(len(os.sched_getaffinity(0)))
    # It has started them here; what it does before any fork(2) ends them, and the next need of them starts them again.
    pid = os.fork()
    if pid == 0:
        os._exit(0)
    os.waitpid(pid, 0)


def refresh():
    """Be another than the other children: random states and the time zone (OpenSSL sees by itself that it forked)."""
    if "numpy" in sys.modules:
        sys.modules["numpy"].random.seed()
    time.tzset()
    importlib.invalidate_caches()
    if getattr(site, "ENABLE_USER_SITE", None):
        site.USER_BASE = site.USER_SITE = None
        site.getusersitepackages()


def main():
    """Load, and serve the launcher."""
    template = BASE["Template"](WORKER["unpack"])
    template.receive_settings()
    try:
        before = open_descriptors()
        session = load()
        gc.collect()
        if open_descriptors() != before:
            raise RuntimeError("an import keeps descriptors %s" % sorted(open_descriptors() - before))
        staleness = StalenessCheck()
        free_threads()
    except Exception as error:
        template.fail("%s: %s" % (type(error).__name__, error))

    def work(given):
        refresh()
        WORKER["main"](session)

    template.serve(work, staleness.check)


if __name__ == "__main__":
    main()
