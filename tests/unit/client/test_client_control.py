"""What the SDK sends for a change, and how it reads what a sandbox uses."""

from __future__ import annotations

from typing import Any

import pytest

from sandboxd import IoLimits, Limits, errors
from sandboxd.cli.params import io_of
from sandboxd.cli.stats import size
from sandboxd.client import calls, control_calls

STATS = {
    "id": "x",
    "state": "frozen",
    "limits": {"memory_bytes": 1 << 30, "cpus": 1, "pids": 9, "disk_bytes": None, "io": {"read_iops": 5}, "new": 1},
    "cpu_s": 1.5,
    "memory_bytes": None,
    "pids": 3,
    "io": {"read_bytes": 1, "write_bytes": 2, "reads": 3, "writes": 4},
    "another": 1,
}


def body(**changes: Any) -> Any:
    given = dict.fromkeys(("name", "env", "cwd", "labels", "limits", "network"), ...) | changes
    return control_calls.update("box", **given).body


def test_only_what_changes_is_sent_and_none_is_null() -> None:
    assert body() == {}
    assert body(name=None, env={"A": None, "B": "1"}, limits=None) == {
        "name": None,
        "env": {"A": None, "B": "1"},
        "limits": None,
    }
    assert body(limits=Limits(pids=5, io=IoLimits(read_iops=7))) == {"limits": {"pids": 5, "io": {"read_iops": 7}}}
    assert body(limits={"cpus": None}) == {"limits": {"cpus": None}}


def test_io_limits_are_json_at_creation_too() -> None:
    for limits in (Limits(io=IoLimits(write_bytes_per_s=8192)), {"io": IoLimits(write_bytes_per_s=8192)}):
        assert calls.create({"limits": limits}).body == {"limits": {"io": {"write_bytes_per_s": 8192}}}


def test_stats_are_read_and_what_is_missing_is_none() -> None:
    found = control_calls.parse_stats(STATS)
    assert (found.state, found.cpu_s, found.memory_bytes, found.pids, found.oom_kills) == ("frozen", 1.5, None, 3, None)
    assert (found.io.reads if found.io else 0, found.limits.io) == (3, IoLimits(read_iops=5))
    assert found.raw["another"] == 1


@pytest.mark.parametrize("wrong", [{}, {**STATS, "io": {"reads": 1}}, {**STATS, "limits": {"cpus": -1}}], ids=str)
def test_stats_of_another_shape_are_the_daemons_fault(wrong: dict[str, Any]) -> None:
    with pytest.raises(errors.RemoteProtocolError):
        from sandboxd.client.models import read

        read("statistics", control_calls.parse_stats, wrong)


def test_rates_on_the_command_line() -> None:
    assert io_of((("read", "10M"), ("write-iops", "5"))) == {"read_bytes_per_s": 10 << 20, "write_iops": 5}
    import click

    for wrong in (("speed", "1"), ("read", "fast")):
        with pytest.raises(click.UsageError):
            io_of((wrong,))
    assert [size(value) for value in (None, 7, 2048, 3 << 20, 5 << 30)] == ["-", "7", "2.0K", "3.0M", "5.0G"]
