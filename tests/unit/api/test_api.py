"""Every route over real HTTP, hypercorn included, on a fake launcher."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest
import trio
import trio.testing

import sandboxd
from sandboxd import errors
from sandboxd.api.access import Caller, Policy
from sandboxd.api.faces import FACES
from sandboxd.api.v1 import openapi
from sandboxd.api.v1.routes import ROUTES
from sandboxd.spec import MAX_JSON_BODY_BYTES
from sandboxd.wire.messages import Request
from tests.support.fake_daemon import TOKEN, FakeDaemon, daemon_in, eventually, problem
from tests.support.fake_peer import Conversation, exit_data

ROUTE = "/v1/sandboxes"


def test_a_kind_is_one_class_with_a_status_of_errors() -> None:
    ours = [cls for cls in vars(errors).values() if isinstance(cls, type) and issubclass(cls, errors.SandboxdError)]
    assert len({cls.kind for cls in ours}) == len(ours)
    assert all(400 <= cls.status < 600 for cls in ours)


def test_a_subclass_has_its_parents_status_and_none_of_its_origins() -> None:
    class Odd(errors.FileNotFound):
        kind = "odd"

    assert Odd("x").status == 404
    assert "odd" not in errors.kinds_from(errors.Origin.INIT)
    assert "file-not-found" in errors.kinds_from(errors.Origin.INIT)
    del Odd


def test_every_kind_can_be_imported_from_the_package() -> None:
    for cls in errors.kinds().values():
        if cls.__module__ == errors.__name__:
            assert getattr(sandboxd, cls.__name__) is cls


def test_operations_have_names_of_the_api_and_not_of_the_code() -> None:
    names = [route.name for face in FACES for route in face.routes]
    assert len(set(names)) == len(names)
    assert all(re.fullmatch(r"[a-z_]+(\.[a-zA-Z_]+)*", name) for name in names)
    document = openapi.document(ROUTES, "1")
    shown = {operation["operationId"] for path in document["paths"].values() for operation in path.values()}
    assert shown == {route.name for route in ROUTES if not route.websocket} | ({"pty"} & shown)


@pytest.fixture
async def daemon(tmp_path: Path) -> Any:
    async with daemon_in(tmp_path) as found:
        yield found


# --- bad input ------------------------------------------------------------------------------------------------

LONG = "x" * 131_072
BAD_SANDBOXES: list[tuple[Any, int, str, str | None]] = [
    ({"colour": 1}, 400, "unknown-field", "colour"),
    ({"limits": {"colour": 1}}, 400, "unknown-field", "limits.colour"),
    ({"limits": {"pids": "many"}}, 400, "invalid-request", "limits.pids"),
    ({"limits": {"pids": True}}, 400, "invalid-request", "limits.pids"),
    ({"limits": {"pids": 1.5}}, 400, "invalid-request", "limits.pids"),
    ({"limits": {"pids": -1}}, 400, "invalid-request", "limits.pids"),
    ({"limits": {"memory_bytes": 1 << 200}}, 400, "invalid-request", "limits.memory_bytes"),
    ({"limits": {"cpus": 0}}, 400, "invalid-request", "limits.cpus"),
    ({"limits": {"cpus": 1e300}}, 400, "invalid-request", "limits.cpus"),
    ({"limits": {"io": 3}}, 400, "invalid-request", "limits.io"),
    ({"limits": {"io": {"read_iops": 0}}}, 400, "invalid-request", "limits.io.read_iops"),
    ({"limits": {"io": {"write_bytes_per_s": "1M"}}}, 400, "invalid-request", "limits.io.write_bytes_per_s"),
    ({"limits": {"io": {"speed": 1}}}, 400, "unknown-field", "limits.io.speed"),
    ({"limits": {"pids": 32_769}}, 400, "invalid-request", "limits.pids"),
    ({"limits": {"memory_bytes": 16_777_215}}, 400, "invalid-request", "limits.memory_bytes"),
    ({"limits": []}, 400, "invalid-request", "limits"),
    ({"name": 1}, 400, "invalid-request", "name"),
    ({"name": "UPPER"}, 400, "invalid-request", "name"),
    ({"name": ""}, 400, "invalid-request", "name"),
    ({"name": "a\u0000b"}, 400, "invalid-request", "name"),
    ({"rootfs": "../etc"}, 400, "invalid-request", "rootfs"),
    ({"env": {"A": 1}}, 400, "invalid-request", None),
    ({"env": {"1A": "x"}}, 400, "invalid-request", "env.1A"),
    ({"env": {"A": "x\u0000"}}, 400, "invalid-request", "env.A"),
    ({"env": {"A": LONG}}, 400, "invalid-request", "env.A"),
    ({"env": {f"A{n}": "x" for n in range(2000)}}, 400, "invalid-request", "env"),
    ({"env": [1]}, 400, "invalid-request", "env"),
    ({"cwd": "relative"}, 400, "invalid-request", "cwd"),
    ({"cwd": "/a/../b"}, 400, "invalid-request", "cwd"),
    ({"cwd": "/" + "a" * 5000}, 400, "invalid-request", "cwd"),
    ({"user": "root:root"}, 400, "invalid-request", "user"),
    ({"user": 70000}, 400, "invalid-request", "user"),
    ({"user": -1}, 400, "invalid-request", "user"),
    ({"user": True}, 400, "invalid-request", "user"),
    ({"network": {"mode": "none", "allow": ["a.example"]}}, 400, "invalid-request", "network.allow"),
    ({"network": {"mode": "allowlist", "allow": ["a.example."]}}, 400, "invalid-request", "network.allow"),
    ({"network": {"mode": "internet", "connections": 0}}, 400, "invalid-request", "network.connections"),
    ({"network": {"mode": "none", "send_bytes_per_s": 4096}}, 400, "invalid-request", "network.send_bytes_per_s"),
    ({"network": {"mode": "magic"}}, 400, "invalid-request", "network.mode"),
    ({"seccomp": "../x"}, 400, "invalid-request", "seccomp"),
    ({"labels": {"a": "b" * 300}}, 400, "invalid-request", "labels.a"),
    ({"idle_timeout_s": 5}, 422, "not-available", "idle_timeout_s"),
    ({"max_lifetime_s": 5}, 422, "not-available", "max_lifetime_s"),
    ({"snapshot": "s"}, 422, "not-available", "snapshot"),
    ([], 400, "invalid-request", "body"),
    ("text", 400, "invalid-request", "body"),
    (None, 400, "invalid-request", "body"),
]


@pytest.mark.parametrize(("body", "status", "kind", "field"), BAD_SANDBOXES)
async def test_a_bad_sandbox_creates_nothing(
    daemon: FakeDaemon, body: Any, status: int, kind: str, field: str | None
) -> None:
    found = problem(await daemon.client.post(ROUTE, content=json.dumps(body)))
    assert (found["status"], found["kind"]) == (status, kind), found
    if field is not None:
        assert found["field"] == field
    assert not daemon.fake.created
    assert len(daemon.manager.registry) == 0


BAD_BODIES = [
    b"{",
    b"\xff\xfe",
    b"nope",
    b'{"name": "a", "name": "b"}',
    b'{"limits": {"cpus": NaN}}',
    b'{"limits": {"cpus": Infinity}}',
    b'{"limits": {"pids": ' + b"9" * 5000 + b"}}",
    b"[" * 100_000,
    b'{"a":' * 100_000,
    b'{"env": {"A": "\\ud800"}}',
]


@pytest.mark.parametrize("body", BAD_BODIES, ids=range(len(BAD_BODIES)))
async def test_a_body_that_is_no_json_is_refused(daemon: FakeDaemon, body: bytes) -> None:
    found = problem(await daemon.client.post(ROUTE, content=body))
    assert (found["status"], found["kind"]) == (400, "invalid-request")
    assert not daemon.fake.created


BAD_COMMANDS: list[tuple[Any, int, str, str]] = [
    ({}, 400, "invalid-request", "command"),
    ({"command": ""}, 400, "invalid-request", "command"),
    ({"command": []}, 400, "invalid-request", "command"),
    ({"command": [""]}, 400, "invalid-request", "command"),
    ({"command": ["a", 1]}, 400, "invalid-request", "command"),
    ({"command": 7}, 400, "invalid-request", "command"),
    ({"command": "a\u0000b"}, 400, "invalid-request", "command"),
    ({"command": ["x", LONG]}, 400, "invalid-request", "command"),
    ({"command": ["x" * 100_000] * 25}, 400, "invalid-request", "command"),
    ({"command": "x", "cwd": "../x"}, 400, "invalid-request", "cwd"),
    ({"command": "x", "timeout_s": -1}, 400, "invalid-request", "timeout_s"),
    ({"command": "x", "timeout_s": 0}, 400, "invalid-request", "timeout_s"),
    ({"command": "x", "timeout_s": 1e300}, 400, "invalid-request", "timeout_s"),
    ({"command": "x", "timeout_s": True}, 400, "invalid-request", "timeout_s"),
    ({"command": "x", "encoding": "latin-1"}, 400, "invalid-request", "encoding"),
    ({"command": "x", "encoding": "base64", "stdin": "!"}, 400, "invalid-request", "stdin"),
    ({"command": "x", "stdin": 5}, 400, "invalid-request", "stdin"),
    ({"command": "x", "orphans": "adopt"}, 400, "invalid-request", "orphans"),
    ({"command": "x", "detach": 1}, 400, "invalid-request", "detach"),
    ({"command": "x", "shell": "zsh"}, 400, "unknown-field", "shell"),
    ({"command": "x", "user": "a b"}, 400, "invalid-request", "user"),
    ({"command": "x", "umask": "8"}, 400, "invalid-request", "umask"),
    ({"command": "x", "umask": "01777"}, 400, "invalid-request", "umask"),
    ({"command": "x", "umask": "1777"}, 400, "invalid-request", "umask"),
    ({"command": "x", "umask": "abc"}, 400, "invalid-request", "umask"),
    ({"command": "x", "umask": 22}, 400, "invalid-request", "umask"),
    ({"command": "x", "umask": "22", "session": "s"}, 400, "invalid-request", "umask"),
]


async def test_bad_commands_reach_no_sandbox(daemon: FakeDaemon) -> None:
    await daemon.create(name="box")
    for body, status, kind, field in BAD_COMMANDS:
        found = problem(await daemon.client.post(f"{ROUTE}/box/exec", json=body))
        assert (found["status"], found["kind"]) == (status, kind), body
        assert found["field"].startswith(field), body
    assert not daemon.init.asked("exec")


@pytest.mark.parametrize(
    ("method", "path", "status", "kind"),
    [
        ("GET", "/", 404, "route-not-found"),
        ("GET", "/v1/nope", 404, "route-not-found"),
        ("PATCH", "/v1/sandboxes", 405, "method-not-allowed"),
        ("GET", "/v1/sandboxes/none", 404, "sandbox-not-found"),
        ("DELETE", "/v1/sandboxes/none", 404, "sandbox-not-found"),
        ("POST", "/v1/sandboxes/none/exec", 404, "sandbox-not-found"),
        ("GET", "/v1/sandboxes?colour=1", 400, "unknown-field"),
        ("GET", "/v1/sandboxes?limit=1&limit=2", 400, "invalid-request"),
        ("GET", "/v1/sandboxes?limit=0", 400, "invalid-request"),
        ("GET", "/v1/sandboxes?limit=x", 400, "invalid-request"),
        ("GET", "/v1/sandboxes?limit=-1", 400, "invalid-request"),
        ("GET", "/v1/sandboxes?cursor=zz", 400, "invalid-request"),
        ("GET", "/v1/sandboxes/box/files", 400, "invalid-request"),
        ("GET", "/v1/sandboxes/box/files?path=a", 400, "invalid-request"),
        ("GET", "/v1/sandboxes/box/files?path=/a/../b", 400, "invalid-request"),
        ("GET", "/v1/sandboxes/box/files?path=/a%00b", 400, "invalid-request"),
        ("GET", "/v1/sandboxes/box/files?path=/none", 404, "file-not-found"),
        ("PUT", "/v1/sandboxes/box/files?path=..", 400, "invalid-request"),
        ("POST", "/v1/sandboxes/box/processes/..%2f/stdin", 400, "invalid-request"),
        ("POST", "/v1/sandboxes/box/processes/-a/stdin/close", 400, "invalid-request"),
    ],
)
async def test_wrong_requests_are_problems(daemon: FakeDaemon, method: str, path: str, status: int, kind: str) -> None:
    await daemon.create(name="box")
    response = await daemon.client.request(method, path)
    found = problem(response)
    assert (found["status"], found["kind"]) == (status, kind)
    if status == 405:
        assert "POST" in response.headers["allow"]


@pytest.mark.own_server
async def test_a_json_body_over_the_bound_is_refused_unread(daemon: FakeDaemon) -> None:
    found = problem(await daemon.client.post(ROUTE, content=b" " * (MAX_JSON_BODY_BYTES + 1)))
    assert (found["status"], found["kind"], found["limit_bytes"]) == (413, "body-too-large", MAX_JSON_BODY_BYTES)

    stream = await daemon.raw_connection()
    async with stream:
        await stream.send_all(b"POST /v1/sandboxes HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n")
        with pytest.raises(trio.BrokenResourceError), trio.fail_after(30):
            while True:  # a client that would not stop is hung up on
                await stream.send_all(b"10000\r\n" + b" " * 65_536 + b"\r\n")
        assert (await stream.receive_some(100)).startswith(b"HTTP/1.1 413")
    assert (await daemon.client.get("/v1/health")).status_code == 200


@pytest.mark.own_server
async def test_a_huge_header_is_refused(daemon: FakeDaemon) -> None:
    stream = await daemon.raw_connection()
    async with stream:
        await stream.send_all(b"GET /v1/health HTTP/1.1\r\nHost: x\r\nX: ")
        for _ in range(160):
            await stream.send_all(b"x" * 65_536)
        answer = await stream.receive_some(1000)
        assert answer.startswith(b"HTTP/1.1 431")
        assert b'"kind":"header-too-large"' in answer
    assert (await daemon.client.get("/v1/health")).status_code == 200


async def test_an_unexpected_exception_tells_nothing(daemon: FakeDaemon, caplog: pytest.LogCaptureFixture) -> None:
    def boom(ref: str) -> None:
        raise RuntimeError("secret details")

    daemon.manager.registry.find = boom  # type: ignore[method-assign, assignment]
    response = await daemon.client.get(f"{ROUTE}/x")
    assert problem(response)["kind"] == "internal-error"
    assert "secret" not in response.text
    assert "secret details" in caplog.text


async def test_problems_of_the_launcher_keep_their_facts(daemon: FakeDaemon) -> None:
    async def refuse(talk: Conversation, request: Request) -> None:
        raise errors.LimitUnenforceable(
            "cannot hold disk_bytes", limits=["disk_bytes"], missing={"disk_bytes": "btrfs"}
        )

    daemon.fake.answers["create"] = refuse
    found = problem(await daemon.client.post(ROUTE, json={}))
    assert (found["status"], found["limits"]) == (422, ["disk_bytes"])


# --- who ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("header", "status"),
    [
        (None, 401),
        ("Bearer wrong", 401),
        (f"Basic {TOKEN}", 401),
        (f"Bearer {TOKEN}x", 401),
        ("Bearer t\xf6ken", 401),
        (f"Bearer {TOKEN}", 200),
        (f"bearer {TOKEN}", 200),
    ],
)
async def test_tcp_needs_the_token(daemon: FakeDaemon, header: str | None, status: int) -> None:
    headers = {} if header is None else {"Authorization": header.encode("latin-1")}
    async with httpx.AsyncClient(base_url=f"http://{daemon.tcp[0]}:{daemon.tcp[1]}", headers=headers) as client:  # type: ignore[arg-type]
        response = await client.get(ROUTE)
        assert response.status_code == status
        if status == 401:
            assert problem(response)["kind"] == "unauthenticated"
            assert response.headers["www-authenticate"].startswith("Bearer")
            assert (await client.get("/v1/nope")).status_code == 401
        assert (await client.get("/v1/health")).status_code == 200


async def test_a_stranger_on_the_unix_socket_is_refused(tmp_path: Path) -> None:
    policy = Policy(None, frozenset({12345}), None)
    if os.geteuid() == 0:
        with pytest.raises(errors.AccessDenied):
            policy.check(Caller(1000, 1000), None, "a token")
        return
    async with daemon_in(tmp_path, policy=policy) as daemon:
        assert problem(await daemon.client.get(ROUTE))["status"] == 403


@pytest.mark.parametrize(
    ("caller", "passes"),
    [
        (Caller(0, 0), True),
        (Caller(7, 7), True),
        (Caller(8, 99), True),
        (Caller(8, 8, frozenset({99})), True),
        (Caller(8, 8, frozenset({98})), False),
    ],
)
def test_root_the_daemons_user_and_the_group_pass(caller: Caller, passes: bool) -> None:
    policy = Policy(None, frozenset({7}), 99)
    if passes:
        policy.check(caller, None, "a token")
    else:
        with pytest.raises(errors.AccessDenied):
            policy.check(caller, None, "a token")


@pytest.mark.own_server
async def test_credentials_hold_for_every_request_of_a_connection(daemon: FakeDaemon) -> None:
    for _ in range(3):
        assert (await daemon.client.get(ROUTE)).status_code == 200
    assert daemon.server.statistics()["connections"] == 1


# --- sandboxes ------------------------------------------------------------------------------------------------


async def test_the_life_of_a_sandbox(daemon: FakeDaemon) -> None:
    made = await daemon.create(name="box", env={"A": "b"}, labels={"k": "v"}, limits={"cpus": 1})
    assert made["state"] == "running"
    assert made["unenforced"] == ["disk_bytes"]
    rates = dict.fromkeys(("receive_bytes_per_s", "send_bytes_per_s", "connections"))
    assert made["network"] == {"mode": "none", "allow": [], **rates}
    assert "reason" not in made
    absent = dict.fromkeys(("memory_bytes", "pids", "disk_bytes", "io"))
    assert daemon.fake.created[0]["limits"] == {"cpus": 1, **absent}
    for ref in (made["id"], "box"):
        assert (await daemon.client.get(f"{ROUTE}/{ref}")).json() == made
    again = problem(await daemon.client.post(ROUTE, json={"name": "box"}))
    assert (again["status"], again["kind"], again["name"]) == (409, "name-taken", "box")
    assert (await daemon.client.get(ROUTE)).json() == {"items": [made], "next": None}
    gone = await daemon.client.delete(f"{ROUTE}/box")
    assert (gone.status_code, gone.content, "content-length" in gone.headers) == (204, b"", False)
    assert (await daemon.client.get(f"{ROUTE}/box")).status_code == 404


async def test_pages(daemon: FakeDaemon) -> None:
    made = [(await daemon.create())["id"] for _ in range(5)]
    seen, cursor = [], None
    for _ in range(3):
        params = {"limit": "2", **({"cursor": cursor} if cursor else {})}
        page = (await daemon.client.get(ROUTE, params=params)).json()
        seen += [item["id"] for item in page["items"]]
        cursor = page["next"]
    assert (seen, cursor) == (made, None)


async def test_a_failed_sandbox_answers_409_and_can_go(daemon: FakeDaemon) -> None:
    made = await daemon.create(name="box")
    await daemon.fake.ended[0].send((made["id"], "init was killed by SIGKILL"))
    await trio.testing.wait_all_tasks_blocked(0.01)
    shown = (await daemon.client.get(f"{ROUTE}/box")).json()
    assert (shown["state"], shown["reason"]) == ("failed", "init was killed by SIGKILL")
    for method, path in (("POST", "exec"), ("GET", "files?path=/a"), ("PUT", "files?path=/a")):
        content = b'{"command": "x"}' if path == "exec" else None
        found = problem(await daemon.client.request(method, f"{ROUTE}/box/{path}", content=content))
        assert (found["status"], found["kind"]) == (409, "sandbox-failed")
    assert (await daemon.client.delete(f"{ROUTE}/box")).status_code == 204


async def test_the_document_names_every_route(daemon: FakeDaemon) -> None:
    document = (await daemon.client.get("/v1/openapi.json")).json()
    told = {(path, method) for path, row in document["paths"].items() for method in row}
    want = {(route.path.replace("<", "{").replace(">", "}"), route.method.lower()) for route in ROUTES}
    assert told == want
    assert set(document["components"]["schemas"]["Problem"]["properties"]["kind"]["enum"]) == set(errors.kinds())
    refs = {ref for ref in msgspec.json.encode(document).decode().split('"') if ref.startswith("#/components/schemas/")}
    assert {ref.rsplit("/", 1)[1] for ref in refs} <= set(document["components"]["schemas"])


@pytest.mark.parametrize("path", ["/v1/openapi.json", "/cloudflare/v1/openapi.json"])
async def test_every_operation_of_a_document_has_an_id_of_its_own(daemon: FakeDaemon, path: str) -> None:
    document = (await daemon.client.get(path)).json()
    ids = [operation["operationId"] for row in document["paths"].values() for operation in row.values()]
    assert len(set(ids)) == len(ids) > 10
    assert all(re.fullmatch(r"[A-Za-z][A-Za-z0-9_.]*", one) for one in ids)  # what generators make names of


async def test_the_daemon_tells_about_itself(daemon: FakeDaemon) -> None:
    info = (await daemon.client.get("/v1/info")).json()
    assert info["rootfs"][0]["name"] == "default"
    assert info["launcher"]["kernel"] == "6"
    head = await daemon.client.head("/v1/health")
    assert (head.status_code, head.content) == (200, b"")


# --- files ----------------------------------------------------------------------------------------------------


async def test_files_there_and_back(daemon: FakeDaemon) -> None:
    await daemon.create(name="box")
    data = os.urandom(3_000_001)
    files = f"{ROUTE}/box/files"
    put = await daemon.client.put(files, params={"path": "/a b/é.png"}, content=data)
    assert (put.status_code, put.json()) == (201, {"path": "/a b/é.png", "size": len(data)})
    assert (await daemon.client.put(files, params={"path": "/a b/é.png"}, content=data)).status_code == 200
    got = await daemon.client.get(files, params={"path": "/a b/é.png"})
    assert got.content == data
    assert got.headers["content-type"] == "image/png"
    assert got.headers["content-length"] == str(len(data))
    head = await daemon.client.head(files, params={"path": "/a b/é.png"})
    assert (head.headers["content-length"], head.content) == (str(len(data)), b"")


async def test_an_empty_file(daemon: FakeDaemon) -> None:
    await daemon.create(name="box")
    files = f"{ROUTE}/box/files"
    assert (await daemon.client.put(files, params={"path": "/e"})).status_code == 201
    got = await daemon.client.get(files, params={"path": "/e"})
    assert (got.status_code, got.content, got.headers["content-length"]) == (200, b"", "0")


@pytest.mark.parametrize(
    ("header", "status", "expected"),
    [
        ("bytes=0-3", 206, b"0123"),
        ("bytes=5-", 206, b"56789"),
        ("bytes=-3", 206, b"789"),
        ("bytes=-100", 206, b"0123456789"),
        ("bytes=8-100", 206, b"89"),
        ("bytes=3-1", 200, b"0123456789"),
        ("bytes=0-1,3-4", 200, b"0123456789"),
        ("lines=0-1", 200, b"0123456789"),
        ("bytes=-", 200, b"0123456789"),
        ("bytes=10-", 416, None),
        ("bytes=-0", 416, None),
    ],
)
async def test_ranges(daemon: FakeDaemon, header: str, status: int, expected: bytes | None) -> None:
    await daemon.create(name="box")
    (daemon.init.tree / "f").write_bytes(b"0123456789")
    got = await daemon.client.get(f"{ROUTE}/box/files", params={"path": "/f"}, headers={"Range": header})
    assert got.status_code == status
    if expected is None:
        assert problem(got)["size"] == 10
        assert got.headers["content-range"] == "bytes */10"
    else:
        assert got.content == expected


async def test_a_client_that_vanishes_in_an_upload_changes_nothing(daemon: FakeDaemon) -> None:
    await daemon.create(name="box")
    (daemon.init.tree / "f").write_bytes(b"old")
    for head in (
        b"Content-Length: 5000000\r\n\r\n" + b"x" * 100_000,
        b"Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n",
    ):
        stream = await daemon.raw_connection()
        await stream.send_all(b"PUT /v1/sandboxes/box/files?path=/f HTTP/1.1\r\nHost: x\r\n" + head)
        await eventually(lambda: bool(daemon.init.tickets))
        await stream.aclose()
        await eventually(lambda: not daemon.init.tickets)
        assert (daemon.init.tree / "f").read_bytes() == b"old"
        assert [path.name for path in daemon.init.tree.iterdir()] == ["f"]


async def test_a_cursor_that_is_none_is_named(daemon: FakeDaemon) -> None:
    await daemon.create(name="box")
    answer = await daemon.client.get(f"{ROUTE}/box/files/list", params={"path": "/", "cursor": "*"})
    assert (problem(answer)["kind"], problem(answer)["field"]) == ("invalid-request", "cursor")


@pytest.mark.parametrize("size", [None, "1", 1.5, True, -1, (1 << 50) + 1, 1 << 70])
async def test_a_size_that_is_none_is_named(daemon: FakeDaemon, size: Any) -> None:
    await daemon.create(name="box")
    found = problem(await daemon.client.post(f"{ROUTE}/box/files/truncate", json={"path": "/f", "size": size}))
    assert (found["status"], found["kind"], found["field"]) == (400, "invalid-request", "size")


async def test_a_full_disk_is_507_and_the_old_file_stays(daemon: FakeDaemon, monkeypatch: pytest.MonkeyPatch) -> None:
    await daemon.create(name="box")
    (daemon.init.tree / "f").write_bytes(b"old")

    def full(*_: object) -> int:
        raise OSError(122, "Disk quota exceeded")

    monkeypatch.setattr(os, "pwrite", full)
    found = problem(await daemon.client.put(f"{ROUTE}/box/files", params={"path": "/f"}, content=b"x" * 3_000_000))
    assert (found["status"], found["kind"]) == (507, "quota-exceeded")
    assert (daemon.init.tree / "f").read_bytes() == b"old"
    assert not daemon.init.tickets


async def test_an_upload_waits_for_a_slow_disk(daemon: FakeDaemon, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the daemon takes from the client while nothing is written stays within its bounds."""
    await daemon.create(name="box")
    opened, go = trio.Event(), trio.Event()
    working = daemon.init.answers["open_write"]

    async def slow(talk: Conversation, request: Request) -> None:
        opened.set()
        await go.wait()
        await working(talk, request)

    daemon.init.answers["open_write"] = slow
    size = 50_000_000
    sent = 0
    stream = await daemon.raw_connection()
    async with stream, trio.open_nursery() as nursery:

        async def send() -> None:
            nonlocal sent
            await stream.send_all(
                b"PUT /v1/sandboxes/box/files?path=/f HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % size
            )
            while sent < size:
                await stream.send_all(bytes(100_000))
                sent += 100_000

        nursery.start_soon(send)
        await opened.wait()
        await trio.testing.wait_all_tasks_blocked(0.1)
        assert sent < 4_000_000
        go.set()
        assert (await stream.receive_some(100)).startswith(b"HTTP/1.1 201")
    assert (daemon.init.tree / "f").stat().st_size == size


