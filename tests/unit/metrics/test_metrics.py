"""GET /v1/metrics over a fake launcher: what it says, read by the library's own parsers."""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import trio
from prometheus_client import REGISTRY, Metric
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse

from sandboxd.metrics import exposition, families
from sandboxd.runtime.counters import Durations
from tests.support.fake_daemon import TOKEN, FakeDaemon, daemon_in, problem
from tests.support.fake_peer import exit_data

Series = dict[tuple[str, frozenset[tuple[str, str]]], float]


@pytest.fixture
async def daemon(tmp_path: Path) -> Any:
    async with daemon_in(tmp_path) as found:
        yield found


async def scrape(daemon: FakeDaemon, **params: str) -> Series:
    response = await daemon.client.get("/v1/metrics", params=params)
    assert response.status_code == 200, response.text
    assert response.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
    return series(parse(response.text))


def series(found: Iterable[Metric]) -> Series:
    made: Series = {}
    for family in found:
        assert family.documentation, family.name
        assert family.type in ("counter", "gauge", "histogram"), family
        for sample in family.samples:
            key = (sample.name, frozenset(sample.labels.items()))
            assert key not in made, f"{key} twice"
            made[key] = sample.value
    return made


def at(found: Series, name: str, /, **labels: str) -> float | None:
    return found.get((name, frozenset(labels.items())))


async def test_a_daemon_without_sandboxes(daemon: FakeDaemon) -> None:
    found = await scrape(daemon)
    assert [value for (name, _), value in found.items() if name == "sandboxd_build_info"] == [1]
    assert at(found, "sandboxd_sandboxes", state="running") == 0
    assert at(found, "sandboxd_create_seconds_count") == 0
    assert at(found, "sandboxd_links") == 0
    assert at(found, "sandboxd_held_bytes") == 0
    assert at(found, "process_open_fds") == pytest.approx(len(os.listdir("/proc/self/fd")), abs=20)
    assert at(found, "process_cpu_seconds_total") is not None
    again = await scrape(daemon)
    assert at(again, "sandboxd_http_responses_total", route="metrics", code="200") == 1


async def test_what_happened_is_counted(daemon: FakeDaemon) -> None:
    made = await daemon.create(name="box")
    await daemon.client.post("/v1/sandboxes", json={"name": "box"})
    sandbox = made["id"]
    daemon.init.exit = exit_data(None, signal="SIGKILL", reason="signal")
    assert (await daemon.client.post(f"/v1/sandboxes/{sandbox}/exec", json={"command": "x"})).status_code == 200
    found = await scrape(daemon)
    assert at(found, "sandboxd_sandboxes", state="running") == 1
    assert at(found, "sandboxd_create_seconds_count") == 1
    assert at(found, "sandboxd_create_seconds_bucket", le="+Inf") == 1
    assert at(found, "sandboxd_create_failures_total", kind="name-taken") == 1
    assert at(found, "sandboxd_exec_start_seconds_count") == 1
    assert at(found, "sandboxd_exec_ends_total", reason="signal") == 1
    assert at(found, "sandboxd_links") == 1
    assert at(found, "sandboxd_http_responses_total", route="sandboxes.create", code="409") == 1
    labels = {"sandbox": sandbox, "name": "box", "rootfs": "default", "network": made["network"]["mode"]}
    assert at(found, "sandboxd_sandbox_info", **labels, state="running") == 1
    assert at(found, "sandboxd_sandbox_limit", sandbox=sandbox, limit="pids") == made["limits"]["pids"]
    await daemon.client.delete(f"/v1/sandboxes/{sandbox}")
    found = await scrape(daemon)
    assert at(found, "sandboxd_destroy_seconds_count") == 1
    assert not [name for name, labels in found if ("sandbox", sandbox) in labels]


