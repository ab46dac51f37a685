"""Damage under a stored blob: never a wrong byte, its entries become misses, the others do not notice."""

from __future__ import annotations

import asyncio
import os
import random
from collections.abc import Callable
from pathlib import Path

import pytest

from cachesrv.store.api import FileWindow
from cachesrv.store.commands import Packed
from cachesrv.store.errors import BlobDamaged, BlobMissing, StoreError
from cachesrv.store.events import BlobQuarantined, EntriesRemoved, StoreEvent
from cachesrv.store.housekeeping import improve, reclaim, scrub, segments
from cachesrv.store.model import Entry, RemovalReason
from cachesrv.store.options import StoreOptions
from cachesrv.store.store import Store
from tests.doubles.bytes_out import drain, read_all
from tests.doubles.open_store import Clock, open_store
from tests.unit.store.housekeeping_case import bury, check_sums, content, part_of, place, put, restored, upload

MB = 1_000_000
UNSYNCED = StoreOptions(min_free=0, scrub_rate=0, durable=False)
Hurt = Callable[[Store, Entry], None]


def segment_of(store: Store, entry: Entry) -> tuple[Path, Packed]:
    row = store.index.blob(entry.blob)
    assert row is not None
    assert isinstance(row.form, Packed)
    return Path(store.folder.segment(row.form.segment)), row.form


def flip(path: Path, at: int) -> None:
    with path.open("r+b") as file:
        file.seek(at)
        byte = file.read(1)
        file.seek(at)
        file.write(bytes([byte[0] ^ 0x10]))


def flip_first(store: Store, entry: Entry) -> None:
    flip(part_of(store, entry), 17)


def flip_last(store: Store, entry: Entry) -> None:
    flip(part_of(store, entry), entry.size - 1)


def flip_trailer(store: Store, entry: Entry) -> None:
    path = part_of(store, entry)
    flip(path, path.stat().st_size - 40)


def flip_record(store: Store, entry: Entry) -> None:
    path, form = segment_of(store, entry)
    flip(path, form.offset + 100)


def flip_record_header(store: Store, entry: Entry) -> None:
    path, form = segment_of(store, entry)
    flip(path, form.offset + 20)


def cut_short(store: Store, entry: Entry) -> None:
    path = part_of(store, entry)
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size // 2)


def remove(store: Store, entry: Entry) -> None:
    part_of(store, entry).unlink()


def zeros(store: Store, entry: Entry) -> None:
    with part_of(store, entry).open("r+b") as file:
        file.seek(4096)
        file.write(bytes(8192))


FILE_HURTS = [flip_first, flip_last, flip_trailer, cut_short, remove, zeros]
RECORD_HURTS = [flip_record, flip_record_header]
HURTS = [*((hurt, 3 * MB) for hurt in FILE_HURTS), *((hurt, 20_000) for hurt in RECORD_HURTS)]


async def make(store: Store, size: int) -> Entry:
    for key in ("before", "hurt", "after"):
        await put(store, key, size)
    entry = store.lookup(place(), "hurt")
    assert entry is not None
    return entry


async def check_after(store: Store, events: list[StoreEvent], size: int) -> None:
    assert store.lookup(place(), "hurt") is None
    assert store.newest(place(), "hur") is None
    assert [event.entries for event in events if isinstance(event, BlobQuarantined)] == [1]
    assert EntriesRemoved(RemovalReason.DAMAGED, "acme/app", 1, size) in events
    for key in ("before", "after"):
        assert await restored(store, key) == content(key, size)
    check_sums(store)
    # The same content saved again is whole again.
    await put(store, "hurt", size)
    assert await restored(store, "hurt") == content("hurt", size)
    check_sums(store)


@pytest.mark.parametrize(("hurt", "size"), HURTS)
async def test_the_scrub_finds_it(tmp_path: Path, hurt: Hurt, size: int) -> None:
    events = list[StoreEvent]()
    clock = Clock()
    async with open_store(tmp_path / "data", UNSYNCED, clock=clock, events=events) as store:
        entry = await make(store, size)
        await scrub.scrub_all(store)
        assert events == []
        hurt(store, entry)
        await scrub.scrub_all(store)
        await check_after(store, events, size)
        quarantined = list((tmp_path / "data" / "q").iterdir())
        assert bool(quarantined) == (size > MB and hurt is not remove)
        await scrub.scrub_all(store)
        await bury(store, clock)
        await scrub.scrub_all(store)
        assert len([event for event in events if isinstance(event, BlobQuarantined)]) == 1


@pytest.mark.parametrize(("hurt", "size"), HURTS)
@pytest.mark.parametrize("begun", [False, True])
async def test_a_reader_never_gets_a_wrong_byte(tmp_path: Path, hurt: Hurt, size: int, begun: bool) -> None:
    """``begun``: opened before the damage. What had been read before (a hot, checked piece) is not what is told of."""
    events = list[StoreEvent]()
    async with open_store(tmp_path / "data", UNSYNCED, events=events) as store:
        entry = await make(store, size)
        data = content("hurt", size)
        if begun:
            reader = await store.open(entry.blob)
            hurt(store, entry)
        else:
            hurt(store, entry)
            try:
                reader = await store.open(entry.blob)
            except (BlobDamaged, BlobMissing):
                # Where a file is missing, the answer to a look-up is what tells.
                await settle(store)
                assert await restored(store, "hurt") is None
                await check_after(store, events, size)
                return
        got = b""
        try:
            async with reader:
                async for window in reader.windows():
                    got += window if isinstance(window, bytes) else _pread(window)
            whole = True
        except BlobDamaged:
            whole = False
        assert data.startswith(got)
        await settle(store)
        if whole:
            # Unlinked, or only the trailer hurt, under an open reader: it had all it needs.
            assert begun
            assert got == data
            return
        if hurt is cut_short and begun:
            assert got != data
        await check_after(store, events, size)


