"""The Prometheus exposition: valid, and the same numbers as the counters."""

from __future__ import annotations

from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from cachesrv.observe import layout
from cachesrv.observe.counters import SharedRecorder, counters_path, mark_started, open_counters
from cachesrv.observe.metrics import exposition
from cachesrv.observe.report import Sums
from cachesrv.store.model import RemovalReason
from tests.unit.observe.fake_view import FakeView

NOW = 1_800_000_000.0


def samples(text: bytes) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    found: dict[tuple[str, frozenset[tuple[str, str]]], float] = {}
    for family in text_string_to_metric_families(text.decode()):
        assert family.documentation
        for sample in family.samples:
            key = (sample.name, frozenset(sample.labels.items()))
            assert key not in found, f"{key} twice"
            found[key] = sample.value
    return found


def test_exposition_parses_and_sums_the_workers(tmp_path: Path) -> None:
    open_counters(counters_path(tmp_path), layout.slots_for(2))
    mark_started(tmp_path)
    for worker in range(2):
        recorder = SharedRecorder(counters_path(tmp_path), layout.worker_slot(worker))
        recorder.request("actions", "lookup", "hit", seconds=0.001)
        recorder.request("actions", "lookup", "miss", seconds=100.0)
        recorder.request('od"d\\\nname', "download", "ok", bytes_in=1, bytes_out=5)
        recorder.removed(RemovalReason.FREE_SPACE, "t", 3, 70)
        recorder.saved("dedup", 11)
    SharedRecorder(counters_path(tmp_path), layout.SUPERVISOR).restarted("worker")
    view = FakeView(sums=Sums(4, 1000, 600, 300, 100, 2))
    found = samples(exposition(tmp_path, view, budget=5000, now=NOW))

    def value(name: str, **labels: str) -> float:
        return found[name, frozenset(labels.items())]

    assert value("cachesrv_requests_total", protocol="actions", operation="lookup", outcome="hit") == 2
    assert value("cachesrv_bytes_total", protocol='od"d\\\nname', direction="out") == 10
    assert value("cachesrv_evicted_entries_total", reason="free-space") == 6
    assert value("cachesrv_evicted_bytes_total", reason="free-space") == 140
    assert value("cachesrv_saved_bytes_total", by="dedup") == 22
    assert value("cachesrv_worker_restarts_total") == 1
    assert value("cachesrv_entries") == 4
    assert value("cachesrv_store_bytes", kind="disk") == 600
    assert value("cachesrv_store_bytes", kind="budget") == 5000
    assert value("cachesrv_uploads_in_flight") == 2
    assert value("cachesrv_free_bytes") > 0

    assert value("cachesrv_lookup_duration_seconds_count", protocol="actions") == 4
    assert value("cachesrv_lookup_duration_seconds_sum", protocol="actions") == pytest.approx(200.002)
    buckets = sorted(
        (float(dict(labels)["le"]), count)
        for (name, labels), count in found.items()
        if name == "cachesrv_lookup_duration_seconds_bucket" and ("protocol", "actions") in labels
    )
    assert [count for le, count in buckets if le < 0.001] == [0] * 6
    assert [count for le, count in buckets if 0.001 < le < 17] == [2] * (len(buckets) - 7)
    assert buckets[-1] == (float("inf"), 4)


def test_a_store_without_counters_still_shows_what_it_holds(tmp_path: Path) -> None:
    found = samples(exposition(tmp_path, FakeView(sums=Sums(1, 2, 3, 0, 0, 0)), budget=0, now=NOW))
    assert found["cachesrv_entries", frozenset()] == 1
