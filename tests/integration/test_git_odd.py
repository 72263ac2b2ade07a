"""Repositories that are odd but not hostile, cloned by every way as C git clones them; what is hostile, refused."""

import contextlib
import os
import socket
import ssl
import subprocess
import zlib
from hashlib import sha1
from pathlib import Path

import pytest

from bench import git_history
from sandboxd import errors
from sandboxd.templates.git.clone import CloneRequest, clone
from tests.support.git_hostile import git
from tests.support.git_server import GIT_ENV, HttpServer, git_daemon

KINDS = {1: b"commit", 2: b"tree", 3: b"blob", 4: b"tag"}
WAYS = ["path", "packed path", "http", "git"]
IDENT = b"a <a> 0 +0000"


def name_of(kind, data):
    return sha1(b"%b %d\0" % (KINDS[kind], len(data)) + data).digest()


class Odd:
    """A bare repository of loose objects, whatever is in them."""

    def __init__(self, path):
        self.path = path
        subprocess.run(["git", "init", "-q", "--bare", "-b", "main", str(path)], check=True, env=GIT_ENV)
        self.blob = self.add(3, b"data\n")
        self.plain = self.tree((b"100644", b"f", self.blob))

    def add(self, kind, data):
        name = name_of(kind, data)
        file = self.path / "objects" / name.hex()[:2] / name.hex()[2:]
        file.parent.mkdir(exist_ok=True)
        file.write_bytes(zlib.compress(b"%b %d\0" % (KINDS[kind], len(data)) + data))
        return name

    def tree(self, *rows):
        return self.add(2, b"".join(mode + b" " + name + b"\0" + child for mode, name, child in rows))

    def commit(self, tree=None, parents=(), lines=None, more=b"", message=b"\nx\n"):
        head = b"tree " + (tree or self.plain).hex().encode() + b"\n"
        head += b"".join(b"parent " + one.hex().encode() + b"\n" for one in parents)
        return self.add(1, head + (lines or b"author %b\ncommitter %b\n" % (IDENT, IDENT)) + more + message)

    def tag(self, target, kind=b"commit", lines=b"tag t\ntagger " + IDENT + b"\n"):
        return self.add(4, b"object " + target.hex().encode() + b"\ntype " + kind + b"\n" + lines + b"\nx\n")

    def branch(self, name, commit):
        (self.path / "refs/heads" / name).write_text(commit.hex() + "\n")


@pytest.fixture(autouse=True)
def own_timeout():
    """A clone sets the time-out of every socket of its process, which is another one but here."""
    yield
    socket.setdefaulttimeout(None)


@contextlib.contextmanager
def address_of(path, way):
    """Give the address of a repository by one of the ways."""
    if way == "http":
        with HttpServer(path.parent) as server:
            yield f"{server.url}/{path.name}"
    elif way == "git":
        with git_daemon(path.parent) as url:
            yield f"{url}/{path.name}"
    else:
        if way == "packed path":
            git(path, "repack", "-adq")
            assert list(path.glob("objects/pack/*.pack"))
        yield str(path)


def ours(url, target, **more):
    order = CloneRequest(url=url, target=str(target), temporary=".x", **more)
    return clone(order, ssl.create_default_context(), lambda _: None)


def theirs(path, target, *more):
    subprocess.run(["git", "clone", "-q", *more, f"file://{path}", str(target)], check=True, env=GIT_ENV)


def files_in(directory):
    return {
        os.fsencode(os.path.relpath(os.path.join(at, name), directory)): oct(os.lstat(os.path.join(at, name)).st_mode)
        for at, directories, files in os.walk(directory)
        for name in directories + files
        if not os.path.relpath(os.path.join(at, name), directory).startswith(".git")
    }


def person(text):
    """Return an author's and a committer's line of which each in turn is `text`."""
    for odd, role in ((text, b"author"), (text, b"committer")):
        good = b"committer" if role == b"author" else b"author"
        rows = {role: odd, good: IDENT}
        yield b"".join(b"%b %b\n" % (name, rows[name]) for name in (b"author", b"committer"))


