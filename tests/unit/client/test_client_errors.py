"""Every way to fail, as sandboxd's own error; and the parts of the SDK that do no I/O."""

from __future__ import annotations

import codecs
import gc
import pickle
import socket
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

import sandboxd
from sandboxd import Client, Sandbox, errors
from sandboxd.client import address, calls, failures, models
from sandboxd.client.text import Carry, decode_between
from tests.support.canned import exit_event, sandbox_object

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

KINDS = sorted(kind for kind, cls in errors.kinds().items() if cls.__module__ == "sandboxd.errors")


@pytest.fixture
def refused_sockets() -> Iterator[None]:
    """Collect the sockets that httpcore leaves open when a connection is refused, in the test that made them."""
    yield
    gc.collect()


def client_answering(response: httpx.Response | Exception) -> Client:
    def answer(_: httpx.Request) -> httpx.Response:
        if isinstance(response, Exception):
            raise response
        return response

    return Client("http://sandboxd.invalid:1", transport=httpx.MockTransport(answer))


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_comes_back_as_its_class_with_its_facts(kind: str) -> None:
    problem = {
        "type": "about:blank",
        "title": "T",
        "status": 418,
        "detail": "cannot do it: why",
        "kind": kind,
        "field": "f",
    }
    response = httpx.Response(418, json=problem, headers={"content-type": "application/problem+json; charset=utf-8"})
    with client_answering(response) as client, pytest.raises(errors.SandboxdError) as caught:
        client.health()
    assert type(caught.value) is errors.kinds()[kind]
    assert str(caught.value) == "cannot do it: why"
    assert caught.value.facts == {"status": 418, "field": "f"}


def test_a_kind_of_a_newer_daemon_is_an_error_all_the_same() -> None:
    response = httpx.Response(400, json={"kind": "brand-new", "detail": "cannot: new"})
    with client_answering(response) as client, pytest.raises(errors.SandboxdError) as caught:
        client.health()
    assert caught.value.facts["kind"] == "brand-new"


@pytest.mark.parametrize(
    "response",
    [
        httpx.Response(502, text="<html>Bad Gateway"),
        httpx.Response(500, content=b"{", headers={"content-type": "application/problem+json"}),
        httpx.Response(500, json=["no", "object"]),
        httpx.Response(500, json={"detail": "no kind"}),
        httpx.Response(302, headers={"location": "http://elsewhere.invalid/"}),
        httpx.Response(200, text="no json"),
        httpx.Response(200, json=["no", "object"]),
        httpx.Response(200, json={"id": 5}),
        httpx.Response(200, json=sandbox_object(1, created_at="yesterday")),
        httpx.Response(200, json=sandbox_object(1, limits={"cpus": -1})),
    ],
)
def test_an_answer_that_is_none_of_ours(response: httpx.Response) -> None:
    with client_answering(response) as client, pytest.raises(errors.RemoteProtocolError):
        Sandbox.connect("x", client=client)


FOREIGN = [cls for cls in vars(httpx).values() if isinstance(cls, type) and issubclass(cls, httpx.RequestError)]


@pytest.mark.parametrize("foreign", FOREIGN)
def test_no_exception_of_httpx_leaks(foreign: type[httpx.RequestError]) -> None:
    with client_answering(foreign("cannot say")) as client, pytest.raises(errors.SandboxdError) as caught:
        client.health()
    assert isinstance(caught.value.__cause__, foreign)
    assert caught.value.address == "http://sandboxd.invalid:1"


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.usefixtures("refused_sockets")
def test_no_daemon_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SANDBOXD_URL", f"unix://{tmp_path}/none.sock")
    with pytest.raises(errors.DaemonUnavailable, match="no such socket; start the daemon with 'sandboxd serve'"):
        Sandbox.create()
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(f"{tmp_path}/dead.sock")
    with Client(f"unix://{tmp_path}/dead.sock") as client, pytest.raises(errors.DaemonUnavailable) as caught:
        client.health()
    assert caught.value.errno == "ECONNREFUSED"
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        with (
            Client(f"http://127.0.0.1:{taken.getsockname()[1]}") as client,
            pytest.raises(errors.DaemonUnavailable, match="nothing listens there"),
        ):
            client.health()


def test_a_forbidden_socket_says_who_may() -> None:
    error = httpx.ConnectError("denied")
    error.__cause__ = PermissionError(13, "Permission denied")
    with client_answering(error) as client, pytest.raises(errors.DaemonUnavailable, match="group 'sandboxd'"):
        client.health()


