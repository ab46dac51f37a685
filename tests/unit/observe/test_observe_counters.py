"""The shared counters: exact over processes, kept over kills and restarts, never misread."""

from __future__ import annotations

import errno
import multiprocessing
import os
import signal
import struct
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cachesrv.observe import latency, layout
from cachesrv.observe.counters import (
    SharedRecorder,
    counters_path,
    mark_started,
    open_counters,
    read_counters,
    read_lag,
    read_started,
)
from cachesrv.observe.recorder import OPERATIONS, OUTCOMES
from cachesrv.observe.totals import Totals
from cachesrv.store.model import RemovalReason


@pytest.fixture
def path(tmp_path: Path) -> Path:
    found = counters_path(tmp_path)
    open_counters(found, layout.slots_for(3), now_ms=1000)
    return found


def totals(path: Path) -> Totals:
    snapshot = read_counters(path)
    assert snapshot is not None
    return snapshot.totals


def _hammer(path: Path, slot: int, rounds: int) -> None:
    recorder = SharedRecorder(path, slot)
    for n in range(rounds):
        outcome = "hit" if n % 4 else "miss"
        recorder.request("actions", "lookup", outcome, tenant=f"o/r{n % 3}", seconds=0.001, bytes_out=7)
        recorder.removed(RemovalReason.BUDGET, "o/r0", 1, 100)
        recorder.saved("zstd", 5)


def test_counts_of_many_processes_add_up_exactly(path: Path) -> None:
    fork = multiprocessing.get_context("fork")
    for _ in range(2):  # the second generation goes on in the same slots
        children = [fork.Process(target=_hammer, args=(path, layout.worker_slot(n), 2000)) for n in range(3)]
        for child in children:
            child.start()
        for child in children:
            child.join()
            assert child.exitcode == 0
    found = totals(path)
    actions = found.protocols["actions"]
    assert (actions.hits, actions.misses) == (9000, 3000)
    assert actions.bytes_out == 7 * 12000
    assert sum(actions.buckets()) == 12000
    assert actions.lookup_ns == pytest.approx(12000 * 1e6)
    assert {name: t["hits"] + t["misses"] for name, t in found.tenants.items()} == {
        f"o/r{n}": 6 * len(range(n, 2000, 3)) for n in range(3)
    }
    assert found.removed_entries == {"budget": 12000}
    assert found.removed_bytes == {"budget": 1_200_000}
    assert found.saved == {"zstd": 60_000}


def _count_until_killed(path: Path, acknowledged: int) -> None:
    recorder = SharedRecorder(path, layout.worker_slot(0))
    for n in range(1, 1_000_000_000):
        recorder.request("actions", "download", "ok", bytes_out=3)
        os.pwrite(acknowledged, struct.pack("<Q", n), 0)


def test_nothing_that_was_counted_is_lost_by_kill_9(path: Path, tmp_path: Path) -> None:
    file = os.open(tmp_path / "acknowledged", os.O_RDWR | os.O_CREAT)
    expected = 0
    for slack in range(1, 6):  # of each child one may be counted that it was killed before it could say
        os.pwrite(file, bytes(8), 0)
        child = multiprocessing.get_context("fork").Process(target=_count_until_killed, args=(path, file))
        child.start()
        while struct.unpack("<Q", os.pread(file, 8, 0))[0] < 500:
            assert child.is_alive()
        assert child.pid is not None
        os.kill(child.pid, signal.SIGKILL)
        child.join()
        expected += struct.unpack("<Q", os.pread(file, 8, 0))[0]
        assert expected <= totals(path).protocols["actions"].requests["download/ok"] <= expected + slack
    os.close(file)


def test_a_file_is_kept_over_a_restart_and_grows_with_the_workers(path: Path) -> None:
    SharedRecorder(path, layout.HOUSEKEEPER).removed(RemovalReason.QUOTA, "a/b", 2, 50)
    with pytest.raises(ValueError, match="no slot"):
        SharedRecorder(path, layout.worker_slot(3))
    open_counters(path, layout.slots_for(8))
    SharedRecorder(path, layout.worker_slot(7)).request("actions", "lookup", "hit")
    open_counters(path, layout.slots_for(1))
    snapshot = read_counters(path)
    assert snapshot is not None
    assert snapshot.life == 1000
    assert snapshot.totals.removed_entries == {"quota": 2}
    assert snapshot.totals.protocols["actions"].hits == 1


