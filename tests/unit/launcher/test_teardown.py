"""Removals in pieces: however many cgroups a sandbox made, other orders of the launcher come in between."""

from __future__ import annotations

import itertools
import os
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from sandboxd.launcher import teardown
from sandboxd.launcher.cgroups import SandboxCgroups
from sandboxd.linux import cgroupfs
from sandboxd.linux.eventloop import EventLoop

if TYPE_CHECKING:
    from pathlib import Path


def groups(top: Path, count: int) -> None:
    """Make directories, which are removed by the same calls as cgroups."""
    (top / "work").mkdir(parents=True)
    for number in range(count):
        (top / "work" / f"g{number}").mkdir()


def left(top: Path) -> int:
    return sum(len(directories) for _, directories, _ in os.walk(top))


@pytest.fixture
def host(tmp_path: Path) -> Any:
    """Removals over directories; everything but the cgroups is gone at once."""
    cgroups = SandboxCgroups.__new__(SandboxCgroups)
    cgroups.root = str(tmp_path)
    cgroups.kill = lambda sandbox_id: None  # type: ignore[method-assign]
    done: list[str] = []
    veths: Any = {}
    nothing: Any = SimpleNamespace(remove=lambda *_: True, release=lambda *_: None, sweep=lambda: None)
    work = teardown.Teardowns(
        EventLoop(),
        cgroups,
        nothing,
        nothing,
        nothing,
        veths,
        str(tmp_path),
    )

    def begin(name: str, count: int) -> None:
        groups(tmp_path / name, count)
        work.begin(name, None, lambda error: done.append(name))

    return SimpleNamespace(begin=begin, work=work, done=done, path=tmp_path)


def test_thousands_of_cgroups_go_in_pieces(host: Any) -> None:
    host.begin("big", 300)
    turns = [left(host.path)]
    while "big" not in host.done:
        assert len(turns) < 20
        host.work.advance()
        turns.append(left(host.path))
    assert max(before - after for before, after in itertools.pairwise(turns)) <= teardown.GROUPS_A_TURN
    assert len(host.work) == 0
    assert left(host.path) == 0


def test_a_small_one_does_not_wait_for_a_large_one(host: Any) -> None:
    host.begin("big", 300)
    host.begin("other", 300)
    host.begin("small", 3)  # its own beginning is a turn
    assert host.done == ["small"]
    groups(host.path / "late", 100)
    host.work.begin("late", None, lambda error: host.done.append("late"))
    for _ in range(6):
        host.work.advance()
    assert host.done == ["small", "late"]
    while len(host.work):
        host.work.advance()
    assert sorted(host.done) == ["big", "late", "other", "small"]


def test_who_hears_that_a_child_failed_may_begin_another(host: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a creation does whose prepared sandbox has died: its order's own begins, and may fail at once."""
    monkeypatch.setattr(host.work, "_storage", SimpleNamespace(remove=lambda *_: False))
    monkeypatch.setattr(host.work, "_remove_in_child", lambda _: os.posix_spawn("/bin/false", ["false"], {}))
    failed: list[str] = []

    def begin_another(error: object) -> None:
        failed.append(str(error))
        host.begin(f"after-{len(failed)}", 0)

    for name in ("one", "two"):
        groups(host.path / name, 0)
        host.work.begin(name, None, begin_another)
    for one in host.work._active.values():
        os.waitid(os.P_PID, one.helper, os.WEXITED | os.WNOWAIT)
    host.work.reap_helpers()
    assert len(failed) == 2
    assert len(host.work) == 4
    for one in host.work._active.values():
        if one.helper:
            os.waitpid(one.helper, 0)


@pytest.mark.parametrize("budget", [None, 1, 2, 7, 1000])
def test_a_budget_is_kept_and_the_end_is_told(tmp_path: Path, budget: int | None) -> None:
    top = tmp_path / "top"
    groups(top, 20)
    total = turns = 0
    while True:
        removed = cgroupfs.remove_tree(str(top), budget)
        total, turns = total + removed, turns + 1
        if budget is None or removed < budget:
            break
        assert removed == budget
    assert total == 22
    assert turns == (1 if budget is None else 22 // budget + 1)
    assert not top.exists()
