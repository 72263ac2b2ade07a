"""A context sees its sandbox as it is: a template's child declines where it would not."""

from __future__ import annotations

import os
import pathlib
import signal
from collections.abc import Iterator

import pytest

from sandboxd import Sandbox, errors
from sandboxd.launcher.templates import SOURCES
from tests.support.daemon import ROOTFS_DIR, Daemon
from tests.support.templates import is_template_child, load_template, pid_of, template_pid, templates_of

pytestmark = pytest.mark.real

SITE = "/usr/local/lib/python3.13/dist-packages"


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    daemon = Daemon(tmp_path_factory.mktemp("truth"))
    daemon.start()
    load_template(daemon)
    yield daemon
    daemon.close()


def starts_its_own(daemon: Daemon, sandbox: Sandbox, **options: object) -> bool:
    """Tell whether a context is an interpreter that the sandbox's init started; it works in any case."""
    context = sandbox.create_code_context("python", **options)  # type: ignore[arg-type]
    assert sandbox.run_code("print(1 + 1)", context=context).stdout == "2\n"
    return not is_template_child(pid_of(daemon, sandbox, context))


#: What is done in the sandbox first, and the code that tells the truth, with its answer.
CHANGES = {
    "another numpy in the user's own site": (
        "mkdir -p ~/.local/lib/python3.13/site-packages/numpy && "
        "echo '__version__ = \"0.0.1\"' > ~/.local/lib/python3.13/site-packages/numpy/__init__.py",
        "import numpy; print(numpy.__version__)",
        "0.0.1",
    ),
    "numpy upgraded in place": (
        f'sed -i \'s/^from .version import __version__/__version__ = "9.9"/; $a __version__ = "9.9"\' '
        f"{SITE}/numpy/__init__.py",
        "import numpy; numpy.__version__",
        "'9.9'",
    ),
    "a file of a package deep below changed, its time kept": (
        f"touch -r {SITE}/pandas/core/frame.py /tmp/t && echo 'LIE = 1' >> {SITE}/pandas/core/frame.py && "
        f"touch -r /tmp/t {SITE}/pandas/core/frame.py",
        "import pandas.core.frame; pandas.core.frame.LIE",
        "1",
    ),
    "a package removed": (f"rm -r {SITE}/matplotlib", "import importlib.util as u; u.find_spec('matplotlib')", None),
    "a module that would be found before": (
        "echo 'x = 7' > /usr/lib/python3/dist-packages/numpy.py; "
        f"mkdir -p /usr/local/lib/python3.13/dist-packages; echo 'x = 7' > {SITE}/random.py; "
        "echo 'x = 7' > /usr/lib/python3.13/sitecustomize.py; cat /etc/python3.13/sitecustomize.py || true",
        "import sitecustomize; sitecustomize.x",
        "7",
    ),
    "a path file": (
        f"echo 'import sys; sys.told = 5' > {SITE}/told.pth",
        "import sys; sys.told",
        "5",
    ),
    "another python first on the path": (
        "printf '#!/bin/sh\\nexec /usr/bin/python3 -X dev \"$@\"\\n' > /usr/local/bin/python3 && "
        "chmod +x /usr/local/bin/python3",
        "import sys; sys.flags.dev_mode",
        "True",
    ),
    "matplotlib's own settings": (
        "mkdir -p ~/.config/matplotlib && echo 'lines.linewidth: 7.5' > ~/.config/matplotlib/matplotlibrc",
        "import matplotlib; matplotlib.rcParams['lines.linewidth']",
        "7.5",
    ),
    "settings in the working directory": (
        "echo 'lines.linewidth: 8.5' > /workspace/matplotlibrc",
        "import matplotlib; matplotlib.rcParams['lines.linewidth']",
        "8.5",
    ),
    "a shared library replaced": (
        "cp /usr/lib/x86_64-linux-gnu/libz.so.1 /tmp/z && cp --remove-destination /tmp/z $(readlink -f "
        "/usr/lib/x86_64-linux-gnu/libz.so.1)",
        "1",
        "1",
    ),
}


