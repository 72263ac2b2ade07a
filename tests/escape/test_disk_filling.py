"""Fill the disk by bytes, inodes and attributes; kill everything under writes."""

from __future__ import annotations

import os
import signal
import time
import zlib
from collections.abc import Iterator

import pytest

from sandboxd import Client, InvalidRequest, QuotaExceeded, Sandbox
from tests.escape.conftest import Stalls
from tests.support.daemon import Daemon
from tests.support.pool import kernel_seconds, loops

pytestmark = pytest.mark.real

MIB = 1 << 20
FILL = """
import errno, os, sys
written = 0
try:
    with open(sys.argv[1], 'wb', buffering=0) as file:
        while True:
            written += file.write(os.urandom(65536))
except OSError as error:
    print(errno.errorcode[error.errno], written)
"""
FLOOD = """
import errno, os, sys
os.makedirs(sys.argv[1], exist_ok=True)
os.chdir(sys.argv[1])
made = 0
try:
    while True:
        os.close(os.open(f'{made:0240d}' if len(sys.argv) > 2 else str(made), os.O_CREAT | os.O_WRONLY))
        made += 1
except OSError as error:
    print(errno.errorcode[error.errno], made)
"""
ATTRIBUTES = """
import errno, os
made = 0
try:
    while True:
        path = f'/workspace/x{made}'
        os.close(os.open(path, os.O_CREAT | os.O_WRONLY))
        for number in range(8):
            os.setxattr(path, f'user.a{number}', bytes(1500))
        made += 1
except OSError as error:
    print(errno.errorcode[error.errno], made)
"""
#: Asks for compression by every door that a program has, in directories and files of each origin, and writes below
#: them; prints what was granted, and which files the filesystem keeps encoded (FIEMAP_EXTENT_ENCODED).
COMPRESS = """
import errno, fcntl, os, shutil, struct
data, granted, encoded = b''.join(b'%d %d\\n' % (i, i * i) for i in range(20000)), [], []
def attribute(name, value):
    return lambda fd: os.setxattr(fd, name, value)
def ioctl(request, argument):
    return lambda fd: fcntl.ioctl(fd, request, argument)
zlib, undone = attribute('btrfs.compression', b'zlib'), ioctl(0x40086602, struct.pack('q', 0))
doors = {
    **{f'{n} {v}': [attribute(n, v)] for n in ('btrfs.compression', 'trusted.btrfs.compression')
       for v in (b'zlib', b'zlib:9', b'lzo', b'zstd', b'zstd:15')},
    'flags': [ioctl(0x40086602, struct.pack('q', 4))], 'flags 32': [ioctl(0x40046602, struct.pack('i', 4))],
    'undone': [undone, zlib], 'undone by xattr': [ioctl(0x401C5820, struct.pack('I24x', 0)), zlib],
    'defrag': [ioctl(0x50009402, bytearray(4096))],
    'defrag range': [ioctl(0x40309410, struct.pack('QQQIIIIII', 0, 1 << 40, 1, 0, 1, 0, 0, 0, 0))],
    'verity': [ioctl(0x40806685, struct.pack('IIII', 1, 1, 4096, 0) + bytes(112))],
}
def apply(name, fd, path):
    for door in doors[name]:
        try:
            door(fd)
            granted.append(f'{name} on {path}')
        except OSError as error:
            if error.errno not in (errno.EINVAL, errno.EOPNOTSUPP, errno.EPERM):
                granted.append(f'{name} on {path}: {error}')
def is_encoded(fd):
    found = bytearray(struct.pack('QQIIII', 0, 1 << 40, 1, 0, 1, 0) + bytes(56))
    fcntl.ioctl(fd, 0xC020660B, found)
    return struct.unpack_from('I', found, 20)[0] == 0 or struct.unpack_from('I', found, 32 + 40)[0] & 8
os.makedirs('/workspace/made/below'); os.makedirs('/workspace/to move'); os.rename('/workspace/to move', '/tmp/moved')
size = 0
for place in ('/workspace/made/below', '/tmp/moved', '/usr/local', '/etc', '/'):
    for name in doors:
        directory = os.path.join(place, 'tried')
        os.mkdir(directory)
        fd = os.open(directory, os.O_RDONLY)
        apply(name, fd, directory)
        os.close(fd)
        with open(directory + '/file', 'w+b', buffering=0) as file:
            apply(name, file.fileno(), file.name)
            file.write(data)
            os.fsync(file.fileno())
            apply(name, file.fileno(), file.name)
            if is_encoded(file.fileno()):
                encoded.append(f'{name} in {place}')
            size += len(data)
        shutil.rmtree(directory)
print(granted, encoded, size)
"""
REFUSED = ("EDQUOT", "ENOSPC")


