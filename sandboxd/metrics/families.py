"""The sources: each takes a snapshot and yields metric families. Names follow Prometheus' conventions (base units)."""

from __future__ import annotations

import dataclasses
import math
import platform
from typing import TYPE_CHECKING, Any, Final

from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
)

from ..runtime.lifecycle import SHOWN

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

    from prometheus_client import Metric

    from ..runtime.counters import Durations
    from ..runtime.ports import Port
    from ..runtime.sandbox import Sandbox
    from .exposition import Snapshot


def counter(name: str, about: str, value: float) -> CounterMetricFamily:
    """Return a counter without labels; its series' name gets `_total`."""
    return CounterMetricFamily(name, about, value=value)


def gauge(name: str, about: str, value: float) -> GaugeMetricFamily:
    """Return a gauge without labels."""
    return GaugeMetricFamily(name, about, value=value)


def counters(name: str, about: str, label: str, values: Mapping[str, float]) -> CounterMetricFamily:
    """Return a counter with one label."""
    family = CounterMetricFamily(name, about, labels=[label])
    for key, value in values.items():
        family.add_metric([key], value)
    return family


def histogram(name: str, about: str, durations: Durations) -> HistogramMetricFamily:
    """Return a histogram of seconds."""
    buckets = [("+Inf" if math.isinf(bound) else repr(bound), float(count)) for bound, count in durations.buckets()]
    return HistogramMetricFamily(name, about, buckets=buckets, sum_value=durations.sum)


# --- the daemon ---------------------------------------------------------------------------------------------


def daemon(snapshot: Snapshot) -> Iterator[Metric]:
    """The daemon's build, its event loop and its answers."""
    counts = snapshot.manager.counters
    build = GaugeMetricFamily("sandboxd_build_info", "Version information; always 1", labels=["version", "python"])
    build.add_metric([snapshot.version, platform.python_version()], 1)
    yield build
    yield histogram(
        "sandboxd_event_loop_lag_seconds", "How late the daemon's timer of once a second fired", counts.loop_lag
    )
    answers = CounterMetricFamily("sandboxd_http_responses", "Responses of the API", labels=["route", "code"])
    for (route, status), count in counts.answers.items():
        answers.add_metric([route, str(status)], count)
    yield answers
    yield gauge("sandboxd_held_bytes", "Bytes held in memory for callers", snapshot.manager.budget.held)


def sandboxes(snapshot: Snapshot) -> Iterator[Metric]:
    """How many sandboxes there are, how they came and went."""
    manager, counts = snapshot.manager, snapshot.manager.counters
    found = manager.statistics()
    states = GaugeMetricFamily("sandboxd_sandboxes", "Sandboxes by state", labels=["state"])
    for state in sorted(SHOWN):
        states.add_metric([state.value], found[state.value])
    yield states
    yield gauge("sandboxd_creates_waiting", "Creations in progress or queued", found["waiting_creates"])
    yield histogram("sandboxd_create_seconds", "Creations that succeeded, from request to usable", counts.creates)
    yield counters("sandboxd_create_failures", "Creations that failed", "kind", counts.create_failures)
    yield counters("sandboxd_create_step_seconds", "Time in each step of creations", "step", counts.steps)
    yield histogram("sandboxd_destroy_seconds", "Destructions that succeeded", counts.destroys)
    yield counters("sandboxd_destroy_failures", "Destructions that failed", "kind", counts.destroy_failures)
    yield counter("sandboxd_network_denied", "Destinations refused to sandboxes", counts.network_denied)
    yield counter("sandboxd_sandbox_losses", "Sandboxes that failed without being destroyed", counts.losses)


