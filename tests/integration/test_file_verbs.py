"""Every verb on files in a real sandbox, through the SDK; bad input of every kind."""

from __future__ import annotations

import base64
import os

import pytest
import trio

from sandboxd import (
    AsyncSandbox,
    DirectoryNotEmpty,
    FileExists,
    FileNotFound,
    InvalidRequest,
    LimitExceeded,
    NotAFile,
    Sandbox,
    SandboxdError,
)
from sandboxd.client import AsyncClient, Client
from tests.support.daemon import Daemon
from tests.support.rude import Rude

pytestmark = pytest.mark.real


def test_stat_tells_what_there_is(sandbox: Sandbox) -> None:
    sandbox.write_file("/workspace/f", "four", mode=0o750)
    sandbox.symlink("/workspace/l", "f")
    sandbox.exec("mkfifo p; touch -d 2001-02-03T04:05:06Z f; chown 7:8 f").check()
    found = sandbox.stat_file("/workspace/f")
    assert (found.type, found.size, found.mode, found.uid, found.gid) == ("file", 4, 0o750, 7, 8)
    assert found.modified_at.isoformat() == "2001-02-03T04:05:06+00:00"
    link = sandbox.stat_file("/workspace/l")
    assert (link.type, link.target) == ("symlink", "f")
    assert sandbox.stat_file("/workspace/l", follow=True).type == "file"
    assert sandbox.stat_file("/workspace/p").type == "fifo"
    assert sandbox.stat_file("/dev/null").type == "character-device"
    assert sandbox.stat_file("/").is_dir
    sandbox.symlink("/workspace/dangling", "nowhere")
    assert sandbox.exists("/workspace/dangling")
    assert not sandbox.exists("/workspace/none")
    assert not sandbox.exists("/workspace/f/below")


def test_lists_are_sorted_paged_and_bounded(sandbox: Sandbox) -> None:
    sandbox.exec(
        "mkdir -p d/b d/a/x && touch d/a/x/1 d/.hidden d/c d/a.txt && for i in $(seq 2500); do : > d/b/$i; done"
    )
    assert [file.name for file in sandbox.list_files("/workspace/d")] == ["a", "a.txt", "b", "c"]
    assert sandbox.list_files("/workspace/d", hidden=True)[0].name == ".hidden"
    paths = [file.path.removeprefix("/workspace/d/") for file in sandbox.list_files("/workspace/d", recursive=True)]
    assert len(paths) == 2500 + 6
    assert paths == sorted(paths, key=lambda path: path.split("/"))
    assert paths[:4] == ["a", "a/x", "a/x/1", "a.txt"]
    with pytest.raises(NotAFile):
        sandbox.list_files("/workspace/d/c")
    with pytest.raises(FileNotFound):
        sandbox.list_files("/workspace/none")


def test_a_list_of_a_changing_folder_ends(sandbox: Sandbox) -> None:
    with sandbox.exec_stream("mkdir -p c; while :; do touch c/$RANDOM$$; mkdir -p c/x/y; rm -rf c/x; done"):
        for _ in range(20):
            sandbox.list_files("/workspace", recursive=True)


def test_delete(sandbox: Sandbox) -> None:
    sandbox.exec("mkdir -p d/e && touch d/e/f d/g && ln -s /etc/passwd d/l && ln -s d dl").check()
    sandbox.delete_file("/workspace/d/g")
    with pytest.raises(DirectoryNotEmpty):
        sandbox.delete_file("/workspace/d")
    sandbox.delete_file("/workspace/dl", recursive=True)  # the link, not what it leads to
    assert sandbox.exists("/workspace/d/e/f")
    sandbox.delete_file("/workspace/d", recursive=True)
    with pytest.raises(FileNotFound):
        sandbox.delete_file("/workspace/d", recursive=True)
    assert sandbox.exists("/etc/passwd")
    with pytest.raises(InvalidRequest):
        sandbox.delete_file("/", recursive=True)


