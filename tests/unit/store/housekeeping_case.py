"""Saving, restoring and counting everything from scratch, for the tests of the housekeeping."""

from __future__ import annotations

import os
import random
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from cachesrv.store.api import EntryFilter
from cachesrv.store.commands import Filed
from cachesrv.store.constants import GRAVE_SECONDS
from cachesrv.store.housekeeping import graves
from cachesrv.store.index.rows import BlobRow, GraveKind, disk_bytes, stored_bytes
from cachesrv.store.model import Entry, EntryFlag, Namespace
from cachesrv.store.store import Store
from tests.doubles.bytes_out import body_of, read_all
from tests.doubles.open_store import Clock

FLAGS = EntryFlag.IMMUTABLE | EntryFlag.EXPIRES
LOW = FLAGS | EntryFlag.LOW_TRUST
FILE = 300_000
"""Large enough for a file of its own."""


def place(tenant: str = "acme/app", scope: str = "refs/heads/main") -> Namespace:
    return Namespace("actions", tenant, scope, "v")


def content(key: str, size: int = FILE) -> bytes:
    """Bytes that do not compress, made from the key."""
    return random.Random(key).randbytes(size)


async def put(store: Store, key: str, size: int = FILE, *, tenant: str = "acme/app", flags: EntryFlag = FLAGS) -> Entry:
    return await store.put(place(tenant), key, body_of(content(key, size)), flags=flags, writer="w", length=size)


async def upload(store: Store, key: str, data: bytes, *, tenant: str = "acme/app") -> Entry:
    """A save in two blocks, as the Actions clients make it: its SHA-256 is not known when it is committed."""
    number = await store.reserve(place(tenant), key, flags=FLAGS, writer="w", size=len(data))
    half = len(data) // 2
    await store.stage_block(number, b"2", body_of(data[half:]), len(data) - half)
    await store.stage_block(number, b"1", body_of(data[:half]), half)
    await store.choose_blocks(number, [b"1", b"2"])
    return await store.commit(number, len(data))


async def restored(store: Store, key: str, *, tenant: str = "acme/app") -> bytes | None:
    """What a client gets: None is a miss."""
    entry = store.lookup(place(tenant), key)
    if entry is None:
        return None
    store.touch(entry)
    return await read_all(store, entry.blob) if await store.prove(entry) else None


def keys(store: Store, *, tenant: str = "acme/app") -> set[str]:
    return {entry.key for entry in store.entries(EntryFilter(tenant=tenant), limit=10_000).entries}


def on_disk(store: Store) -> int:
    """Bytes of all data files."""
    root = store.folder.root
    return sum(os.stat(file).st_size for folder in ("f", "p") for file in (root / folder).rglob("*") if file.is_file())


async def bury(store: Store, clock: Clock) -> None:
    """Let the grave time pass and close the graves."""
    clock.advance(GRAVE_SECONDS + 1)
    await graves.bury(store)
    assert store.index.graves() == []


def free_of(store: Store, free: Callable[[Path], int]) -> None:
    """Let the store believe in this much free space from now on."""
    store.folder._free = free
    store.folder._clock = lambda: float(random.getrandbits(40)) * 10


def blobs_of(store: Store) -> list[BlobRow]:
    found: list[BlobRow] = []
    at = 0
    while rows := store.index.blobs_after(at, 256):
        at = rows[-1].id
        found += rows
    return found


def part_of(store: Store, entry: Entry, part: int = 0) -> Path:
    row = store.index.blob(entry.blob)
    assert row is not None
    assert isinstance(row.form, Filed)
    return Path(store.folder.part(row.form.file_id, part))


def check_sums(store: Store) -> None:
    """Every sum that the index keeps, counted from scratch; and the bytes that really lie on the disk."""
    entries = store.entries(EntryFilter(), limit=100_000).entries
    live = [row for row in blobs_of(store) if row.live]
    names = Counter(int(entry.blob) for entry in entries)
    totals = store.index.totals()
    segments = store.index.segments()
    dug = store.index.graves()
    files = sum(row.form.disk_bytes for row in live if isinstance(row.form, Filed))
    assert totals.entries == len(entries)
    assert totals.logical_bytes == sum(entry.size for entry in entries)
    assert totals.blobs == len(live)
    assert totals.raw_bytes == sum(row.size for row in live)
    assert totals.stored_bytes == sum(stored_bytes(row.form) for row in live)
    assert totals.file_bytes == files
    assert totals.segment_bytes == sum(row.bytes for row in segments)
    assert totals.grave_bytes == sum(grave.disk_bytes for grave in dug)
    assert totals.dedup_bytes == sum((names[row.id] - 1) * row.size for row in live)
    assert {row.id: row.names for row in live} == {row.id: names[row.id] for row in live}
    by_tenant: Counter[str] = Counter()
    for entry in entries:
        by_tenant[entry.namespace.tenant] += entry.size
    assert {row.tenant: row.bytes for row in store.usage()} == by_tenant
    assert sum(row.disk_bytes for row in store.index.tenants()) == sum(disk_bytes(row.form) for row in live)
    buried = sum(grave.disk_bytes for grave in dug if grave.kind is GraveKind.FILES)
    assert sum(found.disk_bytes for found in store.folder.files()) == files + buried
