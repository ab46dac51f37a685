"""What every CacheStore promises, run over the real store and the one in memory."""

from __future__ import annotations

import hashlib
import os
import random
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from cachesrv.store.api import CacheStore, EntryFilter
from cachesrv.store.errors import (
    BlobMissing,
    DigestMismatch,
    EntryExists,
    SizeMismatch,
    UnknownBlock,
    UploadIncomplete,
    UploadInFlight,
    UploadUnknown,
)
from cachesrv.store.model import ByteRange, Digest, EntryFlag, Namespace, RemovalReason, UploadId
from cachesrv.store.options import StoreOptions
from tests.doubles.bytes_out import body_of, read_all
from tests.doubles.memory_store import MemoryStore
from tests.doubles.open_store import Clock, open_store

PLACE = Namespace("actions", "acme/app", "refs/heads/main", "v1")
FLAGS = EntryFlag.IMMUTABLE | EntryFlag.EXPIRES
SIZES = [0, 1, 1024, 1025, 256 * 1024, 256 * 1024 + 1, 3 * 1024 * 1024 + 17]

Opened = tuple[CacheStore, Clock]


@pytest.fixture(params=["memory", "disk"])
async def opened(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Opened]:
    clock = Clock()
    if request.param == "memory":
        yield MemoryStore(clock=clock), clock
        return
    async with open_store(tmp_path / "data", StoreOptions(min_free=0), clock=clock) as store:
        yield store, clock


async def save(store: CacheStore, key: str, data: bytes, place: Namespace = PLACE) -> int:
    upload = await store.reserve(place, key, flags=FLAGS, writer="run 1", size=len(data))
    await store.stage_whole(upload, body_of(data), len(data))
    entry = await store.commit(upload, len(data))
    return entry.id


