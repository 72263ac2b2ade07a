"""Times as text and as values: one clamp for what an inode may hold and no calendar has.

An inode's time is any 64-bit number of seconds, and whoever runs in a sandbox sets it (`touch -d @99999999999999`).
Every calendar here ends in the years 1 and 9999, so a time outside is shown as the nearest one inside.
"""

from __future__ import annotations

import datetime
from typing import Final

_FIRST: Final = datetime.datetime.min.replace(tzinfo=datetime.UTC)
#: The last whole millisecond of the year 9999: what is rounded up from here is still in it.
_LAST: Final = datetime.datetime(9999, 12, 31, 23, 59, 59, 999_000, tzinfo=datetime.UTC)
_EPOCH: Final = datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)


def calendar(seconds: float) -> datetime.datetime:
    """Return a time since the epoch in UTC; one that no calendar has is the nearest that it has, NaN the epoch."""
    if seconds != seconds:  # noqa: PLR0124 - NaN alone; isnan takes no integer that is no float
        return _EPOCH
    try:
        found = datetime.datetime.fromtimestamp(seconds, datetime.UTC)
    except (ValueError, OverflowError, OSError):  # which of them depends on the number and the libc
        return _FIRST if seconds < 0 else _LAST
    return min(found, _LAST)


def rfc3339(seconds: float) -> str:
    """Return a time since the epoch as text, in UTC, to the millisecond."""
    return calendar(seconds).isoformat(timespec="milliseconds").replace("+00:00", "Z")
