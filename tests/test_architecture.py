"""The rules that sandboxd/README.md states about imports, forks and sizes, held by reading the code."""

from __future__ import annotations

import ast
import json
import pathlib
import re
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[1]
PACKAGE = ROOT / "sandboxd"

#: room -> the rooms it may import. A module right below sandboxd/ is a room of its own.
ALLOWED = {
    "errors": set(),
    "stdio": set(),
    "allow": {"errors"},
    "transitions": {"errors"},
    "network": {"errors", "allow"},
    "spec": {"errors", "network"},
    "git_spec": {"errors", "spec"},
    "config": {"errors", "spec", "network"},
    "wire": {"errors", "spec"},
    "linux": set(),
    "launcher": {"stdio", "linux", "wire", "spec", "network", "allow", "transitions", "errors", "guest"},
    "guest": {"linux", "wire", "spec", "transitions", "errors"},
    "templates": {"stdio", "linux", "wire", "errors"},
    "netd": {"stdio", "linux", "wire", "errors"},
    "workers": set(),
    "images": {"stdio", "spec", "errors", "linux"},
    "runtime": {"wire", "spec", "network", "allow", "git_spec", "transitions", "errors"},
    "proxy": {"runtime", "wire", "errors"},
    "metrics": {"runtime", "errors"},
    "previewing": {"runtime", "proxy", "config", "errors"},
    "api": {"runtime", "metrics", "wire", "spec", "network", "git_spec", "errors"},
    "client": {"wire", "spec", "errors"},
    "cli": {"stdio", "client", "config", "errors", "spec"},
    "daemon": {"runtime", "metrics", "api", "proxy", "previewing", "config", "errors", "spec", "linux"},
    "__main__": {"cli"},
    "__init__": {"client", "errors", "spec"},
}
#: One module's exceptions, each with its reason.
EXTRA = {
    "api/access.py": {"linux"},  # who is at the other end of a unix socket is the kernel's to say
    "cli/serve.py": {"daemon"},  # the one verb that is the daemon
    "cli/rootfs.py": {"images"},  # the one verb that builds
    "cli/doctor.py": {"linux", "launcher"},  # the one verb that looks at the host
}
#: third-party packages -> the only rooms that may import them.
LIBRARIES = {
    "trio": {"runtime", "metrics", "proxy", "api", "daemon", "cli", "client"},
    "quart": {"api"},
    "quart_trio": {"api"},
    "hypercorn": {"api"},
    "msgspec": {"api"},
    "httpx": {"client", "cli"},
    "click": {"cli"},
    "rich": {"cli"},
    "prctl": {"linux", "launcher", "guest", "templates", "netd"},
    "pyseccomp": {"linux"},
    "ctypes": {"linux", "templates"},  # templates/base.py stands alone: a rootfs's own Python runs it
    "psutil": {"runtime"},
    "prometheus_client": {"metrics"},
    "re2": {"runtime"},
    "wsproto": {"api", "client"},
    "dulwich": {"templates"},
    "dns": {"templates", "runtime"},
    "urllib3": {"templates"},
    "pyroute2": {"netd"},
    "h11": {"proxy", "api", "wire"},
}
FILES = sorted(PACKAGE.rglob("*.py"))
#: Imported by every init's parent, so in the memory of every sandbox: nothing may be added without a thought.
LAUNCHER_LIBRARIES = {"msgpack", "prctl", "sandboxd", "_prctl", "cython_runtime"}  # the last is part of msgpack


def room_of(path: pathlib.Path) -> str:
    parts = path.relative_to(PACKAGE).parts
    return parts[0].removesuffix(".py")


def imports(path: pathlib.Path) -> list[tuple[str, int]]:
    """Return what a module imports, as absolute names, wherever in it; imports for types only do not count."""
    tree = ast.parse(path.read_text())
    types_only = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and ast.unparse(node.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING")
        for statement in node.body
        for inner in ast.walk(statement)
    }
    package = ["sandboxd", *path.relative_to(PACKAGE).parts[:-1]]
    found = []
    for node in ast.walk(tree):
        if id(node) in types_only:
            continue
        if isinstance(node, ast.Import):
            found += [(alias.name, node.lineno) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) + 1 - node.level] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            found += [(f"{module}.{alias.name}", node.lineno) for alias in node.names]
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_go_one_way(path: pathlib.Path) -> None:
    room = room_of(path)
    relative = str(path.relative_to(PACKAGE))
    allowed = ALLOWED[room] | {room} | EXTRA.get(relative, set())
    for name, line in imports(path):
        parts = name.split(".")
        if parts[0] == "sandboxd" and len(parts) > 1:
            target = parts[1]
            if target in ALLOWED:
                assert target in allowed, f"{relative}:{line} imports {name}"
        elif parts[0] in LIBRARIES:
            assert room in LIBRARIES[parts[0]], f"{relative}:{line} imports {name}"