@pytest.mark.parametrize("size", SIZES)
async def test_what_was_saved_is_restored(opened: Opened, size: int) -> None:
    store, _ = opened
    data = random.Random(size).randbytes(size)
    await save(store, "k", data)
    entry = store.lookup(PLACE, "k")
    assert entry is not None
    assert (entry.size, entry.key, entry.namespace, entry.writer) == (size, "k", PLACE, "run 1")
    assert entry.last_used_ms is None
    assert await store.prove(entry)
    assert await read_all(store, entry.blob) == data
    wanted = ByteRange(size // 3, size - size // 4)
    assert await read_all(store, entry.blob, wanted) == data[wanted.start : wanted.stop]


@pytest.mark.parametrize("size", SIZES)
async def test_put_keeps_the_digest(opened: Opened, size: int) -> None:
    store, _ = opened
    data = random.Random(size).randbytes(size)
    right = Digest("sha256", hashlib.sha256(data).digest())
    wrong = Digest("sha256", hashlib.sha256(data + b"x").digest())
    with pytest.raises(DigestMismatch):
        await store.put(PLACE, "d", body_of(data), flags=FLAGS, writer="w", digest=wrong)
    assert store.lookup(PLACE, "d") is None
    entry = await store.put(PLACE, "d", body_of(data), flags=FLAGS, writer="w", digest=right, length=size)
    assert await read_all(store, entry.blob) == data


async def test_put_replaces_unless_immutable(opened: Opened) -> None:
    store, _ = opened
    first = await store.put(PLACE, "k", body_of(b"one"), flags=EntryFlag.NONE, writer="w")
    second = await store.put(PLACE, "k", body_of(b"two"), flags=EntryFlag.NONE, writer="w")
    assert second.id > first.id
    found = store.lookup(PLACE, "k")
    assert found is not None
    assert found.id == second.id
    await store.put(PLACE, "fixed", body_of(b"one"), flags=FLAGS, writer="w")
    with pytest.raises(EntryExists):
        await store.put(PLACE, "fixed", body_of(b"other"), flags=FLAGS, writer="w")


async def test_a_body_of_another_length_is_refused(opened: Opened) -> None:
    store, _ = opened
    for size in (10, 300_000):
        data = os.urandom(size)
        upload = await store.reserve(PLACE, f"short-{size}", flags=FLAGS, writer="w", size=None)
        for claimed in (size + 1, size - 1):
            with pytest.raises(SizeMismatch):
                await store.stage_whole(upload, body_of(data), claimed)
            with pytest.raises(SizeMismatch):
                await store.put(PLACE, f"p-{size}", body_of(data), flags=FLAGS, writer="w", length=claimed)
        await store.stage_whole(upload, body_of(data), size)
        with pytest.raises(SizeMismatch):
            await store.commit(upload, size + 1)
        assert (await store.commit(upload, size)).size == size


async def test_blocks_come_in_list_order_and_the_last_attempt_wins(opened: Opened) -> None:
    store, _ = opened
    upload = await store.reserve(PLACE, "blocks", flags=FLAGS, writer="w", size=None)
    parts = {name: os.urandom(200_000) for name in (b"c" * 48, b"a" * 16, b"b" * 64)}
    for name, data in parts.items():
        await store.stage_block(upload, name, body_of(b"first try"), 9)
        await store.stage_block(upload, name, body_of(data), len(data))
    with pytest.raises(UploadIncomplete):
        await store.commit(upload, 1)
    with pytest.raises(UnknownBlock):
        await store.choose_blocks(upload, [b"a" * 16, b"nobody"])
    order = [b"b" * 64, b"a" * 16, b"b" * 64]
    assert await store.choose_blocks(upload, order) == 600_000
    assert await store.choose_blocks(upload, order) == 600_000
    entry = await store.commit(upload, 600_000)
    assert await read_all(store, entry.blob) == b"".join(parts[name] for name in order)


async def test_ranges_may_come_in_any_order_but_not_with_a_hole(opened: Opened) -> None:
    store, _ = opened
    data = os.urandom(900_000)
    upload = await store.reserve(PLACE, "ranges", flags=FLAGS, writer="w", size=len(data))
    for start in (600_000, 0):
        await store.stage_range(upload, start, body_of(data[start : start + 300_000]), 300_000)
    with pytest.raises(UploadIncomplete):
        await store.commit(upload, len(data))
    await store.stage_range(upload, 300_000, body_of(b"\0" * 300_000), 300_000)
    await store.stage_range(upload, 300_000, body_of(data[300_000:600_000]), 300_000)
    entry = await store.commit(upload, len(data))
    assert await read_all(store, entry.blob) == data


async def test_one_reservation_wins_and_a_stale_one_is_taken_over(opened: Opened) -> None:
    store, clock = opened
    first = await store.reserve(PLACE, "k", flags=FLAGS, writer="w", size=None)
    with pytest.raises(UploadInFlight):
        await store.reserve(PLACE, "k", flags=FLAGS, writer="w", size=None)
    await store.reserve(
        Namespace("actions", "acme/app", "refs/heads/other", "v1"), "k", flags=FLAGS, writer="w", size=1
    )
    clock.advance(901)
    second = await store.reserve(PLACE, "k", flags=FLAGS, writer="w2", size=None)
    with pytest.raises(UploadUnknown):
        await store.stage_whole(first, body_of(b"x"), 1)
    found = store.find_upload(PLACE, "k")
    assert found is not None
    assert (found.id, found.writer) == (second, "w2")
    await store.stage_whole(second, body_of(b"x"), 1)
    await store.commit(second, 1)
    with pytest.raises(EntryExists):
        await store.reserve(PLACE, "k", flags=FLAGS, writer="w", size=None)


async def test_a_commit_can_be_asked_for_again(opened: Opened) -> None:
    store, _ = opened
    upload = await store.reserve(PLACE, "k", flags=FLAGS, writer="w", size=None)
    assert store.committed(upload) is None
    await store.stage_whole(upload, body_of(b"data"), 4)
    entry = await store.commit(upload, 4)
    again = store.committed(upload)
    assert again is not None
    assert again.id == entry.id
    with pytest.raises(UploadUnknown):
        await store.commit(upload, 4)
    assert store.find_upload(PLACE, "k") is None


async def test_an_upload_is_invisible_until_it_is_committed(opened: Opened) -> None:
    store, _ = opened
    upload = await store.reserve(PLACE, "k", flags=FLAGS, writer="w", size=None)
    await store.stage_whole(upload, body_of(b"data"), 4)
    assert store.lookup(PLACE, "k") is None
    assert store.newest(PLACE, "") is None
    await store.abort(upload)
    await store.abort(UploadId(12345))
    with pytest.raises(UploadUnknown):
        await store.commit(upload, 4)
    assert await save(store, "k", b"other")


async def test_newest_by_literal_prefix(opened: Opened) -> None:
    store, clock = opened
    for key in ("deps-b", "deps-a", "deps-%", "Deps-z", "dep", "deps_", "déps-é", "deps-*?["):
        await save(store, key, key.encode())
        clock.advance(1)

    def newest(prefix: str) -> str | None:
        found = store.newest(PLACE, prefix)
        return None if found is None else found.key

    assert newest("deps-") == "deps-*?["
    assert newest("deps-b") == "deps-b"
    assert newest("deps-%") == "deps-%"
    assert newest("deps_") == "deps_"
    assert newest("Deps") == "Deps-z"
    assert newest("") == "deps-*?["
    assert newest("dé") == "déps-é"
    assert newest("nothing") is None
    elsewhere = Namespace("actions", "acme/app", "refs/heads/main", "v2")
    assert store.newest(elsewhere, "") is None


async def test_deleted_entries_are_misses_and_open_readers_finish(opened: Opened) -> None:
    store, _ = opened
    data = os.urandom(2_000_000)
    await save(store, "gone", data)
    entry = store.lookup(PLACE, "gone")
    assert entry is not None
    async with await store.open(entry.blob) as reader:
        assert await store.delete([entry.id, entry.id + 1], RemovalReason.DELETED) == 1  # type: ignore[list-item]
        assert store.lookup(PLACE, "gone") is None
        assert store.newest(PLACE, "g") is None
        assert store.entry(entry.id) is None
        from tests.doubles.bytes_out import drain

        assert await drain(reader) == data
    assert await save(store, "gone", b"anew")


async def test_a_blob_that_never_was_is_missing(opened: Opened) -> None:
    store, _ = opened
    with pytest.raises(BlobMissing):
        await store.open(10**9)  # type: ignore[arg-type]


async def test_touching_is_seen(opened: Opened) -> None:
    store, clock = opened
    await save(store, "k", b"x")
    entry = store.lookup(PLACE, "k")
    assert entry is not None
    clock.advance(100)
    store.touch(entry)
    again = store.lookup(PLACE, "k")
    assert again is not None
    assert again.last_used_ms is not None
    assert abs(again.last_used_ms - clock() * 1000) < 1000


async def test_listing_pages_through_everything_once(opened: Opened) -> None:
    store, _ = opened
    wanted = set()
    for scope in ("refs/heads/a", "refs/heads/b"):
        for number in range(5):
            place = Namespace("actions", "acme/app", scope, "v")
            await save(store, f"key-{number}", b"x" * number, place)
            wanted.add((scope, f"key-{number}"))
    seen = []
    cursor = None
    while True:
        page = store.entries(EntryFilter(protocol="actions", tenant="acme/app"), limit=3, cursor=cursor)
        assert len(page.entries) <= 3
        seen += [(entry.namespace.scope, entry.key) for entry in page.entries]
        cursor = page.cursor
        if cursor is None:
            break
    assert len(seen) == len(wanted)
    assert set(seen) == wanted
    only = store.entries(EntryFilter(tenant="acme/app", scope="refs/heads/b", key_prefix="key-3"), limit=10)
    assert [entry.key for entry in only.entries] == ["key-3"]
    usage = {(row.tenant, row.entries, row.bytes) for row in store.usage()}
    assert usage == {("acme/app", 10, 20)}
