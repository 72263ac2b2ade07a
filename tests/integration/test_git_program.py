"""The clone program, on the host, against C git's own servers: `git http-backend` and `git daemon`."""

import contextlib
import os
import random
import shutil
import socket
import ssl
import subprocess
import sys
import threading
import time
from hashlib import sha1
from pathlib import Path
from typing import Any

import dns.message
import dns.rcode
import dns.rdatatype
import dns.rrset
import pytest

from bench import git_history
from sandboxd import errors
from sandboxd.templates.git import configfile
from sandboxd.templates.git.clone import CloneRequest, clone
from sandboxd.templates.git.intake import PackIntake
from sandboxd.templates.git.transport import Login
from tests.support.git_hostile import PWNED, git, packed, raw_repository, with_submodule, write_pack, write_repository
from tests.support.git_server import GIT_ENV, HttpServer, git_daemon

TEMPORARY = ".sandboxd-clone-x"


@pytest.fixture(scope="session")
def served(tmp_path_factory):
    """A repository with a history, and one that has it as a submodule; gives their directory."""
    root = tmp_path_factory.mktemp("served")
    git_history.make(root / "history.git")
    with_submodule(root)
    subprocess.run(["git", "init", "-q", "--bare", "-b", "trunk", str(root / "empty.git")], check=True, env=GIT_ENV)
    return root


@pytest.fixture(autouse=True)
def own_timeout():
    """A clone sets the time-out of every socket of its process, which is another one but here."""
    yield
    socket.setdefaulttimeout(None)


@pytest.fixture
def run(tmp_path):
    """Clone into a new directory; gives (result, directory)."""

    def _run(url, **more):
        target = tmp_path / more.pop("target", "clone")
        told: list[Any] = []
        order = CloneRequest(url=url, target=str(target), temporary=TEMPORARY, **more)
        try:
            result = clone(order, ssl.create_default_context(), told.append)
        finally:
            left = [name for name in os.listdir(tmp_path) if name == TEMPORARY]
            assert not left
        result["told"] = told
        return result, target

    return _run


def is_whole(directory, **more):
    git(directory, "fsck", "--strict", *([] if more.get("shallow") else ["--full"]))
    assert git(directory, "status", "--porcelain") == ""


# --- what comes ---------------------------------------------------------------------------------------------


def test_a_full_clone_is_what_c_git_makes(run, served, tmp_path) -> None:
    with HttpServer(served) as server:
        result, directory = run(f"{server.url}/history.git")
        subprocess.run(["git", "clone", "-q", f"{server.url}/history.git", str(tmp_path / "theirs")], check=True)
    is_whole(directory)
    for question in (
        ["log", "--all", "--format=%H %P %s"],
        ["show-ref"],
        ["symbolic-ref", "HEAD"],
        ["symbolic-ref", "refs/remotes/origin/HEAD"],
        ["ls-files", "-s"],
        ["status", "-sb"],
        ["config", "branch.main.merge"],
        ["config", "remote.origin.fetch"],
    ):
        assert git(directory, *question) == git(tmp_path / "theirs", *question), question
    assert result["branch"] == "main"
    assert result["commit"] == git(served / "history.git", "rev-parse", "main")
    assert result["target_dir"] == str(directory)
    assert (directory / "link.md").readlink() == Path("README.md")
    assert os.access(directory / "bin/run.sh", os.X_OK)
    assert (directory / git_history.UNICODE).read_text() == "Grüße\n"
    assert (directory / git_history.LARGE).stat().st_size == 300_000
    phases = [told["phase"] for told in result["told"]]
    assert list(dict.fromkeys(phases)) == [
        "connecting",
        *(phase for phase in ("counting", "compressing") if phase in phases),
        "receiving",
        "resolving",
        "checking-out",
    ]
    received = [told for told in result["told"] if told["phase"] == "receiving"][-1]
    assert received["done"] == received["total"] == result["objects"]
    assert received["received_bytes"] == result["received_bytes"] > 300_000


def test_work_goes_on_from_a_clone_with_c_git(run, served, tmp_path) -> None:
    shutil.copytree(served / "history.git", tmp_path / "origin.git")
    git(tmp_path / "origin.git", "config", "http.receivepack", "true")
    with HttpServer(tmp_path) as server:
        _, directory = run(f"{server.url}/origin.git", depth=1)
        (directory / "new.txt").write_text("new\n")
        git(directory, "add", "new.txt")
        git(directory, "-c", "user.name=A", "-c", "user.email=a@example.com", "commit", "-q", "-m", "new")
        git(directory, "push", "-q")
        git(directory, "fetch", "-q", "--unshallow")
    is_whole(directory)
    assert git(tmp_path / "origin.git", "rev-parse", "main") == git(directory, "rev-parse", "HEAD")


