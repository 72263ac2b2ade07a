"""Search, replacement, archives and watches in a real sandbox."""

from __future__ import annotations

import contextlib
import io
import pathlib
import random
import stat
import tarfile
import threading
import time
import zipfile
from typing import Any

import pytest

from sandboxd import ArchiveRefused, FileChange, InvalidRequest, LimitExceeded, NotAFile, Sandbox, SandboxdError
from sandboxd.client import Client
from tests.support.daemon import Daemon
from tests.support.standby import strangers
from tests.support.waiting import wait_until

pytestmark = pytest.mark.real

#: Guards against a hang alone.
SOON_S = 60.0

# --- search and replace ---


def test_search_by_name_and_by_content(sandbox: Sandbox) -> None:
    sandbox.exec(
        "mkdir -p src/deep .cache build && printf 'one\\ntwo foo\\r\\n\\nfoo foo' > src/a.py"
        " && echo foo > src/deep/b.txt"
        " && echo foo > .cache/c.py && printf 'foo\\0' > bin.py && echo build/ > .gitignore && echo foo > build/d.py"
    ).check()
    names = [match.path for match in sandbox.search_files("/workspace", name="*.py").items]
    assert names == ["/workspace/bin.py", "/workspace/build/d.py", "/workspace/src/a.py"]
    assert [m.path for m in sandbox.search_files("/workspace", name="src/**/*.txt").items] == [
        "/workspace/src/deep/b.txt"
    ]
    found = sandbox.search_files("/workspace", content=r"FO{2}\b", ignore_case=True, gitignore=True, name="*.py")
    assert [(m.path, m.line, m.column, m.text) for m in found.items] == [
        ("/workspace/src/a.py", 2, 5, "two foo"),
        ("/workspace/src/a.py", 4, 1, "foo foo"),
    ]
    assert found.truncated is None
    assert len(sandbox.search_files("/workspace", content="foo", hidden=True).items) == 5
    limited = sandbox.search_files("/workspace", content="foo", limit=1)
    assert (len(limited.items), limited.truncated) == (1, "limit")
    assert sandbox.search_files("/workspace/src/a.py", content="^one$").items[0].line == 1


def test_lines_are_counted_over_blocks(sandbox: Sandbox) -> None:
    sandbox.exec(
        "seq 2000000 > n && echo needle >> n && head -c 9000000 /dev/zero | tr '\\0' x > long && echo needle >> long"
    )
    found = sandbox.search_files("/workspace", content="needle").items
    assert [(m.path, m.line) for m in found] == [("/workspace/long", 1), ("/workspace/n", 2000001)]
    assert max(len(m.text or "") for m in found) <= 500


def test_a_pattern_that_never_ends_only_burns_the_sandboxs_time(
    daemon: Daemon, sandbox: Sandbox, client: Client
) -> None:
    sandbox.write_file("/workspace/a", "foo\n" + "a" * 60 + "!")
    began = time.monotonic()
    found = sandbox.search_files("/workspace", content="foo|(a+)+$", timeout=0.5)
    assert time.monotonic() - began < 30
    assert found.truncated == "timeout"
    assert sandbox.replace_in_files("/workspace", "(a+)+$", "x", regex=True, timeout=0.5).truncated == "timeout"
    for pattern in ("(", r"\1", r"\N{BULLET}", "a" * 20_000):
        with pytest.raises(InvalidRequest):
            sandbox.search_files("/workspace", content=pattern)
    for pattern in (
        "(?:a{65000}){65000}" * 50,
        "(" * 99 + "a{9999}" + "){9999}" * 99,
        "(?i:[\\U00000000-\\U0010ffff]{999})" * 99,
    ):
        with contextlib.suppress(LimitExceeded, InvalidRequest):  # on a slow machine compiling one takes too long
            sandbox.search_files("/workspace", content=pattern, timeout=2)
    assert sandbox.exec("echo alive; ls -A").stdout == "alive\na\n"


