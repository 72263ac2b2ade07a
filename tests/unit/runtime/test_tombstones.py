"""Which previews are gone: bounded, kept in a file, read again whatever the file holds."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from sandboxd.runtime.ports import PortSpec
from sandboxd.runtime.tombstones import Tombstones
from sandboxd.spec import new_id


def specs(*ports: int) -> list[PortSpec]:
    return [PortSpec(port=port, token="t") for port in ports]


def add_tombstone(tombstones: Tombstones, sandbox_id: str, *ports: int) -> None:
    tombstones.add(sandbox_id, specs(*ports))
    tombstones.write(sandbox_id, specs(*ports))


def loaded(path: Path, bound: int = 4) -> Tombstones:
    tombstones = Tombstones(path, bound)
    tombstones.load()
    return tombstones


def test_another_daemon_knows_them(tmp_path: Path) -> None:
    path, one, other = tmp_path / "gone.jsonl", new_id(), new_id()
    assert len(loaded(path)) == 0
    add_tombstone(Tombstones(path), one, 1, 2)
    add_tombstone(Tombstones(path), other, 1)
    tombstones = loaded(path)
    assert [tombstones.get(one, 1), tombstones.get(one, 2), tombstones.get(other, 1)] == specs(1, 2, 1)
    assert tombstones.get(one, 3) is None
    assert path.stat().st_mode & 0o777 == 0o600


def test_the_oldest_are_forgotten_and_the_file_stays_small(tmp_path: Path) -> None:
    path, ids = tmp_path / "gone.jsonl", [new_id() for _ in range(50)]
    tombstones = loaded(path)
    for sandbox_id in ids:
        add_tombstone(tombstones, sandbox_id, 1)
        assert len(path.read_bytes().splitlines()) <= 8
    for found in (tombstones, loaded(path)):
        assert [found.get(sandbox_id, 1) is not None for sandbox_id in ids] == [False] * 46 + [True] * 4
    assert [entry.name for entry in tmp_path.iterdir()] == ["gone.jsonl"]


def test_a_torn_line_takes_no_other_with_it(tmp_path: Path) -> None:
    path, one, other = tmp_path / "gone.jsonl", new_id(), new_id()
    add_tombstone(Tombstones(path), one, 1)
    path.write_bytes(path.read_bytes() + path.read_bytes()[:20])
    add_tombstone(loaded(path), other, 1)
    tombstones = loaded(path)
    assert tombstones.get(one, 1) == tombstones.get(other, 1) == specs(1)[0]


@pytest.mark.parametrize(
    "line",
    [b"", b"[]", b"\xff", b"{}", json.dumps({"id": "../../etc", "ports": []}).encode(),
     json.dumps({"id": "a" * 26, "ports": [{"port": 0, "token": None}]}).encode()],
)  # fmt: skip
def test_nonsense_is_passed_over(tmp_path: Path, line: bytes) -> None:
    path, one = tmp_path / "gone.jsonl", new_id()
    path.write_bytes(line + b"\n")
    add_tombstone(Tombstones(path), one, 1)
    tombstones = loaded(path)
    assert len(tombstones) == 1


def test_a_disk_that_fails_is_no_failure(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    tombstones, one = loaded(tmp_path / "no" / "folder"), new_id()
    add_tombstone(tombstones, one, 1)
    assert tombstones.get(one, 1) is not None
    assert "Cannot write" in caplog.text