def _pread(window: FileWindow) -> bytes:
    return os.pread(window.fd, window.length, window.offset)


async def settle(store: Store) -> None:
    """What a reader met is reported by a task of the store."""
    await asyncio.gather(*store._tasks)


@pytest.mark.parametrize("hurt", [remove, cut_short])
async def test_a_missing_or_short_file_is_a_miss_at_once(tmp_path: Path, hurt: Hurt) -> None:
    events = list[StoreEvent]()
    async with open_store(tmp_path / "data", UNSYNCED, events=events) as store:
        entry = await make(store, 3 * MB)
        hurt(store, entry)
        assert not await store.prove(entry)
        assert not await store.prove(entry)
        await check_after(store, events, 3 * MB)


async def test_damage_in_a_shared_blob_takes_all_its_entries(tmp_path: Path) -> None:
    async with open_store(tmp_path / "data", UNSYNCED) as store:
        data = content("same", 2 * MB)
        one = await upload(store, "one", data)
        await upload(store, "two", data, tenant="other/app")
        while await improve.digest_some(store):
            pass
        entry = store.lookup(place(), "one")
        assert entry is not None
        flip_first(store, entry)
        with pytest.raises(BlobDamaged):
            await read_all(store, entry.blob)
        await settle(store)
        assert store.lookup(place(), "one") is None
        assert store.lookup(place("other/app"), "two") is None
        assert one.id == entry.id
        check_sums(store)


async def test_damage_in_files_that_were_replaced_costs_nobody_an_entry(tmp_path: Path) -> None:
    """A reader of the raw files meets damage when the blob is zstd already."""
    async with open_store(tmp_path / "data", UNSYNCED) as store:
        data = b"".join(random.Random(n).randbytes(50) * 40 for n in range(1000))
        entry = await upload(store, "k", data)
        file = part_of(store, entry)
        async with await store.open(entry.blob) as reader:
            assert await improve.compress_some(store) == 1
            flip(file, 5)
            with pytest.raises(BlobDamaged):
                await drain(reader)
        await settle(store)
        assert await restored(store, "k") == data


@pytest.mark.parametrize("hurt", RECORD_HURTS)
async def test_a_damaged_record_does_not_keep_its_segment_for_ever(tmp_path: Path, hurt: Hurt) -> None:
    clock, events = Clock(), list[StoreEvent]()
    async with open_store(tmp_path / "data", UNSYNCED, clock=clock, events=events) as store:
        entry = await make(store, 20_000)
        doomed = [await put(store, f"doomed{number}", 20_000) for number in range(20)]
        path, _ = segment_of(store, entry)
        await store.packs.close()
        hurt(store, entry)
        await store.delete([one.id for one in doomed], RemovalReason.DELETED)
        clock.advance(segments.SETTLE_SECONDS + 1)
        await segments.tidy(store)
        assert store.lookup(place(), "hurt") is None
        for key in ("before", "after"):
            assert await restored(store, key) == content(key, 20_000)
        await bury(store, clock)
        assert not path.exists()
        check_sums(store)


async def test_a_quarantined_file_is_kept_a_week(tmp_path: Path) -> None:
    clock = Clock()
    async with open_store(tmp_path / "data", UNSYNCED, clock=clock) as store:
        entry = await make(store, 3 * MB)
        flip_first(store, entry)
        await scrub.scrub_all(store)
        clock.advance(6 * 86400)
        await reclaim.sweep(store)
        assert len(list((tmp_path / "data" / "q").iterdir())) == 1
        clock.advance(2 * 86400)
        await reclaim.sweep(store)
        assert list((tmp_path / "data" / "q").iterdir()) == []


async def test_the_scrub_goes_on_where_it_stood(tmp_path: Path) -> None:
    seen: list[int] = []

    def watch(store: Store) -> None:
        check = store.background.check

        async def noting(form: object, blob_id: int, size: int) -> object:
            seen.append(blob_id)
            return await check(form, blob_id, size)  # type: ignore[arg-type]

        store.background.check = noting  # type: ignore[method-assign, assignment]

    options = UNSYNCED
    async with open_store(tmp_path / "data", options) as store:
        wanted = [(await put(store, f"k{number}", 2_000)).blob for number in range(300)]
        watch(store)
        assert await scrub.scrub_some(store)
    assert seen == wanted[: len(seen)]
    assert 0 < len(seen) < 300
    async with open_store(tmp_path / "data", options) as store:
        watch(store)
        await scrub.scrub_all(store)
        assert seen == wanted
        await scrub.scrub_all(store)
        assert seen == wanted * 2


async def test_the_scrub_keeps_its_rate(tmp_path: Path) -> None:
    slept = 0.0
    async with open_store(tmp_path / "data", StoreOptions(min_free=0, scrub_rate=MB)) as store:
        for number in range(3):
            await put(store, f"k{number}", 3 * MB)

        async def sleep(seconds: float) -> None:
            nonlocal slept
            slept += seconds

        store.background._scrub._sleep = sleep
        await scrub.scrub_all(store)
    # The clock of the pace did not move with our sleep: what is owed adds up, a bucket of 4 MiB apart.
    assert slept > 4


async def test_an_error_is_one_of_the_stores(tmp_path: Path) -> None:
    async with open_store(tmp_path / "data", UNSYNCED) as store:
        entry = await make(store, 3 * MB)
        remove(store, entry)
        with pytest.raises(StoreError):
            await store.open(entry.blob)
