"""What a person sees: readable at 80 columns, friendly when there is nothing yet."""

from __future__ import annotations

import io
from pathlib import Path

import msgspec
import pytest
from rich.console import Console

from cachesrv.observe import layout
from cachesrv.observe.counters import SharedRecorder, counters_path, mark_started, open_counters
from cachesrv.observe.report import Report, Sums, collect
from cachesrv.observe.table import age_text, rate_text, render, size_text, time_text
from cachesrv.store.api import Usage
from cachesrv.store.model import RemovalReason
from tests.unit.observe.fake_view import FakeView

NOW = 1_800_000_000.0


def text(report: Report, width: int = 80) -> str:
    out = io.StringIO()
    render(report, Console(file=out, width=width), source="/var/lib/" + "deep/" * 30)
    return out.getvalue()


@pytest.fixture
def busy(tmp_path: Path) -> Report:
    open_counters(counters_path(tmp_path), layout.slots_for(2), now_ms=int(NOW * 1000) - 86_400_000)
    mark_started(tmp_path)
    for worker in range(2):
        recorder = SharedRecorder(counters_path(tmp_path), layout.worker_slot(worker))
        for n in range(40):
            tenant = f"an-organisation-with-a-long-name/a-repository-with-a-very-long-name-{n}"
            for outcome, times in (("hit", 30), ("miss", 10)):
                for _ in range(times):
                    recorder.request("actions", "lookup", outcome, tenant=tenant, seconds=0.00025)
            recorder.request("actions", "upload", "ok", tenant=tenant, bytes_in=999_400_000_000)
            recorder.request("actions", "finalize", "ok", tenant=tenant)
            recorder.request("actions", "download", "ok", tenant=tenant, bytes_out=999_600_000_000)
        for reason in RemovalReason:
            recorder.removed(reason, "o/r", 1_234_567, 123_456_789_012)
        recorder.lagged(0.4, NOW)
        recorder.restarted("worker")
    usage = [Usage("actions", f"big/{n}", 12_345_678, n * 10**12) for n in range(20)]
    sums = Sums(20 * 12_345_678, 190 * 10**12, 120 * 10**12, 30 * 10**12, 40 * 10**12, 1234)
    return collect(tmp_path, FakeView(usage, sums), budget=200 * 10**12, now=NOW)


def test_no_line_is_longer_than_80_columns_and_every_number_is_whole(busy: Report) -> None:
    shown = text(busy)
    assert max(map(len, shown.splitlines())) <= 80
    table = shown.split("Activity")[1]
    for value in ("2,400", "800", "75.0 %", "80.0 TB", "gone: budget", "2.5 M, 247 GB", "actions", "restarts"):
        assert value in table
    assert "…" not in table.split("Repositories")[0]
    assert "246,913,560 entries" in shown
    assert "30.0 TB by zstd, 40.0 TB by dedup" in shown
    assert "46 more repositories" in shown


def test_an_empty_store_gets_a_friendly_word(tmp_path: Path) -> None:
    shown = text(collect(tmp_path, FakeView(), budget=50 * 10**9, now=NOW))
    assert "Nothing has been asked of this cache yet" in shown
    assert "cachesrv serve" in shown
    assert max(map(len, shown.splitlines())) <= 80


def test_a_name_from_a_client_is_text_and_never_markup(tmp_path: Path) -> None:
    open_counters(counters_path(tmp_path), layout.slots_for(1))
    recorder = SharedRecorder(counters_path(tmp_path), layout.worker_slot(0))
    recorder.request("actions", "lookup", "hit", tenant="[red]x\x1b[2J")
    shown = text(collect(tmp_path, FakeView(), budget=0, now=NOW), 120)
    assert "[red]x" in shown
    assert "\x1b" not in shown


def test_the_report_survives_json(busy: Report) -> None:
    assert msgspec.json.decode(msgspec.json.encode(busy), type=Report) == busy


def test_lookup_quantiles_are_those_of_the_lookups(busy: Report) -> None:
    lookups = busy.windows["all"].total.lookups
    assert lookups.count == 3200
    assert lookups.mean == pytest.approx(0.00025)
    assert lookups.p50 == pytest.approx(0.00025, rel=0.25)
    assert lookups.p99 == pytest.approx(0.00025, rel=0.25)


@pytest.mark.parametrize(
    ("size", "shown"),
    [(0, "0 B"), (999, "999 B"), (1000, "1.0 kB"), (99_949, "99.9 kB"), (999_999, "1.0 MB"), (5 * 10**10, "50.0 GB"),
     (2 * 10**18, "2000.0 PB")],
)  # fmt: skip
def test_sizes_are_human(size: int, shown: str) -> None:
    assert size_text(size) == shown


def test_times_and_rates_are_human() -> None:
    assert [time_text(t) for t in (None, 0.00034, 0.0123, 2.5)] == ["-", "0.34 ms", "12.3 ms", "2.5 s"]
    assert [rate_text(r) for r in (None, 0.0, 0.99999, 1.0)] == ["-", "0.0 %", "99.9 %", "100 %"]
    assert [age_text(s) for s in (0, 59, 3600, 90061)] == ["0 s", "59 s", "1 h", "1 d 1 h"]