def test_a_shallow_clone_ends_at_its_depth(run, served) -> None:
    with HttpServer(served) as server:
        result, directory = run(f"{server.url}/history.git", depth=3, single_branch=True)
    is_whole(directory, shallow=True)
    assert git(directory, "rev-parse", "--is-shallow-repository") == "true"
    assert len(git(directory, "log", "--first-parent", "--format=%H").splitlines()) == 3
    assert git(directory, "branch", "-r").split() == ["origin/HEAD", "->", "origin/main", "origin/main"]
    assert result["branch"] == "main"


@pytest.mark.parametrize(
    ("ref", "branch"),
    [
        ("feature-x", "feature-x"),
        ("release/1.0", "release/1.0"),
        ("v1.2", None),
        ("light", None),
        ("refs/tags/v1.1", None),
    ],
)
@pytest.mark.parametrize("single_branch", [False, True])
def test_a_branch_or_a_tag(run, served, ref, branch, single_branch) -> None:
    with HttpServer(served) as server:
        result, directory = run(f"{server.url}/history.git", ref=ref, single_branch=single_branch)
    is_whole(directory)
    assert result["branch"] == branch
    assert result["commit"] == git(served / "history.git", "rev-parse", f"{ref}^{{commit}}")
    assert git(directory, "rev-parse", "HEAD") == result["commit"]


@pytest.mark.parametrize("depth", [None, 1])
def test_a_commit(run, served, depth) -> None:
    commit = git(served / "history.git", "rev-parse", "main~7")
    with HttpServer(served) as server:
        result, directory = run(f"{server.url}/history.git", ref=commit, depth=depth, single_branch=depth is not None)
    is_whole(directory, shallow=depth)
    assert (result["branch"], result["commit"]) == (None, commit)
    assert git(directory, "rev-parse", "HEAD") == commit


def test_git_daemon(run, served) -> None:
    commit = git(served / "history.git", "rev-parse", "main~9")
    with git_daemon(served) as url:
        assert run(f"{url}/history.git", target="commit", ref=commit)[0]["commit"] == commit
        with pytest.raises(errors.GitRefNotFound):
            run(f"{url}/history.git", target="no-commit", ref="1" * 40)
        result, directory = run(f"{url}/history.git")
        shallow, _ = run(f"{url}/history.git", target="shallow", depth=1, single_branch=True)
    is_whole(directory)
    assert result["commit"] == shallow["commit"] == git(directory, "rev-parse", "origin/main")


@pytest.mark.parametrize("depth", [None, 2])
def test_a_path(run, served, depth) -> None:
    result, directory = run(str(served / "history.git"), depth=depth)
    is_whole(directory, shallow=depth)
    assert result["commit"] == git(served / "history.git", "rev-parse", "main")


def test_an_empty_repository(run, served) -> None:
    with HttpServer(served) as server:
        result, directory = run(f"{server.url}/empty.git")
    assert (result["commit"], result["files"]) == (None, 0)
    assert git(directory, "status", "--porcelain") == ""


def test_submodules(run, served) -> None:
    commit = git(served / "history.git", "rev-parse", "v1.2^{commit}")
    with HttpServer(served) as server:
        result, directory = run(f"{server.url}/outer.git", submodules=True)
        without, plain = run(f"{server.url}/outer.git", target="plain")
        _, shallow = run(f"{server.url}/outer.git", target="shallow", submodules=True, depth=1, single_branch=True)
    is_whole(directory)
    is_whole(directory / "libs/history")
    for one in (directory, shallow):
        assert git(one / "libs/history", "rev-parse", "HEAD") == commit
        assert git(one, "submodule", "status").split()[:2] == [commit, "libs/history"]
    assert (directory / "libs/history/README.md").read_text() == "# A history\n"
    assert not list((plain / "libs/history").iterdir())
    assert result["files"] > without["files"]
    assert {told.get("submodule") for told in result["told"]} == {None, "libs/history"}


def test_sparse_paths(run, served) -> None:
    with HttpServer(served) as server:
        result, directory = run(f"{server.url}/history.git", sparse=("docs", "src/babers"))
    is_whole(directory)
    assert sorted(os.listdir(directory)) == [".git", "README.md", "docs", "link.md", "src"]
    assert os.listdir(directory / "src") == ["babers"]
    assert git(directory, "sparse-checkout", "list").splitlines() == ["docs", "src/babers"]
    git(directory, "sparse-checkout", "disable")
    assert (directory / git_history.LARGE).stat().st_size == 300_000
    assert result["files"] < 30


# --- who asks -----------------------------------------------------------------------------------------------


