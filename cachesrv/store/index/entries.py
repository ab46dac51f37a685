"""How entries come and go inside a batch: every row that an entry has, in one place."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import Final

import msgspec

from cachesrv.store.commands import Removed, Space
from cachesrv.store.errors import EntryExists
from cachesrv.store.index import blobs, lookup, newest
from cachesrv.store.index.batch import Batch
from cachesrv.store.index.codec import RowDamaged, cut, unseal
from cachesrv.store.index.lookup import LRU, PAIR, U32, U64
from cachesrv.store.index.rows import BlobRow, RecRow, SpaceRow, pack_rec
from cachesrv.store.model import EntryFlag

UNREAD: Final = 0
"""Queue of the eviction order: LOW_TRUST and never read as far as known."""
REST: Final = 1
_LATEST: Final = 0xFFFFFFFF
_LOW_TRUST: Final = int(EntryFlag.LOW_TRUST)


def find(batch: Batch, names: Space, key: str) -> tuple[int, RecRow] | None:
    """Clock and rec of a committed entry. Raises RowDamaged, and EntryExists when another key has the same hash."""
    space = batch.find_space(names)
    if space is None:
        return None
    row_key = U32.pack(space.number) + cut(key.encode())
    payload = batch.get("entry", row_key)
    if payload is None:
        return None
    clock = int(U64.unpack(payload)[0])
    rec = lookup.rec(batch, clock)
    if rec is None:
        raise RowDamaged("entry", row_key)
    if rec.key != key:
        raise EntryExists("another key with the same hash is already committed")
    return clock, rec


def insert(
    batch: Batch,
    clock: int,
    space: SpaceRow,
    key: str,
    flags: int,
    writer: str,
    now_ms: int,
    primary: BlobRow,
    members: Sequence[BlobRow],
    replacing: tuple[int, RecRow] | None,
) -> None:
    """Make an entry visible and accounted under a fresh ``clock``. ``replacing``: the entry of the same key that ends
    here. Members are other blobs than the primary, each once."""
    now_s = min(max(now_ms // 1000, 0), _LATEST)
    blobs.refer(batch, primary, clock, blobs.NAMES)
    for member in members:
        blobs.refer(batch, member, clock, blobs.MEMBER)
        batch.put("member", PAIR.pack(clock, member.id), bytes([blobs.MEMBER]))
    if replacing is not None:
        remove(batch, *replacing, now_s)
    queue = UNREAD if flags & _LOW_TRUST else REST
    rec = RecRow(
        primary.id,
        primary.size,
        space.number,
        space.tenant,
        batch.take_slot(now_s),
        flags,
        now_ms,
        queue,
        now_s,
        writer,
        key,
    )
    row_key = U32.pack(space.number) + cut(key.encode())
    batch.put("rec", U64.pack(clock), pack_rec(rec))
    batch.put("entry", row_key, U64.pack(clock))
    newest.insert(batch, row_key, clock)
    batch.put("lru", LRU.pack(space.tenant, queue, now_s, clock), U64.pack(primary.size))
    _account(batch, rec.space, rec.tenant, rec.size, 1)


def remove(batch: Batch, clock: int, rec: RecRow, now_s: int) -> Removed:
    """End an entry: all its rows, its references, and the blobs that only it kept."""
    row_key = U32.pack(rec.space) + cut(rec.key.encode())
    if batch.delete("entry", row_key):
        newest.remove(batch, row_key, clock)
    batch.delete("rec", U64.pack(clock))
    batch.delete("lru", LRU.pack(rec.tenant, rec.queue, rec.queued_s, clock))
    freed = blobs.forget(batch, rec.blob, clock, now_s)
    for key, _ in list(batch.scan("member", U64.pack(clock), U64.pack(clock + 1))):
        batch.delete("member", key)
        freed += blobs.forget(batch, PAIR.unpack(key)[1], clock, now_s)
    never_read = batch.recency.get(rec.slot) == 0
    batch.give_slot(rec.slot, now_s)
    _account(batch, rec.space, rec.tenant, rec.size, -1)
    space = batch.space(rec.space)
    names = space.names if space is not None else Space("", "", "", "")
    return Removed(
        clock, names.protocol, names.tenant, names.scope, names.version, rec.key, rec.size, freed, never_read
    )


def expunge(batch: Batch, clock: int, now_s: int) -> Removed:
    """End an entry whose rec is damaged, by what the other rows say. Looks through three tables: rare, and slow (a
    second at a million entries). Its slot is lost, and the name of who wrote it."""
    batch.delete("rec", U64.pack(clock))
    tenant = size = 0
    for key, value in list(batch.scan("lru", b"\0")):
        number, _, _, queued = LRU.unpack(key)
        if queued == clock:
            tenant = number
            with contextlib.suppress(RowDamaged):
                size = U64.unpack(unseal("lru", key, value))[0]
            batch.delete("lru", key)
    names, name, space = Space("", "", "", ""), "", 0
    for key, value in batch.scan("entry", b"\0"):
        if value[1:9] == U64.pack(clock):
            batch.delete("entry", key)
            newest.remove(batch, key, clock)
            space = U32.unpack(key[:4])[0]
            row = batch.space(space)
            names = row.names if row is not None else names
            name = key[4:].decode(errors="replace")
            break
    freed = 0
    for blob in {PAIR.unpack(key)[0] for key, _ in batch.scan("ref", b"\0") if key[8:] == U64.pack(clock)}:
        batch.delete("member", PAIR.pack(clock, blob))
        freed += blobs.forget(batch, blob, clock, now_s)
    _account(batch, space, tenant, size, -1)
    return Removed(clock, names.protocol, names.tenant, names.scope, names.version, name, size, freed, False)


def requeue(batch: Batch, clock: int) -> bool:
    """Move an entry to where its last use puts it in the eviction order. False: it stands there, or is gone."""
    rec = lookup.rec(batch, clock)
    used = batch.recency.get(rec.slot) if rec is not None else 0
    if rec is None or not used or (used <= rec.queued_s and rec.queue == REST):
        return False
    moved = msgspec.structs.replace(rec, queue=REST, queued_s=max(used, rec.queued_s))
    batch.delete("lru", LRU.pack(rec.tenant, rec.queue, rec.queued_s, clock))
    batch.put("lru", LRU.pack(rec.tenant, moved.queue, moved.queued_s, clock), U64.pack(rec.size))
    batch.put("rec", U64.pack(clock), pack_rec(moved))
    return True


def redirect(batch: Batch, clock: int, role: int, old: BlobRow, new: BlobRow) -> BlobRow:
    """Make an entry refer to a blob of equal content instead. Returns the new blob's row; the caller ends ``old``."""
    if role & blobs.NAMES:
        rec = lookup.rec(batch, clock)
        if rec is None:
            raise RowDamaged("rec", U64.pack(clock))
        batch.put("rec", U64.pack(clock), pack_rec(msgspec.structs.replace(rec, blob=new.id)))
    if role & blobs.MEMBER:
        batch.delete("member", PAIR.pack(clock, old.id))
        batch.put("member", PAIR.pack(clock, new.id), bytes([blobs.MEMBER]))
    batch.delete("ref", PAIR.pack(old.id, clock))
    had = batch.get("ref", PAIR.pack(new.id, clock))
    return blobs.refer(batch, new, clock, role, had[0] if had else 0)


def _account(batch: Batch, space: int, tenant: int, size: int, sign: int) -> None:
    batch.totals.entries += sign
    batch.totals.logical_bytes += sign * size
    for row in (batch.space(space), batch.tenant(tenant)):
        if row is not None:
            row.entries += sign
            row.bytes += sign * size