def test_a_tree_deeper_than_any_path_can_be_deleted(sandbox: Sandbox) -> None:
    source = "import os\nos.chdir('/workspace')\nfor _ in range(2000):\n    os.mkdir('d'); os.chdir('d')\nopen('f','w')"
    sandbox.exec(["python3", "-c", source]).check()
    with pytest.raises(LimitExceeded):
        sandbox.list_files("/workspace", recursive=True)
    sandbox.delete_file("/workspace/d", recursive=True)
    assert sandbox.exec("ls -A").stdout == ""


def test_mkdir(sandbox: Sandbox) -> None:
    with pytest.raises(FileNotFound):
        sandbox.mkdir("/workspace/a/b")
    assert sandbox.mkdir("/workspace/a/b", parents=True, mode=0o700).mode == 0o700
    with pytest.raises(FileExists):
        sandbox.mkdir("/workspace/a/b")
    assert sandbox.mkdir("/workspace/a/b", parents=True).is_dir
    sandbox.write_file("/workspace/f", "")
    for path in ("/workspace/f", "/workspace/f/g"):
        with pytest.raises(NotAFile):
            sandbox.mkdir(path, parents=True)


def test_rename_and_move(sandbox: Sandbox) -> None:
    sandbox.write_file("/workspace/a", "a")
    sandbox.write_file("/workspace/b", "b")
    with pytest.raises(FileExists):
        sandbox.rename_file("/workspace/a", "/workspace/b", overwrite=False)
    assert sandbox.rename_file("/workspace/a", "/workspace/deep/er/c").path == "/workspace/deep/er/c"
    sandbox.move_file("/workspace/b", "/workspace/deep/er/c")
    assert sandbox.read_text("/workspace/deep/er/c") == "b"
    with pytest.raises(InvalidRequest):
        sandbox.rename_file("/workspace/deep", "/workspace/deep/er/x")
    with pytest.raises(FileNotFound):
        sandbox.rename_file("/workspace/none", "/workspace/x/y")
    assert not sandbox.exists("/workspace/x")
    sandbox.exec("ln -s er/c deep/l && chmod 700 deep/er").check()
    sandbox.move_file("/workspace/deep", "/dev/shm/deep")  # another filesystem
    assert sandbox.exec("stat -c '%a %N' /dev/shm/deep/er /dev/shm/deep/l; cat /dev/shm/deep/l; ls -A").stdout == (
        "700 '/dev/shm/deep/er'\n777 '/dev/shm/deep/l' -> 'er/c'\nb"
    )
    sandbox.rename_file("/usr/lib/python3", "/usr/lib/python3.moved")  # a directory of the rootfs
    assert sandbox.exists("/usr/lib/python3.moved")


def test_copy(sandbox: Sandbox) -> None:
    sandbox.exec("mkdir -p d/e && echo x > d/e/f && chmod 640 d/e/f && chown 7:7 d/e/f && ln -s e/f d/l").check()
    sandbox.exec("truncate -s 200M d/sparse && echo end >> d/sparse && mkfifo d/p").check()
    sandbox.copy_file("/workspace/d", "/workspace/n/copy")
    assert sandbox.exec("stat -c '%a %u %s' n/copy/e/f; readlink n/copy/l; du -m n/copy/sparse | cut -f1").stdout == (
        "640 7 2\ne/f\n1\n"
    )
    assert sandbox.exec("cmp d/sparse n/copy/sparse; test -p n/copy/p && echo fifo").stdout == "fifo\n"
    with pytest.raises(FileExists):
        sandbox.copy_file("/workspace/d", "/workspace/n/copy")
    sandbox.copy_file("/workspace/d", "/workspace/d/e/itself")
    assert not sandbox.exists("/workspace/d/e/itself/e/itself")
    sandbox.write_file("/workspace/g", "g")
    with pytest.raises(FileExists):
        sandbox.copy_file("/workspace/g", "/workspace/d/e/f", overwrite=False)
    sandbox.copy_file("/workspace/g", "/workspace/d/e/f")
    assert sandbox.read_text("/workspace/d/e/f") == "g"
    with pytest.raises(NotAFile):
        sandbox.copy_file("/dev/zero", "/workspace/z")