@pytest.mark.parametrize("damage", [b"", b"csrvstat", b"csrvstat" + struct.pack("<IIQ", 2, 6, 1), b"\0" * 5000])
def test_another_version_or_a_damaged_file_is_started_anew_and_never_misread(path: Path, damage: bytes) -> None:
    path.write_bytes(damage)
    assert read_counters(path) is None
    assert read_lag(path, 0) == 0.0
    with pytest.raises(ValueError, match="open_counters"):
        SharedRecorder(path, 0)
    open_counters(path, 4, now_ms=77)
    snapshot = read_counters(path)
    assert snapshot is not None
    assert snapshot.life == 77
    assert not snapshot.totals


def test_a_file_without_a_reader_is_no_error(tmp_path: Path) -> None:
    assert read_counters(tmp_path / "none") is None
    assert read_started(tmp_path) is None
    mark_started(tmp_path)


def test_the_file_has_real_space_so_that_a_full_disk_cannot_break_a_store(path: Path) -> None:
    found = path.stat()
    assert found.st_blocks * 512 >= found.st_size
    assert found.st_mode & 0o077 == 0


def test_a_file_system_that_cannot_reserve_gets_zeros_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: int) -> None:
        raise OSError(errno.EOPNOTSUPP, "not supported")

    monkeypatch.setattr(os, "posix_fallocate", refuse)
    path = counters_path(tmp_path)
    for slots in (4, 6):
        open_counters(path, slots)
        assert path.stat().st_blocks * 512 >= path.stat().st_size == layout.HEAD_BYTES + slots * layout.SLOT_BYTES
        SharedRecorder(path, slots - 1).saved("zstd", 1)
    assert totals(path).saved == {"zstd": 2}


def test_tenants_past_the_table_are_one_row_and_memory_stays_bounded(path: Path) -> None:
    recorder = SharedRecorder(path, layout.worker_slot(0))
    for n in range(layout.TENANT_ROWS + 500):
        recorder.request("actions", "lookup", "miss", tenant=f"o/{n}")
    tenants = totals(path).tenants
    assert len(tenants) == layout.TENANT_ROWS
    assert tenants[layout.OTHER] == {"misses": 501}
    assert sum(t["misses"] for t in tenants.values()) == layout.TENANT_ROWS + 500
    assert len(recorder._tenants) == layout.TENANT_ROWS - 1


def test_names_too_long_for_a_row_stay_apart_and_survive_a_restart(path: Path) -> None:
    long = ["x" * 300 + "1", "x" * 300 + "2", "ä" * 100, "\ud800"]
    for _ in range(2):
        recorder = SharedRecorder(path, layout.worker_slot(1))
        for name in long:
            recorder.request("p" * 100, "lookup", "hit", tenant=name)
            recorder.request("", "lookup", "hit", tenant=name)
    found = totals(path)
    assert sorted(t["hits"] for t in found.tenants.values()) == [4] * 4
    assert sorted(p.hits for p in found.protocols.values()) == [8, 8]
    assert layout.OTHER in found.protocols


def test_per_tenant_counters_say_what_a_user_means(path: Path) -> None:
    recorder = SharedRecorder(path, layout.worker_slot(0))
    recorder.request("actions", "lookup", "hit", tenant="a/b")
    recorder.request("actions", "lookup", "denied", tenant="a/b")
    recorder.request("actions", "reserve", "exists", tenant="a/b")
    recorder.request("actions", "upload", "ok", tenant="a/b", bytes_in=10)
    recorder.request("actions", "upload", "aborted", tenant="a/b", bytes_in=1)
    recorder.request("actions", "finalize", "ok", tenant="a/b")
    recorder.request("actions", "download", "ok", tenant="a/b", bytes_out=20)
    assert totals(path).tenants["a/b"] == {"hits": 1, "failures": 1, "saves": 1, "bytes_in": 11, "bytes_out": 20}


