"""Runs the tests of inside/ in the machine and reports each here as if it had run here.

On the host: the first of them boots the machine, installs this tree and starts one pytest there with all of them, in
this session's order. Its reports come over the port as they are made (`reporter`), and each is handed on when its
test's turn comes, so names, outcomes, -k, -x, markers and --durations work as always. In the machine
(SANDBOXD_VM_INSIDE) none of this does anything.
"""

from __future__ import annotations

import faulthandler
import os
from collections.abc import Iterator

import pytest

from tests.vm.lane import Lane

INSIDE = "SANDBOXD_VM_INSIDE" in os.environ
_LANE = pytest.StashKey[Lane]()


def _is_inside(item: pytest.Item) -> bool:
    return "/tests/vm/inside/" in str(item.path)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if _is_inside(item):
            item.add_marker(pytest.mark.slow)
            if not INSIDE:  # what it waits for has limits: the lane, and the pytest inside
                item.add_marker(pytest.mark.timeout(0))


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    """Start the machine before the first test's own time begins to run."""
    if not INSIDE and _is_inside(item) and _LANE not in item.config.stash:
        ids = [other.nodeid for other in item.session.items if _is_inside(other)]
        lane = item.config.stash[_LANE] = Lane(item.config, ids)
        item.config.add_cleanup(lane.close)
        lane.open()
    return (yield)


class _Handing:
    """Hands reports on instead of running the test here; a plugin of its own, since the hook above is a wrapper."""

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> bool | None:
        if not _is_inside(item):
            return None
        faulthandler.cancel_dump_traceback_later()  # what hangs is there
        item.ihook.pytest_runtest_logstart(nodeid=item.nodeid, location=item.location)
        for report in item.config.stash[_LANE].reports(item):
            item.ihook.pytest_runtest_logreport(report=report)
        item.ihook.pytest_runtest_logfinish(nodeid=item.nodeid, location=item.location)
        return True

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
        lane = config.stash.get(_LANE, None)
        if lane is not None:
            terminalreporter.section("virtual machine")
            for line in lane.summary():
                terminalreporter.write_line(line)


def pytest_configure(config: pytest.Config) -> None:
    if not INSIDE:
        config.pluginmanager.register(_Handing())