@pytest.mark.parametrize(
    ("url", "base", "path"),
    [
        ("unix:///run/x.sock", "http://localhost", "/run/x.sock"),
        ("unix:///a%20b", "http://localhost", "/a b"),
        ("http://host:80", "http://host:80", None),
        ("http://host:80/", "http://host:80", None),
        ("https://[::1]:8443", "https://[::1]:8443", None),
        ("", "http://localhost", "/run/sandboxd/sandboxd.sock"),
    ],
)
def test_addresses(url: str, base: str, path: str | None) -> None:
    found = address.Address.find(url, env={})
    assert (found.base_url, found.socket_path, found.token) == (base, path, None)


def test_the_environment_is_the_default_and_the_token_is_not_shown() -> None:
    found = address.Address.find(env={"SANDBOXD_URL": "http://h:1", "SANDBOXD_TOKEN": "secret"})
    assert (found.url, found.token) == ("http://h:1", "secret")
    assert "secret" not in repr(found)
    assert address.Address.find("http://i:2", "other", {"SANDBOXD_TOKEN": "secret"}).token == "other"


@pytest.mark.parametrize(
    "url", ["x", "unix://relative", "unix:", "ftp://x", "http://", "http://h:port", "http://h/path"]
)
def test_addresses_that_are_none(url: str) -> None:
    with pytest.raises(errors.ConfigError):
        address.Address.find(url, env={})


def test_a_token_with_a_line_end_is_refused() -> None:
    with pytest.raises(errors.ConfigError):
        address.Address.find("http://h:1", "a\nb", {})


@pytest.mark.parametrize("key", ["", ".", ".."])
def test_a_sandbox_needs_a_name(key: str) -> None:
    with pytest.raises(errors.InvalidRequest):
        calls.get(key)


def test_a_name_stays_one_part_of_the_path() -> None:
    assert calls.get("a/../b?c").path == "/v1/sandboxes/a%2F..%2Fb%3Fc"


def test_exit_events_are_read_leniently() -> None:
    status = models.parse_exit(
        "p", exit_event(exit_code=None, signal="SIGKILL", oom_killed=True, usage=None, truncated=7)
    )
    assert (status.exit_code, status.truncated, status.usage) == (None, True, models.Usage())
    assert status.describe() == "out of memory (SIGKILL)"


def test_command_failed_survives_pickle() -> None:
    result = models.with_output(models.parse_exit("p", exit_event(exit_code=2)), b"", b"")
    error = failures.CommandFailed("command failed", result=result)
    again = pickle.loads(pickle.dumps(error))
    assert (again.result, again.exit_code, str(again)) == (result, 2, "command failed")


@given(st.lists(st.binary(max_size=6) | st.text(max_size=4).map(str.encode), max_size=8))
def test_lazy_text_is_what_an_incremental_decoder_gives(pieces: list[bytes]) -> None:
    carry, found = Carry(), ""
    for piece in pieces:
        before, held = carry.take(piece)
        found += decode_between(before, piece, held)
    found += decode_between(carry.finish(), b"", 0)
    assert found == b"".join(pieces).decode("utf-8", "replace")
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    assert found == "".join(map(decoder.decode, pieces)) + decoder.decode(b"", final=True)


def test_importing_sandboxd_is_light_and_its_names_are_complete() -> None:
    script = """
import sys, sandboxd
sandboxd.__all__
heavy = {"httpx", "anyio", "trio", "click", "rich"} & set(sys.modules)
assert not heavy, heavy
import sandboxd.client
assert set(sandboxd.client.__all__) <= set(dir(sandboxd))
for name in dir(sandboxd):
    getattr(sandboxd, name)
names = {}
exec("from sandboxd import *", names)
assert names["Sandbox"] is sandboxd.Sandbox
assert names["Limits"] is sandboxd.Limits
assert set(sandboxd.__all__) == set(names) - {"__builtins__"} == set(sandboxd.__all__) & set(dir(sandboxd))
assert set(sandboxd.client.__all__) | {sandboxd.SandboxdError.__name__} <= set(sandboxd.__all__)
assert sandboxd.Sandbox is sandboxd.client.Sandbox
assert sandboxd.NameTaken.kind == "name-taken"
assert not hasattr(sandboxd, "from_nowhere")
"""
    subprocess.run([sys.executable, "-c", script], check=True)
    assert set(sandboxd.client.__all__) == sandboxd._CLIENT_NAMES


def test_values_are_frozen() -> None:
    value: Any = models.Usage()
    with pytest.raises(AttributeError):
        value.cpu_s = 1.0
