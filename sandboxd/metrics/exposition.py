"""A scrape: the snapshot, the sources asked one after the other, and the text."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any, Final

import trio
from prometheus_client import CollectorRegistry, ProcessCollector
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector

from ..errors import LauncherGone, SandboxdError
from ..runtime.lifecycle import ALIVE, SHOWN
from . import families

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from prometheus_client import Metric

    from ..runtime.manager import Manager
    from ..runtime.sandbox import Sandbox

#: Sandboxes that have series of their own in one scrape, the oldest; what the rest does is in the daemon's sums.
#: Each takes 0.4 ms, half of it the launcher, which does one thing after the other, and 0.7 KiB of text (measured).
MAX_DETAILED: Final = 256
#: How often the loop is looked at.
LAG_S: Final = 1.0


@dataclasses.dataclass(frozen=True, slots=True)
class Snapshot:
    """What a scrape is made from.

    Attributes:
        detailed: sandboxes that get series of their own, each with what the launcher says that it uses (None where it
            cannot say; `launcher/stats.py` has the keys).
        omitted: how many get none.
    """

    manager: Manager
    version: str
    detailed: tuple[tuple[Sandbox, dict[str, Any] | None], ...] = ()
    omitted: int = 0


class _Made(Collector):
    """Families that were made already."""

    def __init__(self, made: Iterable[Metric]) -> None:
        self._made = tuple(made)

    def collect(self) -> Iterator[Metric]:
        """Yield them."""
        yield from self._made


class Metrics:
    """Made by the composition root. `run` watches the loop; `scrape` answers."""

    def __init__(self, manager: Manager, version: str) -> None:
        self._manager = manager
        self._version = version
        self._sources: list[Callable[[Snapshot], Iterable[Metric]]] = list(families.SOURCES)

    def __repr__(self) -> str:
        return f"<Metrics of {self._manager!r}, {len(self._sources)} sources>"

    def add(self, source: Callable[[Snapshot], Iterable[Metric]]) -> None:
        """Ask another source in each scrape; it must not wait."""
        self._sources.append(source)

    async def run(self) -> None:
        """Note for ever how late the event loop is."""
        lag = self._manager.counters.loop_lag
        due = trio.current_time()
        while True:
            due = max(due + LAG_S, trio.current_time())
            await trio.sleep_until(due)
            lag.add(trio.current_time() - due)

    async def scrape(self, accept: str = "", *, sandboxes: bool = True) -> tuple[bytes, str]:
        """Return the text and its content type; `accept` may ask for OpenMetrics.

        Raises:
            LauncherGone: the daemon is ending.
        """
        snapshot = await self._look(sandboxes=sandboxes)
        made = _Made(metric for source in self._sources for metric in source(snapshot))
        encode, content_type = choose_encoder(accept)

        def write() -> bytes:
            registry = CollectorRegistry()
            registry.register(made)
            ProcessCollector(registry=registry)
            return encode(registry)

        return await trio.to_thread.run_sync(write), content_type

    async def _look(self, *, sandboxes: bool) -> Snapshot:
        shown = [sandbox for sandbox in self._manager.registry if sandbox.state in SHOWN]
        chosen = shown[:MAX_DETAILED] if sandboxes else []
        detailed = [(sandbox, await self._use(sandbox)) for sandbox in chosen]
        return Snapshot(self._manager, self._version, tuple(detailed), len(shown) - len(chosen))

    async def _use(self, sandbox: Sandbox) -> dict[str, Any] | None:
        if sandbox.state not in ALIVE:
            return None
        try:
            return await self._manager.launcher.stats(sandbox.id)
        except LauncherGone:
            raise
        except SandboxdError:
            return None  # it went meanwhile