def test_chmod_and_chown(sandbox: Sandbox) -> None:
    sandbox.exec("mkdir -p d && touch d/f && ln -s /etc/passwd d/l").check()
    before = sandbox.stat_file("/etc/passwd")
    assert sandbox.chmod("/workspace/d", 0o711, recursive=True).mode == 0o711
    sandbox.chown("/workspace/d", "user", 12, recursive=True)
    assert sandbox.exec("stat -c '%a %u %g' d d/f d/l").stdout == "711 1000 12\n711 1000 12\n777 1000 12\n"
    assert sandbox.stat_file("/etc/passwd") == before
    for user in ("nobody\n", "no-such-user", 70000, "0:0"):
        with pytest.raises(InvalidRequest):
            sandbox.chown("/workspace/d", user)
    with pytest.raises(InvalidRequest):
        sandbox.chown("/workspace/d")


def test_truncate(sandbox: Sandbox) -> None:
    sandbox.write_file("/workspace/f", "0123456789", mode=0o640)
    sandbox.exec("chown 7:8 f; ln -s f l; ln -s nowhere dangling; mkdir d; mkfifo p; ln -s /dev/null null").check()
    assert sandbox.truncate("/workspace/f", 4).size == 4
    assert sandbox.read_text("/workspace/f") == "0123"
    grown = sandbox.truncate(b"/workspace/l", 1 << 40)  # a link is followed, as by the kernel's own
    assert (grown.path, grown.type, grown.size, grown.mode) == ("/workspace/l", "file", 1 << 40, 0o640)
    assert (grown.uid, grown.gid) == (7, 8)
    assert sandbox.exec("head -c 6 f; stat -c %b f").stdout_bytes.startswith(b"0123\0\0")
    assert int(sandbox.exec("stat -c %b f").stdout) <= 16  # the rest is a hole
    assert sandbox.truncate("/workspace/f", 0).size == 0
    assert sandbox.truncate("/etc/passwd", 5).size == 5  # a file of the rootfs becomes the sandbox's own
    for path, error in (
        ("/workspace/none", FileNotFound),
        ("/workspace/dangling", FileNotFound),
        ("/workspace/f/below", NotAFile),
        ("/workspace/d", NotAFile),
        ("/workspace/p", NotAFile),
        ("/workspace/null", NotAFile),
        ("/", NotAFile),
    ):
        with pytest.raises(error):
            sandbox.truncate(path, 1)
    with sandbox.exec_stream("exec 3<>p; echo open; sleep 60") as stream:
        next(iter(stream))
        with pytest.raises(NotAFile):
            sandbox.truncate("/workspace/p", 0)
    for size in (-1, (1 << 50) + 1, 1 << 70):
        with pytest.raises(InvalidRequest) as caught:
            sandbox.truncate("/workspace/f", size)
        assert caught.value.field == "size"
    with pytest.raises(SandboxdError):
        sandbox.truncate("/proc/uptime", 0)


def test_files_belong_to_the_default_user(client: Client) -> None:
    with Sandbox.create(user="user", client=client) as sandbox:
        sandbox.write_file("/workspace/a/f", "x")
        sandbox.mkdir("/workspace/b/c", parents=True)
        sandbox.symlink("/workspace/l", "a")
        with sandbox.read_archive("/workspace") as archive:
            sandbox.write_archive("/workspace/new", b"".join(archive))
        assert set(sandbox.exec("find . -mindepth 1 -printf '%u\\n'").stdout.split()) == {"user"}


NAMES = [b"\xff\xfe", b"a\nb", b"caf\xc3\xa9", b"caf\xe9", b" ", b"-rf", b"\\x", b"n" * 255, "ü".encode() * 127]