def test_replace(sandbox: Sandbox) -> None:
    sandbox.exec("printf 'a.c abc\\r\\n\\377 a.c' > f && chmod 750 f && chown 7 f && mkdir d && echo a.c > d/g").check()
    result = sandbox.replace_in_files("/workspace", "a.c", r"\1")
    assert (result.count, result.items) == (3, {"/workspace/d/g": 1, "/workspace/f": 2})
    assert sandbox.read_file("/workspace/f") == b"\\1 abc\r\n\xff \\1"
    assert sandbox.exec("stat -c '%a %u' f; ls -A").stdout == "750 7\nd\nf\n"
    assert sandbox.replace_in_files("/workspace/f", r"a(b)c", r"<\1>", regex=True).count == 1
    assert sandbox.read_file("/workspace/f") == b"\\1 <b>\r\n\xff \\1"
    with pytest.raises(InvalidRequest):
        sandbox.replace_in_files("/workspace", "b", r"\9", regex=True)


# --- archives ---


def names_of(data: bytes) -> list[str]:
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        return archive.getnames()


def make_tree(sandbox: Sandbox) -> None:
    sandbox.exec(
        "mkdir -p t/d/e t/empty && echo x > t/d/e/f && chmod 755 t/d/e/f && ln -s d/e/f t/l && ln -s ../d t/d/up"
        " && printf '' > t/none && touch -d 2001-01-01T00:00:00Z t/none && head -c 3000000 /dev/urandom > t/big"
        " && mkfifo t/p && touch \"t/$(printf '\\303\\251')\""
    ).check()


@pytest.mark.parametrize("kind", ["tar", "tar.gz", "zip"])
def test_a_folder_out_and_in(sandbox: Sandbox, kind: str) -> None:
    make_tree(sandbox)
    with sandbox.read_archive("/workspace/t", format=kind) as stream:  # type: ignore[arg-type]
        data = b"".join(stream)
    assert sandbox.write_archive("/workspace/new/t", data) == 9
    listing = "cd {} && find . ! -type p -printf '%p %y %m %s %T@ %l\\n' | sort | sed 's/^\\. .*/./'"
    ours = sandbox.exec(f"rm -rf t/p; diff -r --no-dereference t new/t; {listing.format('new/t')}").stdout
    theirs = sandbox.exec(listing.format("t")).stdout
    without_directory_times = [" ".join(line.split()[:3]) for line in ours.splitlines()]
    assert without_directory_times == [" ".join(line.split()[:3]) for line in theirs.splitlines()]
    assert sandbox.exec("stat -c %Y new/t/none").stdout == "978307200\n"


def test_python_reads_what_we_pack(sandbox: Sandbox) -> None:
    make_tree(sandbox)
    with sandbox.read_archive("/workspace/t") as stream:
        assert set(names_of(b"".join(stream))) == {"big", "d", "d/e", "d/e/f", "d/up", "empty", "l", "none", "é"}
    with sandbox.read_archive("/workspace/t", format="zip") as stream:
        archive = zipfile.ZipFile(io.BytesIO(b"".join(stream)))
    assert archive.testzip() is None
    assert stat.S_ISLNK(archive.getinfo("l").external_attr >> 16)
    with sandbox.read_archive("/workspace/t/d/e/f") as stream:
        assert names_of(b"".join(stream)) == ["f"]
    with pytest.raises(NotAFile):
        sandbox.read_archive("/dev/null")


def test_a_file_that_changes_while_it_is_packed_breaks_nothing(sandbox: Sandbox) -> None:
    sandbox.exec("mkdir t; head -c 30000000 /dev/zero > t/a; echo z > t/z").check()
    with sandbox.exec_stream(
        "while :; do truncate -s 10 t/a; truncate -s 30000000 t/a; truncate -s 50000000 t/a; done"
    ):
        for _ in range(5):
            with sandbox.read_archive("/workspace/t") as stream:
                assert names_of(b"".join(stream)) == ["a", "z"]


