"""The READMEs say what is there: files, links, paths, attacks, packages; and their code can be read."""

from __future__ import annotations

import ast
import importlib
import pathlib
import re
import subprocess
from collections.abc import Iterator

import click
import pytest

from sandboxd.cli.main import COMMANDS
from tests.support import documents
from tests.support.documents import ROOT
from tests.test_architecture import ALLOWED, PACKAGE

#: Directories of the tree whose paths a page may name.
ROOMS = ("sandboxd", "rootfs", "seccomp", "systemd", "bench", "tests")
PACKAGES = [f"sandboxd/{path.name}" for path in sorted(PACKAGE.iterdir()) if path.is_dir() and documents.is_part(path)]
PAGES = [*documents.pages()]
#: Directories that must have a page, and those that have one.
DESCRIBED = {*ROOMS, *PACKAGES, "sandboxd/api/cloudflare", *(str(page.parent.relative_to(ROOT)) for page in PAGES[1:])}
#: `sandboxd VERB …` at the beginning of a command; the rest of that command.
TYPED_VERB = re.compile(r"(?:^|[|(;&])\s*(?:[A-Z_]+=\S* )*(?:\S*/)?sandboxd ([a-z]+)\b([^\n|;&)<]*)", re.MULTILINE)
#: Where a word in backticks ends to be a plain path.
NOT_PLAIN = re.compile(r"[*<>{}$…\[\]]")


def ids(path: pathlib.Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("directory", sorted(DESCRIBED))
def test_each_room_has_a_page_that_lists_its_files(directory: str) -> None:
    page = ROOT / directory / "README.md"
    assert page.exists(), f"{directory} has no README.md"
    listed = [name for row in documents.tables(page.read_text(), "file") for name in re.findall(r"`([^`]+)`", row[0])]
    assert len(listed) == len(set(listed)), "a file is listed twice"
    there = {path.name + "/" * path.is_dir() for path in page.parent.iterdir() if documents.is_part(path)}
    described = {name for name in there if (page.parent / name / "README.md").exists()}
    assert set(listed) | described == there - {"README.md"} | described


def test_the_front_page_is_short() -> None:
    assert (ROOT / "README.md").read_text().count("\n") <= 200


@pytest.mark.parametrize("page", PAGES, ids=ids)
def test_links_lead_somewhere(page: pathlib.Path) -> None:
    for target in documents.links(page.read_text()):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        there = (page.parent / path).resolve() if path else page
        assert there.is_relative_to(ROOT), f"{target} leads out of the tree"
        assert there.exists(), f"{target} is not there"
        if anchor:
            assert anchor in documents.anchors(there.read_text()), f"{target}: no such heading"


@pytest.mark.parametrize("page", PAGES, ids=ids)
def test_every_page_is_reached_from_the_front_page(page: pathlib.Path) -> None:
    reached, new = {ROOT / "README.md"}, [ROOT / "README.md"]
    while new:
        one = new.pop()
        for target in documents.links(one.read_text()):
            there = (one.parent / target.partition("#")[0]).resolve()
            if there.name == "README.md" and there.exists() and there not in reached:
                reached.add(there)
                new.append(there)
    assert page in reached


@pytest.mark.parametrize("page", PAGES, ids=ids)
def test_paths_that_are_named_exist(page: pathlib.Path) -> None:
    words = {word.strip(".,:;()'\"") for code in documents.inline_code(page.read_text()) for word in code.split()}
    for word in sorted(words):
        if word.startswith(tuple(f"{room}/" for room in ROOMS)) and not NOT_PLAIN.search(word):
            assert (ROOT / word).exists(), f"{word} is not there"


@pytest.mark.parametrize("page", PAGES, ids=ids)
def test_code_can_be_read(page: pathlib.Path) -> None:
    for block in documents.blocks(page.read_text()):
        where = f"{ids(page)}:{block.line}"
        if block.language == "python":
            flags = ast.PyCF_ALLOW_TOP_LEVEL_AWAIT
            assert compile(block.text, where, "exec", flags=flags), where
        elif block.language in ("sh", "bash"):
            done = subprocess.run(["bash", "-n"], input=block.text, capture_output=True, text=True, check=False)
            assert done.returncode == 0, f"{where}: {done.stderr}"


def test_every_attack_names_the_tests_that_show_it() -> None:
    rows = documents.tables((ROOT / "tests/README.md").read_text(), "#")
    assert [row[0] for row in rows] == [str(number) for number in range(1, len(rows) + 1)]
    assert len(rows) >= 64
    for number, *_, shown in rows:
        named = re.findall(r"`([^`]+)`", shown)
        assert named or shown.startswith("not built:"), f"row {number}"
        assert not [name for name in named if not (ROOT / "tests" / name).is_file()], f"row {number}"
    attacked = {name for row in rows for name in re.findall(r"`(escape/test_[^`]+)`", row[-1])}
    there = {f"escape/{path.name}" for path in (ROOT / "tests/escape").glob("test_*.py")}
    assert there - attacked == {"escape/test_seccomp_programs.py"}  # what works under a profile is no attack


def test_the_packages_page_says_who_may_import_whom() -> None:
    rows = documents.tables((PACKAGE / "README.md").read_text(), "package")
    said = {re.sub(r"[`\[\]]|\(.*\)", "", name): allowed for name, _, allowed in rows}
    assert said == {name: ", ".join(sorted(allowed)) for name, allowed in ALLOWED.items()}


def test_make_goals_that_are_named_exist() -> None:
    makefile = (ROOT / "Makefile").read_text()
    goals = set(re.findall(r"^([a-z-]+):", makefile, re.MULTILINE))
    for page in PAGES:
        text = page.read_text()
        code = [
            *documents.inline_code(text),
            *(line for block in documents.blocks(text) for line in block.text.split("\n")),
        ]
        named = {goal for line in code for goal in re.findall(r"^make ([a-z][a-z-]*)", line)}
        assert named <= goals, f"{ids(page)}: {named - goals}"


def commands_of(verb: str) -> Iterator[click.Command]:
    """Return a verb, and what is below it."""
    module, _, name = COMMANDS[verb][0].partition(":")
    left = [getattr(importlib.import_module(module), name)]
    while left:
        command = left.pop()
        yield command
        left += command.commands.values() if isinstance(command, click.Group) else ()


@pytest.mark.parametrize("page", PAGES, ids=ids)
def test_verbs_and_options_that_are_typed_exist(page: pathlib.Path) -> None:
    for block in documents.blocks(page.read_text()):
        if block.language not in ("sh", "bash"):
            continue
        for verb, rest in TYPED_VERB.findall(block.text):
            assert verb in COMMANDS, f"{ids(page)}:{block.line}: {verb}"
            known = {name for command in commands_of(verb) for param in command.params for name in param.opts}
            typed = set(re.findall(r"(?:^|\s)(--[a-z-]+)", rest.partition(" -- ")[0].partition(" #")[0]))
            assert typed <= known | {"--help"}, f"{ids(page)}:{block.line}: {verb} {typed - known}"
