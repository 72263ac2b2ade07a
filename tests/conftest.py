"""What every test stands on."""

from __future__ import annotations

import functools
import inspect
import os
import signal
from collections.abc import Awaitable, Callable
from typing import Any

import hypothesis
import pytest
import trio

#: What Python itself ignores, for good reasons.
_PYTHONS = {signal.SIGPIPE, signal.SIGXFSZ}


def restore_signals() -> None:
    """Give every signal the disposition that a fresh login shell has.

    nohup ignores SIGHUP, a shell ignores SIGINT and SIGQUIT for background jobs, a service manager may block any. All
    of that is inherited, also by the programs that tests start and signal. A handler is not: execve resets it.
    """
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    for number in signal.valid_signals() - _PYTHONS:
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)


restore_signals()
os.umask(0o022)
for _name in ("COLUMNS", "LINES", "FORCE_COLOR", "NO_COLOR"):  # how wide and in which colours programs print
    os.environ.pop(_name, None)

# Other work on the machine is no failure of a property.
hypothesis.settings.register_profile("tests", deadline=None)
hypothesis.settings.load_profile("tests")


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Give asynchronous tests a deadline of trio's own, well before pytest-timeout's, which also counts the report.

    The stack of a loop that waits says nothing of the task that hangs; a cancelled test shows the line it waits at. A
    clock of the test's own would jump to that deadline.
    """
    usual = float(os.environ.get("PYTEST_TIMEOUT") or config.getini("timeout"))
    for item in items:
        own = item.get_closest_marker("timeout")
        clocks = {"autojump_clock", "mock_clock"}
        if (
            isinstance(item, pytest.Function)
            and inspect.iscoroutinefunction(item.obj)
            and clocks.isdisjoint(item.fixturenames)
        ):
            item.obj = _within(0.5 * (float(own.args[0]) if own else usual), item.obj)


def _within(seconds: float, test: Callable[..., Awaitable[None]]) -> Callable[..., Awaitable[None]]:
    @functools.wraps(test)
    async def run(*args: Any, **kwargs: Any) -> None:
        with trio.fail_after(seconds):
            await test(*args, **kwargs)

    return run