def commands(snapshot: Snapshot) -> Iterator[Metric]:
    """Commands of exec, and the links that carry them."""
    manager, counts = snapshot.manager, snapshot.manager.counters
    yield histogram("sandboxd_exec_start_seconds", "Commands of exec, from request to started", counts.exec_starts)
    yield counters("sandboxd_exec_ends", "Commands of exec that ended, by reason", "reason", counts.exec_ends)
    yield counters("sandboxd_exec_failures", "Commands that could not be started", "kind", counts.exec_failures)
    links = [found for sandbox in manager.registry if (found := sandbox.link_statistics()) is not None]
    yield gauge("sandboxd_links", "Sandboxes whose init is connected", len(links))
    yield gauge(
        "sandboxd_link_calls",
        "Requests and streams open on the links to inits",
        sum(link["calls"] for link in links),
    )
    yield gauge(
        "sandboxd_link_queued_bytes", "Bytes queued to be sent to inits", sum(link["queued_bytes"] for link in links)
    )
    launcher = manager.launcher.statistics()
    yield gauge("sandboxd_launcher_calls", "Requests open on the link to the launcher", launcher["calls"])


def connections(name: str, about: str, statistics: Callable[[], dict[str, int]]) -> Callable[[Snapshot], list[Metric]]:
    """Return a source for a listener that tells how many `connections` it has."""

    def source(_: Snapshot) -> list[Metric]:
        return [gauge(name, about, statistics()["connections"])]

    return source


# --- previews -----------------------------------------------------------------------------------------------


def previews(snapshot: Snapshot) -> Iterator[Metric]:
    """What went through all exposed ports, those that are gone included."""
    manager, gone = snapshot.manager, snapshot.manager.counters.closed_ports
    ports = [port for port in manager.previews.ports() if not port.closed]
    yield gauge("sandboxd_preview_ports", "Exposed ports", len(ports))
    for name, about, before, count in (
        ("requests", "Requests to previews", gone.requests, _requests),
        ("receive_bytes", "Bytes of bodies and tunnels into sandboxes", gone.bytes_in, _bytes_in),
        ("transmit_bytes", "Bytes of bodies and tunnels out of sandboxes", gone.bytes_out, _bytes_out),
        ("dials", "Connections made to services", gone.dialled, _dialled),
    ):
        yield counter(f"sandboxd_preview_{name}", about, before + sum(count(port) for port in ports))
    refusals = manager.counters.refusals
    yield counters("sandboxd_preview_refusals", "Requests that the proxy answered itself", "kind", refusals)


def _requests(port: Port) -> int:
    return port.requests


def _bytes_in(port: Port) -> int:
    return port.bytes_in


def _bytes_out(port: Port) -> int:
    return port.bytes_out


def _dialled(port: Port) -> int:
    return port.dialled


def _active(port: Port) -> int:
    return len(port.users)


def _connected(port: Port) -> int:
    return port.connected


#: name, what it is, whether it only grows, where it is.
_PORT: Final[tuple[tuple[str, str, bool, Callable[[Port], int]], ...]] = (
    ("requests", "Requests to an exposed port", True, _requests),
    ("receive_bytes", "Bytes of bodies and tunnels into the sandbox", True, _bytes_in),
    ("transmit_bytes", "Bytes of bodies and tunnels out of the sandbox", True, _bytes_out),
    ("dials", "Connections made to the service", True, _dialled),
    ("active", "Requests and tunnels under way", False, _active),
    ("connections", "Connections to the service that are open", False, _connected),
)


def ports(snapshot: Snapshot) -> Iterator[Metric]:
    """What went through each exposed port."""
    rows = [(sandbox.id, port) for sandbox, _ in snapshot.detailed for port in sandbox.ports]
    for name, about, grows, value in _PORT:
        kind = CounterMetricFamily if grows else GaugeMetricFamily
        family = kind(f"sandboxd_port_{name}", about, labels=["sandbox", "port"])
        for sandbox_id, port in rows:
            family.add_metric([sandbox_id, str(port.spec.port)], value(port))
        yield family


# --- each sandbox -------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True, slots=True)
class Figure:
    """One row of what a sandbox uses.

    Attributes:
        path: where it is in the launcher's `stats`; what is not there, or null, gives no series.
        grows: whether it is a counter.
        labels: fixed ones, beside `sandbox`.
    """

    name: str
    about: str
    path: tuple[str, ...]
    grows: bool = False
    labels: tuple[tuple[str, str], ...] = ()