async def test_a_file_that_shrinks_cuts_the_answer(daemon: FakeDaemon, monkeypatch: pytest.MonkeyPatch) -> None:
    await daemon.create(name="box")
    path = daemon.init.tree / "f"
    path.write_bytes(bytes(4_000_000))
    real = os.pread

    def shrinking(fd: int, length: int, offset: int) -> bytes:
        if offset:
            os.truncate(path, 1_000_000)
        return real(fd, length, offset)

    monkeypatch.setattr(os, "pread", shrinking)
    with pytest.raises(httpx.RemoteProtocolError):
        await daemon.client.get(f"{ROUTE}/box/files", params={"path": "/f"})


# --- stdin ----------------------------------------------------------------------------------------------------


async def test_stdin_goes_in_pieces(daemon: FakeDaemon) -> None:
    await daemon.create(name="box")
    data = os.urandom(1_000_000)
    process = f"{ROUTE}/box/processes/p-abc"
    assert (await daemon.client.post(f"{process}/stdin", content=data)).status_code == 204
    assert bytes(daemon.init.stdin["p-abc"]) == data
    assert max(len(params["data"]) for params in daemon.init.asked("stdin")) <= 256 * 1024
    assert (await daemon.client.post(f"{process}/stdin/close")).status_code == 204
    assert daemon.init.asked("stdin_close") == [{"process": "p-abc"}]

    async def refuse(talk: Conversation, request: Request) -> None:
        raise errors.ProcessNotRunning("cannot write: it has ended")

    daemon.init.answers["stdin"] = refuse
    assert problem(await daemon.client.post(f"{process}/stdin", content=data))["status"] == 409


def test_the_fake_tells_exits_as_the_contract_does() -> None:
    from sandboxd.runtime.execution import parse_exit

    parsed = parse_exit(exit_data(3, signal="SIGTERM"))
    assert (parsed.exit_code, parsed.signal) == (3, "SIGTERM")
