"""Space that nothing names comes back, and only that; pack segments are sealed, emptied and let go."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from cachesrv.store.commands import OpenSegment
from cachesrv.store.data.packs import PackWriter
from cachesrv.store.errors import StoreReadOnly, UploadUnknown
from cachesrv.store.events import StoreEvent, UploadReclaimed
from cachesrv.store.housekeeping import graves, improve, reclaim, segments
from cachesrv.store.model import EntryId, RemovalReason
from cachesrv.store.options import StoreOptions
from cachesrv.store.store import Store
from tests.doubles.bytes_out import body_of, drain
from tests.doubles.open_store import Clock, open_store
from tests.unit.store.housekeeping_case import (
    FLAGS,
    bury,
    check_sums,
    content,
    keys,
    on_disk,
    part_of,
    place,
    put,
    restored,
    upload,
)

MB = 1_000_000
SMALL = 20_000


def write(path: Path | str, data: bytes = b"x" * 1000, *, age: float = 10_000) -> Path:
    path = Path(path)
    path.write_bytes(data)
    os.utime(path, (time.time() - age, time.time() - age))
    return path


def age_all(store: Store, seconds: float = 10_000) -> None:
    for file in (store.folder.root / "f").rglob("*.*"):
        os.utime(file, (time.time() - seconds, time.time() - seconds))


# -- uploads -----------------------------------------------------------------------------------------------------------


async def test_a_stale_upload_goes_with_its_space_and_a_live_one_stays(tmp_path: Path) -> None:
    clock, events = Clock(), list[StoreEvent]()
    async with open_store(tmp_path / "data", clock=clock, events=events) as store:
        stale = await store.reserve(place(), "stale", flags=FLAGS, writer="w", size=None)
        await store.stage_block(stale, b"1", body_of(content("a", MB)), MB)
        empty = await store.reserve(place(), "empty", flags=FLAGS, writer="w", size=None)
        assert await reclaim.upload_bytes(store) > MB
        assert await reclaim.drop_stale_uploads(store) == 0
        clock.advance(901)
        live = await store.reserve(place(), "live", flags=FLAGS, writer="w", size=None)
        await store.stage_block(live, b"1", body_of(content("b", MB)), MB)
        assert await reclaim.drop_stale_uploads(store) == 2
        assert {event.upload for event in events if isinstance(event, UploadReclaimed)} == {stale, empty}
        assert sum(event.size for event in events if isinstance(event, UploadReclaimed)) > MB
        assert [found.file_id for found in store.folder.files()] == [live]
        with pytest.raises(UploadUnknown):
            await store.stage_block(stale, b"2", body_of(b"x"), 1)
        assert await store.choose_blocks(live, [b"1"]) == MB
        await store.commit(live, MB)
        assert await restored(store, "live") == content("b", MB)
        again = await store.reserve(place(), "stale", flags=FLAGS, writer="w", size=None)
        await store.abort(again)
        assert await reclaim.upload_bytes(store) == 0


# -- the sweep ---------------------------------------------------------------------------------------------------------


async def test_the_sweep_removes_orphans_and_nothing_else(tmp_path: Path) -> None:
    clock = Clock()
    async with open_store(tmp_path / "data", clock=clock) as store:
        folder = store.folder
        words = b" ".join(b"%d" % number for number in range(400_000))
        raw = await upload(store, "raw", content("raw", MB))
        shrunk = await upload(store, "shrunk", words)
        old = part_of(store, shrunk)
        await improve.compress_some(store)
        new = part_of(store, shrunk)
        dead = await put(store, "dead", MB)
        await store.delete([dead.id], RemovalReason.DELETED)
        waiting = await store.reserve(place(), "waiting", flags=FLAGS, writer="w", size=None)
        await store.stage_block(waiting, b"1", body_of(content("w", MB)), MB)
        log_of_blob = write(folder.log(raw.blob))
        stays = {part_of(store, raw), old, new, part_of_dead(store, dead.blob)}
        stays |= {Path(folder.part(waiting, 0)), Path(folder.log(waiting))}
        age_all(store)
        orphans = [
            write(folder.part(9001, 0)),
            write(folder.part(9002, 0)),
            write(folder.part(9002, 2)),
            write(folder.log(9003)),
            write(folder.log(9004)),
            write(folder.part(9004, 0)),
            write(folder.segment(9005)),
            # The zstd files of a blob that was evicted before they were swapped in.
            write(folder.part(9006, 0), new.read_bytes()),
        ]
        stays.add(write(folder.part(9010, 0), age=100))
        stays.add(write(folder.part(9011, 0), age=10_000))
        stays.add(write(folder.part(9011, 1), age=100))
        stays.add(write(folder.segment(9012), age=100))
        swept = await reclaim.sweep(store)
        assert swept == reclaim.Swept(removed=6, young=3)
        assert [path for path in orphans if path.exists()] == []
        assert not log_of_blob.exists()
        assert {path for path in stays if not path.exists()} == set()
        assert await restored(store, "raw") == content("raw", MB)
        assert await restored(store, "shrunk") == words
        await store.choose_blocks(waiting, [b"1"])
        await store.commit(waiting, MB)
        assert await restored(store, "waiting") == content("w", MB)

        clock.advance(901)
        assert (await reclaim.sweep(store)) == reclaim.Swept(removed=3, young=0)
        await bury(store, clock)
        check_sums(store)


def part_of_dead(store: Store, blob: int) -> Path:
    return Path(store.folder.part(blob, 0))


async def test_a_short_patience_with_uploads_does_not_endanger_what_waits_for_its_commit(tmp_path: Path) -> None:
    async with open_store(tmp_path / "data", StoreOptions(min_free=0, stale_upload=0.001)) as store:
        young = write(store.folder.part(9001, 0), age=20)
        old = write(store.folder.part(9002, 0), age=40)
        assert await reclaim.sweep(store) == reclaim.Swept(removed=1, young=1)
        assert young.exists()
        assert not old.exists()


# -- graves ------------------------------------------------------------------------------------------------------------


async def test_a_file_that_cannot_be_unlinked_holds_up_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock()
    async with open_store(tmp_path / "data", clock=clock) as store:
        made = [await put(store, f"k{number}", MB) for number in range(3)]
        await store.delete([entry.id for entry in made], RemovalReason.DELETED)
        clock.advance(61)
        unlink = os.unlink
        stuck = store.folder.part(made[0].blob, 0)

        def refuse(path: str) -> None:
            if str(path) == stuck:
                raise PermissionError(1, "not now")
            unlink(path)

        with monkeypatch.context() as patched:
            patched.setattr(os, "unlink", refuse)
            with pytest.raises(StoreReadOnly):
                await graves.bury(store)
        assert [found.file_id for found in store.folder.files()] == [made[0].blob]
        assert await graves.bury(store) == 1
        assert on_disk(store) == 0
        check_sums(store)


async def test_burying_again_after_a_kill_in_the_middle_is_harmless(tmp_path: Path) -> None:
    clock = Clock()
    async with open_store(tmp_path / "data", clock=clock) as store:
        entry = await put(store, "k", MB)
        await store.delete([entry.id], RemovalReason.DELETED)
        store.folder.remove_files(entry.blob, 1)
        clock.advance(61)
        assert await graves.bury(store) == 1
        check_sums(store)


# -- segments ----------------------------------------------------------------------------------------------------------


async def fill(store: Store, count: int, *, name: str = "k") -> list[EntryId]:
    return [(await put(store, f"{name}{number:02}", SMALL)).id for number in range(count)]


async def test_what_a_dead_worker_left_open_is_sealed_and_a_live_ones_is_not(tmp_path: Path) -> None:
    clock = Clock()
    async with open_store(tmp_path / "data", clock=clock) as store:
        await fill(store, 3)
        assert await segments.seal_orphans(store) == 0
        # A worker that died: its lock went with it, its last record is torn.
        died = store.packs
        assert died._segment is not None
        path = Path(store.folder.segment(died._segment.id))
        os.close(died._segment.fd)
        died._segment = None
        write(path, path.read_bytes() + b"torn")  # noqa: ASYNC240
        store.packs = PackWriter(
            store.folder, durable=True, open_segment=store._open_segment, seal_segment=store._seal_segment
        )
        await died.close()
        await fill(store, 3, name="l")
        assert await segments.seal_orphans(store) == 1
        sealed, open_ = store.index.segments()
        assert sealed.sealed_ms
        assert not open_.sealed_ms
        assert sealed.bytes == store.folder.segment_bytes(sealed.segment)
        assert await segments.seal_orphans(store) == 0
        for key in keys(store):
            assert await restored(store, key) == content(key, SMALL)
        check_sums(store)


async def test_a_segment_whose_worker_died_before_it_made_the_file_goes(tmp_path: Path) -> None:
    clock = Clock()
    async with open_store(tmp_path / "data", clock=clock) as store:
        await store.writer.submit(OpenSegment(await store.new_id(), store.now_ms()))
        assert await segments.tidy(store) == 0
        clock.advance(901)
        await segments.tidy(store)
        clock.advance(901)
        await segments.tidy(store)
        assert store.index.segments() == []
        await bury(store, clock)


async def test_a_segment_that_is_mostly_dead_is_rewritten_and_its_content_stays(tmp_path: Path) -> None:
    clock = Clock()
    async with open_store(tmp_path / "data", clock=clock) as store:
        made = await fill(store, 40)
        await store.packs.close()
        (row,) = store.index.segments()
        before = on_disk(store)
        await store.delete([made[number] for number in range(40) if number % 2], RemovalReason.DELETED)
        clock.advance(segments.SETTLE_SECONDS + 1)
        assert await segments.tidy(store) == 0  # half of it lives
        await store.delete([made[0]], RemovalReason.DELETED)
        entry = store.lookup(place(), "k02")
        assert entry is not None
        async with await store.open(entry.blob) as reader:
            assert await segments.tidy(store) == 2  # rewritten and dropped
            assert row.segment not in {one.segment for one in store.index.segments()}
            await bury(store, clock)
            assert store.folder.segment_bytes(row.segment) == 0
            assert await drain(reader) == content("k02", SMALL)
        assert on_disk(store) < before * 0.5
        for number in range(2, 40, 2):
            assert await restored(store, f"k{number:02}") == content(f"k{number:02}", SMALL)
        await store.moved.close()
        check_sums(store)


async def test_a_dead_segment_is_unlinked_after_its_grace(tmp_path: Path) -> None:
    clock = Clock()
    async with open_store(tmp_path / "data", clock=clock) as store:
        made = await fill(store, 3)
        await store.packs.close()
        await store.delete(made, RemovalReason.DELETED)
        # Commits of records in it may still be under way.
        assert await segments.tidy(store) == 0
        clock.advance(segments.SETTLE_SECONDS + 1)
        assert await segments.tidy(store) == 1
        assert on_disk(store) > 0
        await bury(store, clock)
        assert on_disk(store) == 0
        assert store.index.segments() == []
        check_sums(store)


async def test_moved_records_are_synced_in_relaxed_mode_too(tmp_path: Path) -> None:
    """What they leave may be proven durable, and is unlinked soon."""
    clock = Clock()
    async with open_store(tmp_path / "data", StoreOptions(min_free=0, durable=False), clock=clock) as store:
        made = await fill(store, 10)
        await store.packs.close()
        await store.delete(made[:8], RemovalReason.DELETED)
        clock.advance(segments.SETTLE_SECONDS + 1)
        synced = []
        sync = store.moved._disk.sync_data
        store.moved._disk.sync_data = lambda fd: (synced.append(fd), sync(fd))[1]  # type: ignore[method-assign, func-returns-value]
        await segments.tidy(store)
        assert synced
        assert await restored(store, "k09") == content("k09", SMALL)