async def test_ports_count_on_after_they_are_gone(daemon: FakeDaemon) -> None:
    made = await daemon.create()
    sandbox = daemon.manager.registry.get(made["id"])
    assert sandbox is not None
    port = await daemon.manager.previews.expose(made["id"], 8000)
    port.requests, port.bytes_in, port.bytes_out, port.dialled, port.connected = 3, 10, 20, 2, 1
    labels = {"sandbox": made["id"], "port": "8000"}
    found = await scrape(daemon)
    names = ("requests_total", "receive_bytes_total", "transmit_bytes_total", "dials_total", "active", "connections")
    assert [at(found, f"sandboxd_port_{name}", **labels) for name in names] == [3, 10, 20, 2, 0, 1]
    sums = [f"sandboxd_preview_{name}" for name in names[:4]]
    assert [at(found, name) for name in sums] == [3, 10, 20, 2]
    (use,) = (await daemon.client.get(f"/v1/sandboxes/{made['id']}/stats")).json()["ports"]
    assert use == {"port": 8000, "requests": 3, "bytes_in": 10, "bytes_out": 20, "active": 0, "connections": 1}
    await daemon.manager.previews.unexpose(made["id"], 8000)
    (await daemon.manager.previews.expose(made["id"], 8001)).requests = 1
    found = await scrape(daemon)
    assert at(found, "sandboxd_port_requests_total", **labels) is None
    assert [at(found, name) for name in sums] == [4, 10, 20, 2]
    await daemon.client.delete(f"/v1/sandboxes/{made['id']}")
    found = await scrape(daemon)
    assert [at(found, name) for name in sums] == [4, 10, 20, 2]
    assert at(found, "sandboxd_preview_ports") == 0


async def test_only_so_many_sandboxes_have_series_of_their_own(
    daemon: FakeDaemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exposition, "MAX_DETAILED", 2)
    ids = [(await daemon.create())["id"] for _ in range(3)]
    found = await scrape(daemon)
    told = [dict(labels)["sandbox"] for name, labels in found if name == "sandboxd_sandbox_info"]
    assert told == ids[:2]
    assert at(found, "sandboxd_sandboxes_omitted") == 1
    assert at(found, "sandboxd_sandboxes", state="running") == 3
    found = await scrape(daemon, sandboxes="false")
    assert not [name for name, labels in found if "sandbox" in dict(labels)]
    assert at(found, "sandboxd_sandboxes_omitted") == 3


async def test_openmetrics_where_it_is_asked_for(daemon: FakeDaemon) -> None:
    await daemon.create(name="box")
    accept = "application/openmetrics-text;version=1.0.0,text/plain;version=0.0.4;q=0.5"
    response = await daemon.client.get("/v1/metrics", headers={"Accept": accept})
    assert response.headers["content-type"].startswith("application/openmetrics-text; version=1.0.0")
    assert at(series(parse_openmetrics(response.text)), "sandboxd_create_seconds_count") == 1


async def test_who_may_ask_and_how(daemon: FakeDaemon) -> None:
    import httpx

    host, port = daemon.tcp
    async with httpx.AsyncClient(base_url=f"http://{host}:{port}") as client:
        assert problem(await client.get("/v1/metrics"))["kind"] == "unauthenticated"
        good = await client.get("/v1/metrics", headers={"Authorization": f"Bearer {TOKEN}"})
        assert good.status_code == 200
    assert problem(await daemon.client.get("/v1/metrics?sandboxes=maybe"))["field"] == "sandboxes"
    assert problem(await daemon.client.get("/v1/metrics?x=1"))["kind"] == "unknown-field"


async def test_another_source_is_a_function(daemon: FakeDaemon) -> None:
    denied = {"link-local": 4}
    metrics = exposition.Metrics(daemon.manager, "1")
    metrics.add(lambda _: [families.counters("sandboxd_network_denied_packets", "Packets", "reason", denied)])
    text, _ = await metrics.scrape()
    assert at(series(parse(text.decode())), "sandboxd_network_denied_packets_total", reason="link-local") == 4


async def test_no_registry_is_global(daemon: FakeDaemon) -> None:
    before = set(REGISTRY._names_to_collectors)
    await scrape(daemon)
    await scrape(daemon)
    assert set(REGISTRY._names_to_collectors) == before
    assert not [name for name in before if name.startswith("sandboxd")]


async def test_the_loop_is_watched(daemon: FakeDaemon, autojump_clock: Any) -> None:
    metrics = exposition.Metrics(daemon.manager, "1")
    with contextlib.suppress(trio.TooSlowError):
        with trio.fail_after(3.5):
            await metrics.run()
    assert daemon.manager.counters.loop_lag.count == 3
    assert daemon.manager.counters.loop_lag.sum == 0


def test_a_histogram_counts_up_to_each_bound() -> None:
    durations = Durations((1.0, 2.0))
    for seconds in (0.5, 1.0, 1.5, 99.0):
        durations.add(seconds)
    assert durations.buckets() == [(1.0, 2), (2.0, 3), (math.inf, 4)]
    assert (durations.count, durations.sum) == (4, 102.0)
