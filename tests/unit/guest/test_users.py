"""Users and groups, read from files that a stranger wrote, without libc."""

from __future__ import annotations

import os
import pathlib
import stat

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sandboxd.errors import InvalidRequest
from sandboxd.guest import users
from sandboxd.guest.users import User

PASSWD = """root:x:0:0:root:/root:/bin/bash
broken
u:x:1000:1001:A User,,,:/home/u:/bin/sh
nohome:x:1002:1002:::
u:x:5:5:the second of that name:/:/bin/sh
"""
GROUP = "root:x:0:\nstaff:x:50:other,u\nu:x:1001:u\nwheel:x:10:u,\nbig:x:99999:u\nbroken:x\nstaff:x:51:\n"


@pytest.fixture
def etc(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> pathlib.Path:
    """A rootfs's own files instead of this machine's."""
    (tmp_path / "passwd").write_text(PASSWD)
    (tmp_path / "group").write_text(GROUP)
    read = users._read
    monkeypatch.setattr(users, "_read", lambda path: read(path.replace("/etc", str(tmp_path))))
    return tmp_path


# --- parsing -----------------------------------------------------------------------------------------------


def test_users_of_a_file() -> None:
    assert users.parse_passwd(PASSWD) == [
        User("root", 0, 0, (), "/root", "/bin/bash"),
        User("u", 1000, 1001, (), "/home/u", "/bin/sh"),
        User("nohome", 1002, 1002, (), "/", ""),
        User("u", 5, 5, (), "/", "/bin/sh"),
    ]


@pytest.mark.parametrize(
    "number", ["-1", "4294967295", "65536", "", " 1", "1 ", "+1", "1_0", "0x1", "٣", "1e1", "9" * 5000, "99999"]
)
def test_ids_that_no_sandbox_has(number: str) -> None:
    assert users.parse_passwd(f"u:x:{number}:0::/:/bin/sh") == []
    assert users.parse_passwd(f"u:x:0:{number}::/:/bin/sh") == []
    assert users.parse_groups(f"g:x:{number}:u", "u") == ()


def test_the_greatest_id() -> None:
    (found,) = users.parse_passwd("u:x:65535:65535::/:/bin/sh")
    assert (found.uid, found.gid) == (65535, 65535)


def test_groups_of_a_member() -> None:
    assert users.parse_groups(GROUP, "u") == (50, 1001, 10)
    assert users.parse_groups(GROUP, "other") == (50,)
    assert users.parse_groups(GROUP, "oth") == ()


@given(st.text(), st.text())
def test_any_text_is_read(text: str, member: str) -> None:
    for user in users.parse_passwd(text):
        assert 0 <= user.uid < 65536
        assert user.home
    assert all(0 <= gid < 65536 for gid in users.parse_groups(text, member))


# --- finding -----------------------------------------------------------------------------------------------


def test_a_user_has_its_groups_its_own_first(etc: pathlib.Path) -> None:
    found = users.find_user("u")
    assert found == User("u", 1000, 1001, (1001, 50, 10), "/home/u", "/bin/sh")
    assert found.ids == (1000, 1001, (1001, 50, 10))
    assert users.find_user(1000) == found


def test_the_first_of_two_with_one_name(etc: pathlib.Path) -> None:
    assert users.find_user("u").uid == 1000
    assert users.find_user(5).home == "/"
    assert users.find_group("staff") == 50


def test_an_id_without_a_name(etc: pathlib.Path) -> None:
    assert users.find_user(4711) == User("4711", 4711, 4711, (4711,), "/", "/bin/sh")
    assert users.find_group(4711) == 4711


@pytest.mark.parametrize("name", ["nobody", "", "U", "u\n", "broken", "1000"])
def test_a_name_that_nobody_has(etc: pathlib.Path, name: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        users.find_user(name)
    assert caught.value.facts == {"field": "user"}
    with pytest.raises(InvalidRequest) as caught:
        users.find_group(name)
    assert caught.value.facts == {"field": "group"}


def test_a_group_whose_id_no_sandbox_has(etc: pathlib.Path) -> None:
    with pytest.raises(InvalidRequest):
        users.find_group("big")


@pytest.mark.parametrize("kind", ["missing", "fifo", "directory", "loop", "empty"])
def test_files_that_are_none(etc: pathlib.Path, kind: str) -> None:
    """Without a passwd file there is still a root; nothing waits for a FIFO's writer."""
    for name in ("passwd", "group"):
        (etc / name).unlink()
        if kind == "fifo":
            os.mkfifo(etc / name)
        elif kind == "directory":
            (etc / name).mkdir()
        elif kind == "loop":
            (etc / name).symlink_to(name)
        elif kind == "empty":
            (etc / name).touch()
    before = len(os.listdir("/proc/self/fd"))
    assert users.find_user("root") == User("root", 0, 0, (0,), "/root", "/bin/sh")
    assert users.find_user(7).name == "7"
    with pytest.raises(InvalidRequest):
        users.find_user("u")
    with pytest.raises(InvalidRequest):
        users.find_group("u")
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_file_of_a_stranger_is_read_to_its_bound(etc: pathlib.Path) -> None:
    with open(etc / "passwd", "wb") as file:
        file.write(b"first:x:1:1::/:/bin/sh\n")
        file.write(b"\xff" * (1 << 20))
        file.write(b"\nlast:x:2:2::/:/bin/sh\n")
        file.truncate(1 << 40)
    assert users.find_user("first").uid == 1
    with pytest.raises(InvalidRequest):
        users.find_user("last")


# --- pipes -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("uid", [0, 1234])
def test_a_pipe_belongs_to_its_user(uid: int) -> None:
    read_end, write_end = users.pipe_of(User("u", uid, 2345 if uid else 0, (), "/", "/bin/sh"))
    try:
        facts = os.fstat(write_end)
        assert stat.S_ISFIFO(facts.st_mode)
        if os.geteuid() == 0:
            assert (facts.st_uid, facts.st_gid) == ((uid, 2345) if uid else (0, 0))
        assert not os.get_inheritable(read_end)
        assert not os.get_inheritable(write_end)
        os.write(write_end, b"x")
        assert os.read(read_end, 2) == b"x"
    finally:
        os.close(read_end)
        os.close(write_end)


def test_a_pipe_that_may_not_be_given_away_works_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(1, "denied")

    monkeypatch.setattr(os, "fchown", refuse)
    for fd in users.pipe_of(User("u", 5, 5, (), "/", "/bin/sh")):
        os.close(fd)