def own_bytes(daemon: Daemon) -> int:
    """What the pool takes of the host's disk."""
    return (daemon.state_dir / "pool.btrfs").stat().st_blocks * 512


def zlib_seconds(size: int) -> float:
    """What compressing so many bytes of COMPRESS's takes here."""
    data = b"".join(b"%d %d\n" % (i, i * i) for i in range(40_000))
    began = time.process_time()
    zlib.compress(data, 3)
    return (time.process_time() - began) * size / len(data)


@pytest.fixture
def small(client: Client, daemon: Daemon) -> Iterator[Sandbox]:
    with Sandbox.create(client=client, limits={"disk_bytes": 64 * MIB}) as sandbox:
        assert "disk_bytes" not in sandbox.info.unenforced
        yield sandbox


def test_bytes_are_refused_at_the_limit(daemon: Daemon, small: Sandbox, neighbour: Sandbox) -> None:
    before, free = own_bytes(daemon), os.statvfs(daemon.state_dir)
    for directory in ("/workspace", "/tmp", "/usr/lib"):
        refused, written = small.exec(["python3", "-c", FILL, f"{directory}/f"]).stdout.split()
        assert refused in REFUSED
        assert 60 * MIB < int(written) <= 64 * MIB
        assert own_bytes(daemon) - before < 200 * MIB
        # At the limit: the sandbox runs, its own files can go, the API says what is the matter.
        assert small.exec("echo alive").stdout == "alive\n"
        with pytest.raises(QuotaExceeded) as caught:
            small.write_file("/workspace/more", bytes(8 * MIB))
        assert caught.value.kind == "quota-exceeded"
        assert neighbour.exec("head -c 10M /dev/urandom > /workspace/n && rm /workspace/n").exit_code == 0
        assert (
            small.exec(f"rm {directory}/f && head -c 10M /dev/zero > {directory}/g && rm {directory}/g").exit_code == 0
        )
    after = os.statvfs(daemon.state_dir)
    assert after.f_files == free.f_files


def test_the_limit_can_be_changed(small: Sandbox) -> None:
    assert small.exec(["python3", "-c", FILL, "/workspace/f"]).stdout.split()[0] in REFUSED
    used = small.stats().disk_bytes
    assert used
    assert 60 * MIB < used <= 64 * MIB
    small.update(limits={"disk_bytes": 96 * MIB})
    refused, written = small.exec(["python3", "-c", FILL, "/workspace/g"]).stdout.split()
    assert refused in REFUSED
    assert 28 * MIB < int(written) <= 32 * MIB
    small.update(limits={"disk_bytes": 32 * MIB})
    assert small.exec("rm /workspace/f /workspace/g && echo gone").stdout == "gone\n"


def test_sparse_files_and_attributes(small: Sandbox) -> None:
    assert small.exec("truncate -s 4T /workspace/sparse && ls -l /workspace/sparse").exit_code == 0
    refused, made = small.exec(["python3", "-c", ATTRIBUTES]).stdout.split()
    assert refused in REFUSED
    assert int(made) * 8 * 1500 < 64 * MIB
    assert small.exec("echo alive").stdout == "alive\n"


@pytest.mark.parametrize("user", ["root", 1000])
@pytest.mark.parametrize("profile", ["default", "strict"])
def test_nothing_is_compressed_by_the_kernels_own_threads(client: Client, profile: str, user: str | int) -> None:
    """Their time is nobody's: it is above every limit. What a program sets costs them no more than plain writing."""
    with Sandbox.create(client=client, seccomp=profile) as sandbox:
        assert "disk_bytes" not in sandbox.info.unenforced
        if user != "root":
            sandbox.exec("chmod 777 / /workspace /usr/local /etc").check()
        costs = []
        for _ in range(3):  # other work has them busy too
            before = kernel_seconds()
            *answers, size = sandbox.exec(["python3", "-c", COMPRESS], user=user).check().stdout.rsplit(" ", 1)
            costs.append(kernel_seconds() - before)
            assert answers == ["[] []"]
            sandbox.exec("rm -r /workspace/made /tmp/moved").check()
            if costs[-1] < zlib_seconds(int(size)) / 2:
                return
    raise AssertionError(f"the kernel's threads took {costs} s")


