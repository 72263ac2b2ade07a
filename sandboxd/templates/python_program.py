"""The template of a rootfs' own Python: what code contexts import, loaded once; a child becomes a context's worker.

Stands alone, as base.py does: the launcher hands it in as descriptor 7 with `_SOURCES` (base.py, the worker's files)
before its first line, and the rootfs' own Python runs it as it would run a worker, so that a child differs from one by
nothing but its age. Where it would differ, in a sandbox that has changed what was loaded here, the child declines
(`Truth`), and init starts an interpreter of the sandbox' own.
"""

import sys

_SOURCES = globals().get("_SOURCES", {})


def run(name, **more):
    """Return the names of one of our files."""
    found = {"__name__": "sandboxd_" + name, **more}
    exec(compile(_SOURCES[name], "<sandboxd " + name + ">", "exec"), found)
    return found


BASE = run("base")
WORKER = run("worker", _SOURCES={name: _SOURCES[name] for name in ("shell", "charts")})
Declined = BASE["Declined"]

#: Imported if they are there, in this order. The first is what a context cannot be without.
LIBRARIES = ("IPython.core.interactiveshell", "numpy", "pandas", "matplotlib.pyplot")


def load():
    """Import and use, once, what contexts use; return the names of what is there."""
    import importlib
    import tempfile

    found = []
    # matplotlib wants a folder for its caches, and nothing here can be written to.
    make, tempfile.mkdtemp = tempfile.mkdtemp, lambda *_, **__: "/nonexistent"
    for name in LIBRARIES:
        try:
            importlib.import_module(name)
            found.append(name)
        except ImportError:
            if name == LIBRARIES[0]:
                raise
    tempfile.mkdtemp = make
    forget_folders()
    return found


def forget_folders():
    """Let matplotlib look for its folders anew: those of the template are not the sandbox's."""
    matplotlib = sys.modules.get("matplotlib")
    for name in ("get_configdir", "get_cachedir"):
        function = getattr(matplotlib, name, None)
        if hasattr(function, "cache_clear"):
            function.cache_clear()
        elif getattr(function, "__closure__", None):
            for variable, cell in zip(function.__code__.co_freevars, function.__closure__):
                if variable == "called":
                    cell.cell_contents = False


def accept(job):
    """Raise `Declined` where a child would not do as an interpreter of the sandbox' own."""


def work(given):
    """Be a context's worker."""
    if "numpy" in sys.modules:
        sys.modules["numpy"].random.seed()
    WORKER["main"]()


def main():
    """Load, and serve the launcher."""
    template = BASE["Template"](WORKER["unpack"], work, accept)
    template.receive_settings()
    try:
        load()
    except Exception as error:
        template.fail("%s: %s" % (type(error).__name__, error))
    template.serve()


if __name__ == "__main__":
    main()
