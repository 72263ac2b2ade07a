"""Times that no calendar has, as text and as values."""

from __future__ import annotations

import datetime
import io
import math
import tarfile
from pathlib import Path

import pytest

from sandboxd.client import directories
from sandboxd.client.models import parse_time
from sandboxd.wire.times import calendar, rfc3339

_LAST = "9999-12-31T23:59:59.999Z"
_FIRST = "0001-01-01T00:00:00.000Z"


@pytest.mark.parametrize(
    ("seconds", "told"),
    [
        (0, "1970-01-01T00:00:00.000Z"),
        (-0.5, "1969-12-31T23:59:59.500Z"),
        (253402300799.9999, _LAST),
        (253402300800, _LAST),
        (float(1 << 63), _LAST),
        (math.inf, _LAST),
        (10**400, _LAST),
        (-62135596800, _FIRST),
        (-62135596800.001, _FIRST),
        (-float(1 << 63), _FIRST),
        (-math.inf, _FIRST),
        (math.nan, "1970-01-01T00:00:00.000Z"),
    ],
)
def test_a_time_is_the_nearest_that_the_calendar_has(seconds: float, told: str) -> None:
    assert rfc3339(seconds) == told
    assert parse_time(told) == calendar(seconds).replace(microsecond=calendar(seconds).microsecond // 1000 * 1000)
    assert parse_time(seconds).tzinfo is datetime.UTC


@pytest.mark.parametrize("mtime", ["1e30", "nan", "-1e30", "99999999999999"])
def test_a_folder_comes_out_whatever_its_files_times_are(tmp_path: Path, mtime: str) -> None:
    info = tarfile.TarInfo("f")
    info.size = 1
    info.pax_headers = {"mtime": mtime}
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=tarfile.PAX_FORMAT) as archive:
        archive.addfile(info, io.BytesIO(b"x"))
    directories.unpack(iter([file.getvalue()]), tmp_path / "out")
    assert (tmp_path / "out" / "f").read_bytes() == b"x"
