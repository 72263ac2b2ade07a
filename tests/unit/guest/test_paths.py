"""Names of files: what an errno of theirs means, and what a path leads to, with the kernel and os.path as judges."""

from __future__ import annotations

import errno
import os
import pathlib
import stat
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sandboxd import errors
from sandboxd.guest import paths
from sandboxd.guest.users import User
from sandboxd.linux.kernel import Kernel
from tests.support.file_jobs import OWNER, left_open

KERNEL = Kernel()


@pytest.fixture(autouse=True)
def closed() -> Iterator[None]:
    with left_open():
        yield


def directory_of(fd: int) -> str:
    return os.readlink(f"/proc/self/fd/{fd}")


def count_fds() -> int:
    return len(os.listdir("/proc/self/fd"))


# --- errors ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("number", "kind"),
    [
        (errno.ENOENT, errors.FileNotFound), (errno.EACCES, errors.FilePermissionDenied),
        (errno.EPERM, errors.FilePermissionDenied), (errno.EROFS, errors.FilePermissionDenied),
        (errno.EEXIST, errors.FileExists), (errno.ENOTEMPTY, errors.DirectoryNotEmpty),
        (errno.EAGAIN, errors.Conflict), (errno.EBUSY, errors.Conflict), (errno.ETXTBSY, errors.Conflict),
        (errno.ENOSPC, errors.QuotaExceeded), (errno.EDQUOT, errors.QuotaExceeded), (errno.EFBIG, errors.QuotaExceeded),
        (errno.EMFILE, errors.LimitExceeded), (errno.ENOMEM, errors.LimitExceeded),
        (errno.ELOOP, errors.InvalidRequest), (errno.ENAMETOOLONG, errors.InvalidRequest),
    ],
)  # fmt: skip
def test_an_errno_has_a_kind_and_is_a_fact(number: int, kind: type[errors.SandboxdError]) -> None:
    found = paths.file_error(OSError(number, "text of the system's"), "/a\udcff", "read")
    assert type(found) is kind
    assert found.facts["errno"] == errno.errorcode[number]
    assert str(found).startswith("cannot read /a\ufffd: ")
    if kind is not errors.InvalidRequest:
        assert found.facts["path"] == "/a\ufffd"


@pytest.mark.parametrize(
    ("number", "file_type"),
    [(errno.EISDIR, "directory"), (errno.ENXIO, "socket or FIFO"), (errno.ENOTDIR, "not a directory")],
)
def test_an_errno_that_tells_what_is_there_instead(number: int, file_type: str) -> None:
    found = paths.file_error(OSError(number, ""), "/a", "read")
    assert type(found) is errors.NotAFile
    assert found.facts == {"path": "/a", "file_type": file_type}


def test_an_error_without_a_number_is_told_all_the_same() -> None:
    assert paths.file_error(OSError("no number"), "/a", "read").facts["errno"] == "0"


def test_mapped_lets_other_errors_through() -> None:
    with pytest.raises(ValueError, match="mine"), paths.mapped("/a", "read"):
        raise ValueError("mine")
    with pytest.raises(errors.FileNotFound) as caught, paths.mapped("/a", "read"):
        os.stat("/nowhere/at/all")
    assert isinstance(caught.value.__cause__, FileNotFoundError)


@given(st.binary())
def test_what_is_shown_can_be_encoded(raw: bytes) -> None:
    assert paths.shown(raw) == paths.shown(os.fsdecode(raw)) == raw.decode("utf-8", "replace")
    paths.shown(raw).encode()


def test_types_are_told_in_words(tmp_path: pathlib.Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to("file")
    os.mkfifo(tmp_path / "fifo")
    found = {name: paths.type_of((tmp_path / name).lstat().st_mode) for name in ("file", "link", "fifo", ".")}
    assert found == {"file": "file", "link": "symlink", "fifo": "fifo", ".": "directory"}
    assert paths.type_of(os.stat("/dev/null").st_mode) == "character-device"
    assert paths.type_of(0) == "special-file"


def test_require_names_what_is_there_instead() -> None:
    paths.require("/a", stat.S_IFREG | 0o644, stat.S_IFREG, "read")
    with pytest.raises(errors.NotAFile) as caught:
        paths.require("/a\udcff", stat.S_IFIFO, stat.S_IFREG, "read")
    assert caught.value.facts == {"path": "/a\ufffd", "file_type": "fifo"}


# --- requests ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "path"),
    [("/", "/"), ("//a/./b//", "/a/b"), (b"/a\xff", "/a\udcff"), ("/ü", "/ü"), (b"/" + "ü".encode(), "/ü")],
)
def test_a_path_comes_as_text_or_as_bytes(value: str | bytes, path: str) -> None:
    assert paths.path_of({"path": value}) == paths.path_of({"new_path": value}, "new_path") == path