def test_a_password_opens_and_stays_nowhere(run, served) -> None:
    secret = "s3cr3t-zugang"
    with HttpServer(served, login=("anne", secret)) as server:
        result, directory = run(f"{server.url}/history.git", login=Login("anne", secret))
        assert all(token is not None for _, token in server.hits)
    assert secret not in repr(result)
    found = [path for path in directory.rglob("*") if path.is_file() and secret.encode() in path.read_bytes()]
    assert found == []
    assert git(directory, "config", "remote.origin.url") == f"{server.url}/history.git"


@pytest.mark.parametrize("login", [None, Login("anne", "wrong")])
def test_a_wrong_password_is_named(run, served, login) -> None:
    with HttpServer(served, login=("anne", "right")) as server, pytest.raises(errors.GitAuthentication) as caught:
        run(f"{server.url}/history.git", login=login)
    assert caught.value.sent is (login is not None)
    assert "wrong" not in caught.value.message


def _redirect(to):
    def answer(handler):
        handler.send_response(302)
        handler.send_header("Location", to + handler.path)
        handler.send_header("Content-Length", "0")
        handler.end_headers()
        return True

    return answer


def test_a_redirection_takes_no_password_along(run, served) -> None:
    with HttpServer(served) as other, HttpServer(served) as first:
        first.answer = _redirect(other.url)
        result, directory = run(f"{first.url}/history.git", login=Login("anne", "secret"))
        assert first.hits[0][1] is not None
        assert other.hits
        assert all(token is None for _, token in other.hits)
    is_whole(directory)
    assert result["branch"] == "main"


@pytest.mark.parametrize("to", ["file:///etc/passwd#", "ext::sh -c id", "gopher://127.0.0.1:1", "/again"])
def test_a_redirection_elsewhere_is_refused(run, served, to) -> None:
    with HttpServer(served) as server:
        server.answer = _redirect(to)
        with pytest.raises(errors.GitError):
            run(f"{server.url}/history.git")


# --- what fails ---------------------------------------------------------------------------------------------


def test_a_missing_branch_names_close_ones(run, served) -> None:
    with HttpServer(served) as server, pytest.raises(errors.GitRefNotFound) as caught:
        run(f"{server.url}/history.git", ref="feature-y")
    assert "feature-x" in caught.value.suggestions


@pytest.mark.parametrize("depth", [None, 1])
def test_a_missing_commit(run, served, depth) -> None:
    with HttpServer(served) as server, pytest.raises(errors.GitRefNotFound):
        run(f"{server.url}/history.git", ref="1" * 40, depth=depth)


def test_no_repository(run, served, tmp_path) -> None:
    with HttpServer(served) as server, git_daemon(served) as daemon:
        for url in (f"{server.url}/none.git", f"{daemon}/none.git", str(tmp_path), "/nonexistent"):
            with pytest.raises(errors.GitRepositoryNotFound):
                run(url)

        def page(handler):
            handler._plain(200, b"<html>" + b"x" * 10_000, {"Content-Type": "text/html"})
            return True

        server.answer = page
        with pytest.raises(errors.GitRepositoryNotFound):
            run(f"{server.url}/history.git")


def test_unreachable(run) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    for scheme in ("http", "git"):
        with pytest.raises(errors.GitUnreachable) as caught:
            run(f"{scheme}://127.0.0.1:{port}/a.git")
        assert caught.value.reason == "connection"


def test_no_tls_where_it_should_be(run, served) -> None:
    with HttpServer(served) as server, pytest.raises(errors.GitUnreachable) as caught:
        run(f"https://127.0.0.1:{server.port}/history.git")
    assert caught.value.reason == "tls"


@pytest.mark.parametrize("where", ["refs", "pack"])
def test_a_server_that_stalls(run, served, where) -> None:
    with HttpServer(served) as server:

        def answer(handler):
            if where == "pack" and handler.command == "GET":
                return False
            server.stopped.wait(30)
            return True

        server.answer = answer
        with pytest.raises(errors.GitTimeout) as caught:
            run(f"{server.url}/history.git", stall_s=0.3)
    assert caught.value.stalled is True


@pytest.mark.parametrize("seed", range(6))
def test_a_server_that_sends_garbage(run, served, seed) -> None:
    chance = random.Random(seed)

    def answer(handler):
        data = chance.randbytes(3000)
        if seed % 3 == 1:
            data = b"001e# service=git-upload-pack\n0000" + data
        if seed % 3 == 2:
            data = b"001e# service=git-upload-pack\n0000000eversion 2\n" + data
        handler._plain(200, data, {"Content-Type": "application/x-git-upload-pack-advertisement"})
        return True

    with HttpServer(served) as server:
        server.answer = answer
        with pytest.raises(errors.GitError) as caught:
            run(f"{server.url}/history.git")
    assert not isinstance(caught.value, errors.InternalError)


