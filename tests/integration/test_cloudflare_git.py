"""git.checkout of Cloudflare's npm client, from C git's server inside the sandbox's network."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from bench import git_history
from sandboxd import Sandbox
from tests.support.cloudflare_client import ClientError, Driver
from tests.support.daemon import Daemon
from tests.support.git_server import HttpServer
from tests.support.netns import listen_in

pytestmark = pytest.mark.real


@pytest.fixture(scope="module")
def server(cf: Driver, served: tuple[Daemon, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[HttpServer]:
    """`git http-backend` in the network of the clients' sandbox."""
    root = tmp_path_factory.mktemp("repositories")
    git_history.make(root / "history.git")
    cf.call("utils.ping")
    with served[0].client() as client:
        sandbox = Sandbox.connect("cloudflare-git", client=client)
        with HttpServer(root, sock=listen_in(served[0], sandbox)) as server:
            yield server


def refused(cf: Driver, url: str, **options: Any) -> ClientError:
    with pytest.raises(ClientError) as caught:
        cf.call("git.checkout", url, None, options)
    return caught.value


def test_a_clone(cf: Driver, server: HttpServer) -> None:
    url = f"{server.url}/history.git"
    found = cf.call("git.checkout", url, None)
    assert (found["repoUrl"], found["branch"], found["targetDir"]) == (url, "main", "/workspace/history")
    assert cf.call("files.readFile", "/workspace/history/README.md", None)["content"] == "# A history\n"
    cf.call("git.checkout", url, None, {"targetDir": "/tmp/shallow", "depth": 1, "branch": "main"})
    assert cf.call("commands.execute", "git -C /tmp/shallow rev-list --count HEAD", None)["stdout"] == "1\n"
    cf.call("commands.execute", "mkdir -p /tmp/in; cd /tmp/in", "place")
    assert cf.call("git.checkout", url, "place", {"targetDir": "there"})["targetDir"] == "/tmp/in/there"


def test_a_login_is_taken_and_never_told(cf: Driver, server: HttpServer) -> None:
    server.login = ("anne", "geheim")
    try:
        url = server.url.replace("//", "//anne:geheim@") + "/history.git"
        found = cf.call("git.checkout", url, None, {"targetDir": "/tmp/private"})
        assert "geheim" not in str(found)
        error = refused(cf, url.replace("geheim", "falsch"), targetDir="/tmp/no")
        assert (error.name, error.status) == ("GitAuthenticationError", 401)
        assert "falsch" not in error.message + str(error.context)
    finally:
        server.login = None


def test_clones_that_fail(cf: Driver, server: HttpServer) -> None:
    error = refused(cf, f"{server.url}/nothing.git")
    assert (error.name, error.status, error.operation) == ("GitRepositoryNotFoundError", 404, "git.checkout")
    error = refused(cf, f"{server.url}/history.git", branch="no-such", targetDir="/tmp/no")
    assert (error.name, error.status, error.context["branch"]) == ("GitBranchNotFoundError", 404, "no-such")
    error = refused(cf, "http://127.0.0.1:9/a.git", targetDir="/tmp/no")
    assert (error.name, error.status) == ("GitNetworkError", 502)
    cf.call("files.writeFile", "/tmp/full/x", "1", None)
    assert refused(cf, f"{server.url}/history.git", targetDir="/tmp/full").name == "GitCloneError"
    for url in ("nonsense", "ssh://git@host/a.git", "ext::sh -c true", "https://host/a b.git"):
        assert refused(cf, url, targetDir="/tmp/no").name == "InvalidGitUrlError", url
    assert cf.call("files.exists", "/tmp/no", None)["exists"] is False
