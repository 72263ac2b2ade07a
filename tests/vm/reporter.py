"""A pytest plugin for inside the machine: writes what happens to descriptor 3, one JSON object a line."""

from __future__ import annotations

import json
import os
from typing import Any

import pytest

_FD = 3


def _say(**message: Any) -> None:
    data = json.dumps(message).encode() + b"\n"
    while data:
        data = data[os.write(_FD, data) :]


class Reporter:
    """Sends the beginning of each test and its reports."""

    def __init__(self, config: pytest.Config) -> None:
        self._config = config

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        _say(begin=nodeid)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        data = self._config.hook.pytest_report_to_serializable(config=self._config, report=report)
        _say(report=data)

    def pytest_runtest_logfinish(self, nodeid: str) -> None:
        _say(end=nodeid)


def pytest_configure(config: pytest.Config) -> None:
    os.set_inheritable(_FD, False)
    config.pluginmanager.register(Reporter(config))
