"""GET and PUT of files in a real sandbox."""

from __future__ import annotations

import os
import pathlib
import time

import pytest

from sandboxd import FileNotFound, InvalidRequest, NotAFile, QuotaExceeded, Sandbox, SandboxdError
from sandboxd.client import Client
from tests.support.daemon import Daemon
from tests.support.rude import Rude

pytestmark = pytest.mark.real


def test_round_trip_of_any_bytes(shared: Sandbox) -> None:
    data = os.urandom(5_000_000)
    shared.write_file("/workspace/deep/er/blob", data)
    assert shared.read_file("/workspace/deep/er/blob") == data
    assert shared.exec("stat -c '%s %U %a' deep/er/blob").stdout == "5000000 root 644\n"


def test_a_name_may_fill_what_a_file_system_takes(shared: Sandbox) -> None:
    for name in ("n" * 255, "ü" * 127):
        shared.write_file(f"/workspace/names/{name}", "x")
        assert shared.read_text(f"/workspace/names/{name}") == "x"


def test_replacing_keeps_the_mode_and_readers_see_old_or_new(shared: Sandbox) -> None:
    shared.write_file("/workspace/tool", "one")
    shared.exec("chmod 755 tool; exec 3<tool; echo kept").check()
    shared.write_file("/workspace/tool", "two")
    assert shared.exec("stat -c %a tool; cat tool").stdout == "755\ntwo"
    assert shared.exec("ls -A /workspace | grep -c sandboxd-tmp || true").stdout == "0\n"


def test_a_link_is_followed_inside(shared: Sandbox) -> None:
    shared.exec("ln -sf /tmp/target link && echo x > /tmp/target").check()
    shared.write_file("/workspace/link", "through")
    assert shared.exec("cat /tmp/target; test -L link && echo still a link").stdout == "throughstill a link\n"
    shared.exec("ln -sf /etc/shadow shadow; ln -sf ../../../../../../etc/hostname up").check()
    assert shared.read_text("/workspace/up") == f"{shared.id}\n"  # the sandbox's own, whatever the path


@pytest.mark.parametrize(
    ("make", "path"),
    [
        ("true", "/etc"),
        ("mkfifo /tmp/fifo", "/tmp/fifo"),
        ("true", "/dev/zero"),
        ("python3 -c \"import socket; socket.socket(1).bind('/tmp/sock')\"", "/tmp/sock"),
    ],
)
def test_only_regular_files(sandbox: Sandbox, make: str, path: str) -> None:
    sandbox.exec(make).check()
    with pytest.raises(NotAFile):
        sandbox.read_file(path)
    with pytest.raises(NotAFile):
        sandbox.write_file(path, "x")


@pytest.mark.parametrize(
    "path", ["/proc/self/status", "/proc/1/mem", "/sys/kernel/notes", "/proc/self/root/etc/hostname", "/proc/self/fd/0"]
)
def test_kernel_files_do_not_leave(shared: Sandbox, path: str) -> None:
    with pytest.raises(SandboxdError) as caught:
        shared.read_file(path)
    assert caught.value.kind in {"not-a-file", "file-permission-denied", "file-not-found", "invalid-request"}


def test_shm_is_readable_too(shared: Sandbox) -> None:
    shared.exec("echo shm > /dev/shm/x").check()
    assert shared.read_text("/dev/shm/x") == "shm\n"


@pytest.mark.parametrize("path", ["relative", "/a/../etc/passwd", "/nul\0", "", "/" + "x" * 5000])
def test_bad_paths(shared: Sandbox, path: str) -> None:
    with pytest.raises(InvalidRequest):
        shared.read_file(path)


def test_what_is_not_there(shared: Sandbox) -> None:
    with pytest.raises(FileNotFound):
        shared.read_file("/no/such/file")
    with pytest.raises(NotAFile):
        shared.write_file("/etc/passwd/below", "x")


