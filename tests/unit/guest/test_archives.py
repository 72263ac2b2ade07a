"""Archives: what is packed comes back, and what strangers send is placed, refused by name, or told to be damaged."""

from __future__ import annotations

import contextlib
import gzip
import io
import os
import pathlib
import stat
import subprocess
import tarfile
import zipfile
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sandboxd.errors import ArchiveRefused, FileNotFound, InvalidRequest, NotAFile, QuotaExceeded
from sandboxd.guest import archives
from sandboxd.guest.paths import TEMPORARY
from tests.support.file_jobs import Done, run

FORMATS = ("tar", "tar.gz", "zip")


def pack(path: pathlib.Path | str, form: str = "tar", **params: Any) -> Done:
    return run(archives.pack, {"path": str(path), "format": form, **params})


def unpack(path: pathlib.Path, data: bytes, form: str | None = None, *, max_bytes: int = 1 << 20) -> dict[str, Any]:
    pieces = [data[at : at + 1000] for at in range(0, len(data), 1000)]
    return run(archives.unpack, {"path": str(path), "format": form, "max_bytes": max_bytes}, feed=pieces).result


def tar_of(*members: tarfile.TarInfo | tuple[tarfile.TarInfo, bytes], form: int = tarfile.PAX_FORMAT) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=form) as archive:
        for member in members:
            info, data = member if isinstance(member, tuple) else (member, b"")
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return out.getvalue()


def info(name: str, type_: bytes = tarfile.REGTYPE, link: str = "", mode: int = 0o644) -> tarfile.TarInfo:
    made = tarfile.TarInfo(name)
    made.type, made.linkname, made.mode = type_, link, mode
    return made


def below(directory: pathlib.Path) -> dict[bytes, bytes | None]:
    """Return every name below a directory, with what a file or a link holds."""
    found: dict[bytes, bytes | None] = {}
    root = os.fsencode(directory)
    for at, directories, files in os.walk(root):
        for name in directories + files:
            path = os.path.join(at, name)
            if os.path.islink(path):
                found[os.path.relpath(path, root)] = b"-> " + os.readlink(path)
            elif os.path.isfile(path):
                found[os.path.relpath(path, root)] = pathlib.Path(os.fsdecode(path)).read_bytes()
            else:
                found[os.path.relpath(path, root)] = None
    return found


# --- there and back ----------------------------------------------------------------------------------------

PARTS = st.sampled_from([b"a", b"b", b".h", "é".encode(), b"\xff", b"x y", b"n\n", b"'\"", b"l" * 120, b"a\\b"])
CONTENTS = st.one_of(st.binary(max_size=20), st.sampled_from([b"x" * 511, b"x" * 512, b"x" * 513, b"\0" * 3000]))
TREES: st.SearchStrategy[dict[bytes, Any]] = st.recursive(
    st.dictionaries(PARTS, CONTENTS, max_size=3),
    lambda below: st.dictionaries(PARTS, st.one_of(CONTENTS, st.just(None), below), max_size=3),
    max_leaves=6,
)


def plant(top: pathlib.Path, plan: dict[bytes, Any]) -> None:
    for name, content in plan.items():
        path = top / os.fsdecode(name)
        if content is None:
            path.symlink_to("nowhere/at/all")
        elif isinstance(content, bytes):
            path.write_bytes(content)
        else:
            path.mkdir()
            plant(path, content)


@settings(max_examples=40)
@given(TREES, st.sampled_from(FORMATS), st.booleans())
def test_what_is_packed_comes_back(
    tmp_path_factory: pytest.TempPathFactory, plan: dict[bytes, Any], form: str, named: bool
) -> None:
    top = tmp_path_factory.mktemp("back")
    (top / "source").mkdir()
    plant(top / "source", plan)
    wanted = below(top / "source")
    done = pack(top / "source", form)
    assert done.result == {"entries": len(wanted), "skipped": 0}
    result = unpack(top / "target", done.data, form if named else None, max_bytes=1 << 23)
    assert below(top / "target") == wanted
    assert result["entries"] == len(wanted)
    assert result["bytes"] == sum(len(c) for c in wanted.values() if c is not None and not c.startswith(b"-> "))


@pytest.mark.parametrize("form", FORMATS)
def test_modes_and_times_come_back(tmp_path: pathlib.Path, form: str) -> None:
    source = tmp_path / "source"
    source.mkdir()
    for name, mode in (("plain", 0o644), ("program", 0o755), ("private", 0o600), ("setuid", 0o4755)):
        (source / name).write_text("x")
        (source / name).chmod(mode)
        os.utime(source / name, (1_000_000_000, 1_000_000_000))
    unpack(tmp_path / "target", pack(source, form).data, form)
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "target").iterdir()}
    assert modes == {"plain": 0o644, "program": 0o755, "private": 0o600, "setuid": 0o755}
    assert {path.stat().st_mtime for path in (tmp_path / "target").iterdir()} == {1_000_000_000}


