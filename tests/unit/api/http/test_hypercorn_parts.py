"""What we use of hypercorn's insides is still there: an upgrade that takes a part away is told by its name."""

from __future__ import annotations

import pytest

from sandboxd.api.http import hypercorn_parts


def test_nothing_is_gone() -> None:
    assert hypercorn_parts.missing() == []


def test_what_is_gone_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    parts = hypercorn_parts
    monkeypatch.setattr(parts, "_METHODS", (*parts._METHODS, (parts.TCPServer, ("read_all",))))
    monkeypatch.setattr(parts, "_ATTRIBUTES", (*parts._ATTRIBUTES, (parts.WorkerContext, ("ended",))))
    monkeypatch.setattr(parts, "_ARGUMENTS", (*parts._ARGUMENTS, (parts.Closed, ("reason",))))
    assert parts.missing() == ["TCPServer.read_all", "Closed(reason=)", "WorkerContext.ended"]
