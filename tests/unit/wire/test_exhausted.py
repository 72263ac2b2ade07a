"""What an errno means to a caller: at a limit every operation gives one of few kinds, and none a raw errno."""

from __future__ import annotations

import errno
import os
from types import SimpleNamespace
from typing import Any

import pytest

from sandboxd.errors import InternalError, LimitExceeded, SandboxdError
from sandboxd.guest import jobs
from sandboxd.guest.init import JOBS, Init
from sandboxd.guest.paths import file_error
from sandboxd.linux.kernel import SyscallError
from sandboxd.runtime import checks, clone
from sandboxd.templates.git.clone import CloneRequest, _known
from sandboxd.wire.exhausted import known, limit_error
from sandboxd.wire.messages import Request

#: The kind, the limit and the status by errno.
LIMITS = {
    errno.EAGAIN: ("limit-exceeded", "pids", 422),
    errno.ENOMEM: ("limit-exceeded", "memory_bytes", 422),
    errno.EMFILE: ("limit-exceeded", "open files", 422),
    errno.ENFILE: ("limit-exceeded", "open files", 422),
    errno.ENOSPC: ("quota-exceeded", "disk_bytes", 507),
    errno.EDQUOT: ("quota-exceeded", "disk_bytes", 507),
    errno.EFBIG: ("quota-exceeded", "disk_bytes", 507),
}
#: Of a file, EAGAIN says that somebody has locked it.
OF_FILES = {number: row for number, row in LIMITS.items() if number != errno.EAGAIN}


def failure(number: int) -> OSError:
    return SyscallError(number, "clone3") if number == errno.EAGAIN else OSError(number, os.strerror(number))


def row(error: SandboxdError) -> tuple[str, str, int]:
    return error.kind, error.facts["limit"], error.status


class Peer:
    """Takes what init answers."""

    def __init__(self) -> None:
        self.failed: list[SandboxdError] = []

    def fail(self, request: int, error: SandboxdError) -> None:
        self.failed.append(error)


@pytest.fixture(scope="module")
def init() -> Init:
    return Init()


@pytest.mark.parametrize("number", LIMITS, ids=errno.errorcode.__getitem__)
def test_every_operation_of_init_names_the_limit(init: Init, number: int) -> None:
    def fail(*_: object) -> None:
        raise failure(number)

    peer: Any = Peer()
    names = list(init._operations)
    assert {"exec", "start", "context_start", "session_create", "errand", "clone", "open_write", "await_port"} <= set(
        names
    )
    real, init._operations = init._operations, dict.fromkeys(names, fail)
    try:
        for name in names:
            init._run_operation(peer, Request(1, name, {}))
    finally:
        init._operations = real
    assert [row(error) for error in peer.failed] == [LIMITS[number]] * len(names)
    assert {error.kind for error in peer.failed} <= checks.INIT_KINDS


@pytest.mark.parametrize("number", OF_FILES, ids=errno.errorcode.__getitem__)
def test_every_operation_on_files_does(number: int) -> None:
    for name in JOBS:
        assert row(jobs._known(OSError(number, os.strerror(number), "/workspace/f"), name)) == LIMITS[number]
    assert row(file_error(failure(number), "/workspace/f", "read")) == LIMITS[number]


@pytest.mark.parametrize("number", LIMITS, ids=errno.errorcode.__getitem__)
def test_a_clone_does(number: int) -> None:
    order = CloneRequest(url="https://host/x", target="/workspace/x", temporary="t")
    found = _known(failure(number), order)
    assert found is not None
    assert row(found) == LIMITS[number]
    assert found.kind in clone.KINDS


def test_memory_that_cannot_be_had_is_a_limit() -> None:
    for error in (known(MemoryError(), "do it"), jobs._known(MemoryError(), "search")):
        assert row(error) == LIMITS[errno.ENOMEM]


@pytest.mark.parametrize(("syscall", "number"), [("inotify_add_watch", errno.ENOSPC), ("inotify_init1", errno.EMFILE)])
def test_watches_have_a_limit_of_their_own(syscall: str, number: int) -> None:
    assert row(file_error(SyscallError(number, syscall, "/w"), "/w", "watch")) == ("limit-exceeded", "watches", 422)


def test_what_is_no_limit_stays_what_it_is() -> None:
    assert limit_error(OSError(errno.EIO, "io"), "read") is None
    assert limit_error(ValueError("x"), "read") is None
    assert isinstance(known(OSError(errno.EIO, "io"), "read"), InternalError)


def test_a_file_operation_for_which_no_process_begins_names_the_limit(init: Init) -> None:
    kernel = SimpleNamespace(clone3=_no_process)
    leaf = SimpleNamespace(open=lambda: os.open("/", os.O_RDONLY))
    leaves = SimpleNamespace(new=lambda _: leaf, drop=lambda *_, **__: None)
    peer = SimpleNamespace(take_fds=lambda _: [])
    started = jobs.FileJobs(SimpleNamespace(), kernel, leaves, JOBS)  # type: ignore[arg-type]
    with pytest.raises(LimitExceeded) as caught:
        started.start(peer, 1, {"feed": False, "do": "list", "with": {}}, None)  # type: ignore[arg-type]
    assert row(caught.value) == LIMITS[errno.EAGAIN]


def _no_process(*_: object, **__: object) -> None:
    raise SyscallError(errno.EAGAIN, "clone3")
