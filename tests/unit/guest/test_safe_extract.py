"""Members of archives below one directory: what is placed and how, and what no name, link or swap leads outside."""

from __future__ import annotations

import contextlib
import os
import pathlib
import stat
from collections.abc import Callable, Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sandboxd.errors import ArchiveRefused, QuotaExceeded
from sandboxd.guest import paths, safe_extract
from sandboxd.guest.paths import TEMPORARY
from sandboxd.guest.safe_extract import SafeExtract
from sandboxd.guest.users import User
from sandboxd.linux.kernel import Kernel
from tests.support.file_jobs import OWNER, left_open

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="gives files to others")


@pytest.fixture
def root(tmp_path: pathlib.Path) -> pathlib.Path:
    """The directory that is unpacked into; beside it lies `outside`, with a file that must stay as it is."""
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "kept").write_bytes(b"kept")
    made = tmp_path / "root"
    made.mkdir()
    return made


@pytest.fixture
def extract(root: pathlib.Path) -> Iterator[SafeExtract]:
    with opened(root) as made:
        yield made


@contextlib.contextmanager
def opened(
    root: pathlib.Path, *, kernel: Kernel | None = None, owner: User = OWNER, max_bytes: int = 1000
) -> Iterator[SafeExtract]:
    with left_open():
        yield SafeExtract(kernel or Kernel(), os.open(root, os.O_RDONLY | os.O_DIRECTORY), owner, max_bytes)


def put(extract: SafeExtract, name: str, data: bytes = b"x", mode: int = 0o644, mtime: float = 1.0) -> None:
    extract.file(name, mode, mtime, iter([data]))


def below(directory: pathlib.Path) -> dict[str, bytes | None]:
    """Return every name below a directory: files with their content, the rest with None."""
    return {
        str(path.relative_to(directory)): path.read_bytes() if path.is_file() and not path.is_symlink() else None
        for path in sorted(directory.rglob("*"))
    }


def untouched(root: pathlib.Path) -> None:
    """Say that nothing lies outside that was not there, and that nothing half done is left."""
    assert below(root.parent / "outside") == {"kept": b"kept"}
    assert set(os.listdir(root.parent)) == {"root", "outside"}
    assert not [name for name in below(root) if TEMPORARY in name]


class Swapping(Kernel):
    """A kernel in which a program of the sandbox acts before one look at a path."""

    def __init__(self, at: str, action: Callable[[], object]) -> None:
        self._at = at
        self._action: Callable[[], object] | None = action

    def openat2(self, dirfd: int, path: str, flags: int, resolve: int, mode: int = 0) -> int:
        if path == self._at and self._action is not None:
            action, self._action = self._action, None
            action()
        return super().openat2(dirfd, path, flags, resolve, mode)


# --- what is placed ----------------------------------------------------------------------------------------


def test_members_lie_where_their_names_say(root: pathlib.Path, extract: SafeExtract) -> None:
    put(extract, "a", b"1")
    put(extract, "./d/./e//f", b"2")
    put(extract, "/slash", b"3")
    extract.directory("empty/")
    extract.directory(".")
    extract.link("l", "a")
    extract.hard_link("h", "d/e/f")
    assert below(root) == {
        "a": b"1", "d": None, "d/e": None, "d/e/f": b"2", "slash": b"3", "empty": None, "l": None, "h": b"2",
    }  # fmt: skip
    assert os.readlink(root / "l") == "a"
    assert (root / "h").samefile(root / "d/e/f")
    assert (extract.entries, extract.bytes) == (8, 3)
    untouched(root)


@pytest.mark.parametrize(
    ("mode", "becomes"),
    [
        (0o644, 0o644), (0o755, 0o755), (0o777, 0o755), (0o666, 0o644), (0o600, 0o600), (0o700, 0o700), (0, 0o600),
        (0o7777, 0o755), (0o4711, 0o711), (0o077, 0o644), (0o100644, 0o644), (0o444, 0o644),
    ],
)  # fmt: skip
def test_a_mode_loses_set_id_bits_and_what_others_may_write(
    root: pathlib.Path, extract: SafeExtract, mode: int, becomes: int
) -> None:
    put(extract, "f", mode=mode)
    assert stat.S_IMODE((root / "f").stat().st_mode) == becomes