@pytest.mark.parametrize("value", ["", "a", "/a/../b", "/..", b"/..", "/a\0", b"/a\0", b"", b"a", "/" + "a" * 5000])
def test_a_path_that_is_none(value: str | bytes) -> None:
    with pytest.raises(errors.InvalidRequest) as caught:
        paths.path_of({"path": value})
    assert caught.value.facts["field"] == "path"


@pytest.mark.parametrize("value", [None, 1, ["/a"], {"/a": 1}])
def test_a_path_of_another_type(value: object) -> None:
    with pytest.raises(TypeError):
        paths.path_of({"path": value})


@given(st.lists(st.text("ab.é", min_size=1, max_size=3), min_size=1, max_size=4))
def test_split_is_what_os_path_says(parts: list[str]) -> None:
    path = "/" + "/".join(parts)
    assert paths.split(path, "read") == os.path.split(path)


def test_the_root_has_no_name() -> None:
    with pytest.raises(errors.InvalidRequest) as caught:
        paths.split("/", "delete")
    assert caught.value.facts == {"field": "path"}


# --- directories -------------------------------------------------------------------------------------------


def test_a_directory_is_opened_through_links(tmp_path: pathlib.Path) -> None:
    (tmp_path / "real/deep").mkdir(parents=True)
    (tmp_path / "way").symlink_to(tmp_path / "real")
    fd = paths.open_directory(KERNEL, str(tmp_path / "way/deep"))
    assert directory_of(fd) == str(tmp_path / "real/deep")
    assert not os.get_inheritable(fd)


def test_a_directory_that_is_missing_stays_so_without_an_owner(tmp_path: pathlib.Path) -> None:
    with pytest.raises(FileNotFoundError):
        paths.open_directory(KERNEL, str(tmp_path / "a/b"))
    assert os.listdir(tmp_path) == []


def test_missing_directories_are_made(tmp_path: pathlib.Path) -> None:
    before = os.umask(0o077)
    try:
        fd = paths.open_directory(KERNEL, str(tmp_path / "a/./b//c"), owner=OWNER)
    finally:
        os.umask(before)
    assert directory_of(fd) == str(tmp_path / "a/b/c")
    assert [stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("a", "a/b", "a/b/c")] == [0o755] * 3


def test_missing_directories_are_made_below_a_descriptor(tmp_path: pathlib.Path) -> None:
    top = os.open(tmp_path, os.O_RDONLY)
    fd = paths.open_directory(KERNEL, "a/b", dirfd=top, owner=OWNER)
    assert directory_of(fd) == str(tmp_path / "a/b")


@pytest.mark.skipif(os.geteuid() != 0, reason="gives files to others")
def test_directories_belong_to_their_owner(tmp_path: pathlib.Path) -> None:
    (tmp_path / "mine").mkdir()
    paths.open_directory(KERNEL, str(tmp_path / "mine/a/b"), owner=User("u", 1234, 2345, (), "/", "/bin/sh"))
    owners = [(one.st_uid, one.st_gid) for one in map(os.stat, (tmp_path / n for n in ("mine", "mine/a", "mine/a/b")))]
    assert owners == [(0, os.stat(tmp_path).st_gid), (1234, 2345), (1234, 2345)]