PEOPLE = [
    b"a <a> never +0000", b"a <a>", b"a <a> 1.5 +0000", b"a <a> -5 +0000", b"a <a> 99999999999999999999999 +0000",
    b"a <a> 0 +51800", b"a <a> 0 UTC", b"a <a> 0", b"a <a> 0 --700", b"nobody 0 +0000", b"a <a 0 +0000",
    b"J\xf6rg <a> 0 +0000", b"a\0b <a> 0 +0000", b"", b"<> 0 +0000",
]  # fmt: skip
HEADERS = [
    b"encoding latin-1\n", b"encoding \xff\n", b"mergetag object x\n type y\n\n", b"gpgsig -----BEGIN\n x\n",
    b"unknown yes\n", b"author b <b> 1 +0000\n", b"justaword\n", b"encoding\n",
]  # fmt: skip


@pytest.mark.parametrize("way", WAYS)
def test_an_odd_commit_or_tag_is_cloned(tmp_path, way) -> None:
    odd = Odd(tmp_path / "odd.git")
    commits = [odd.commit(lines=lines) for text in PEOPLE for lines in person(text)]
    commits += [odd.commit(lines=b"\n"), odd.commit(lines=b"author x\n"), odd.commit(message=b"")]
    commits += [odd.commit(more=more) for more in HEADERS] + [odd.commit(message=b"\n\xff\0\n")]
    commits.append(odd.commit(parents=commits))
    for number, commit in enumerate(commits):
        odd.branch(f"b{number}", commit)
    odd.branch("main", commits[0])
    tags = [odd.tag(commits[0], lines=lines) for lines in (b"tag t\n", b"tag t\ntagger a <a> never\n", b"tag \xff\n")]
    for number, tag in enumerate([*tags, odd.tag(odd.plain, b"tree"), odd.tag(tags[0], b"tag")]):
        (odd.path / f"refs/tags/t{number}").write_text(tag.hex() + "\n")
    theirs(odd.path, tmp_path / "theirs")
    with address_of(odd.path, way) as url:
        result = ours(url, tmp_path / "ours")
        shallow = ours(url, tmp_path / "shallow", depth=1)
    assert result["files"] == shallow["files"] == 1
    for question in (["show-ref"], ["rev-list", "--all", "--objects", "--no-object-names"], ["status", "--porcelain"]):
        answers = [sorted(git(tmp_path / one, *question).splitlines()) for one in ("ours", "theirs")]
        assert answers[0] == answers[1], question
    assert git(tmp_path / "shallow", "rev-list", "--all", "--count") == str(len(set(commits)))


TREES = {
    "group-writable": lambda odd: odd.tree((b"100664", b"f", odd.blob), (b"100600", b"g", odd.blob)),
    "executables": lambda odd: odd.tree((b"100777", b"f", odd.blob), (b"100711", b"g", odd.blob)),
    "no-bits": lambda odd: odd.tree((b"100000", b"f", odd.blob)),
    "leading-zeros": lambda odd: odd.tree((b"0040000", b"d", odd.plain), (b"000100644", b"f", odd.blob)),
    "bits-of-folders": lambda odd: odd.tree((b"40755", b"d", odd.plain)),
    "bits-of-links": lambda odd: odd.tree((b"120777", b"l", odd.add(3, b"target"))),
    "no-kind": lambda odd: odd.tree((b"644", b"f", odd.blob), (b"0", b"g", odd.blob)),
    "other-kinds": lambda odd: odd.tree((b"20000", b"f", odd.blob), (b"170000", b"g", odd.blob)),
    "empty": lambda odd: odd.tree(),
    "empty-folders": lambda odd: odd.tree((b"40000", b"d", odd.tree((b"40000", b"e", odd.tree())))),
    "unsorted": lambda odd: odd.tree((b"100644", b"b", odd.blob), (b"100644", b"a", odd.blob)),
    "unsorted-folder": lambda odd: odd.tree((b"100644", b"b", odd.blob), (b"40000", b"a", odd.plain)),
    "not-utf-8": lambda odd: odd.tree((b"100644", b"\xff\xe9", odd.blob)),
    "twice": lambda odd: odd.tree((b"100644", b"f", odd.blob), (b"100644", b"f", odd.blob)),
    "two-files": lambda odd: odd.tree((b"100644", b"f", odd.blob), (b"100755", b"f", odd.add(3, b"other\n"))),
    "folder-twice": lambda odd: odd.tree((b"40000", b"d", odd.plain), (b"40000", b"d", odd.plain)),
    "no-submodule": lambda odd: odd.tree((b"160000", b"d", b"\1" * 20)),
}  # fmt: skip