def test_the_umask_takes_nothing_from_a_mode(root: pathlib.Path, extract: SafeExtract) -> None:
    before = os.umask(0o077)
    try:
        put(extract, "d/f", mode=0o755)
    finally:
        os.umask(before)
    assert [stat.S_IMODE((root / name).stat().st_mode) for name in ("d", "d/f")] == [0o755, 0o755]


@pytest.mark.parametrize("mtime", [0.0, 1e9, -5.0])
def test_a_time_is_kept(root: pathlib.Path, extract: SafeExtract, mtime: float) -> None:
    put(extract, "f", mtime=mtime)
    assert (root / "f").stat().st_mtime == mtime


@pytest.mark.parametrize("mtime", [float("nan"), float("inf"), 1e300, -1e300])
def test_a_time_that_no_file_has_is_passed_over(root: pathlib.Path, extract: SafeExtract, mtime: float) -> None:
    put(extract, "f", mtime=mtime)
    assert (root / "f").read_bytes() == b"x"


@as_root
def test_everything_belongs_to_whoever_unpacks(root: pathlib.Path) -> None:
    owner = User("u", 1234, 2345, (), "/", "/bin/sh")
    with opened(root, owner=owner) as extract:
        put(extract, "d/f")
        extract.link("l", "d")
        extract.directory("e")
    owners = {(one.lstat().st_uid, one.lstat().st_gid) for one in root.rglob("*")}
    assert owners == {(1234, 2345)}


def test_names_that_are_no_text(root: pathlib.Path, extract: SafeExtract) -> None:
    name = os.fsdecode(b"d\xff/\n\\ \xfe")
    put(extract, name)
    assert os.listdir(os.fsencode(root / name)[: -len(b"/\n\\ \xfe")]) == [b"\n\\ \xfe"]


def test_a_member_replaces_what_had_its_name(root: pathlib.Path, extract: SafeExtract) -> None:
    (root / "f").write_bytes(b"old")
    (root / "f").chmod(0o600)
    (root / "l").symlink_to("../outside/kept")
    (root / "k").symlink_to("f")
    put(extract, "f", b"new")
    put(extract, "l", b"a file now")
    extract.link("k", "elsewhere")
    extract.link("f2", "x")
    put(extract, "f2", b"y")
    assert below(root) == {"f": b"new", "f2": b"y", "k": None, "l": b"a file now"}
    assert os.readlink(root / "k") == "elsewhere"
    untouched(root)


def test_a_file_appears_when_it_is_whole(root: pathlib.Path, extract: SafeExtract) -> None:
    (root / "f").write_bytes(b"old")
    seen = []

    def pieces() -> Iterator[bytes]:
        for _ in range(3):
            seen.append((root / "f").read_bytes())
            yield b"new"

    extract.file("f", 0o644, 0, pieces())
    assert seen == [b"old"] * 3
    assert (root / "f").read_bytes() == b"new" * 3


def test_a_file_that_is_cut_off_leaves_the_old_one(root: pathlib.Path, extract: SafeExtract) -> None:
    (root / "f").write_bytes(b"old")

    def pieces() -> Iterator[bytes]:
        yield b"new"
        raise EOFError

    with pytest.raises(EOFError):
        extract.file("f", 0o644, 0, pieces())
    assert below(root) == {"f": b"old"}


def test_a_link_stays_as_it_is(root: pathlib.Path, extract: SafeExtract) -> None:
    for name, target in [("a", "/etc/shadow"), ("b", "../../x"), ("c", "nowhere"), ("d", "."), ("e", "e")]:
        extract.link(name, target)
        assert os.readlink(root / name) == target
    untouched(root)


def test_a_hard_link_to_its_own_name_changes_nothing(root: pathlib.Path, extract: SafeExtract) -> None:
    put(extract, "f", b"x")
    extract.hard_link("f", "f")
    assert below(root) == {"f": b"x"}
    assert (root / "f").stat().st_nlink == 1