@pytest.mark.slow
def test_a_full_disk_leaves_the_old_file(sandbox: Sandbox) -> None:
    """/dev/shm is the one filesystem here with a limit: the write fails as a quota, the old file is whole."""
    sandbox.write_file("/dev/shm/kept", "old")
    sandbox.exec("head -c 100G /dev/zero > /dev/shm/filler; true")
    with pytest.raises(SandboxdError) as caught:
        sandbox.write_file("/dev/shm/kept", b"x" * 5_000_000)
    assert caught.value.kind == "quota-exceeded"
    assert sandbox.read_text("/dev/shm/kept") == "old"
    assert sandbox.exec("ls -A /dev/shm").stdout == "filler\nkept\n"


@pytest.mark.slow
def test_uploads_that_are_dropped_leave_nothing(daemon: Daemon, sandbox: Sandbox) -> None:
    """Dropped before init's answer, between, and after: no ticket and no temporary file stays."""
    head = (
        f"PUT /v1/sandboxes/{sandbox.id}/files?path=/workspace/f HTTP/1.1\r\nHost: x\r\nContent-Length: 9000000\r\n\r\n"
    )
    for turn in range(600):  # over the bound of writes that may be under way
        with Rude(str(daemon.socket)) as rude:
            rude.send(head.encode() + b"x" * (turn % 3))
            time.sleep(turn % 7 / 2000)
    sandbox.write_file("/workspace/kept", "x")
    assert sandbox.exec("sleep 0.2; ls -A /workspace").stdout == "kept\n"


def test_a_quota_hit_in_the_middle_leaves_the_old_file(client: Client) -> None:
    with Sandbox.create(limits={"disk_bytes": 48 << 20}, client=client) as sandbox:
        if "disk_bytes" in sandbox.info.unenforced:
            pytest.skip("this host's storage cannot limit a sandbox")
        sandbox.write_file("/workspace/f", "old")
        for write in (
            lambda: sandbox.write_file("/workspace/f", os.urandom(80 << 20)),
            lambda: sandbox.write_file("/workspace/new", (os.urandom(1 << 20) for _ in range(80))),
        ):
            with pytest.raises(QuotaExceeded) as caught:
                write()
            assert caught.value.status == 507
        sandbox.write_file("/workspace/big", os.urandom(20 << 20))
        for number in range(5):  # of one filesystem, copies share what they hold
            sandbox.copy_file("/workspace/big", f"/workspace/copy{number}")
            sandbox.delete_file(f"/workspace/copy{number}")
        assert sandbox.read_text("/workspace/f") == "old"
        assert ".sandboxd-tmp" not in sandbox.exec("ls -A /workspace").stdout
        sandbox.delete_file("/workspace/big")
        sandbox.write_file("/workspace/again", os.urandom(1 << 20))


def test_a_file_of_the_rootfs_that_finds_no_room_keeps_its_size(client: Client) -> None:
    with Sandbox.create(limits={"disk_bytes": 48 << 20}, client=client) as sandbox:
        if "disk_bytes" in sandbox.info.unenforced:
            pytest.skip("this host's storage cannot limit a sandbox")
        large = sandbox.exec("find / -xdev -type f -size +60M").stdout.splitlines()
        if not large:
            pytest.skip("this rootfs has no file that is large enough")
        size = sandbox.stat_file(large[0]).size
        with pytest.raises(QuotaExceeded):
            sandbox.truncate(large[0], size - 1)
        assert sandbox.stat_file(large[0]).size == size


@pytest.mark.slow
def test_a_gigabyte_up_and_down_leaves_the_daemons_memory_flat(daemon: Daemon, sandbox: Sandbox) -> None:
    assert daemon.process

    def peak() -> int:
        status = pathlib.Path(f"/proc/{daemon.process.pid}/status").read_text()  # type: ignore[union-attr]
        return int(status.split("VmHWM:")[1].split()[0]) << 10

    sandbox.write_file("/workspace/warm", bytes(20 << 20))
    before = peak()
    piece = os.urandom(1 << 20)
    assert sandbox.write_file("/workspace/big", (piece for _ in range(1024))) == 1 << 30
    with sandbox.read_file_stream("/workspace/big") as stream:
        assert sum(map(len, stream)) == 1 << 30
    with sandbox.read_archive("/workspace") as stream:
        assert sum(map(len, stream)) > 1 << 30
    assert peak() - before < 32 << 20
