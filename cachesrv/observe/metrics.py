"""Prometheus exposition of the shared counters: the same numbers from whichever worker answers.

Totals are those of all time (they survive restarts), so ``rate()`` and ``increase()`` work over restarts. Nothing here
is kept between two scrapes: prometheus-client only writes the text. docs/stats.md lists the metrics.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from prometheus_client import CollectorRegistry
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
    Metric,
)
from prometheus_client.exposition import generate_latest
from prometheus_client.registry import Collector

import cachesrv
from cachesrv.observe.counters import counters_path, read_counters, read_lag, read_started
from cachesrv.observe.latency import STEPS, UPPER_SECONDS
from cachesrv.observe.layout import REASONS, ROLES, SAVED_BY
from cachesrv.observe.report import StoreView, disk_free
from cachesrv.observe.totals import ProtocolTotals, Totals

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


def exposition(root: Path, view: StoreView, *, budget: int, now: float) -> bytes:
    """The text of ``/metrics``. Takes some milliseconds: on an event loop, call it in a thread."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Shared(root, view, budget, now))
    return generate_latest(registry)


class _Shared(Collector):
    def __init__(self, root: Path, view: StoreView, budget: int, now: float) -> None:
        self._root, self._view, self._budget, self._now = root, view, budget, now

    def describe(self) -> list[Metric]:
        return []

    def collect(self) -> Iterator[Metric]:
        path = counters_path(self._root)
        snapshot = read_counters(path, now_ms=int(self._now * 1000), tenants=False)
        yield from _counted(snapshot.totals if snapshot else Totals())
        yield from self._stored()
        yield InfoMetricFamily("cachesrv_build", "The program.", value={"version": cachesrv.__version__})
        lag = GaugeMetricFamily("cachesrv_loop_lag_seconds", "Longest lag of an event loop in this or the last minute.")
        lag.add_metric([], read_lag(path, self._now))
        yield lag
        if (started := read_started(self._root)) is not None:
            yield GaugeMetricFamily(
                "cachesrv_start_time_seconds", "When the server started, Unix time.", value=started.taken_ms / 1000
            )

    def _stored(self) -> Iterator[Metric]:
        sums = self._view.sums()
        yield GaugeMetricFamily("cachesrv_entries", "Entries in the store.", value=sums.entries)
        store = GaugeMetricFamily(
            "cachesrv_store_bytes",
            "Bytes held: logical, disk, budget (of disk), and spared at present by zstd and dedup.",
            labels=["kind"],
        )
        store.add_metric(["logical"], sums.logical)
        store.add_metric(["disk"], sums.on_disk)
        store.add_metric(["budget"], self._budget)
        store.add_metric(["saved_zstd"], sums.zstd)
        store.add_metric(["saved_dedup"], sums.dedup)
        yield store
        if (free := disk_free(self._root)) is not None:
            yield GaugeMetricFamily("cachesrv_free_bytes", "Free space on the data disk.", value=free)
        yield GaugeMetricFamily(
            "cachesrv_uploads_in_flight",
            "Uploads reserved and neither committed nor given up.",
            value=sums.uploads,
        )


def _counted(totals: Totals) -> Iterator[Metric]:
    requests = CounterMetricFamily(
        "cachesrv_requests", "Answered requests.", labels=["protocol", "operation", "outcome"]
    )
    moved = CounterMetricFamily("cachesrv_bytes", "Bytes of content moved.", labels=["protocol", "direction"])
    lookups = HistogramMetricFamily("cachesrv_lookup_duration_seconds", "Server time of lookups.", labels=["protocol"])
    for name, protocol in sorted(totals.protocols.items()):
        for request, count in sorted(protocol.requests.items()):
            requests.add_metric([name, *request.split("/", 1)], count)
        moved.add_metric([name, "in"], protocol.bytes_in)
        moved.add_metric([name, "out"], protocol.bytes_out)
        lookups.add_metric([name], _buckets(protocol), protocol.lookup_ns / 1e9)
    yield requests
    yield moved
    yield lookups

    entries = CounterMetricFamily("cachesrv_evicted_entries", "Entries that left the store.", labels=["reason"])
    size = CounterMetricFamily("cachesrv_evicted_bytes", "Logical bytes that left the store.", labels=["reason"])
    for reason in REASONS:
        entries.add_metric([reason], totals.removed_entries.get(reason, 0))
        size.add_metric([reason], totals.removed_bytes.get(reason, 0))
    yield entries
    yield size

    saved = CounterMetricFamily("cachesrv_saved_bytes", "Bytes on disk spared.", labels=["by"])
    for how in SAVED_BY:
        saved.add_metric([how], totals.saved.get(how, 0))
    yield saved

    yield CounterMetricFamily(
        "cachesrv_worker_restarts", "Workers replaced after they died.", value=totals.restarts.get("worker", 0)
    )
    others = CounterMetricFamily(
        "cachesrv_process_restarts", "Other processes replaced after they died.", labels=["role"]
    )
    for role in ROLES[1:]:
        others.add_metric([role], totals.restarts.get(role, 0))
    yield others


def _buckets(protocol: ProtocolTotals) -> list[tuple[str, float]]:
    """Cumulative counts, one bucket to the octave: 16 us, 32 us ... 16.8 s, +Inf."""
    counts = protocol.buckets()
    found: list[tuple[str, float]] = []
    passed = 0
    for n, upper in enumerate(UPPER_SECONDS):
        passed += counts[n]
        if n % STEPS == 0 and n < len(UPPER_SECONDS) - 1:
            found.append((f"{upper:.6g}", passed))
    found.append(("+Inf", passed))
    return found