def test_a_hard_link_to_a_file_that_was_there_before(root: pathlib.Path, extract: SafeExtract) -> None:
    (root / "d").mkdir()
    (root / "d/old").write_bytes(b"old")
    extract.hard_link("new/name", "./d//old")
    assert below(root) == {"d": None, "d/old": b"old", "new": None, "new/name": b"old"}


def test_members_go_through_links_that_stay_inside(root: pathlib.Path, extract: SafeExtract) -> None:
    extract.directory("real/deep")
    extract.link("way", "real")
    extract.link("real/back", "../real/deep")
    put(extract, "way/f", b"1")
    put(extract, "way/back/g", b"2")
    put(extract, "way/new/h", b"3")
    assert (root / "real/f").read_bytes() == b"1"
    assert (root / "real/deep/g").read_bytes() == b"2"
    assert (root / "real/new/h").read_bytes() == b"3"


# --- what is refused ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["..", "../x", "a/../x", "a/..", "/..", "/a/../../x", "./../x"])
def test_two_dots_are_refused_wherever_they_are(root: pathlib.Path, extract: SafeExtract, name: str) -> None:
    (root / "a").mkdir()
    put(extract, "kept")
    for member in (
        lambda: put(extract, name),
        lambda: extract.directory(name),
        lambda: extract.link(name, "x"),
        lambda: extract.hard_link(name, "kept"),
        lambda: extract.hard_link("new", name),
    ):
        with pytest.raises(ArchiveRefused) as caught:
            member()
        assert caught.value.facts["reason"] in ("outside", "absolute-link")
    assert below(root) == {"a": None, "kept": b"x"}
    untouched(root)


@pytest.mark.parametrize("name", ["", ".", "/", "./", "a\0b", "x" * 4096, "é" * 2048])
def test_names_that_nothing_can_have(root: pathlib.Path, extract: SafeExtract, name: str) -> None:
    for member in (lambda: put(extract, name), lambda: extract.link(name, "x")):
        with pytest.raises(ArchiveRefused) as caught:
            member()
        assert caught.value.facts["reason"] == "name"
        assert len(caught.value.facts["member"]) <= 200
    assert below(root) == {}


@pytest.mark.parametrize("target", ["", "a\0b", "x" * 4096])
def test_links_to_impossible_names(root: pathlib.Path, extract: SafeExtract, target: str) -> None:
    with pytest.raises(ArchiveRefused) as caught:
        extract.link("l", target)
    assert caught.value.facts == {"reason": "link", "member": "l"}
    assert below(root) == {}


def test_a_name_longer_than_the_disk_takes_is_the_disks_to_refuse(root: pathlib.Path, extract: SafeExtract) -> None:
    for member in (lambda: put(extract, "x" * 256), lambda: extract.link("x" * 256, "y")):
        with pytest.raises(OSError, match="File name too long"):
            member()
    assert below(root) == {}


@pytest.mark.parametrize(
    ("target", "reason"),
    [
        ("/etc/passwd", "absolute-link"), ("", "absolute-link"), (".", "absolute-link"),
        ("nowhere", "link"), ("no/where", "link"), ("dir", "kind"), ("symlink", "kind"), ("fifo", "kind"),
        ("out/kept", "outside"), ("file/x", "kind"), ("loop/x", "kind"),
    ],
)  # fmt: skip
def test_hard_links_that_are_refused(root: pathlib.Path, extract: SafeExtract, target: str, reason: str) -> None:
    (root / "dir").mkdir()
    (root / "file").write_bytes(b"")
    (root / "symlink").symlink_to("../outside/kept")
    (root / "out").symlink_to("../outside")
    (root / "loop").symlink_to("loop")
    os.mkfifo(root / "fifo")
    before = set(below(root))
    with pytest.raises(ArchiveRefused) as caught:
        extract.hard_link("new", target)
    assert caught.value.facts == {"reason": reason, "member": "new"}
    assert set(below(root)) == before
    assert (root.parent / "outside/kept").stat().st_nlink == 1
    untouched(root)