def test_insides_of_libraries_are_named_in_one_module_each() -> None:
    """An upgrade that moves one of them is then mended in one place (their tests say what is gone)."""
    fences = {"hypercorn": "api/http/hypercorn_parts.py", "h11._": "wire/h11_parts.py"}
    for path in FILES:
        relative = str(path.relative_to(PACKAGE))
        source = path.read_text()
        for name, fence in fences.items():
            named = re.search(rf"^\s*(from|import) {re.escape(name)}", source, re.MULTILINE)
            assert not named or relative == fence, f"{relative} imports {name}"


#: What api/http may know of the rest of api/: no route and no face.
HTTP_KNOWS = {"access", "call", "http", "jsontext", "problems"}


@pytest.mark.parametrize(
    "path", sorted((PACKAGE / "api").rglob("*.py")), ids=lambda path: str(path.relative_to(PACKAGE))
)
def test_no_module_but_the_registry_names_a_face(path: pathlib.Path) -> None:
    """/v1 is a face like any other; others may use what it has made."""
    parts = path.relative_to(PACKAGE / "api").parts
    faces = {found.parent.name for found in (PACKAGE / "api").glob("*/__init__.py")} - {"http"}
    inside = [name.split(".")[2] for name, _ in imports(path) if name.startswith("sandboxd.api.")]
    if parts[0] == "http":
        assert set(inside) <= HTTP_KNOWS
    elif len(parts) == 1 and parts[0] != "faces.py":
        assert not faces & set(inside)
    elif len(parts) > 1:
        assert faces & set(inside) <= {parts[0], "v1"}
        assert not {"app", "faces"} & set(inside)


def calls(path: pathlib.Path) -> set[str]:
    tree = ast.parse(path.read_text())
    return {ast.unparse(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)}


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_forks_and_sleeps(path: pathlib.Path) -> None:
    found = calls(path)
    assert "time.sleep" not in found
    if room_of(path) not in ("launcher", "guest", "templates", "netd"):
        assert not found & {"os.fork", "os.forkpty"}


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_sizes(path: pathlib.Path) -> None:
    source = path.read_text()
    assert source.count("\n") <= 600
    tree = ast.parse(source)
    assert ast.get_docstring(tree), "a module says what it is for"
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            first = node.body[0]
            documented = isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant)
            size = (node.end_lineno or 0) - ((first.end_lineno or 0) if documented else node.lineno - 1)
            assert size <= 60, f"{path.name}:{node.lineno} {node.name} has {size} lines"


def test_every_room_is_known() -> None:
    rooms = {room_of(path) for path in FILES}
    assert rooms <= set(ALLOWED)


def test_the_launcher_loads_only_what_an_init_needs() -> None:
    """What is loaded before the zygote is forked is in every init's memory."""
    program = "import sys, json; import sandboxd.launcher.__main__; print(json.dumps(sorted(sys.modules)))"
    output = subprocess.run([sys.executable, "-I", "-c", program], capture_output=True, check=True).stdout
    loaded = json.loads(output)
    foreign = {name.split(".")[0] for name in loaded} - set(sys.stdlib_module_names) - LAUNCHER_LIBRARIES
    foreign = {name for name in foreign if not name.startswith(("_", "site", "__"))}
    assert foreign <= {"distutils-precedence"}, foreign
    ours = {name.split(".")[1] for name in loaded if name.startswith("sandboxd.")}
    assert not {"sandboxd.launcher.server", "sandboxd.wire.operations"} & set(loaded)
    assert ours == {"stdio", "launcher", "guest", "linux", "wire", "spec", "network", "transitions", "errors"}
    # urllib.parse comes with zipfile (through pathlib): 1 MiB that inits share with the launcher, none of it their own.
    assert not {"asyncio", "ssl", "http", "urllib.request", "subprocess", "ctypes.util"} & set(loaded)