def test_an_archive_that_is_cut_or_damaged_is_named_so(sandbox: Sandbox) -> None:
    make_tree(sandbox)
    for kind in ("tar", "tar.gz", "zip"):
        with sandbox.read_archive("/workspace/t", format=kind) as stream:
            data = b"".join(stream)
        for broken in (data[: len(data) // 2], data[:-40] if kind != "tar" else data[:700], b"garbage " * 1000, b""):
            with pytest.raises(ArchiveRefused) as caught:
                sandbox.write_archive("/workspace/out", broken, format=kind)
            assert caught.value.reason == "damaged"
    for data in (b"BZh9" + bytes(100), b"\xfd7zXZ\0" + bytes(100)):
        with pytest.raises(InvalidRequest):
            sandbox.write_archive("/workspace/out", data)
    assert "sandboxd-tmp" not in sandbox.exec("find / -xdev -name '.sandboxd-tmp*'").stdout


def test_an_archive_larger_than_the_disk_limit_is_refused(client: Client) -> None:
    with Sandbox.create(limits={"disk_bytes": 32 << 20}, client=client) as sandbox:
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("bomb", bytes(200 << 20))
        assert len(buffer.getvalue()) < 1 << 20
        with pytest.raises(SandboxdError) as caught:
            sandbox.write_archive("/workspace/out", buffer.getvalue())
        assert caught.value.kind == "quota-exceeded"
        assert sandbox.exec("find /workspace -type f").stdout == ""


def test_an_upload_that_is_dropped_leaves_no_temporary_file(sandbox: Sandbox) -> None:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name in ("whole", "cut"):
            info = tarfile.TarInfo(name)
            info.size = 8_000_000
            archive.addfile(info, io.BytesIO(random.randbytes(info.size)))

    def pieces() -> object:
        yield buffer.getvalue()[:12_000_000]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        sandbox.write_archive("/workspace/out", pieces())  # type: ignore[arg-type]
    wait_until(lambda: sandbox.exec("ls -A out").stdout == "whole\n")


def test_copy_in_and_out(sandbox: Sandbox, tmp_path: pathlib.Path) -> None:
    (tmp_path / "in" / "d").mkdir(parents=True)
    (tmp_path / "in" / "d" / "f").write_bytes(b"x" * 1_000_000)
    (tmp_path / "in" / "d" / "f").chmod(0o755)
    (tmp_path / "in" / "l").symlink_to("d/f")
    seen: list[int] = []
    assert sandbox.copy_in(tmp_path / "in", "/workspace/c", on_bytes=seen.append) == 3
    assert sum(seen) == 1_000_000
    sandbox.exec("ln -s /etc/passwd c/abs; ln -s ../../../../../etc/shadow c/d/up; ln -s f c/d/ok; mkfifo c/p").check()
    left_out = sandbox.copy_out("/workspace/c", tmp_path / "out")
    assert sorted(left_out) == ["abs", "d/up"]
    assert (tmp_path / "out" / "l").read_bytes() == b"x" * 1_000_000
    assert (tmp_path / "out" / "d" / "ok").readlink() == pathlib.Path("f")
    assert (tmp_path / "out" / "d" / "f").stat().st_mode & 0o777 == 0o755
    (tmp_path / "out" / "mine").write_text("mine")
    sandbox.write_file("/workspace/c/d/f", "new")
    sandbox.copy_out("/workspace/c", tmp_path / "out")
    assert (tmp_path / "out" / "d" / "f").read_text() == "new"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in", "out"]
    assert (tmp_path / "out" / "mine").read_text() == "mine"


# --- watches ---


class Watched:
    """A watch in a thread of its own."""

    def __init__(self, daemon: Daemon, sandbox: Sandbox, path: str = "/workspace", **options: Any) -> None:
        self.changes: list[FileChange] = []
        self._daemon, self._id, self._path, self._options = daemon, sandbox.id, path, options
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Watched:
        self._thread.start()
        assert self._ready.wait(SOON_S)
        return self

    def __exit__(self, *_: object) -> None:
        self._thread.join(SOON_S)
        assert not self._thread.is_alive(), "the last event has not come"

    def _run(self) -> None:
        with self._daemon.client() as client:
            sandbox = Sandbox.connect(self._id, client=client)
            with sandbox.watch(self._path, **self._options) as stream:
                self._ready.set()
                for change in stream:
                    self.changes.append(change)
                    if change.path.endswith("/END"):
                        return

    def until(self, told: str) -> None:
        """Wait until something is told: what is done next finds the watch where a person would."""
        wait_until(lambda: told in self.told())

    def told(self) -> list[str]:
        return [
            f"{change.type} {change.path}" + (f" <- {change.old_path}" if change.old_path else "")
            for change in self.changes
            if not change.path.endswith("/END")
        ]


def test_a_watch_tells_what_happens(daemon: Daemon, sandbox: Sandbox) -> None:
    sandbox.exec("mkdir -p old/sub && touch old/f").check()
    with Watched(daemon, sandbox) as watched:
        for line, last in (
            ("echo x > f; chmod 600 f; mv f g; mkdir -p n/e; echo y > n/e/h", "create /workspace/n/e/h"),
            ("mv n m", "rename /workspace/m <- /workspace/n"),
            ("echo z >> m/e/h; rm -r m; mv old/f /tmp/f", "remove /workspace/old/f"),
            ("mv /tmp/f old/f; mv old/sub /tmp/", "remove /workspace/old/sub"),
            ("touch /tmp/sub/unseen; ln -s a l; touch END", "create /workspace/l"),
        ):
            sandbox.exec(line).check()
            watched.until(last)
    # Whether the directory was seen before the file in it was written is a matter of luck.
    assert [told for told in watched.told() if told != "write /workspace/n/e/h"] == [
        "create /workspace/f", "write /workspace/f", "chmod /workspace/f", "rename /workspace/g <- /workspace/f",
        "create /workspace/n", "create /workspace/n/e", "create /workspace/n/e/h",
        "rename /workspace/m <- /workspace/n", "write /workspace/m/e/h",
        "remove /workspace/m/e/h", "remove /workspace/m/e", "remove /workspace/m",
        "remove /workspace/old/f", "create /workspace/old/f", "remove /workspace/old/sub", "create /workspace/l",
    ]  # fmt: skip


def test_writes_of_the_api_are_seen_as_one(daemon: Daemon, sandbox: Sandbox) -> None:
    with Watched(daemon, sandbox) as watched:
        sandbox.write_file("/workspace/api", "x")
        sandbox.write_file("/workspace/END", "x")
    assert watched.told() == ["create /workspace/api"]


def test_a_file_that_is_replaced_is_written_whoever_does_it(daemon: Daemon, sandbox: Sandbox) -> None:
    names = ("put", "copy", "replace", "tar", "zip", "mv", "rename", "backup", "api-mv")
    sandbox.exec(f"touch {' '.join(names)} /tmp/a /tmp/b; echo old > replace; mkdir /tmp/t").check()
    for name in ("tar", "zip"):
        sandbox.write_file(f"/tmp/t/{name}/{name}", "new")
    sandbox.write_file("/workspace/restored/file", "kept")
    sandbox.create_backup("/workspace/restored", "/tmp/kept")
    sandbox.exec("mkdir -p restored/gone").check()
    with Watched(daemon, sandbox) as watched:
        sandbox.write_file("/workspace/put", "x")
        sandbox.copy_file("/tmp/a", "/workspace/copy")
        sandbox.replace_in_files("/workspace", "old", "new")
        for form in ("tar", "zip"):
            with sandbox.read_archive(f"/tmp/t/{form}", format=form) as stream:
                archive = b"".join(stream)
            sandbox.write_archive("/workspace", archive)
        sandbox.exec("mv /tmp/b mv; echo > tmp; mv tmp rename").check()
        sandbox.create_backup("/tmp/t", "/workspace/backup")
        sandbox.restore_backup("/workspace/restored", "/tmp/kept")
        sandbox.rename_file("/tmp/a", "/workspace/api-mv")
        sandbox.write_file("/workspace/END", "x")
    told = [told.replace("/workspace/", "") for told in watched.told()]
    assert [one for one in told if one.split()[-1] != "tmp" or "<-" in one] == [
        "write put", "write copy", "write replace", "write tar", "write zip", "write mv", "rename rename <- tmp",
        "write backup", "remove restored/gone", "write restored/file", "write api-mv",
    ]  # fmt: skip


def test_what_has_left_is_not_told_of(daemon: Daemon, sandbox: Sandbox) -> None:
    sandbox.exec("mkdir -p z/b").check()
    with Watched(daemon, sandbox) as watched:
        sandbox.exec("mv z /tmp/z0; touch /tmp/z0/b/x /tmp/z0/y; mkdir /tmp/z0/b/d; touch END").check()
    assert watched.told() == ["remove /workspace/z"]


def test_a_flat_watch_and_one_of_a_file(daemon: Daemon, sandbox: Sandbox) -> None:
    sandbox.exec("mkdir d; echo x > d/f").check()
    with Watched(daemon, sandbox, recursive=False) as watched:
        sandbox.exec("touch d/unseen; chmod 700 d; touch END").check()
    assert watched.told() == ["chmod /workspace/d"]
    changes: list[str] = []
    with sandbox.watch("/workspace/d/f") as stream:
        sandbox.exec("echo x >> d/f; touch d/other; echo new > d/tmp; mv d/tmp d/f; rm d/f").check()
        for change in stream:
            changes.append(change.type)
            if change.type == "remove":
                break
    assert changes == ["write", "write", "remove"]


def test_a_watch_ends_when_its_folder_is_gone(sandbox: Sandbox) -> None:
    sandbox.mkdir("/workspace/d")
    with sandbox.watch("/workspace/d") as stream:
        sandbox.delete_file("/workspace/d")
        assert [change.type for change in stream] == ["remove"]
    with pytest.raises(SandboxdError):
        sandbox.watch("/workspace/none")


@pytest.mark.slow
def test_a_watch_loses_no_folder_of_a_busy_tree(daemon: Daemon, sandbox: Sandbox) -> None:
    """Trees are made, renamed and filled as fast as it goes: what is there in the end was told, or an overflow was."""
    source = """
import os, random
random.seed(7)
for turn in range(300):
    base = f'/workspace/t{turn}'
    os.makedirs(f'{base}/a/b/c')
    for part in ('', '/a', '/a/b', '/a/b/c'):
        for n in range(5):
            open(f'{base}{part}/f{n}', 'w').write('x')
    if turn % 3 == 0:
        os.rename(f'{base}/a', f'{base}/moved')
    if turn % 7 == 0:
        os.rename(base, f'/workspace/renamed{turn}')
open('/workspace/END', 'w')
"""
    with Watched(daemon, sandbox) as watched:
        sandbox.exec(["python3", "-c", source]).check()
    known: set[str] = set()
    for change in watched.changes:
        assert change.type != "overflow"
        if change.type == "create":
            known.add(change.path)
        elif change.type == "rename":
            old = change.old_path or ""
            moved = {path for path in known if path == old or path.startswith(old + "/")}
            known = known - moved | {change.path + path[len(old) :] for path in moved} | {change.path}
        elif change.type == "remove":
            known = {path for path in known if path != change.path and not path.startswith(change.path + "/")}
    there = {file.path for file in sandbox.iter_files("/workspace", recursive=True)}
    assert there == known, (sorted(there - known)[:9], sorted(known - there)[:9])


@pytest.mark.slow
def test_an_overflow_is_told(sandbox: Sandbox) -> None:
    """A reader who does not read lets the kernel's queue run over: it hears so, and what comes later is told."""
    with sandbox.watch("/workspace") as stream:
        source = "import os\nfor n in range(60000):\n    open(f'/workspace/{n:0200}', 'w').close()"
        sandbox.exec(["python3", "-c", source]).check()
        types = []
        late = False
        for change in stream:
            types.append(change.type)
            if change.type == "overflow" and not late:
                late = True
                sandbox.exec("sleep 0.5; mkdir -p late/er; touch late/er/f").check()
            if change.path == "/workspace/late/er/f":
                break
    assert "overflow" in types


def test_many_watches_are_bounded_and_end_with_their_clients(daemon: Daemon, sandbox: Sandbox) -> None:
    streams = []
    with pytest.raises(SandboxdError) as caught:
        for _ in range(100):
            streams.append(sandbox.watch("/workspace"))
    assert caught.value.kind in ("server-busy", "limit-exceeded")
    for stream in streams:
        stream.close()
    wait_until(lambda: strangers(sandbox) == [])
    sandbox.list_files("/workspace")
