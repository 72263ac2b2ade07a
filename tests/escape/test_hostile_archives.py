"""What a hostile tar or zip may not do, in a real sandbox."""

from __future__ import annotations

import contextlib
import io
import stat
import struct
import tarfile
import threading
import time
import zipfile
import zlib

import pytest

from sandboxd import ArchiveRefused, Sandbox
from sandboxd.errors import SandboxdError
from tests.escape.conftest import Stalls
from tests.support.daemon import Daemon

pytestmark = pytest.mark.real


def member(
    name: str, kind: bytes = tarfile.REGTYPE, link: str = "", data: bytes = b"evil"
) -> tuple[tarfile.TarInfo, bytes]:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, link
    return info, data if kind == tarfile.REGTYPE else b""


def tar(*members: tuple[tarfile.TarInfo, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for info, data in members:
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def as_zip(*members: tuple[str, bytes, int]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, data, mode in members:
            info = zipfile.ZipInfo(name)
            info.create_system, info.external_attr = 3, mode << 16
            archive.writestr(info, data)
    return buffer.getvalue()


REG, LNK = stat.S_IFREG | 0o644, stat.S_IFLNK | 0o777
REFUSED = {
    "dot-dot": tar(member("../evil")),
    "dot-dot inside": tar(member("a/../../evil")),
    "a file through an absolute link": tar(member("l", tarfile.SYMTYPE, "/outside"), member("l/evil")),
    "a file through a link that leads up": tar(member("a/l", tarfile.SYMTYPE, "../../outside"), member("a/l/evil")),
    "a file through a tail of dots": tar(
        member("a/x"), member("l", tarfile.SYMTYPE, "a/../../outside"), member("l/evil")
    ),
    "a directory through an absolute link": tar(
        member("l", tarfile.SYMTYPE, "/outside"), member("l/evil", tarfile.DIRTYPE)
    ),
    "a link through an absolute link": tar(
        member("l", tarfile.SYMTYPE, "/outside"), member("l/evil", tarfile.SYMTYPE, "x")
    ),
    "a hard link through an absolute link": tar(
        member("l", tarfile.SYMTYPE, "/etc"), member("evil", tarfile.LNKTYPE, "l/passwd")
    ),
    "a hard link into an absolute link": tar(
        member("f"), member("l", tarfile.SYMTYPE, "/outside"), member("l/evil", tarfile.LNKTYPE, "f")
    ),
    "a hard link to an absolute path": tar(member("l", tarfile.LNKTYPE, "/etc/shadow")),
    "a hard link that leads outside": tar(member("l", tarfile.LNKTYPE, "../../etc/shadow")),
    "a hard link through a link": tar(
        member("d", tarfile.SYMTYPE, "."), member("l", tarfile.LNKTYPE, "d/../../etc/shadow")
    ),
    "a file through a link that was there": tar(member("out/evil")),
    "a directory through a link that was there": tar(member("out/evil", tarfile.DIRTYPE)),
    "a character device": tar(member("null", tarfile.CHRTYPE)),
    "a block device": tar(member("disk", tarfile.BLKTYPE)),
    "a FIFO": tar(member("fifo", tarfile.FIFOTYPE)),
    "a sparse file": tar(member("s", tarfile.GNUTYPE_SPARSE)),
    "the directory itself": tar(member("./")),
    "a name over PATH_MAX": tar(member("x/" * 3000 + "evil")),
    "zip: dot-dot": as_zip(("../evil", b"evil", REG)),
    "zip: a file through an absolute link": as_zip(("l", b"/outside", LNK), ("l/evil", b"evil", REG)),
    "zip: a file through a link that leads up": as_zip(("a/l", b"../../outside", LNK), ("a/l/evil", b"evil", REG)),
    "zip: link, then file through it": as_zip(("l", b"..", LNK), ("l/evil", b"evil", REG)),
    "zip: a file through a link that was there": as_zip(("out/evil", b"evil", REG)),
    "zip: a device": as_zip(("dev", b"", stat.S_IFCHR | 0o666)),
    "zip: a file below a file": as_zip(("f", b"x", REG), ("f/evil", b"evil", REG)),
}


@pytest.mark.parametrize("data", [pytest.param(data, id=name) for name, data in REFUSED.items()])
def test_what_leads_outside_is_refused(sandbox: Sandbox, data: bytes) -> None:
    sandbox.exec("mkdir -p in/to outside && ln -s /outside in/to/out && mkdir /outside").check()
    with pytest.raises(ArchiveRefused) as caught:
        sandbox.write_archive("/workspace/in/to", data)
    assert caught.value.reason in ("outside", "absolute-link", "kind", "name", "link", "damaged")
    assert sandbox.exec("find / -xdev -name 'evil*'; ls -A /outside outside").stdout == "/outside:\n\noutside:\n"


def test_what_is_contained_is_taken(sandbox: Sandbox) -> None:
    sandbox.write_archive("/workspace/in", tar(member("/etc/sandboxd-evil")))
    assert sandbox.exec("cat in/etc/sandboxd-evil; ls /etc/sandboxd-evil").stdout == "evil"
    info, data = member("suid")
    info.mode, info.uid, info.uname = 0o7777, 0, "root"
    sandbox.write_archive("/workspace/in", tar((info, data), member("d/l", tarfile.SYMTYPE, "../suid")))
    assert sandbox.exec("stat -c '%a %u' in/suid; cat in/d/l").stdout == "755 0\nevil"
    sandbox.exec("ln -s /etc/passwd in/p; ln -s d in/inside").check()
    before = sandbox.read_file("/etc/passwd")
    sandbox.write_archive("/workspace/in", tar(member("p"), member("inside/x")))  # the link is replaced, not followed
    assert sandbox.read_file("/etc/passwd") == before
    assert sandbox.exec("cat in/p in/d/x").stdout == "evilevil"


@pytest.mark.parametrize("form", ["tar", "zip"])
def test_links_stay_and_lead_to_the_sandboxs_own(sandbox: Sandbox, form: str) -> None:
    """As in tar(1) and docker cp; the members that follow them are all there."""
    links = {"venv/python": "/usr/bin/python3", "up": "../../../../etc/hostname", "tail": "a/../..", "none": "/no/such"}
    if form == "tar":
        data = tar(*[member(name, tarfile.SYMTYPE, target) for name, target in links.items()], member("last"))
    else:
        data = as_zip(*[(name, target.encode(), LNK) for name, target in links.items()], ("last", b"evil", REG))
    assert sandbox.write_archive("/workspace/in", data) == 6  # and the directory venv
    for name, target in links.items():
        assert sandbox.exec(["readlink", f"in/{name}"]).stdout == f"{target}\n"
    assert sandbox.exec("in/venv/python -c 'print(40+2)'; cat in/last").stdout == "42\nevil"
    sandbox.write_archive("/workspace/in", tar(member("up"), member("venv/python")))  # the links are replaced
    assert sandbox.exec("cat in/up in/venv/python; wc -c </etc/hostname").stdout.startswith("evilevil")
    assert sandbox.exec("head -c4 /usr/bin/python3 | tail -c3").stdout == "ELF"


def test_a_folder_that_is_swapped_while_it_is_unpacked_to(daemon: Daemon, sandbox: Sandbox) -> None:
    """10,000 swaps of a member's directory for a link out of the target."""
    source = """
import ctypes, os
libc = ctypes.CDLL(None)
os.makedirs('/workspace/in/x'); os.mkdir('/outside'); os.symlink('/outside', '/workspace/in/evil')
print('ready', flush=True)
turns = 0
while turns < 10_000 or not os.path.exists('/stop'):
    libc.renameat2(-100, b'/workspace/in/x', -100, b'/workspace/in/evil', 2)
    turns += 1
print('turns', turns)
"""
    ready, said = threading.Event(), []

    def go() -> None:
        with daemon.client() as client:
            inner = Sandbox.connect(sandbox.id, client=client)
            with inner.exec_stream(["python3", "-c", source]) as stream:
                for chunk in stream:
                    said.append(chunk.text)
                    ready.set()

    thread = threading.Thread(target=go, daemon=True)
    thread.start()
    assert ready.wait(10)
    data = tar(*[member(f"{top}/{n}") for n in range(50) for top in ("x", "y")])
    taken = 0
    for _ in range(30):
        with contextlib.suppress(SandboxdError):
            sandbox.write_archive("/workspace/in", data)
            taken += 1
    sandbox.write_file("/stop", "x")
    thread.join(20)
    assert int("".join(said).split("turns ")[1]) >= 10_000
    assert sandbox.exec("ls -A /outside").stdout == ""


def test_bombs_burn_only_the_sandboxs_own(daemon: Daemon, sandbox: Sandbox) -> None:
    """Ratios of a thousand, overlapping members, headers that want all memory: errors by name, and a loop that runs."""
    zeros = zlib.compressobj(9, zlib.DEFLATED, 31)
    header = tarfile.TarInfo("x")
    header.type = tarfile.XHDTYPE
    header.size = 3 << 30
    gz = zeros.compress(header.tobuf())
    gz += b"".join(zeros.compress(bytes(1 << 20)) for _ in range(1200)) + zeros.flush()
    name = tarfile.TarInfo("././@LongLink")
    name.type, name.size = tarfile.GNUTYPE_LONGNAME, 1 << 40
    # One deflated kernel that the table of contents names 20,000 times (42.zip's younger sisters).
    body = zlib.compress(bytes(10 << 20), 9)[2:-4]
    crc = zlib.crc32(bytes(10 << 20))
    local = struct.pack("<4s5H3L2H", b"PK\3\4", 20, 0, 8, 0, 33, crc, len(body), 10 << 20, 1, 0)
    entries = [
        struct.pack(
            "<4s4B4HL2L5H2L", b"PK\1\2", 20, 3, 20, 0, 0, 8, 0, 33, crc, len(body), 10 << 20,
            5, 0, 0, 0, 0, REG << 16, 0,
        ) + f"{n:05}".encode() for n in range(20_000)
    ]  # fmt: skip
    table = b"".join(entries)
    start = len(local) + 1 + len(body)
    end = struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, 20_000, 20_000, len(table), start, 0)
    overlapping = local + b"x" + body + table + end
    with Stalls(daemon) as stalls:
        for data in (gz, name.tobuf() + bytes(1 << 20), overlapping):
            began = time.monotonic()
            with pytest.raises(SandboxdError) as caught:
                sandbox.write_archive("/workspace/in", data)
            assert caught.value.kind in ("limit-exceeded", "archive-refused", "quota-exceeded")
            assert time.monotonic() - began < 30
    assert stalls.worst < 0.5
    assert sandbox.exec("echo alive; find / -xdev -name '.sandboxd-tmp*'").stdout == "alive\n"
