"""seccomp: libseccomp is there, each profile compiles, and its filters can be installed."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from typing import TYPE_CHECKING

from .. import seccomp
from .child import Outcome, attempt
from .feature import Feature, Status

if TYPE_CHECKING:
    from ..kernel import Kernel


@dataclasses.dataclass(frozen=True, slots=True)
class FilterTrials:
    """What was found in `directory`; a profile's value is how many instructions its filters have."""

    directory: str
    install: Outcome
    library: Outcome
    profiles: Mapping[str, Outcome]


def gather(kernel: Kernel, directory: str) -> FilterTrials:
    """Try it all in children, which needs no root."""
    try:
        names = sorted(name.removesuffix(".json") for name in os.listdir(directory) if name.endswith(".json"))
    except OSError:
        names = []
    return FilterTrials(
        directory,
        attempt(kernel, lambda: _install(kernel, [seccomp.COMMAND_FILTER])),
        attempt(kernel, _library),
        {name: attempt(kernel, lambda n=name: _compile(kernel, f"{directory}/{n}.json")) for name in names},  # type: ignore[misc]
    )


def evaluate(facts: FilterTrials) -> list[Feature]:
    """Tell whether sandboxes get their filters."""
    features = [
        _feature("seccomp", facts.install, "filters can be installed", "use a kernel with CONFIG_SECCOMP_FILTER=y"),
        _feature(
            "libseccomp", facts.library, f"installed, API level {facts.library.value}", "apt-get install libseccomp2"
        ),
    ]
    if "default" not in facts.profiles:
        absent = Outcome(error=f"{facts.directory}/default.json is missing or cannot be read")
        features.append(_feature("seccomp:default", absent, "", "install sandboxd again: its data is incomplete"))
    for name, outcome in facts.profiles.items():
        found = f"compiles to {outcome.value} instructions, which the kernel accepts"
        features.append(_feature(f"seccomp:{name}", outcome, found, f"mend {facts.directory}/{name}.json"))
    return features


def _feature(name: str, outcome: Outcome, found: str, remedy: str) -> Feature:
    if outcome.ok:
        means = "the system calls of a sandbox are filtered"
        return Feature(name=name, status=Status.OK, found=found, means=means, essential=True)
    means = "the daemon does not start without the configured protection"
    error = str(outcome.error)
    return Feature(name=name, status=Status.MISSING, found=error, means=means, remedy=remedy, essential=True)


def _install(kernel: Kernel, programs: list[bytes]) -> int:
    kernel.set_no_new_privs()
    for program in programs:
        kernel.seccomp(program)
    return sum(len(program) // 8 for program in programs)


def _library() -> int:
    import pyseccomp  # noqa: PLC0415 - loads libseccomp, in a child only

    return int(pyseccomp.get_api())


def _compile(kernel: Kernel, path: str) -> int:
    return _install(kernel, seccomp.compile_profile(seccomp.load_profile(path), also_allow=seccomp.FOR_INIT))
