"""An error of the system that no verb explains names the call, the file or the place, so that a report can be used."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable

import click
import pytest
from click.testing import CliRunner, Result

from sandboxd.cli import main
from sandboxd.linux import memfd
from sandboxd.linux.kernel import Kernel

GONE = "/nowhere/at/all"


def failing(monkeypatch: pytest.MonkeyPatch, call: Callable[[], object]) -> Result:
    @click.command()
    def verb() -> None:
        call()

    monkeypatch.setattr(main.LazyGroup, "get_command", lambda *_: verb)
    return CliRunner().invoke(main.cli, ["ls"], prog_name="sandboxd")


@pytest.mark.parametrize(
    ("call", "named"),
    [
        (lambda: os.rmdir(GONE), f"{GONE}: No such file or directory"),
        (lambda: os.rename(GONE, "/elsewhere"), f"{GONE} /elsewhere: No such file or directory"),
        (lambda: Kernel().mount("x", GONE, "tmpfs", 0, ""), f"mount {GONE}: No such file or directory"),
        (lambda: Kernel().setns(0, 0), "setns: Invalid argument"),
        (lambda: memfd.seal(0), "(in sandboxd.linux.memfd.seal, line"),
    ],
)
def test_the_call_the_file_or_the_place_is_named(
    monkeypatch: pytest.MonkeyPatch, call: Callable[[], object], named: str
) -> None:
    result = failing(monkeypatch, call)
    assert result.exit_code == 1
    assert named in result.stderr
    assert result.stderr.startswith("sandboxd: cannot continue: ")
    assert result.stderr.count("\n") == 1


def test_the_traceback_is_logged_for_whoever_asks_for_it(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.DEBUG, "sandboxd"):
        failing(monkeypatch, lambda: memfd.seal(0))
    (record,) = caplog.records
    assert record.exc_info
    assert isinstance(record.exc_info[1], OSError)
