"""`GET /v1/metrics`: what the daemon and its sandboxes do, in the Prometheus text format.

Theory of operation. The runtime counts in plain numbers where things happen (`runtime/counters.py`, ports, links) and
knows nothing of Prometheus. A scrape takes a `Snapshot` (the only part that waits: the launcher is asked what each
sandbox uses), hands it to each *source*, a function that yields metric families, and lets `prometheus_client` write
them. No registry outlives a scrape and none is global.

To add figures: count in the runtime, then write a source in `families.py` and add it to `SOURCES`, or pass one to
`Metrics.add`. A figure that the launcher's `stats` gives for each sandbox is one row of `families.USE`.

Bounded by: `MAX_DETAILED` sandboxes with series of their own, 64 ports each, and label values that are ours (states,
routes, error kinds, steps), never a caller's text but for a sandbox's name, which belongs to that sandbox's one series.
"""

from .exposition import MAX_DETAILED, Metrics, Snapshot

__all__ = ["MAX_DETAILED", "Metrics", "Snapshot"]