def test_any_name_survives_a_list_and_can_be_used(sandbox: Sandbox) -> None:
    source = f"import os\nfor name in {NAMES!r}: os.mkdir(b'/workspace/' + name); open(b'/workspace/'+name+b'/f','w')"
    sandbox.exec(["python3", "-c", source]).check()
    found = sandbox.list_files("/workspace")
    assert sorted(os.fsencode(file.name) for file in found) == sorted(NAMES)
    for file in found:
        sandbox.write_file(file.path + "/f", "x")
        assert sandbox.read_text(file.path + "/f") == "x"
        copied = sandbox.copy_file(file.path, os.fsencode(file.path)[:-1] + b"\xfd")
        assert sandbox.rename_file(copied.path, b"/workspace/\xfb").path == "/workspace/\udcfb"
        sandbox.delete_file(b"/workspace/\xfb", recursive=True)
        assert [m.path for m in sandbox.search_files(file.path, content="x").items] == [file.path + "/f"]
        sandbox.delete_file(file.path, recursive=True)
    assert sandbox.list_files("/workspace", hidden=True) == []
    assert sandbox.symlink(b"/workspace/\xf0", b"\xf1").target == "\udcf1"


@pytest.mark.parametrize(
    "path", ["", "relative", "./x", "/a/../b", "/nul\0", "/" + "x/" * 2048, b"/\0", b"\xff", "/\ud800"]
)
def test_bad_paths_are_refused_everywhere(shared: Sandbox, path: str | bytes) -> None:
    for action in (
        lambda: shared.stat_file(path),
        lambda: shared.exists(path),
        lambda: shared.list_files(path),
        lambda: shared.delete_file(path),
        lambda: shared.mkdir(path),
        lambda: shared.rename_file("/workspace/x", path),
        lambda: shared.copy_file(path, "/workspace/x"),
        lambda: shared.chmod(path, 0o700),
        lambda: shared.truncate(path, 0),
        lambda: shared.search_files(path, name="*"),
        lambda: shared.watch(path),
        lambda: shared.read_archive(path),
        lambda: shared.write_archive(path, b""),
    ):
        with pytest.raises(InvalidRequest):
            action()


def test_bad_requests_are_problems(daemon: Daemon, shared: Sandbox) -> None:
    base = f"/v1/sandboxes/{shared.id}/files"
    b64 = base64.b64encode(b"/workspace").decode()
    asked = [
        ("GET", f"{base}/list", None),
        ("GET", f"{base}/list?path=/a&path_b64={b64}", None),
        ("GET", f"{base}/list?path_b64=%25%25", None),
        ("GET", f"{base}/list?path_b64=AA==", None),
        ("GET", f"{base}/list?path=/workspace&recursive=maybe", None),
        ("GET", f"{base}/list?path=/workspace&cursor=*", None),
        ("GET", f"{base}/list?path=/workspace&limit=-1", None),
        ("GET", f"{base}/stat?path=%2e%2e", None),
        ("PUT", f"{base}?path=/workspace/x&mode=9", "x"),
        ("PUT", f"{base}?path=/workspace/x/", "x"),
        ("GET", f"{base}/archive?path=/workspace&format=rar", None),
        ("POST", f"{base}/mkdir", {"path": "/a\ud800"}),
        ("POST", f"{base}/mkdir", {"path": 7}),
        ("POST", f"{base}/mkdir", {"path": "/workspace/m", "mode": "u+x"}),
        ("POST", f"{base}/chmod", {"path": "/workspace"}),
        ("POST", f"{base}/truncate", {"path": "/workspace/x"}),
        ("POST", f"{base}/truncate", {"path": "/workspace/x", "size": "1"}),
        ("POST", f"{base}/truncate", {"path": "/workspace/x", "size": 1.5}),
        ("POST", f"{base}/truncate", {"path": "/workspace/x", "size": True}),
        ("POST", f"{base}/truncate", {"path": "/workspace/x", "size": -1}),
        ("POST", f"{base}/rename", {"path": "/workspace/x"}),
        ("POST", f"{base}/copy", {"path": "/workspace/x", "new_path": "x"}),
        ("POST", f"{base}/symlink", {"path": "/workspace/x", "target": ""}),
        ("POST", f"{base}/search", {"path": "/workspace"}),
        ("POST", f"{base}/search", {"path": "/workspace", "content": "("}),
        ("POST", f"{base}/search", {"path": "/workspace", "content": "x", "limit": 0}),
        ("POST", f"{base}/search", {"path": "/workspace", "content": "x", "timeout_s": 1e9}),
        ("POST", f"{base}/replace", {"path": "/workspace", "pattern": "", "replacement": "x"}),
        ("POST", f"{base}/mkdir", {"path": "/workspace/m", "unknown": 1}),
    ]
    with Rude(str(daemon.socket)) as rude:
        for method, path, body in asked:
            rude.ask(method, path, body)
            answer = rude.answer()
            assert answer.status == 400, (path, body, answer)
            assert answer.problem["kind"] in ("invalid-request", "unknown-field")


