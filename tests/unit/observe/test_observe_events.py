"""Store events become counts."""

from __future__ import annotations

from pathlib import Path

from cachesrv.observe import layout
from cachesrv.observe.counters import SharedRecorder, counters_path, open_counters, read_counters
from cachesrv.observe.events import counting
from cachesrv.store.events import BlobQuarantined, BytesSaved, EntriesRemoved, UploadReclaimed
from cachesrv.store.model import RemovalReason


def test_events_of_the_store_are_counted(tmp_path: Path) -> None:
    open_counters(counters_path(tmp_path), layout.slots_for(0))
    heard = counting(SharedRecorder(counters_path(tmp_path), layout.HOUSEKEEPER))
    heard(EntriesRemoved(RemovalReason.EXPIRED, "a/b", 3, 500))
    heard(BytesSaved("dedup", 70))
    heard(BlobQuarantined(1, "checksum", 2))
    heard(UploadReclaimed(1, 10))
    snapshot = read_counters(counters_path(tmp_path))
    assert snapshot is not None
    assert snapshot.totals.removed_entries == {"expired": 3}
    assert snapshot.totals.removed_bytes == {"expired": 500}
    assert snapshot.totals.saved == {"dedup": 70}
    assert snapshot.totals.tenants == {"a/b": {"removed_entries": 3, "removed_bytes": 500}}