def test_a_server_that_hangs_up_in_the_middle(run, served) -> None:
    def answer(handler):
        if handler.command == "GET":
            return False
        body = handler.rfile.read(int(handler.headers["Content-Length"]))
        if b"ls-refs" in body:
            handler.rfile = __import__("io").BytesIO(body)
            return False
        handler.send_response(200)
        handler.send_header("Content-Type", "application/x-git-upload-pack-result")
        handler.send_header("Content-Length", "100000")
        handler.end_headers()
        handler.wfile.write(b"000dpackfile\n0013\x01PACK\0\0\0\x02\0\0\1\0abc")
        handler.connection.shutdown(socket.SHUT_RDWR)
        return True

    with HttpServer(served) as server:
        server.answer = answer
        with pytest.raises(errors.GitError) as caught:
            run(f"{server.url}/history.git")
    assert caught.value.kind in ("git-unreachable", "git-protocol-error")


# --- where it goes ------------------------------------------------------------------------------------------


def test_the_target(run, served, tmp_path) -> None:
    url = str(served / "history.git")
    _, directory = run(url, target="a/b/c", depth=1)
    is_whole(directory, shallow=True)
    with pytest.raises(errors.DirectoryNotEmpty):
        run(url, target="a/b/c")
    is_whole(directory, shallow=True)
    (tmp_path / "file").write_text("x")
    with pytest.raises(errors.FileExists):
        run(url, target="file")
    empty = tmp_path / "empty"
    empty.mkdir(0o711)
    before = empty.stat().st_ino
    _, directory = run(url, target="empty")
    is_whole(directory)
    assert (empty.stat().st_ino, empty.stat().st_mode & 0o777) == (before, 0o711)
    (tmp_path / "dangling").symlink_to("nowhere")
    (tmp_path / "round").symlink_to("round")
    for target, kind in (
        ("dangling", "file-not-found"),
        ("dangling/x", "file-not-found"),
        ("file/x", "file-exists"),
        ("round/x", "file-exists"),
        ("n" * 300, "invalid-request"),
    ):
        with pytest.raises(errors.SandboxdError) as caught:
            run(url, target=target)
        assert caught.value.kind == kind, target


def test_a_failure_leaves_no_new_folders(run, served, tmp_path) -> None:
    with pytest.raises(errors.GitRefNotFound):
        run(str(served / "history.git"), target="new/er/folder", ref="none-such")
    assert os.listdir(tmp_path) == []


def test_a_target_that_came_meanwhile_is_left_alone(run, served, tmp_path) -> None:
    with HttpServer(served) as server:

        def answer(handler):
            (tmp_path / "clone").mkdir(exist_ok=True)
            (tmp_path / "clone/theirs").write_text("x")
            return False

        server.answer = answer
        with pytest.raises(errors.SandboxdError) as caught:
            run(f"{server.url}/history.git")
    assert caught.value.kind in ("file-exists", "directory-not-empty")
    assert os.listdir(tmp_path / "clone") == ["theirs"]


# --- hostile repositories -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    [
        b".git", b".GIT", b".Git", b"git~1", b"GIT~1", b".git ", b".git.", b".git:x", b".git::$INDEX_ALLOCATION",
        ".g\u200cit".encode(), ".\u200dgit".encode(), b"..", b".", b"a/../../b", b"", b"x" * 300,
    ],
)  # fmt: skip
def test_names_that_are_git_or_lead_away_are_not_made(run, tmp_path, name) -> None:
    directory = [(b"100755", b"post-checkout", PWNED)]
    raw_repository(tmp_path / "bad.git", [(b"40000", name, [(b"40000", b"hooks", directory)])])
    with HttpServer(tmp_path) as server, pytest.raises(errors.GitError) as caught:
        run(f"{server.url}/bad.git")
    assert caught.value.kind in ("git-refused", "git-protocol-error")
    assert sorted(os.listdir(tmp_path)) == ["bad.git"]


@pytest.mark.parametrize("order", [0, 1])
def test_nothing_is_written_through_a_link(run, tmp_path, order) -> None:
    (tmp_path / "outside").mkdir()
    rows = [
        (b"120000", b"a", str(tmp_path / "outside").encode()),
        (b"40000", b"a", [(b"100644", b"evil", b"evil")]),
    ]
    raw_repository(tmp_path / "bad.git", rows[:: -1 if order else 1])
    with HttpServer(tmp_path) as server, pytest.raises(errors.GitRefused):
        run(f"{server.url}/bad.git")
    assert os.listdir(tmp_path / "outside") == []


def test_links_and_attributes_are_only_files(run, tmp_path) -> None:
    attributes = b"* filter=evil\n* text eol=crlf\n"
    raw_repository(
        tmp_path / "odd.git",
        [
            (b"100644", b".gitattributes", attributes),
            (b"100644", b"a.txt", b"one\ntwo\n"),
            (b"120000", b"link", b"/etc/shadow"),
        ],
    )
    with HttpServer(tmp_path) as server:
        _, directory = run(f"{server.url}/odd.git")
    assert (directory / "a.txt").read_bytes() == b"one\ntwo\n"
    assert os.readlink(directory / "link") == "/etc/shadow"
    assert not list((directory / ".git").glob("hooks/*"))