@pytest.mark.parametrize("mtime", [-(10**9), 0, 315_532_799, 4_354_819_200, 10**11])
def test_a_zip_says_what_it_can_of_a_time(tmp_path: pathlib.Path, mtime: int) -> None:
    (tmp_path / "f").touch()
    os.utime(tmp_path / "f", (mtime, mtime))
    with zipfile.ZipFile(io.BytesIO(pack(tmp_path / "f", "zip").data)) as archive:
        assert 1980 <= archive.infolist()[0].date_time[0] <= 2107


def test_other_programs_read_it(tmp_path: pathlib.Path) -> None:
    source = tmp_path / "source"
    (source / "d").mkdir(parents=True)
    (source / "d/f").write_bytes(b"content")
    (source / "l").symlink_to("d/f")
    listed = subprocess.run(
        ["tar", "-tzf", "-"], input=pack(source, "tar.gz").data, capture_output=True, check=True, timeout=30
    ).stdout
    assert listed.split() == [b"d/", b"d/f", b"l"]
    with zipfile.ZipFile(io.BytesIO(pack(source, "zip").data)) as archive:
        assert archive.testzip() is None
        assert archive.read("d/f") == b"content"


@pytest.mark.parametrize("form", FORMATS)
def test_one_file_is_packed_alone_through_links(tmp_path: pathlib.Path, form: str) -> None:
    (tmp_path / "d").mkdir()
    (tmp_path / "d/real").write_bytes(b"x")
    (tmp_path / "l").symlink_to("d/real")
    unpack(tmp_path / "target", pack(tmp_path / "l", form).data, form)
    assert below(tmp_path / "target") == {b"l": b"x"}


def test_a_file_of_any_size_is_streamed(tmp_path: pathlib.Path) -> None:
    content = os.urandom(700_000)
    (tmp_path / "f").write_bytes(content)
    for form in FORMATS:
        unpack(tmp_path / form, pack(tmp_path / "f", form).data, form)
        assert (tmp_path / form / "f").read_bytes() == content


# --- packing -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", FORMATS)
def test_what_is_neither_file_nor_link_is_left_out_and_counted(tmp_path: pathlib.Path, form: str) -> None:
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "f").touch()
    (tmp_path / f"{TEMPORARY}x").touch()
    done = pack(tmp_path, form)
    assert done.result == {"entries": 1, "skipped": 1}


def test_what_is_excluded_is_left_out_with_all_below_it(tmp_path: pathlib.Path) -> None:
    for name in ("a/x.log", "a/y", "node_modules/z/w", "b.log", ".git/config"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / ".gitignore").write_text("y\n")
    done = pack(tmp_path, exclude=["*.log", "node_modules/"])
    with tarfile.open(fileobj=io.BytesIO(done.data)) as archive:
        assert archive.getnames() == [".git", ".git/config", ".gitignore", "a", "a/y"]
    done = pack(tmp_path, gitignore=True)
    with tarfile.open(fileobj=io.BytesIO(done.data)) as archive:
        assert "a/y" not in archive.getnames()
        assert ".git" not in archive.getnames()
        assert "a/x.log" in archive.getnames()


@pytest.mark.parametrize(
    ("name", "kind"), [("nowhere", FileNotFound), ("fifo", NotAFile), ("loop", InvalidRequest), ("f/x", NotAFile)]
)
def test_what_cannot_be_packed(tmp_path: pathlib.Path, name: str, kind: type[Exception]) -> None:
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "f").touch()
    with pytest.raises(kind):
        pack(tmp_path / name)


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("size", [3, 300_000])
def test_a_file_that_changes_its_size_stays_as_long_as_its_header_says(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, form: str, size: int
) -> None:
    (tmp_path / "f").write_bytes(b"a" * 100_000)
    exactly = archives._exactly

    def change(fd: int, told: int) -> Any:
        os.truncate(tmp_path / "f", size)
        return exactly(fd, told)

    monkeypatch.setattr(archives, "_exactly", change)
    done = pack(tmp_path / "f", form)
    monkeypatch.undo()
    unpack(tmp_path / "target", done.data, form)
    kept = min(size, 100_000)
    assert (tmp_path / "target/f").read_bytes() == b"a" * kept + bytes(100_000 - kept)


