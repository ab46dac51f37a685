from __future__ import annotations

from pathlib import Path

from cachesrv.store.recency import Recency


def test_recency_is_shared_and_survives(tmp_path: Path) -> None:
    path = tmp_path / "recency.map"
    with Recency.open(path, 100) as one, Recency.open(path, 100) as two:
        assert one.get(7) == 0
        one.touch(7, 1_800_000_000)
        assert two.get(7) == 1_800_000_000
        two.clear(7)
        assert one.get(7) == 0
        one.touch(99, 5)
    with Recency.open(path, 50) as again:
        assert again.slots == 100
        assert again.get(99) == 5


def test_recency_slots_that_are_not_there_note_nothing(tmp_path: Path) -> None:
    with Recency.open(tmp_path / "recency.map", 10) as recency:
        for slot in (0, 10, -1, 1 << 40):
            recency.touch(slot, 5)
            recency.clear(slot)
            assert recency.get(slot) == 0


def test_recency_never_read_is_only_what_was_never_read(tmp_path: Path) -> None:
    with Recency.open(tmp_path / "recency.map", 10) as recency:
        recency.touch(1, 0)
        recency.touch(2, 1 << 40)
        assert recency.get(1) == 1
        assert recency.get(2) == 0xFFFFFFFF


def test_recency_file_is_sparse(tmp_path: Path) -> None:
    path = tmp_path / "recency.map"
    with Recency.open(path) as recency:
        recency.touch(1 << 25, 5)
    assert path.stat().st_size == recency.slots * 4
    assert path.stat().st_blocks * 512 < 1 << 20