def test_a_git_bomb_is_counted_before_it_is_made(run, tmp_path) -> None:
    # ten levels of ten: built by hand, so that each tree is there once
    objects = []

    def add(kind, data):
        objects.append((kind, data))
        return sha1(b"%b %d\0" % ({1: b"commit", 2: b"tree", 3: b"blob"}[kind], len(data)) + data).digest()

    below, mode = add(3, b"boom"), b"100644"
    for _ in range(10):
        below = add(2, b"".join(mode + b" d%d\0" % n + below for n in range(10)))
        mode = b"40000"
    commit = add(1, b"tree %b\nauthor a <a> 0 +0000\ncommitter a <a> 0 +0000\n\nx\n" % below.hex().encode())
    write_pack(tmp_path / "bomb.git", objects, commit.hex())
    with HttpServer(tmp_path) as server, pytest.raises(errors.GitRefused) as caught:
        run(f"{server.url}/bomb.git")
    assert caught.value.reason == "too-many-files"


def test_a_tower_of_folders(run, tmp_path) -> None:
    content: list[tuple[bytes, bytes, Any]] = [(b"100644", b"f", b"x")]
    for _ in range(390):
        content = [(b"40000", b"d", content)]
    raw_repository(tmp_path / "high.git", content)
    with HttpServer(tmp_path) as server:
        assert run(f"{server.url}/high.git", target="high")[0]["files"] == 1
    for _ in range(210):
        content = [(b"40000", b"d", content)]
    raw_repository(tmp_path / "deep.git", content)
    with HttpServer(tmp_path) as server, pytest.raises(errors.GitRefused) as caught:
        run(f"{server.url}/deep.git")
    assert caught.value.reason == "too-deep"


@pytest.mark.parametrize(
    ("url", "path", "name"),
    [
        ("/etc", "sub", None),
        ("file:///etc", "sub", None),
        ("ext::sh -c touch% /tmp/sandboxd-pwned", "sub", None),
        ("-u./payload", "sub", None),
        ("ssh://-oProxyCommand=touch/x", "sub", None),
        ("../history.git", "sub", "../../hooks"),
        ("../history.git", "sub", ".."),
        ("../history.git", "sub", "a/.git"),
    ],
)
def test_submodules_lead_nowhere_else(run, tmp_path, served, url, path, name) -> None:
    shutil.copytree(served / "history.git", tmp_path / "history.git")
    with_submodule(tmp_path, url, path, name)
    with HttpServer(tmp_path) as server, pytest.raises(errors.GitRefused) as caught:
        run(f"{server.url}/outer.git", submodules=True)
    assert caught.value.reason in ("submodule-name", "submodule-address")
    assert sorted(os.listdir(tmp_path)) == ["history.git", "outer.git"]


@pytest.mark.parametrize("names", [("a", "a/hooks"), ("a/hooks", "a")])
def test_a_submodule_is_not_made_in_another_ones_folder(run, tmp_path, served, names) -> None:
    shutil.copytree(served / "history.git", tmp_path / "history.git")
    commit = git(tmp_path / "history.git", "rev-parse", "main")
    declared = "".join(
        f'[submodule "{name}"]\n\tpath = p{number}\n\turl = ../history.git\n' for number, name in enumerate(names)
    )
    files = {".gitmodules": ("100644", declared.encode()), "p0": ("160000", commit), "p1": ("160000", commit)}
    write_repository(tmp_path / "outer.git", files)
    with HttpServer(tmp_path) as server, pytest.raises(errors.GitRefused) as caught:
        run(f"{server.url}/outer.git", submodules=True)
    assert caught.value.reason == "submodule-name"


# --- files of settings --------------------------------------------------------------------------------------