@pytest.mark.parametrize("target", ["../outside", "/etc", "/", "..", "absolute"])
def test_nothing_is_placed_through_a_link_that_leads_out(root: pathlib.Path, extract: SafeExtract, target: str) -> None:
    extract.link("out", str(root / "inside") if target == "absolute" else target)
    (root / "inside").mkdir()
    put(extract, "f")
    for member in (
        lambda: put(extract, "out/f"),
        lambda: put(extract, "out/new/f"),
        lambda: extract.directory("out/new"),
        lambda: extract.directory("out"),
        lambda: extract.link("out/l", "x"),
        lambda: extract.hard_link("out/h", "f"),
    ):
        with pytest.raises(ArchiveRefused) as caught:
            member()
        assert caught.value.facts["reason"] == "outside"
    assert below(root) == {"out": None, "inside": None, "f": b"x"}
    untouched(root)


def test_what_is_no_directory_holds_nothing(root: pathlib.Path, extract: SafeExtract) -> None:
    put(extract, "file", b"x")
    os.mkfifo(root / "fifo")
    extract.link("loop", "loop")
    extract.link("dangling", "nowhere")
    for name in ("file", "fifo", "loop", "dangling"):
        for member in (lambda name=name: put(extract, f"{name}/f"), lambda name=name: extract.directory(name)):
            with pytest.raises(ArchiveRefused) as caught:
                member()
            assert caught.value.facts["reason"] == "kind"
    assert set(below(root)) == {"file", "fifo", "loop", "dangling"}


def test_a_directory_is_replaced_by_nothing(root: pathlib.Path, extract: SafeExtract) -> None:
    extract.directory("empty")
    put(extract, "full/f")
    for name in ("empty", "full"):
        for member in (
            lambda name=name: put(extract, name),
            lambda name=name: extract.link(name, "x"),
            lambda name=name: extract.hard_link(name, "full/f"),
        ):
            with pytest.raises(ArchiveRefused) as caught:
                member()
            assert caught.value.facts == {"reason": "kind", "member": name}
    assert below(root) == {"empty": None, "full": None, "full/f": b"x"}


def test_the_reason_names_the_member_as_text(extract: SafeExtract) -> None:
    with pytest.raises(ArchiveRefused) as caught:
        put(extract, os.fsdecode(b"../\xff"))
    assert caught.value.facts["member"] == "../\ufffd"
    str(caught.value).encode()


# --- what is bounded ---------------------------------------------------------------------------------------


def test_the_bytes_of_all_members_together_are_bounded(root: pathlib.Path) -> None:
    with opened(root, max_bytes=10) as extract:
        put(extract, "a", b"12345")
        put(extract, "b", b"12345")
        with pytest.raises(QuotaExceeded) as caught:
            put(extract, "c", b"1")
        assert caught.value.facts == {"limit_bytes": 10}
    assert below(root) == {"a": b"12345", "b": b"12345"}


def test_an_endless_member_is_read_to_the_bound_only(root: pathlib.Path) -> None:
    given_out = []

    def endless() -> Iterator[bytes]:
        while True:
            given_out.append(1)
            yield b"12345"

    with opened(root, max_bytes=12) as extract, pytest.raises(QuotaExceeded):
        extract.file("f", 0o644, 0, endless())
    assert len(given_out) == 3
    assert below(root) == {}


def test_what_is_kept_beside_is_bounded_too(root: pathlib.Path) -> None:
    with opened(root, max_bytes=10) as extract:
        extract.spooled(10)
        with pytest.raises(QuotaExceeded):
            extract.spooled(1)