@pytest.mark.parametrize("name", TREES)
def test_an_odd_tree_is_checked_out_as_c_git_does(tmp_path, name) -> None:
    odd = Odd(tmp_path / "odd.git")
    odd.branch("main", odd.commit(TREES[name](odd)))
    theirs(odd.path, tmp_path / "theirs")
    with HttpServer(tmp_path) as server:
        for number, url in enumerate((str(odd.path), f"{server.url}/odd.git")):
            ours(url, tmp_path / f"ours{number}")
            directories = (tmp_path / f"ours{number}", tmp_path / "theirs")
            assert files_in(directories[0]) == files_in(directories[1])
            assert git(directories[0], "ls-files", "-s") == git(directories[1], "ls-files", "-s")
            contents = [
                {path.name: path.read_bytes() for path in one.iterdir() if path.is_file()} for one in directories
            ]
            assert contents[0] == contents[1]


def link_and_directory(odd):
    return odd.tree((b"120000", b"a", odd.add(3, b"/tmp")), (b"40000", b"a", odd.plain))


HOSTILE = {
    "name": [
        lambda odd: odd.tree((b"100644", b".git", odd.blob)),
        lambda odd: odd.tree((b"40000", b".GIT", odd.plain)),
        lambda odd: odd.tree((b"40000", b"..", odd.plain)),
        link_and_directory,
        lambda odd: odd.tree((b"100644", b"a", odd.blob), (b"40000", b"a", odd.plain)),
        lambda odd: odd.tree((b"40000", b"a", odd.plain), (b"40000", b"a", odd.tree((b"100644", b"g", odd.blob)))),
        lambda odd: odd.tree((b"120000", b"a", odd.add(3, b"/x")), (b"120000", b"a", odd.add(3, b"/y"))),
    ],
    "not-a-tree": [
        lambda odd: odd.tree((b"40000", b"d", odd.blob)),
        lambda odd: odd.add(2, b"100644 cut off\0"),
        lambda odd: odd.add(2, b"100x44 f\0" + b"\1" * 20),
    ],
    "not-a-file": [lambda odd: odd.tree((b"100644", b"f", odd.plain))],
    "missing-object": [lambda odd: odd.tree((b"100644", b"f", b"\1" * 20))],
}


@pytest.mark.parametrize(("reason", "make"), [(reason, make) for reason, makes in HOSTILE.items() for make in makes])
def test_a_hostile_tree_is_refused_by_its_name(tmp_path, reason, make) -> None:
    odd = Odd(tmp_path / "odd.git")
    odd.branch("main", odd.commit(make(odd)))
    with pytest.raises(errors.GitRefused) as caught:
        ours(str(odd.path), tmp_path / "ours")
    assert caught.value.reason == reason
    assert os.listdir(tmp_path) == ["odd.git"]


@pytest.mark.parametrize("damage", [b"", b"no zlib", zlib.compress(b"commit 3\0xx"), zlib.compress(b"commit 2\0xx")])
def test_a_damaged_repository_is_named_as_one(tmp_path, damage) -> None:
    odd = Odd(tmp_path / "odd.git")
    commit = odd.commit()
    odd.branch("main", commit)
    (odd.path / "objects" / commit.hex()[:2] / commit.hex()[2:]).write_bytes(damage)
    with pytest.raises(errors.GitRefused) as caught:
        ours(str(odd.path), tmp_path / "ours")
    assert caught.value.reason in ("damaged", "damaged-commit")


def test_a_path_of_a_shallow_or_borrowing_repository(tmp_path) -> None:
    git_history.make(tmp_path / "history.git")
    theirs(tmp_path / "history.git", tmp_path / "short", "--depth=3")
    borrower = tmp_path / "borrower"
    git(tmp_path, "clone", "-q", "--shared", str(tmp_path / "short"), str(borrower))
    for source in ("short", "borrower"):
        for depth in (None, 2):
            target: Path = tmp_path / f"{source}-{depth}"
            ours(str(tmp_path / source), target, depth=depth)
            theirs(tmp_path / source, tmp_path / f"{source}-{depth}-theirs", *([f"--depth={depth}"] if depth else []))
            for question in (["log", "--format=%H"], ["status", "--porcelain"], ["fsck"]):
                assert git(target, *question) == git(tmp_path / f"{source}-{depth}-theirs", *question), (source, depth)
