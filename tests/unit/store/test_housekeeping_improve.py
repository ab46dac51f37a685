"""Equal content is stored once and what shrinks becomes zstd, and nobody who reads can tell."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from cachesrv.store.commands import Command, Filed, SwapForm
from cachesrv.store.events import BytesSaved, StoreEvent
from cachesrv.store.housekeeping import improve
from cachesrv.store.model import ByteRange, RemovalReason
from cachesrv.store.options import StoreOptions
from cachesrv.store.store import Store
from tests.doubles.bytes_out import drain, read_all
from tests.doubles.open_store import Clock, open_store
from tests.unit.store.housekeeping_case import (
    bury,
    check_sums,
    content,
    free_of,
    on_disk,
    part_of,
    place,
    put,
    restored,
    upload,
)

MB = 1_000_000


def text(size: int, seed: str = "text") -> bytes:
    """Compresses to a third or so; no two places alike."""
    chosen = random.Random(seed)
    words = [chosen.randbytes(6).hex().encode() for _ in range(2000)]
    return b" ".join(chosen.choices(words, k=size // 13 + 1))[:size]


async def digest_all(store: Store) -> None:
    while await improve.digest_some(store):
        pass


async def test_equal_uploads_are_stored_once_and_both_restore(tmp_path: Path) -> None:
    clock, events = Clock(), list[StoreEvent]()
    async with open_store(tmp_path / "data", clock=clock, events=events) as store:
        data = content("same", 3 * MB)
        first = await upload(store, "one", data)
        second = await upload(store, "two", data, tenant="other/app")
        lone = await upload(store, "lone", content("lone", MB))
        before = on_disk(store)
        async with await store.open(second.blob) as reader:
            await digest_all(store)
            await bury(store, clock)
            assert await drain(reader) == data

        assert on_disk(store) < before - 3 * MB
        assert await restored(store, "one") == data
        assert await restored(store, "two", tenant="other/app") == data
        # Somebody who asked before the change and answers now is not told that it is gone.
        assert await store.prove(second)
        assert [event.how for event in events if isinstance(event, BytesSaved)] == ["dedup"]
        assert store.index.totals().dedup_bytes == 3 * MB
        check_sums(store)

        await store.delete([first.id], RemovalReason.DELETED)
        await bury(store, clock)
        assert await restored(store, "one") is None
        assert await restored(store, "two", tenant="other/app") == data
        assert await store.prove(lone)
        check_sums(store)
        left = store.lookup(place("other/app"), "two")
        assert left is not None
        await store.delete([left.id, lone.id], RemovalReason.DELETED)
        await bury(store, clock)
        assert on_disk(store) == 0
        check_sums(store)


@pytest.mark.parametrize("zstd_first", [True, False])
async def test_equal_content_is_found_before_and_after_zstd(tmp_path: Path, zstd_first: bool) -> None:
    clock = Clock()
    async with open_store(tmp_path / "data", clock=clock) as store:
        data = text(3 * MB)
        await upload(store, "one", data)
        if zstd_first:
            assert await improve.compress_some(store) == 1
        await upload(store, "two", data)
        await digest_all(store)
        await improve.compress_some(store)
        await bury(store, clock)
        assert on_disk(store) < MB * 2
        assert store.index.totals().blobs == 1
        assert await restored(store, "one") == await restored(store, "two") == data
        check_sums(store)


async def test_what_shrinks_becomes_zstd_and_every_range_is_exact(tmp_path: Path) -> None:
    clock, events = Clock(), list[StoreEvent]()
    async with open_store(tmp_path / "data", clock=clock, events=events) as store:
        data = text(11 * MB + 7)
        entry = await upload(store, "k", data)
        old = part_of(store, entry)
        before = on_disk(store)
        reader = await store.open(entry.blob)
        async with reader:
            assert await drain(reader, ByteRange(0, 100)) == data[:100]
            assert await improve.compress_some(store) == 1
            assert old.exists()
            await bury(store, clock)
            assert not old.exists()
            assert await drain(reader) == data
        row = store.index.blob(entry.blob)
        assert row is not None
        assert isinstance(row.form, Filed)
        assert row.form.zstd
        assert on_disk(store) < before * 0.7
        chosen = random.Random(1)
        piece = 1 << 20
        edges = [(0, 0), (0, 1), (piece - 1, piece + 1), (piece, 2 * piece), (len(data) - 1, len(data))]
        spots = [sorted(chosen.choices(range(len(data) + 1), k=2)) for _ in range(30)]
        for start, stop in [*edges, *spots]:
            assert await read_all(store, entry.blob, ByteRange(start, stop)) == data[start:stop]
        assert await restored(store, "k") == data
        assert await improve.compress_some(store) == 0
        assert [event.how for event in events if isinstance(event, BytesSaved)] == ["zstd"]
        check_sums(store)
        await store.delete([entry.id], RemovalReason.DELETED)
        await bury(store, clock)
        assert on_disk(store) == 0


async def test_what_does_not_shrink_is_left_alone_and_not_looked_at_again(tmp_path: Path) -> None:
    async with open_store(tmp_path / "data") as store:
        entry = await put(store, "k", 3 * MB)
        file = part_of(store, entry)
        assert await improve.compress_some(store) == 1
        assert await improve.compress_some(store) == 0
        assert part_of(store, entry) == file
        assert [found.file_id for found in store.folder.files()] == [entry.blob]
        assert await restored(store, "k") == content("k", 3 * MB)


async def test_level_0_turns_it_off(tmp_path: Path) -> None:
    async with open_store(tmp_path / "data", StoreOptions(min_free=0, zstd_level=0)) as store:
        entry = await upload(store, "k", text(3 * MB))
        file = part_of(store, entry)
        await improve.compress_some(store)
        assert await improve.compress_some(store) == 0
        assert part_of(store, entry) == file


async def test_zstd_waits_while_the_disk_is_at_its_floor(tmp_path: Path) -> None:
    async with open_store(tmp_path / "data", StoreOptions(min_free=5 * MB)) as store:
        await upload(store, "k", text(3 * MB))
        free_of(store, lambda _: 7 * MB)
        assert await improve.compress_some(store) == 0
        free_of(store, lambda _: 9 * MB)
        assert await improve.compress_some(store) == 1


async def test_a_blob_that_is_deleted_while_it_is_rewritten_leaves_nothing(tmp_path: Path) -> None:
    clock = Clock()
    async with open_store(tmp_path / "data", clock=clock) as store:
        entry = await upload(store, "k", text(3 * MB))
        submit = store.writer.submit

        async def too_late(command: Command) -> object:
            if isinstance(command, SwapForm):
                await store.delete([entry.id], RemovalReason.DELETED)
            return await submit(command)

        store.writer.submit = too_late  # type: ignore[method-assign, assignment]
        await improve.compress_some(store)
        await bury(store, clock)
        assert list(store.folder.files()) == []
        check_sums(store)


@pytest.mark.parametrize("chore", [improve.digest_some, improve.compress_some])
async def test_damage_found_on_the_way_is_quarantined_and_holds_up_nobody(tmp_path: Path, chore: object) -> None:
    async with open_store(tmp_path / "data") as store:
        bad = await upload(store, "bad", text(2 * MB, "bad"))
        gone = await upload(store, "gone", text(2 * MB, "gone"))
        good = await upload(store, "good", text(2 * MB, "good"))
        file = part_of(store, bad)
        damaged = bytearray(file.read_bytes())
        damaged[5] ^= 1
        file.write_bytes(damaged)
        part_of(store, gone).unlink()
        await chore(store)  # type: ignore[operator]
        assert store.lookup(place(), "bad") is None
        assert store.lookup(place(), "gone") is None
        row = store.index.blob(good.blob)
        assert row is not None
        assert row.sha256 if chore is improve.digest_some else isinstance(row.form, Filed) and row.form.zstd
        assert (tmp_path / "data" / "q" / file.name).exists()
        check_sums(store)