@pytest.mark.parametrize("becomes", ["link", "fifo", "nothing"])
def test_a_file_that_is_swapped_is_not_followed(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, becomes: str
) -> None:
    (tmp_path / "secret").write_text("secret")
    (tmp_path / "source").mkdir()
    (tmp_path / "source/f").write_text("x")
    describe = archives._describe

    def swap(entry: Any, header: tarfile.TarInfo) -> int | None:
        (tmp_path / "source/f").unlink()
        if becomes == "link":
            (tmp_path / "source/f").symlink_to("../secret")
        elif becomes == "fifo":
            os.mkfifo(tmp_path / "source/f")
        return describe(entry, header)

    monkeypatch.setattr(archives, "_describe", swap)
    if becomes == "link":
        with pytest.raises(InvalidRequest) as caught:
            pack(tmp_path / "source")
        assert caught.value.facts["errno"] == "ELOOP"
    else:
        assert pack(tmp_path / "source").result == {"entries": 0, "skipped": 1}


# --- unpacking ---------------------------------------------------------------------------------------------


def test_the_directory_is_made_and_what_is_there_stays(tmp_path: pathlib.Path) -> None:
    unpack(tmp_path / "a/b", tar_of((info("f"), b"1")))
    unpack(tmp_path / "a/b", tar_of((info("g"), b"2")))
    assert below(tmp_path / "a/b") == {b"f": b"1", b"g": b"2"}
    (tmp_path / "file").touch()
    with pytest.raises(NotAFile):
        unpack(tmp_path / "file", tar_of())


def test_links_and_hard_links_of_tars(tmp_path: pathlib.Path) -> None:
    data = tar_of(
        (info("d/f"), b"x"), info("l", tarfile.SYMTYPE, "/etc/shadow"), info("h", tarfile.LNKTYPE, "d/f"),
        info("e", tarfile.DIRTYPE),
    )  # fmt: skip
    assert unpack(tmp_path / "t", data) == {"entries": 5, "bytes": 1}
    assert below(tmp_path / "t") == {b"d": None, b"d/f": b"x", b"l": b"-> /etc/shadow", b"h": b"x", b"e": None}


@pytest.mark.parametrize(
    ("member", "reason"),
    [
        (info("../x"), "outside"), (info("a/../../x"), "outside"), (info("x", tarfile.LNKTYPE, "../f"), "outside"),
        (info("x", tarfile.LNKTYPE, "/etc/passwd"), "absolute-link"), (info("x", tarfile.CHRTYPE), "kind"),
        (info("x", tarfile.BLKTYPE), "kind"), (info("x", tarfile.FIFOTYPE), "kind"), (info("out/x"), "outside"),
        (info("x", tarfile.LNKTYPE, "none"), "link"), (info("x", tarfile.SYMTYPE, ""), "link"),
    ],
)  # fmt: skip
def test_members_that_are_refused_leave_what_came_before(
    tmp_path: pathlib.Path, member: tarfile.TarInfo, reason: str
) -> None:
    data = tar_of((info("before"), b"1"), info("out", tarfile.SYMTYPE, ".."), member, (info("after"), b"2"))
    with pytest.raises(ArchiveRefused) as caught:
        unpack(tmp_path / "t", data)
    assert caught.value.facts["reason"] == reason
    assert below(tmp_path / "t") == {b"before": b"1", b"out": b"-> .."}
    assert os.listdir(tmp_path) == ["t"]


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_every_form_of_tar(tmp_path: pathlib.Path, form: int) -> None:
    name = "/".join(["d" * 60] * 2) + "/f"
    unpack(tmp_path / "t", tar_of((info(name), b"x"), form=form))
    assert (tmp_path / "t" / name).read_bytes() == b"x"


def test_bytes_are_bounded_whatever_the_ratio(tmp_path: pathlib.Path) -> None:
    bomb = gzip.compress(tar_of((info("f"), bytes(5_000_000))))
    assert len(bomb) < 20_000
    with pytest.raises(QuotaExceeded) as caught:
        unpack(tmp_path / "t", bomb, max_bytes=1_000_000)
    assert caught.value.facts == {"limit_bytes": 1_000_000}
    assert below(tmp_path / "t") == {}
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("f", bytes(5_000_000))
    with pytest.raises(QuotaExceeded):
        unpack(tmp_path / "z", out.getvalue(), max_bytes=1_000_000)
    assert below(tmp_path / "z") == {}


def test_a_zip_that_is_larger_than_its_content_may_be(tmp_path: pathlib.Path) -> None:
    with pytest.raises(QuotaExceeded):
        unpack(tmp_path / "z", b"PK\3\4" + bytes(5000), max_bytes=1000)
    assert below(tmp_path / "z") == {}


def test_gzip_members_one_after_the_other_are_one_stream(tmp_path: pathlib.Path) -> None:
    data = tar_of((info("f"), os.urandom(5000)))
    joined = gzip.compress(data[:3000]) + gzip.compress(data[3000:]) + bytes(700)
    assert unpack(tmp_path / "t", joined)["bytes"] == 5000