CORPUS = [
    b'[submodule "a b"]\n\tpath = x\n\turl = y\n',
    b'[SubModule "A b"]\n\tPATH=x\n\tUrL   =   y z  \n',
    b"[submodule.Name]path=x\n[a.B]c\n[a..b]c=1\n[.]c\n",
    b'[include]\n\tpath = /dev/zero\n[includeIf "gitdir:/"]\n\tpath = /etc/passwd\n',
    b'[s "a\\"b\\\\c\\d"]\npath = "a # b" ; c\nurl = "q"x"y z" # c\n',
    b'[s]\npath = one \\\n  two \\\n three\nurl = a\\tb\\nc\\\\d\\"e\\b\n',
    b"[s]\npath = x\npath = y\n[S]\nPATH = z\n",
    b"\xef\xbb\xbf[s]\r\npath = x\r\nurl = \xc3\xa9\r\n",
    b"# a\n  ; b\n[s] path = x\n[s] # c\n\turl\n",
    b'[s]\npath = \nurl = ""\nlast = x',
    b"alone = 1\n[s]\nb-1 = \\",
    b'[s]\npath =  \t a  b \r "  c "  \\\n  d \\n  \t# e\nurl = "" x  ""\n',
    # What is no configuration:
    b'[s]\npath = "open\nurl = x\n',
    b"[s]\npath = a\\qb\n",
    b"[s]\n1path = a\n",
    b"[s]\npath : a\n",
    b'[s "a" ]\npath = a\n',
    b'[s"a"]\npath = a\n',
    b'[s "a\n"]\npath = a\n',
    b"[]\npath = a\n",
    b"[s\npath = a\n",
    b"[s]\n= a\n",
]


@pytest.mark.parametrize("data", CORPUS)
def test_settings_are_read_as_c_git_reads_them(tmp_path, data) -> None:
    (tmp_path / "f").write_bytes(data)
    words = ["git", "config", "--no-includes", "-z", "-f", str(tmp_path / "f"), "--list"]
    theirs = subprocess.run(words, capture_output=True, env=GIT_ENV, check=False)
    if theirs.returncode:
        with pytest.raises(errors.GitRefused) as caught:
            list(configfile.parse(data, "f"))
        assert caught.value.reason == "configuration"
        return
    ours = b""
    for section, sub, name, value in configfile.parse(data, "f"):
        key = b".".join(part for part in (section or None, sub, name) if part is not None)
        ours += key + (b"" if value is None else b"\n" + value) + b"\0"
    assert ours == theirs.stdout


@pytest.mark.parametrize("piece", [b" ", b"\t", b"\r", b"x ", b'" "', b" #\n"])
def test_a_long_value_takes_time_by_its_length_alone(piece) -> None:
    def seconds(data):
        begin = time.process_time()
        for _ in configfile.parse(b"[s]\npath = x" + data + b"y\n", "f"):
            pass
        return time.process_time() - begin

    control = min(seconds(b"\\n" * 100_000) for _ in range(3))
    assert min(seconds(piece * 500_000) for _ in range(2)) < 40 * control  # square: hundreds of times


def declaring(root, served, gitmodules, mode="100644"):
    """Make outer.git, with this .gitmodules and a submodule at libs/history."""
    shutil.copytree(served / "history.git", root / "history.git")
    commit = git(root / "history.git", "rev-parse", "v1.2^{commit}")
    write_repository(root / "outer.git", {".gitmodules": (mode, gitmodules), "libs/history": ("160000", commit)})
    return commit


GOOD = b'[submodule "h"]\n\tpath = libs/history\n\turl = ../history.git\n'


@pytest.mark.parametrize(
    "gitmodules",
    [
        b"[include]\n\tpath = /dev/zero\n" + GOOD,
        GOOD + b"[include]\n\tpath = FIFO\n",
        GOOD + b'[includeIf "gitdir:/"]\n\tpath = OTHER\n[Include]\n\tPath = OTHER\n',
        GOOD.replace(b"submodule", b"SubModule").replace(b"path", b"PATH").replace(b"url", b"Url"),
        b"# a comment\n" * 700_000 + GOOD,
        GOOD.replace(b"../history.git", b"/etc") + GOOD,
    ],
    ids=["dev-zero", "fifo", "another-file", "capitals", "8-MB", "twice"],
)
def test_gitmodules_include_nothing_and_lose_nothing(run, tmp_path, served, gitmodules) -> None:
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "other").write_bytes(GOOD.replace(b"../history.git", b"http://127.0.0.1:9/else"))
    gitmodules = gitmodules.replace(b"FIFO", bytes(tmp_path / "fifo")).replace(b"OTHER", bytes(tmp_path / "other"))
    commit = declaring(tmp_path, served, gitmodules)
    with HttpServer(tmp_path) as server:
        _, directory = run(f"{server.url}/outer.git", submodules=True, depth=1)
    assert git(directory / "libs/history", "rev-parse", "HEAD") == commit


@pytest.mark.parametrize(
    ("gitmodules", "mode", "reason"),
    [
        (GOOD.replace(b"\turl = ../history.git\n", b""), "100644", "submodule-address"),
        (GOOD.replace(b" = ../history.git", b""), "100644", "configuration"),
        (GOOD + b"nonsense here\n", "100644", "configuration"),
        (GOOD + b"#" * (configfile.MAX_BYTES + 1), "100644", "configuration"),
        (b"own.txt", "120000", "configuration"),
        (b"/dev/zero", "120000", "configuration"),
    ],
    ids=["no-url", "bare-url", "bad-line", "too-long", "link", "link-to-dev-zero"],
)
def test_gitmodules_that_cannot_be_heeded_are_an_error(run, tmp_path, served, gitmodules, mode, reason) -> None:
    declaring(tmp_path, served, gitmodules, mode)
    with HttpServer(tmp_path) as server, pytest.raises(errors.GitRefused) as caught:
        run(f"{server.url}/outer.git", submodules=True, depth=1)
    assert caught.value.reason == reason