_CPU: Final = ("sandboxd_sandbox_cpu_seconds", "Processor time")
_IO_BYTES: Final = ("sandboxd_sandbox_io_bytes", "Bytes read from and written to the disks")
_LINK_BYTES: Final = ("sandboxd_sandbox_network_bytes", "Bytes over the sandbox's link, as the sandbox sees it")
_IO_COUNT: Final = ("sandboxd_sandbox_io_operations", "Read and write operations on the disks")
USE: Final = (
    Figure(*_LINK_BYTES, ("network", "received_bytes"), True, (("direction", "received"),)),
    Figure(*_LINK_BYTES, ("network", "sent_bytes"), True, (("direction", "sent"),)),
    Figure(*_CPU, ("cpu_user_s",), True, (("mode", "user"),)),
    Figure(*_CPU, ("cpu_system_s",), True, (("mode", "system"),)),
    Figure("sandboxd_sandbox_cpu_throttled_seconds", "Time throttled by the CPU limit", ("cpu_throttled_s",), True),
    Figure("sandboxd_sandbox_memory_bytes", "Memory that counts against the limit", ("memory_bytes",)),
    Figure(
        "sandboxd_sandbox_memory_peak_bytes", "Peak of the memory that counts against the limit", ("memory_peak_bytes",)
    ),
    Figure("sandboxd_sandbox_oom_kills", "Processes killed for lack of memory", ("oom_kills",), True),
    Figure("sandboxd_sandbox_pids", "Processes and threads", ("pids",)),
    Figure("sandboxd_sandbox_disk_bytes", "Disk space used by its files", ("disk_bytes",)),
    Figure(*_IO_BYTES, ("io", "read_bytes"), True, (("direction", "read"),)),
    Figure(*_IO_BYTES, ("io", "write_bytes"), True, (("direction", "write"),)),
    Figure(*_IO_COUNT, ("io", "reads"), True, (("direction", "read"),)),
    Figure(*_IO_COUNT, ("io", "writes"), True, (("direction", "write"),)),
)


def uses(snapshot: Snapshot) -> Iterator[Metric]:
    """What each sandbox is, may use and uses."""
    yield gauge("sandboxd_sandboxes_omitted", "Sandboxes whose own series are left out", snapshot.omitted)
    yield _info([sandbox for sandbox, _ in snapshot.detailed])
    made: dict[str, CounterMetricFamily | GaugeMetricFamily] = {}
    for figure in USE:
        kind = CounterMetricFamily if figure.grows else GaugeMetricFamily
        names = ["sandbox", *(name for name, _ in figure.labels)]
        family = made.setdefault(figure.name, kind(figure.name, figure.about, labels=names))
        for sandbox, use in snapshot.detailed:
            value = _at(use, figure.path)
            if value is not None:
                family.add_metric([sandbox.id, *(value for _, value in figure.labels)], value)
    yield from made.values()
    limits = GaugeMetricFamily("sandboxd_sandbox_limit", "Limits of the sandbox", labels=["sandbox", "limit"])
    for sandbox, _ in snapshot.detailed:
        for name in ("memory_bytes", "cpus", "pids", "disk_bytes"):
            bound = getattr(sandbox.limits, name)
            if bound is not None:
                limits.add_metric([sandbox.id, name], bound)
    yield limits


def _info(detailed: Iterable[Sandbox]) -> GaugeMetricFamily:
    labels = ["sandbox", "name", "rootfs", "network", "state"]
    family = GaugeMetricFamily("sandboxd_sandbox_info", "Facts about the sandbox; always 1", labels=labels)
    for sandbox in detailed:
        spec = sandbox.spec
        family.add_metric(
            [sandbox.id, spec.name or "", spec.rootfs, sandbox.network.mode or "none", sandbox.state.value], 1
        )
    return family


def _at(use: dict[str, Any] | None, path: tuple[str, ...]) -> float | None:
    found: Any = use
    for name in path:
        found = found.get(name) if isinstance(found, dict) else None
    return found if isinstance(found, int | float) else None


SOURCES: Final[tuple[Callable[[Snapshot], Iterable[Metric]], ...]] = (
    daemon,
    sandboxes,
    commands,
    previews,
    ports,
    uses,
)
