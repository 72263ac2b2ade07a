"""The doctor's report, and what its trials repeat of a creation."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sandboxd.cli import doctor
from sandboxd.launcher import create_child, filesystem, idranges, limits
from sandboxd.linux.kernel import Kernel
from sandboxd.linux.probes import cgroups, child, namespaces, overlay, storage
from sandboxd.linux.probes.feature import Feature, Report, Status
from sandboxd.spec import ID_RANGE_WIDTH


def test_the_trials_are_what_a_birth_does() -> None:
    assert filesystem.MountOverlay().options == overlay.OPTIONS
    assert filesystem._OVERLAY_CAPABILITIES == overlay.CAPABILITIES
    assert idranges.CLAIMS_DIR == doctor.ID_CLAIMS_DIR
    assert (idranges.DISK_FIRST_ID, ID_RANGE_WIDTH) == (child.DISK_FIRST_ID, child.ID_RANGE_WIDTH)
    assert idranges.base_of(idranges.RANGES - 1) + ID_RANGE_WIDTH <= child.TRIAL_FIRST_ID
    flags = {flag for flag, _ in namespaces.KINDS.values()}
    assert sum(flags) == create_child._NAMESPACES
    assert set(limits.CONTROLLER_OF.values()) <= set(cgroups.CONTROLLERS)


def test_the_promise_about_disk_limits_follows_the_launcher() -> None:
    sources = Path(idranges.__file__).parent.rglob("*.py")
    built = any("enforces_limit = True" in source.read_text() for source in sources)
    assert built == storage.BTRFS_DRIVER_BUILT


# --- the report ---------------------------------------------------------------------------------------------


def feature(name: str, status: Status, *, essential: bool = False) -> Feature:
    return Feature(name=name, status=status, found="f", means="m", remedy="r", essential=essential)


def held(*names: str) -> list[Feature]:
    return [
        feature(f"cgroup:{n}", Status.OK if n in names else Status.DEGRADED) for n in ("memory", "pids", "cpu", "io")
    ]


@pytest.mark.parametrize(
    ("features", "allow", "ok", "summary"),
    [
        (
            [*held("memory", "pids", "cpu"), feature("disk-limits", Status.OK)],
            False,
            True,
            "sandboxes: yes; limits: yes; disk limits: yes",
        ),
        (
            held(),
            True,
            True,
            "sandboxes: yes; limits: not enforceable here (cgroup2 has no memory, pids, cpu); disk limits: no",
        ),
        (
            held("memory", "cpu"),
            False,
            True,
            "sandboxes: yes, with --allow-unenforced; limits: partly (cgroup2 has no pids); disk limits: no",
        ),
        (
            [feature("overlay", Status.MISSING, essential=True), *held("memory", "pids", "cpu")],
            True,
            False,
            "sandboxes: no (overlay); limits: yes; disk limits: no",
        ),
        (
            [feature("root", Status.MISSING, essential=True), *held("memory", "pids", "cpu")],
            True,
            False,
            "sandboxes: unknown (not everything can be tested without root); limits: yes; disk limits: no",
        ),
    ],
)
def test_the_summary_says_what_works(features: list[Feature], allow: bool, ok: bool, summary: str) -> None:
    report = Report(tuple(features), allow_unenforced=allow)
    assert (report.ok, report.summary) == (ok, summary)


@given(
    st.lists(st.builds(feature, st.text(), st.sampled_from(Status), essential=st.booleans())),
    st.booleans(),
)
def test_a_report_is_ok_just_when_everything_essential_is_there(features: list[Feature], allow: bool) -> None:
    report = Report(tuple(features), allow_unenforced=allow)
    bad = {Status.MISSING, Status.UNKNOWN}
    assert report.ok == (not any(item.essential and item.status in bad for item in features))
    assert report.summary.startswith("sandboxes: yes") == report.ok
    assert "\n" not in Report((), allow_unenforced=allow).summary
    told = json.loads(json.dumps(report.to_json()))
    assert set(told) == {"ok", "summary", "features"}
    assert all(set(item) == {"name", "status", "found", "means", "remedy"} for item in told["features"])


def test_the_plain_report_tells_means_and_remedy_of_what_is_not_ok() -> None:
    report = Report((feature("good", Status.OK), feature("bad", Status.DEGRADED)))
    good, bad, means, remedy, summary = doctor.plain(report)
    assert good.split() == ["ok", "good", "f"]
    assert bad.split() == ["degraded", "bad", "f"]
    assert (means.strip(), remedy.strip()) == ("means: m", "remedy: r")
    assert summary == report.summary
    assert good.index("f") == bad.index(" f") + 1 == means.index("means")


# --- short-lived children -----------------------------------------------------------------------------------


def fail() -> None:
    raise FileNotFoundError(2, "no such file", "/some/file")


@pytest.mark.parametrize(
    ("act", "value", "error"),
    [
        (lambda: {"a": [1]}, {"a": [1]}, None),
        (fail, None, "/some/file: ENOENT"),
        (lambda: 1 / 0, None, "ZeroDivisionError: division by zero"),
        (lambda: os._exit(3), None, "it died before it answered"),
        (lambda: os.kill(os.getpid(), signal.SIGKILL), None, "it died before it answered"),
        (object, None, "it died before it answered"),
        (signal.pause, None, "it did not answer within 0.2 s"),
    ],
)
def test_a_child_answers_or_is_said_not_to(act: Callable[[], object], value: object, error: str | None) -> None:
    before = os.listdir("/proc/self/fd"), psutil.Process().children()
    outcome = child.attempt(Kernel(), act, timeout_s=20 if act is not signal.pause else 0.2)
    assert (outcome.value, outcome.error, outcome.ok) == (value, error, error is None)
    assert (os.listdir("/proc/self/fd"), psutil.Process().children()) == before