def test_a_repository_on_disk_opens_nothing_else(run, tmp_path, served) -> None:
    source = tmp_path / "own.git"
    shutil.copytree(served / "history.git", source)
    with (source / "config").open("a") as config:
        config.write("[include]\n\tpath = /dev/zero\n")
    result, _ = run(str(source))
    assert result["commit"] == git(served / "history.git", "rev-parse", "HEAD")
    for name, make in (
        ("refs/heads/fifo", os.mkfifo),
        ("shallow", os.mkfifo),
        ("objects/info/alternates", lambda path: os.symlink("/dev/zero", path)),
    ):
        make(source / name)
        with pytest.raises(errors.GitRefused) as caught:
            run(str(source), target="other")
        assert caught.value.reason == "configuration"
        (source / name).unlink()
    lender = tmp_path / "lender/objects"
    (lender / "pack").mkdir(parents=True)
    (source / "objects/info/alternates").write_text(f"{lender}\n")
    assert run(str(source), target="borrowing")[0]["commit"] == result["commit"]
    os.mkfifo(lender / "pack/pack-1.idx")
    with pytest.raises(errors.GitRefused):
        run(str(source), target="other")


# --- packs --------------------------------------------------------------------------------------------------


def take(tmp_path, data, step=997):
    path = tmp_path / "x.pack"
    path.unlink(missing_ok=True)
    intake = PackIntake(path, lambda *_: None, lambda *_: None)
    try:
        for start in range(0, len(data), step):
            intake.write(data[start : start + step])
        return intake.finish()
    finally:
        intake.close()


@pytest.fixture(scope="module")
def real_pack(served):
    (path,) = (served / "history.git/objects/pack").glob("*.pack")
    return path.read_bytes()


@pytest.mark.parametrize("step", [1, 997, 300_000])
def test_an_index_is_c_gits_own(tmp_path, served, real_pack, step) -> None:
    pack = take(tmp_path, real_pack, step)
    pack.write_index(tmp_path / "x.idx")
    pack.close()
    (theirs,) = (served / "history.git/objects/pack").glob("*.idx")
    assert (tmp_path / "x.idx").read_bytes() == theirs.read_bytes()


def test_bases_that_are_named(tmp_path) -> None:
    base = b"base " * 100
    name = sha1(b"blob %d\0" % len(base) + base).digest()
    delta = b"\xf4\x03" + b"\xf5\x03" + b"\xb0\xf4\x01" + b"\x01!"
    pack = take(tmp_path, packed([(7, delta, len(delta), name), (3, base)]))
    data = base + b"!"
    assert pack.get(sha1(b"blob %d\0" % len(data) + data).digest()) == (3, data)
    pack.close()


@pytest.mark.parametrize("seed", range(40))
def test_a_damaged_pack_is_an_error(tmp_path, real_pack, seed) -> None:
    chance = random.Random(seed)
    data = bytearray(real_pack)
    if seed % 4 == 0:
        del data[chance.randrange(len(data)) :]
    elif seed % 4 == 1:
        data += chance.randbytes(chance.randrange(1, 100))
    else:
        for _ in range(chance.randrange(1, 5)):
            data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
        if seed % 4 == 3:  # with a checksum that fits
            data[-20:] = sha1(data[:-20]).digest()
    with pytest.raises(errors.GitError):
        take(tmp_path, bytes(data))


def test_pack_bombs(tmp_path) -> None:
    zeros = b"\0" * (64 << 20)
    liar = packed([(3, zeros, 10)])  # inflates to more than it says
    claims = packed([(6, b"\x05\x80\x80\x80\x80\x80\x80\x01", 8, b"\x20"), (3, b"base!")][::-1])
    huge = packed([(3, b"x", 1 << 60)])
    delta = packed([(3, b"base!"), (7, b"x" * 10, 1 << 40, sha1(b"blob 5\0base!").digest())])
    for data in (liar, claims, huge, delta):
        with pytest.raises(errors.GitError):
            take(tmp_path, data, 65_536)
    intake = PackIntake(tmp_path / "tail.pack", lambda *_: None, lambda *_: None)
    intake.write(packed([(3, b"x")]))
    with pytest.raises(errors.GitProtocolError):
        for _ in range(16):  # more than the one batch that may wait
            intake.write(bytes(65_536))
    intake.close()
    honest = take(tmp_path, packed([(3, zeros)]), 65_536)  # passes through in pieces
    kind, pieces = honest.pieces(sha1(b"blob %d\0" % len(zeros) + zeros).digest())
    assert kind == 3
    assert sum(map(len, pieces)) == len(zeros)
    honest.close()


