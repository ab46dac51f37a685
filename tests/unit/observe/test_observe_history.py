"""The history: windows are right over restarts, lost answers and lost counters, and the table stays bounded."""

from __future__ import annotations

from pathlib import Path

import pytest

from cachesrv.observe import layout
from cachesrv.observe.counters import SharedRecorder, counters_path, mark_started, open_counters
from cachesrv.observe.history import KEEP_MINUTES, MINUTE_PREFIX, TENANTS_A_ROW, History, minute_key, read_window
from cachesrv.observe.report import collect
from cachesrv.observe.totals import Snapshot, Totals, decode, encode
from cachesrv.store.commands import PutRows
from cachesrv.store.errors import StoreBusy
from tests.unit.observe.fake_view import FakeView

T0 = 1_800_000_000.0


@pytest.fixture
def recorder(tmp_path: Path) -> SharedRecorder:
    open_counters(counters_path(tmp_path), layout.slots_for(1), now_ms=5)
    return SharedRecorder(counters_path(tmp_path), layout.worker_slot(0))


def hits(recorder: SharedRecorder, count: int, tenant: str = "a/b") -> None:
    for _ in range(count):
        recorder.request("actions", "lookup", "hit", tenant=tenant, seconds=0.001)


def windows(root: Path, view: FakeView, now: float) -> dict[str, int]:
    report = collect(root, view, budget=0, now=now)
    return {name: window.total.hits for name, window in report.windows.items()}


async def test_windows_count_what_fell_into_them(tmp_path: Path, recorder: SharedRecorder) -> None:
    view = FakeView()
    history = History(tmp_path, view, view.submit)
    hits(recorder, 1)
    await history.tick(T0)
    hits(recorder, 10)
    await history.tick(T0 + 3 * 3600)
    mark_started(tmp_path)
    hits(recorder, 100)
    await history.tick(T0 + 23.5 * 3600)
    hits(recorder, 1000)  # not ticked yet
    assert windows(tmp_path, view, T0 + 23.5 * 3600 + 30) == {"start": 1100, "hour": 1100, "day": 1111, "all": 1111}
    assert windows(tmp_path, view, T0 + 25 * 3600) == {"start": 1100, "hour": 1000, "day": 1110, "all": 1111}


async def test_a_minute_in_which_nothing_happened_writes_nothing(tmp_path: Path, recorder: SharedRecorder) -> None:
    view = FakeView()
    history = History(tmp_path, view, view.submit)
    assert not await history.tick(T0)
    hits(recorder, 1)
    assert await history.tick(T0 + 60)
    assert not await history.tick(T0 + 120)
    assert view.writes == 1


async def test_a_lost_answer_neither_loses_nor_doubles(tmp_path: Path, recorder: SharedRecorder) -> None:
    view = FakeView()

    async def applied_but_unheard(command: PutRows) -> bool:
        await view.submit(command)
        raise StoreBusy("no answer")

    async def never_arrived(command: PutRows) -> bool:
        raise StoreBusy("no committer")

    hits(recorder, 3)
    for submit in (never_arrived, applied_but_unheard, applied_but_unheard):
        hits(recorder, 1)
        with pytest.raises(StoreBusy):
            await History(tmp_path, view, submit).tick(T0)
    hits(recorder, 2)
    await History(tmp_path, view, view.submit).tick(T0 + 1)  # the same minute, another process
    assert windows(tmp_path, view, T0 + 2)["hour"] == 8
    assert read_window(view, int(T0) // 60 - 1).protocols["actions"].hits == 8


async def test_counters_that_began_anew_are_not_compared_with_the_old(tmp_path: Path, recorder: SharedRecorder) -> None:
    view = FakeView()
    history = History(tmp_path, view, view.submit)
    hits(recorder, 50)
    await history.tick(T0)
    mark_started(tmp_path)
    counters_path(tmp_path).write_bytes(b"of another version")
    open_counters(counters_path(tmp_path), layout.slots_for(1), now_ms=6)
    fresh = SharedRecorder(counters_path(tmp_path), layout.worker_slot(0))
    assert windows(tmp_path, view, T0 + 30) == {"start": 0, "hour": 50, "day": 50, "all": 0}
    hits(fresh, 7)
    await history.tick(T0 + 60)
    hits(fresh, 1)
    assert windows(tmp_path, view, T0 + 90) == {"start": 8, "hour": 58, "day": 58, "all": 8}


async def test_old_rows_go_and_the_table_stays_bounded(tmp_path: Path, recorder: SharedRecorder) -> None:
    view = FakeView()
    first = int(T0) // 60
    for minute in range(first, first + KEEP_MINUTES):
        view.rows[minute_key(minute)] = encode(Snapshot(5, 0, Totals(dropped=1)))
    history = History(tmp_path, view, view.submit)
    for n in range(30):
        hits(recorder, 1)
        await history.tick((first + KEEP_MINUTES + 500 + n) * 60)
    minutes = [key for key in view.rows if key.startswith(MINUTE_PREFIX)]
    assert min(minutes) == minute_key(first + 500 + 29)
    assert len(minutes) <= KEEP_MINUTES + 1


async def test_a_minute_keeps_the_busiest_repositories_and_the_sum_of_the_others(
    tmp_path: Path, recorder: SharedRecorder
) -> None:
    view = FakeView()
    for n in range(TENANTS_A_ROW + 50):
        hits(recorder, 1 + (n < 20), tenant=f"o/{n}")
    await History(tmp_path, view, view.submit).tick(T0)
    found = read_window(view, int(T0) // 60 - 1)
    assert len(found.tenants) == TENANTS_A_ROW
    assert sum(tenant["hits"] for tenant in found.tenants.values()) == TENANTS_A_ROW + 70
    assert all(found.tenants[f"o/{n}"]["hits"] == 2 for n in range(20))


def test_a_row_of_another_version_or_a_damaged_one_counts_nothing() -> None:
    good = encode(Snapshot(1, 2, Totals(dropped=1)))
    assert decode(good) == Snapshot(1, 2, Totals(dropped=1))
    for bad in (b"", b"\x02" + good[1:], good[:-1], b"\x01nonsense"):
        assert decode(bad) is None