def test_members_are_counted_with_the_directories_that_they_need(
    root: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(safe_extract, "MAX_MEMBERS", 5)
    with opened(root) as extract:
        put(extract, "a/b/c")
        extract.link("l", "x")
        put(extract, "a/b/d")
        assert extract.entries == 5
        with pytest.raises(QuotaExceeded) as caught:
            extract.directory("a/e")
        assert caught.value.facts == {"bound": 5}
        with pytest.raises(QuotaExceeded):
            put(extract, "a/e")
    assert not (root / "a/e").is_file()


def test_many_directories_cost_one_descriptor(root: pathlib.Path, extract: SafeExtract) -> None:
    put(extract, "first/f")
    before = len(os.listdir("/proc/self/fd"))
    for number in range(50):
        put(extract, f"{number}/{number}/f")
        with pytest.raises(ArchiveRefused):
            put(extract, f"{number}/{number}/f/g")
        with pytest.raises(ArchiveRefused):
            extract.hard_link(f"{number}/h", "nowhere")
    assert len(os.listdir("/proc/self/fd")) <= before


# --- what others do meanwhile ------------------------------------------------------------------------------


def test_a_directory_that_becomes_a_link_leads_nowhere(root: pathlib.Path) -> None:
    def swap() -> None:
        (root / "a").rename(root / "moved")
        (root / "a").symlink_to("../outside")

    (root / "a").mkdir()
    with opened(root, kernel=Swapping("a", swap)) as extract, pytest.raises(ArchiveRefused) as caught:
        put(extract, "a/evil")
    assert caught.value.facts["reason"] == "outside"
    untouched(root)


def test_a_new_directory_that_becomes_a_link_before_it_is_opened(
    root: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make = paths.make_directory

    def make_and_swap(name: str, directory: int, owner: User) -> None:
        make(name, directory, owner)
        os.rmdir(name, dir_fd=directory)
        os.symlink("../outside", name, dir_fd=directory)

    monkeypatch.setattr(safe_extract, "make_directory", make_and_swap)
    with opened(root) as extract, pytest.raises(ArchiveRefused) as caught:
        put(extract, "a/evil")
    assert caught.value.facts["reason"] == "outside"
    untouched(root)


def test_a_directory_that_somebody_else_makes_is_as_good(root: pathlib.Path) -> None:
    kernel = Swapping("a", lambda: None)
    with opened(root, kernel=kernel) as extract:
        put(extract, "a/b/first")

        def clear() -> None:
            (root / "a/b").rename(root / "gone")

        kernel._at, kernel._action = "a/b/c", clear
        put(extract, "a/b/c/f")
    assert (root / "a/b/c/f").read_bytes() == b"x"


def test_a_hard_links_source_that_becomes_a_link(root: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The link is made of the name itself, which is then no file of the host's."""
    (root / "f").write_bytes(b"x")
    real_link = os.link

    def swap_and_link(*args: object, **options: object) -> None:
        (root / "f").unlink()
        (root / "f").symlink_to("../outside/kept")
        real_link(*args, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(os, "link", swap_and_link)
    with opened(root) as extract:
        extract.hard_link("new", "f")
    assert os.readlink(root / "new") == "../outside/kept"
    assert (root.parent / "outside/kept").stat().st_nlink == 1
    untouched(root)


# --- any members at all ------------------------------------------------------------------------------------

NAMES = st.lists(st.sampled_from(["a", "b", "c", "..", ".", "", "l"]), min_size=1, max_size=4).map("/".join)
TARGETS = st.sampled_from(["a", "b", "..", "../outside", "../outside/kept", "/", "/etc", ".", "a/b", "l", "../root/a"])
MEMBERS = st.lists(
    st.one_of(
        st.tuples(st.just("file"), NAMES, st.just("")),
        st.tuples(st.just("directory"), NAMES, st.just("")),
        st.tuples(st.just("link"), NAMES, TARGETS),
        st.tuples(st.just("hard"), NAMES, st.one_of(NAMES, TARGETS)),
    ),
    max_size=12,
)


@given(MEMBERS)
def test_no_members_in_any_order_change_what_is_outside(
    tmp_path_factory: pytest.TempPathFactory, members: list[tuple[str, str, str]]
) -> None:
    top = tmp_path_factory.mktemp("any")
    (top / "outside").mkdir()
    (top / "outside" / "kept").write_bytes(b"kept")
    facts = (top / "outside" / "kept").stat()
    root = top / "root"
    root.mkdir()
    with opened(root) as extract:
        for kind, name, target in members:
            with contextlib.suppress(ArchiveRefused):
                if kind == "file":
                    put(extract, name)
                elif kind == "directory":
                    extract.directory(name)
                elif kind == "link":
                    extract.link(name, target)
                else:
                    extract.hard_link(name, target)
    untouched(root)
    after = (top / "outside" / "kept").stat()
    assert (after.st_nlink, after.st_mtime_ns, after.st_ctime_ns) == (1, facts.st_mtime_ns, facts.st_ctime_ns)