@pytest.mark.parametrize("name", CHANGES)
def test_what_a_sandbox_has_changed(loaded: Daemon, name: str) -> None:
    command, code, answer = CHANGES[name]
    with loaded.client() as client, Sandbox.create(client=client) as sandbox:
        done = sandbox.exec(command)
        assert done.exit_code == 0, done.stderr
        assert starts_its_own(loaded, sandbox)
        result = sandbox.run_code(code)
        assert result.error is None, result.error
        assert (result.text or result.stdout.strip() or None) == answer


HARMLESS = {
    "nothing": "true",
    "files of the user's own": "mkdir -p ~/x /srv/y && echo 1 > ~/x/numpy.py && echo 1 > /tmp/pandas.py && ls > ~/z",
    "another package": f"mkdir {SITE}/other && echo 'x = 3' > {SITE}/other/__init__.py",
    "a program": "cp /bin/true /usr/local/bin/mine; cp /bin/true /usr/bin/mine",
    "a package's caches written anew": f"python3 -m compileall -qf {SITE}/matplotlib/__init__.py",
    "another owner of a file": f"chown user {SITE}/pandas/core/frame.py; chmod 600 {SITE}/pandas/core/frame.py",
    "a configuration": "echo 'a 1' >> /etc/hosts; useradd other",
}


@pytest.mark.parametrize("name", HARMLESS)
def test_what_makes_no_difference(loaded: Daemon, name: str) -> None:
    with loaded.client() as client, Sandbox.create(client=client) as sandbox:
        done = sandbox.exec(HARMLESS[name])
        assert done.exit_code == 0, done.stderr
        assert not starts_its_own(loaded, sandbox)
        if name == "another package":
            assert sandbox.run_code("import other; other.x").text == "3"


def test_pip_install_of_another_version_is_what_a_context_imports(loaded: Daemon, tmp_path: pathlib.Path) -> None:
    """By pip itself, from a wheel that is made here: there is no network inside."""
    make = (
        "mkdir -p /tmp/w/numpy /tmp/w/numpy-99.0.dist-info && cd /tmp/w"
        " && echo '__version__ = \"99.0\"' > numpy/__init__.py"
        " && printf 'Metadata-Version: 2.1\\nName: numpy\\nVersion: 99.0\\n' > numpy-99.0.dist-info/METADATA"
        " && printf 'Wheel-Version: 1.0\\nGenerator: x\\nRoot-Is-Purelib: true\\nTag: py3-none-any\\n'"
        " > numpy-99.0.dist-info/WHEEL && printf 'numpy/__init__.py,,\\nnumpy-99.0.dist-info/METADATA,,\\n"
        "numpy-99.0.dist-info/WHEEL,,\\nnumpy-99.0.dist-info/RECORD,,\\n' > numpy-99.0.dist-info/RECORD"
        " && python3 -m zipfile -c /tmp/numpy-99.0-py3-none-any.whl numpy numpy-99.0.dist-info"
        " && pip install -q --no-index --no-deps /tmp/numpy-99.0-py3-none-any.whl"
    )
    with loaded.client() as client, Sandbox.create(client=client) as sandbox:
        assert not starts_its_own(loaded, sandbox)
        done = sandbox.exec(make, timeout=100)
        assert done.exit_code == 0, done.stderr
        assert starts_its_own(loaded, sandbox)
        assert sandbox.run_code("import numpy; print(numpy.__version__)").stdout == "99.0\n"


@pytest.mark.parametrize("env", [{"PYTHONHASHSEED": "1"}, {"OMP_NUM_THREADS": "3"}, {"LD_PRELOAD": ""}, {"LANG": "C"}])
def test_variables_that_are_read_at_the_start(loaded: Daemon, env: dict[str, str]) -> None:
    with loaded.client() as client, Sandbox.create(client=client) as sandbox:
        assert starts_its_own(loaded, sandbox, env=env)
        assert not starts_its_own(loaded, sandbox, env={"MINE": "1"})


