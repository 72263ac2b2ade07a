"""The seed of what is drawn by lot: that of the run, so that a failure can be repeated."""

from __future__ import annotations

import os


def seed(default: int) -> int:
    """Return SANDBOXD_TEST_SEED, or `default` where the run has none. `make test-long` without SEED sets it to ""."""
    return int(os.environ.get("SANDBOXD_TEST_SEED") or default)