@pytest.mark.parametrize(
    ("name", "number"),
    [("file/x", errno.ENOTDIR), ("file", errno.ENOTDIR), ("loop/x", errno.ELOOP), ("dangling/x", errno.EEXIST)],
)
def test_what_is_no_directory_is_not_replaced(tmp_path: pathlib.Path, name: str, number: int) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "dangling").symlink_to("nowhere")
    before = count_fds()
    with pytest.raises(OSError) as caught:  # noqa: PT011 - the errno is looked at
        paths.open_directory(KERNEL, str(tmp_path / name), owner=OWNER)
    assert caught.value.errno == number
    assert count_fds() == before
    assert set(os.listdir(tmp_path)) == {"file", "loop", "dangling"}


def test_a_magic_link_of_proc_leads_nowhere(tmp_path: pathlib.Path) -> None:
    fd = os.open(tmp_path, os.O_RDONLY)
    with pytest.raises(OSError) as caught:  # noqa: PT011 - the errno is looked at
        paths.open_directory(KERNEL, f"/proc/self/fd/{fd}")
    assert caught.value.errno == errno.ELOOP
    with pytest.raises(errors.InvalidRequest):
        paths.open_parent(KERNEL, "/proc/self/root/etc/passwd", "read")


def test_a_directory_that_somebody_else_makes_meanwhile(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make = os.mkdir

    def make_twice(name: str, mode: int, *, dir_fd: int) -> None:
        make(name, 0o711, dir_fd=dir_fd)
        os.chmod(name, 0o711, dir_fd=dir_fd)
        make(name, mode, dir_fd=dir_fd)

    monkeypatch.setattr(os, "mkdir", make_twice)
    paths.open_directory(KERNEL, str(tmp_path / "a"), owner=OWNER)
    assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == 0o711, "it is theirs"


def test_a_file_that_somebody_else_puts_there_meanwhile(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make = os.mkdir

    def put_a_link(name: str, mode: int, *, dir_fd: int) -> None:
        os.symlink("/", name, dir_fd=dir_fd)
        make(name, mode, dir_fd=dir_fd)

    monkeypatch.setattr(os, "mkdir", put_a_link)
    before = count_fds()
    with pytest.raises(FileExistsError):
        paths.open_directory(KERNEL, str(tmp_path / "a"), owner=OWNER)
    assert count_fds() == before


def test_a_directory_that_goes_again_at_once(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    chmod = os.chmod

    def take_away(name: str, mode: int, *, dir_fd: int) -> None:
        chmod(name, mode, dir_fd=dir_fd)
        os.rmdir(name, dir_fd=dir_fd)

    monkeypatch.setattr(os, "chmod", take_away)
    before = count_fds()
    with pytest.raises(FileNotFoundError):
        paths.open_directory(KERNEL, str(tmp_path / "a/b"), owner=OWNER)
    assert count_fds() == before


def test_open_parent(tmp_path: pathlib.Path) -> None:
    fd, name = paths.open_parent(KERNEL, str(tmp_path / "a"), "read")
    assert (directory_of(fd), name) == (str(tmp_path), "a")
    with pytest.raises(errors.FileNotFound) as caught:
        paths.open_parent(KERNEL, str(tmp_path / "a/b"), "read")
    assert caught.value.facts["path"] == str(tmp_path / "a/b")
    fd, name = paths.open_parent(KERNEL, str(tmp_path / "a/b"), "write", owner=OWNER)
    assert (directory_of(fd), name) == (str(tmp_path / "a"), "b")


# --- what a write would change -----------------------------------------------------------------------------


def target_of(path: pathlib.Path | str) -> str:
    before = count_fds()
    fd, name = paths.open_target(KERNEL, str(path), OWNER)
    assert count_fds() == before + 1
    found = os.path.join(directory_of(fd), name)
    os.close(fd)
    return found


LINKS = st.lists(
    st.tuples(
        st.sampled_from(["a", "b", "d/a", "d/b", "d/e/a"]),
        st.sampled_from(["a", "b", "d/a", "../a", "../../b", "d/e/a", "e/a", "./b", "TOP/a", "TOP/d/b", "../d/b", "c"]),
    ),
    max_size=5,
    unique_by=lambda pair: pair[0],
)


@given(LINKS)
def test_links_lead_where_os_path_says(tmp_path_factory: pytest.TempPathFactory, links: list[tuple[str, str]]) -> None:
    top = tmp_path_factory.mktemp("links") / "x"  # so that `..` has room
    (top / "d/e").mkdir(parents=True)
    for name, target in links:
        (top / name).symlink_to(target.replace("TOP", str(top)))
    for name in ("a", "b", "c", "d/a", "d/b", "d/e/a"):
        # The judge looks first: where a path leads through directories that are missing, they are made.
        judge = os.path.realpath(top / name)
        loops = False
        try:
            os.stat(top / name)
        except OSError as error:
            loops = error.errno == errno.ELOOP
        if loops:
            with pytest.raises(errors.InvalidRequest) as caught:
                paths.open_target(KERNEL, str(top / name), OWNER)
            assert caught.value.facts["errno"] == "ELOOP"
        else:
            assert target_of(top / name) == judge


@pytest.mark.parametrize("links", [39, 40, 41, 60])
def test_a_chain_of_links_is_followed_as_far_as_the_kernel_does(tmp_path: pathlib.Path, links: int) -> None:
    for number in range(links):
        (tmp_path / f"{number}").symlink_to(f"{number + 1}")
    before = count_fds()
    number = 0
    try:
        (tmp_path / "0").touch()
    except OSError as error:
        number = error.errno or 0
    if number == errno.ELOOP:
        with pytest.raises(errors.InvalidRequest) as caught:
            paths.open_target(KERNEL, str(tmp_path / "0"), OWNER)
        assert caught.value.facts["errno"] == "ELOOP"
    else:
        assert (number, target_of(tmp_path / "0")) == (0, str(tmp_path / str(links)))
    assert count_fds() == before


def test_a_link_into_the_root_directory(tmp_path: pathlib.Path) -> None:
    (tmp_path / "l").symlink_to("/there-is-no-such-name")
    assert target_of(tmp_path / "l") == "/there-is-no-such-name"


def test_a_link_into_what_is_missing(tmp_path: pathlib.Path) -> None:
    (tmp_path / "l").symlink_to("new/dir/file")
    assert target_of(tmp_path / "l") == str(tmp_path / "new/dir/file")
    assert (tmp_path / "new/dir").is_dir()


@pytest.mark.parametrize("target", ["d/", ".", "..", "d/.", "d/..", "/"])
def test_a_link_whose_last_part_is_no_name(tmp_path: pathlib.Path, target: str) -> None:
    (tmp_path / "d").mkdir()
    (tmp_path / "l").symlink_to(target)
    before = count_fds()
    with pytest.raises(errors.NotAFile) as caught:
        paths.open_target(KERNEL, str(tmp_path / "l"), OWNER)
    assert caught.value.facts == {"path": str(tmp_path / "l"), "file_type": "directory"}
    assert count_fds() == before


def test_a_link_through_a_file(tmp_path: pathlib.Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "l").symlink_to("file/x")
    before = count_fds()
    with pytest.raises(errors.NotAFile):
        paths.open_target(KERNEL, str(tmp_path / "l"), OWNER)
    assert count_fds() == before


def test_a_link_whose_name_is_no_text(tmp_path: pathlib.Path) -> None:
    os.symlink(b"\xff", os.fsencode(tmp_path) + b"/l")
    assert os.fsencode(target_of(tmp_path / "l")) == os.fsencode(tmp_path) + b"/\xff"


def test_a_link_that_is_swapped_between_two_looks(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the last look saw is what is told: the name itself, in the directory that was opened."""
    (tmp_path / "l").symlink_to("a")
    (tmp_path / "a").touch()
    look = os.readlink
    swapped: list[str] = []

    def swap(name: str, *, dir_fd: int | None = None) -> str:
        if name == "a" and not swapped:
            swapped.append(name)
            (tmp_path / "a").unlink()
            (tmp_path / "a").symlink_to("b")
        return look(name, dir_fd=dir_fd)

    monkeypatch.setattr(os, "readlink", swap)
    assert target_of(tmp_path / "l") == str(tmp_path / "b")


def test_same_file(tmp_path: pathlib.Path) -> None:
    (tmp_path / "a").touch()
    (tmp_path / "b").touch()
    os.link(tmp_path / "a", tmp_path / "c")
    one, two, three = (os.stat(tmp_path / name) for name in "abc")
    assert paths.same_file(one, three)
    assert not paths.same_file(one, two)