@pytest.mark.parametrize("cut", [1, 600, 1500])
@pytest.mark.parametrize("form", ["tar", "tar.gz", "zip"])
def test_an_archive_that_is_cut_off(tmp_path: pathlib.Path, form: str, cut: int) -> None:
    (tmp_path / "source").mkdir()
    (tmp_path / "source/f").write_bytes(os.urandom(3000))
    data = pack(tmp_path / "source", form).data
    with pytest.raises(ArchiveRefused) as caught:
        unpack(tmp_path / "t", data[:cut], form)
    assert caught.value.facts["reason"] == "damaged"
    assert below(tmp_path / "t") == {}


@settings(max_examples=60)
@given(st.sampled_from(FORMATS), st.integers(0, 10**6), st.integers(1, 255), st.binary(max_size=300))
def test_damage_anywhere_is_an_error_of_ours_or_harmless(
    tmp_path_factory: pytest.TempPathFactory, form: str, place: int, flip: int, noise: bytes
) -> None:
    top = tmp_path_factory.mktemp("damage")
    (top / "source/d").mkdir(parents=True)
    (top / "source/d/f").write_bytes(b"content" * 9)
    (top / "source/l").symlink_to("../../..")
    data = bytearray(pack(top / "source", form).data)
    data[place % len(data)] ^= flip
    for damaged in (bytes(data), noise, bytes(data[:100]) + noise):
        with contextlib.suppress(ArchiveRefused, QuotaExceeded):
            unpack(top / "t", damaged, form)
        assert sorted(os.listdir(top)) == ["source", "t"]
        assert not [name for name in below(top / "t") if TEMPORARY.encode() in name]


@pytest.mark.parametrize("head", [b"BZh9", b"\xfd7zXZ\0", b"\x28\xb5\x2f\xfd"])
def test_formats_that_are_not_taken_are_named(tmp_path: pathlib.Path, head: bytes) -> None:
    with pytest.raises(InvalidRequest) as caught:
        unpack(tmp_path / "t", head + bytes(600))
    assert caught.value.facts == {"field": "format"}


def test_an_empty_archive_and_none_at_all(tmp_path: pathlib.Path) -> None:
    assert unpack(tmp_path / "t", tar_of()) == {"entries": 0, "bytes": 0}
    assert unpack(tmp_path / "t", b"PK\5\6" + bytes(18)) == {"entries": 0, "bytes": 0}
    assert below(tmp_path / "t") == {}


def test_what_follows_a_tars_end_is_read_to_its_end(tmp_path: pathlib.Path) -> None:
    assert unpack(tmp_path / "t", tar_of((info("f"), b"x")) + os.urandom(600_000))["entries"] == 1


def test_zip_kinds_and_modes(tmp_path: pathlib.Path) -> None:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        for name, mode, content in (
            ("program", stat.S_IFREG | 0o4777, b"x"), ("l", stat.S_IFLNK | 0o777, b"program"), ("none", 0, b"y"),
        ):  # fmt: skip
            member = zipfile.ZipInfo(name)
            member.create_system, member.external_attr = 3, mode << 16
            archive.writestr(member, content)
    unpack(tmp_path / "z", out.getvalue())
    assert below(tmp_path / "z") == {b"program": b"x", b"l": b"-> program", b"none": b"y"}
    assert stat.S_IMODE((tmp_path / "z/program").stat().st_mode) == 0o755
    assert stat.S_IMODE((tmp_path / "z/none").stat().st_mode) == 0o644


@pytest.mark.parametrize(
    ("kind", "flags", "method", "reason"),
    [
        (stat.S_IFIFO, 0, 0, "kind"), (stat.S_IFCHR, 0, 0, "kind"), (stat.S_IFSOCK, 0, 0, "kind"),
        (stat.S_IFREG, 1, 0, "encrypted"), (stat.S_IFREG, 0, 97, "method"),
    ],
)  # fmt: skip
def test_zip_members_that_are_refused(tmp_path: pathlib.Path, kind: int, flags: int, method: int, reason: str) -> None:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        member = zipfile.ZipInfo("x")
        member.create_system, member.external_attr = 3, (kind | 0o644) << 16
        archive.writestr(member, b"x")
    data = bytearray(out.getvalue())
    for magic, at in ((b"PK\3\4", 6), (b"PK\1\2", 8)):
        head = data.index(magic) + at
        data[head] |= flags
        data[head + 2] = method
    with pytest.raises(ArchiveRefused) as caught:
        unpack(tmp_path / "z", bytes(data))
    assert caught.value.facts["reason"] == reason
    assert below(tmp_path / "z") == {}