def test_ranges(shared: Sandbox) -> None:
    shared.write_file("/workspace/r", bytes(range(256)) * 8192)
    with shared.read_file_stream("/workspace/r", offset=1_048_570, length=12) as stream:
        assert b"".join(stream) == bytes([250, 251, 252, 253, 254, 255, 0, 1, 2, 3, 4, 5])
    with shared.read_file_stream("/workspace/r", offset=2_097_150) as stream:
        assert b"".join(stream) == b"\xfe\xff"
    with pytest.raises(SandboxdError) as caught:
        shared.read_file_stream("/workspace/r", offset=2_097_152)
    assert (caught.value.kind, caught.value.size) == ("range-not-satisfiable", 2_097_152)


def test_a_content_length_that_lies_changes_nothing(daemon: Daemon, shared: Sandbox) -> None:
    shared.write_file("/workspace/c", "old")
    head = f"PUT /v1/sandboxes/{shared.id}/files?path=/workspace/c HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\n"
    with Rude(str(daemon.socket)) as rude:
        rude.send(head.encode() + b"short")
    assert shared.read_text("/workspace/c") == "old"
    with Rude(str(daemon.socket)) as rude:
        rude.send(head.encode() + b"0123456789 and more that is no request\r\n\r\n")
        assert rude.answer().status == 200
    assert shared.read_text("/workspace/c") == "0123456789"


def test_the_media_type_is_guessed(daemon: Daemon, shared: Sandbox) -> None:
    for name, kind in (("a.png", "image/png"), ("a.json", "application/json"), ("a", "application/octet-stream")):
        shared.write_file(f"/workspace/{name}", "x")
        with Rude(str(daemon.socket)) as rude:
            rude.ask("GET", f"/v1/sandboxes/{shared.id}/files?path=/workspace/{name}")
            assert rude.answer().headers["content-type"] == kind


def test_async_has_every_verb(daemon: Daemon) -> None:
    async def main() -> None:
        async with AsyncClient(daemon.url) as client, AsyncSandbox.create(client=client) as sandbox:
            await sandbox.write_file("/workspace/a/f", "foo", mode=0o700)
            assert (await sandbox.stat_file("/workspace/a/f")).mode == 0o700
            assert [file.name for file in await sandbox.list_files("/workspace", recursive=True)] == ["a", "f"]
            await sandbox.copy_file("/workspace/a", "/workspace/b")
            await sandbox.rename_file("/workspace/b", "/workspace/c")
            await sandbox.chmod("/workspace/c", 0o755)
            await sandbox.chown("/workspace/c", "user")
            assert (await sandbox.truncate("/workspace/a/f", 3)).size == 3
            await sandbox.symlink("/workspace/l", "c")
            assert (await sandbox.search_files("/workspace", content="fo+")).items[0].path == "/workspace/a/f"
            assert (await sandbox.replace_in_files("/workspace", "foo", "bar")).count == 2
            async with sandbox.watch("/workspace") as changes:
                await sandbox.mkdir("/workspace/new/er", parents=True)
                assert (await anext(changes)).path == "/workspace/new"
            async with sandbox.read_archive("/workspace/a") as stream:
                data = b"".join([piece async for piece in stream])
            assert await sandbox.write_archive("/workspace/d", data) == 1
            await sandbox.delete_file("/workspace/c", recursive=True)
            assert not await sandbox.exists("/workspace/c")

    trio.run(main)