def test_a_profile_of_the_operators_own_and_a_shipped_one(tmp_path: pathlib.Path) -> None:
    directory = tmp_path / "profiles"
    directory.mkdir(mode=0o755)
    strict = pathlib.Path(__file__).parents[2] / "seccomp" / "strict.json"
    (directory / "mine.json").write_bytes(strict.read_bytes())
    daemon = Daemon(tmp_path / "d", config={"seccomp_dir": str(directory)})
    daemon.start()
    try:
        load_template(daemon)
        with daemon.client() as client:
            for profile, own in (("strict", False), ("mine", True)):
                with Sandbox.create(client=client, seccomp=profile) as sandbox:
                    assert starts_its_own(daemon, sandbox) is own
    finally:
        daemon.close()


def test_a_rootfs_that_no_recipe_built_has_no_template_unless_it_is_named(tmp_path: pathlib.Path) -> None:
    """The tree is the default one's; only what is said of it differs."""
    rootfs = tmp_path / "rootfs"
    (rootfs / "mine" / "private").mkdir(parents=True)
    source = pathlib.Path(ROOTFS_DIR) / "default"
    text = (source / "rootfs.json").read_text().replace('"trusted": true', '"trusted": false')
    (rootfs / "mine" / "rootfs.json").write_text(text.replace('"name": "default"', '"name": "mine"'))
    (rootfs / "mine" / "private" / "tree").symlink_to(source / "private" / "tree")
    for config in ({}, {"template_rootfs": ["mine"]}):
        directory = tmp_path / f"d{len(config)}"
        daemon = Daemon(directory, rootfs_dir=str(rootfs), config={"log_level": "debug", **config})
        daemon.start()
        try:
            with daemon.client() as client, Sandbox.create(client=client, rootfs="mine") as sandbox:
                assert sandbox.run_code("1 + 1").text == "2"
            assert bool(templates_of(daemon)) is bool(config)
        finally:
            daemon.close()


# --- what a rootfs lacks ---


def loads(sandbox: Sandbox) -> tuple[int | None, str]:
    """Run what a template runs before it serves, in a sandbox; return how it ended and what it says that is there."""
    package = pathlib.Path(__file__).parents[2] / "sandboxd"
    sources = {name: (package / path).read_text() for name, path in SOURCES.items()}
    sandbox.write_file("/tmp/sources", repr(sources))
    code = (
        "import sys; sources = eval(open('/tmp/sources').read()); names = {'__name__': 't', '_SOURCES': sources}\n"
        "exec(sources['program'], names); session = names['load'](); names['StalenessCheck']()\n"
        "print(session.shell is not None, *[n for n in ('numpy', 'pandas', 'matplotlib.pyplot') if n in sys.modules])"
    )
    done = sandbox.exec(["python3", "-c", code], timeout=100)
    return done.exit_code, done.stdout or done.stderr


def test_a_template_holds_what_is_there(loaded: Daemon) -> None:
    with loaded.client() as client, Sandbox.create(client=client) as sandbox:
        assert loads(sandbox) == (0, "True numpy pandas matplotlib.pyplot\n")
        sandbox.exec(f"rm -r {SITE}/matplotlib {SITE}/mpl_toolkits").check()
        assert loads(sandbox) == (0, "True numpy pandas\n")
        sandbox.exec(f"rm -r {SITE}/numpy").check()
        assert loads(sandbox) == (0, "True\n")
        sandbox.exec(f"rm -r {SITE}/IPython").check()
        status, said = loads(sandbox)
        assert status == 1
        assert "No module named 'IPython'" in said
        with pytest.raises(errors.InterpreterMissing):
            sandbox.create_code_context("python")


def test_a_template_that_hangs_while_it_loads_holds_nothing_up(tmp_path: pathlib.Path) -> None:
    daemon = Daemon(tmp_path)
    daemon.start()
    try:
        with daemon.client() as client, Sandbox.create(client=client) as sandbox:
            sandbox.create_code_context("python")
            pid = template_pid(daemon)
            os.kill(pid, signal.SIGSTOP)
            assert sandbox.run_code("1 + 1", context=sandbox.create_code_context("python")).text == "2"
            assert [item["ready"] for item in templates_of(daemon)] == [False]
    finally:
        daemon.close()  # it ends with its launcher, stopped or not
    assert not os.path.exists(f"/proc/{pid}")