def test_senseless_arguments_are_counted_and_never_raise(path: Path) -> None:
    recorder = SharedRecorder(path, layout.worker_slot(0))
    recorder.request("actions", "dance", "odd")
    recorder.request("actions", "lookup", "hit", seconds=float("nan"))
    recorder.request("actions", "lookup", "hit", seconds=float("inf"))
    recorder.request("actions", "lookup", "hit", bytes_in=-1)
    recorder.removed("nonsense", "", 1, 1)  # type: ignore[arg-type]
    recorder.saved("magic", 1)
    found = totals(path)
    assert found.dropped == 5
    assert found.protocols["actions"].requests["other/error"] == 1


def test_lag_is_the_longest_of_the_last_two_minutes(path: Path) -> None:
    one, two = (SharedRecorder(path, layout.worker_slot(n)) for n in range(2))
    one.lagged(0.2, 600.0)
    one.lagged(0.1, 610.0)
    two.lagged(0.05, 661.0)
    assert read_lag(path, 630.0) == pytest.approx(0.2)
    one.lagged(0.01, 665.0)
    assert read_lag(path, 690.0) == pytest.approx(0.2)
    assert read_lag(path, 725.0) == pytest.approx(0.05)
    assert read_lag(path, 1000.0) == 0.0
    SharedRecorder(path, layout.worker_slot(1))
    assert read_lag(path, 725.0) == pytest.approx(0.01)


def test_since_start_begins_at_the_mark(path: Path, tmp_path: Path) -> None:
    recorder = SharedRecorder(path, layout.worker_slot(0))
    recorder.request("actions", "lookup", "hit", tenant="a/b")
    mark_started(tmp_path)
    recorder.request("actions", "lookup", "miss", tenant="a/b", seconds=1)
    SharedRecorder(path, layout.SUPERVISOR).restarted("worker")
    snapshot = read_counters(path)
    assert snapshot is not None
    since = snapshot.since(read_started(tmp_path))
    assert since.tenants == {"a/b": {"misses": 1}}
    assert since.protocols["actions"].requests == {"lookup/miss": 1}
    assert since.restarts == {"worker": 1}


def test_the_order_of_names_is_part_of_the_format() -> None:
    """Append only: an index on disk means this name for ever."""
    assert OPERATIONS[:7] == ("lookup", "reserve", "upload", "finalize", "download", "proxy", "other")
    assert OUTCOMES[:10] == (
        *("hit", "miss", "ok", "exists", "denied", "invalid", "full", "damaged", "aborted", "error"),
    )
    assert layout.REASONS[:7] == ("budget", "free-space", "quota", "expired", "deleted", "replaced", "damaged")
    assert layout.SAVED_BY[:2] == ("zstd", "dedup")
    assert layout.ROLES[:3] == ("worker", "committer", "housekeeper")
    assert (layout.SLOT_BYTES, layout.SLOT_BYTES % 4096) == (294_912, 0)
    assert (latency.BUCKETS, latency.FLOOR_SECONDS) == (82, 16e-6)


@given(st.floats(min_value=0, max_value=100))
def test_a_duration_lies_in_its_bucket_which_is_at_most_a_quarter_wide(seconds: float) -> None:
    bucket = latency.bucket_of(seconds)
    upper = latency.UPPER_SECONDS[bucket]
    lower = latency.UPPER_SECONDS[bucket - 1] if bucket else 0.0
    assert lower * (1 - 1e-12) <= seconds < upper * (1 + 1e-12)
    assert bucket in (0, latency.BUCKETS - 1) or upper <= lower * 1.2501


@given(st.lists(st.floats(min_value=16e-6, max_value=16), min_size=1, max_size=200), st.sampled_from([0.5, 0.99]))
def test_a_quantile_is_within_a_quarter_of_the_truth(values: list[float], share: float) -> None:
    counts = [0] * latency.BUCKETS
    for value in values:
        counts[latency.bucket_of(value)] += 1
    found = latency.quantile(counts, share)
    ranked = sorted(values)
    true = ranked[min(int(-(-share * len(ranked) // 1)), len(ranked)) - 1]
    assert found is not None
    assert true / 1.26 <= found <= true * 1.26
    assert latency.quantile([0] * latency.BUCKETS, 0.5) is None