@pytest.mark.slow
@pytest.mark.parametrize(("names", "mib"), [(["long"], 64), ([], 16)], ids=["long names", "short names"])
def test_empty_files_are_refused_at_the_limit(
    client: Client, daemon: Daemon, neighbour: Sandbox, names: list[str], mib: int
) -> None:
    """Until it is refused, then destroyed at once, while nobody else waits."""
    sandbox = Sandbox.create(client=client, limits={"disk_bytes": mib * MIB})
    before = own_bytes(daemon)
    refused, made = sandbox.exec(["python3", "-c", FLOOD, "/workspace/d", *names], timeout=110).stdout.split()
    assert refused in REFUSED
    assert 10_000 < int(made) < 400_000
    # Each of the kernel's commits writes changed metadata elsewhere; it goes round in a chunk of at most 1 GiB.
    assert own_bytes(daemon) - before < 1400 * MIB
    assert sandbox.exec("echo alive").stdout == "alive\n"
    with Stalls(daemon) as stalls:
        began = time.monotonic()
        sandbox.destroy()
        took = time.monotonic() - began
    print(f"{made} files, destroyed in {took:.2f} s, the daemon's longest silence {stalls.worst * 1000:.0f} ms")
    assert stalls.worst < 1
    assert neighbour.exec("echo alive").stdout == "alive\n"


def test_at_its_limit_a_sandbox_is_born_and_served(client: Client) -> None:
    with Sandbox.create(client=client, limits={"disk_bytes": MIB}) as least:
        assert least.exec("echo alive").stdout == "alive\n"
        assert least.exec(["python3", "-c", FILL, "/workspace/f"]).stdout.split()[0] in REFUSED
        assert least.exec("echo alive").stdout == "alive\n"


def test_more_than_the_pool_holds_cannot_be_asked_for(client: Client) -> None:
    with pytest.raises(InvalidRequest) as caught:
        Sandbox.create(client=client, limits={"disk_bytes": 1 << 50})
    assert caught.value.field == "limits.disk_bytes"


def test_shared_memory_is_bounded_by_bytes_and_by_files(client: Client) -> None:
    with Sandbox.create(client=client, limits={"memory_bytes": 64 * MIB}) as sandbox:
        refused, written = sandbox.exec(["python3", "-c", FILL, "/dev/shm/f"]).stdout.split()
        assert refused in REFUSED
        assert int(written) <= 32 * MIB
        refused, made = sandbox.exec(["python3", "-c", FLOOD, "/dev/shm/d"]).stdout.split()
        assert refused in REFUSED
        assert int(made) <= 32 * MIB // 4096
        for path in ("/dev", "/sys", "/proc"):
            refused = sandbox.exec(f"head -c 1M /dev/zero > {path}/f 2>&1; rm -f {path}/f; echo $?").stdout
            assert refused


WRITER = """
import hashlib, os, time
number = 0
while True:
    body = os.urandom(200_000)
    with open('/workspace/fresh', 'wb') as file:
        file.write(hashlib.sha256(body).digest() + body)
        os.fsync(file.fileno())
    os.rename('/workspace/fresh', f'/workspace/synced-{number % 100}')
    number += 1
    time.sleep(0.01)
"""
READER = """
import hashlib, pathlib
found = [path.read_bytes() for path in pathlib.Path('/workspace').glob('synced-*')]
print(len(found), sum(hashlib.sha256(data[32:]).digest() != data[:32] for data in found))
"""


@pytest.mark.slow
@pytest.mark.parametrize("both", [True, False], ids=["daemon and launcher", "daemon alone"])
def test_killed_fifty_times_under_writes(own_daemon: Daemon, both: bool) -> None:
    """Twice 25 times, under a sandbox that goes on writing, and others that are born and die."""
    image = own_daemon.state_dir / "pool.btrfs"
    with own_daemon.client() as client:
        writer = Sandbox.create(client=client, limits={"disk_bytes": 256 * MIB})
        writer.exec('nohup python3 -c "$W" >/dev/null 2>&1 &', env={"W": WRITER}, keep_orphans=True).check()
    devices = set()
    for turn in range(25):
        with own_daemon.client() as client:
            if turn % 5 == 0:
                Sandbox.create(client=client)  # is left to the next daemon in whatever state it is
            for other in Sandbox.list(client=client):
                if other.id != writer.id:
                    other.destroy()
                    break
        launcher = own_daemon.launcher_pid()
        devices |= set(loops(image))
        assert len(loops(image)) == 1, turn
        if both:
            os.kill(launcher, signal.SIGKILL)  # else it may live on beside its successor for a moment
        own_daemon.signal(signal.SIGKILL)
        own_daemon.start()
    assert len(devices) == 1, "the filesystem never changed its device"
    with own_daemon.client() as client:
        writer = Sandbox.connect(writer.id, client=client)
        count, torn = writer.exec(["python3", "-c", READER]).stdout.split()
        assert (int(count) > 50, int(torn)) == (True, 0)
        for sandbox in Sandbox.list(client=client):
            sandbox.destroy()
        assert list(own_daemon.pool().iterdir()) == []
