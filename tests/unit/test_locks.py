"""The locks agree with each other and with pyproject.toml: whoever changes a dependency runs `make lock`."""

from __future__ import annotations

import pathlib
import re
import tomllib

ROOT = pathlib.Path(__file__).parents[2]


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def locked(path: str) -> dict[tuple[str, str], set[str]]:
    """Return the hashes of each name and version. (Markers differ: tools need some package on other Pythons too.)"""
    text = (ROOT / path).read_text()
    parts = re.split(r"^([A-Za-z0-9._-]+)==([^\s;\\]+)", text, flags=re.MULTILINE)[1:]
    hashes = re.compile(r"sha256:[0-9a-f]{64}").findall
    return {(normal(parts[at]), parts[at + 1]): set(hashes(parts[at + 2])) for at in range(0, len(parts), 3)}


def test_what_is_installed_is_what_is_tested() -> None:
    installed, tested = locked(".setup/install.lock"), locked("requirements.lock")
    assert installed
    assert {key: tested.get(key) for key in installed} == installed


def test_every_dependency_is_locked_and_no_tool_is_installed() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    names = {name for name, _ in locked(".setup/install.lock")}
    lines = [*project["dependencies"], *project["optional-dependencies"]["daemon"]]
    wanted = {normal(re.split(r"[\[<>=~! ;]", line)[0]) for line in lines}
    assert wanted <= names, wanted - names
    assert not {"pytest", "mypy", "ruff", "hypothesis"} & names