# --- what it loads ------------------------------------------------------------------------------------------

PROGRAM = """
import os, sys
from sandboxd.templates import git
from sandboxd.wire import framing
git.load()
git.names._RESOLV_CONF = "/dev/null/none" if len(sys.argv) < 6 else sys.argv[5]
url, target, more, out = sys.argv[1], sys.argv[2], eval(sys.argv[3]), os.open(sys.argv[4], os.O_WRONLY | os.O_CREAT)
sys.path.clear(); sys.path_importer_cache.clear()
before = set(sys.modules)
order = dict(url=url, target=target, temporary=".t", ref=None, depth=None, single_branch=False, submodules=True,
             sparse=[], login=("a", "b"), stall_s=20.0, memory_bytes=None)
order.update(more)
os.dup2(out, 0)
git.work(order)
grown = set(sys.modules) - before
os.write(2, repr(grown).encode())
os._exit(len(grown))
"""


@contextlib.contextmanager
def nameserver(names):
    """Answer for `names` at 127.0.0.77; any other name does not exist."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind(("127.0.0.77", 53))

        def serve():
            while True:
                data, peer = sock.recvfrom(4096)
                if data == b"stop":
                    return
                query = dns.message.from_wire(data)
                answer = dns.message.make_response(query)
                question = query.question[0]
                address = names.get(question.name.to_text())
                if address is None:
                    answer.set_rcode(dns.rcode.NXDOMAIN)
                elif question.rdtype == dns.rdatatype.A:
                    answer.answer.append(dns.rrset.from_text(question.name, 60, "IN", "A", address))
                sock.sendto(answer.to_wire(), peer)

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield
        finally:
            sock.sendto(b"stop", ("127.0.0.77", 53))
            thread.join(5)


def test_a_clone_imports_nothing_and_asks_no_libc_for_names(served, tmp_path) -> None:
    (tmp_path / "resolv.conf").write_text("nameserver 127.0.0.77\n")
    with HttpServer(served) as server, git_daemon(served) as daemon, nameserver({"git.example.": "127.0.0.1"}):
        port = server.port
        places = {
            "http": (f"http://localhost:{port}/outer.git", {}),
            "git": (f"{daemon}/history.git", {"depth": 1}),
            "path": (str(served / "history.git"), {"depth": 2}),
            "sparse": (f"{server.url}/history.git", {"sparse": ["docs"]}),
            "dns": (f"http://git.example:{port}/history.git", {}),
            "no-name": ("https://git.nowhere.example/a.git", {}),
            "tls": (f"https://localhost:{port}/a.git", {}),
        }
        for name, (url, more) in places.items():
            done = subprocess.run(
                ["strace", "-f", "-qq", "-e", "trace=openat,open", "-o", str(tmp_path / "trace"), sys.executable, "-c",
                 PROGRAM, url, str(tmp_path / name), repr(more), str(tmp_path / "out"),
                 str(tmp_path / "resolv.conf")],
                capture_output=True, text=True, check=False, timeout=60, cwd=Path(__file__).parents[2],
            )  # fmt: skip
            assert done.returncode == 0, (name, done.stderr)
            said = (tmp_path / "out").read_bytes()
            assert (b"fail" in said) == (name in ("no-name", "tls")), (name, said)
            trace = (tmp_path / "trace").read_text()
            entered = trace[trace.index('"/dev/null"') :]
            entered = "".join(line for line in entered.splitlines() if "O_CREAT" not in line)  # what it makes
            for library in ("libnss", "nsswitch", "gconv", "openssl.cnf", ".so", ".py"):
                assert library not in entered, (name, library)
            (tmp_path / "out").unlink()


def test_a_clone_that_is_stopped_leaves_nothing(served, tmp_path) -> None:
    (tmp_path / "place").mkdir()
    asked = threading.Event()
    with HttpServer(served) as server:

        def answer(handler):
            if handler.command == "POST":
                asked.set()
                server.stopped.wait(30)
                return True
            return False

        server.answer = answer
        program = subprocess.Popen(
            [sys.executable, "-c", PROGRAM, f"{server.url}/history.git", str(tmp_path / "place/x/y"), "{}",
             str(tmp_path / "out")],
            stderr=subprocess.DEVNULL, cwd=Path(__file__).parents[2],
        )  # fmt: skip
        assert asked.wait(20)
        assert (tmp_path / "place/x").is_dir()
        program.terminate()
        assert program.wait(10) != 0
    assert os.listdir(tmp_path / "place") == []
