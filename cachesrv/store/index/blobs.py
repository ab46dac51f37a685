"""How blobs come, are referred to and die, inside a batch: rows, digests, work queues, segments, graves and sums.

A blob lives as long as ``ref`` has a row for it. When the last goes, its row stays flagged DEAD, readable by id, until
its grave is purged; its files may be unlinked once the grave is due.
"""

from __future__ import annotations

import logging
from typing import Final

import msgspec

from cachesrv.store.commands import Filed, Form, NewBlob, Packed
from cachesrv.store.constants import GRAVE_SECONDS
from cachesrv.store.index import lookup
from cachesrv.store.index.batch import Batch
from cachesrv.store.index.codec import RowDamaged
from cachesrv.store.index.lookup import GRAVE, PAIR, SHA256, TODO, U64, UNHASHED, UNPROBED
from cachesrv.store.index.rows import (
    BlobRow,
    GraveKind,
    GraveRow,
    disk_bytes,
    pack_blob,
    pack_grave,
    pack_segment,
    stored_bytes,
)

_log = logging.getLogger(__name__)
replace = msgspec.structs.replace

NAMES: Final = 1
"""Role of a ``ref``: the blob is the entry's primary one."""
MEMBER: Final = 2
"""Role of a ``ref``: the blob is a member of the entry. Both may stand."""
_ROLES: Final = tuple(bytes([role]) for role in range((NAMES | MEMBER) + 1))


def put(batch: Batch, row: BlobRow) -> None:
    batch.put("blob", U64.pack(row.id), pack_blob(row))


def live_twin(batch: Batch, sha256: bytes, size: int, other_than: int = 0) -> BlobRow | None:
    """The live blob that holds this content, if any."""
    found = lookup.by_sha256(batch, sha256) if sha256 else None
    row = lookup.blob(batch, found) if found is not None and found != other_than else None
    return row if row is not None and row.live and row.size == size else None


def create(batch: Batch, new: NewBlob, tenant: int) -> BlobRow:
    """Make a blob live, all but its row, which the caller's first :func:`refer` writes. Its segment, if any, was
    checked to stand."""
    row = BlobRow(new.id, new.form, new.size, new.sha256, new.epoch, tenant=tenant)
    if new.sha256:
        batch.put("addr", SHA256 + new.sha256, U64.pack(new.id))
    else:
        batch.put("todo", TODO.pack(UNHASHED, new.id), b"")
    if _shrinkable(new.form):
        batch.put("todo", TODO.pack(UNPROBED, new.id), b"")
    batch.totals.blobs += 1
    batch.totals.raw_bytes += new.size
    _take_form(batch, new.form, tenant)
    return row


def bury_twin(batch: Batch, new: NewBlob, successor: int, now_s: int) -> None:
    """Content that is here already: the new files go to the grave, and their blob row, dead from the start, says which
    blob stands for it."""
    row = BlobRow(new.id, new.form, new.size, new.sha256, new.epoch, successor=successor)
    if isinstance(new.form, Packed):
        _grow_segment(batch, new.form, live=0)
    _bury(batch, row, now_s)


def refer(batch: Batch, row: BlobRow, clock: int, role: int, had: int = 0) -> BlobRow:
    """Make an entry, which refers to a live blob in the roles ``had``, refer to it in another; the row as it is now."""
    batch.put("ref", PAIR.pack(row.id, clock), _ROLES[role | had])
    if role & NAMES:
        if row.names:
            batch.totals.dedup_bytes += row.size
        row = replace(row, names=row.names + 1)
        put(batch, row)
    return row


def forget(batch: Batch, blob_id: int, clock: int, now_s: int) -> int:
    """End all references of an entry to a blob. Returns the disk bytes that go to the grave (0: it lives on)."""
    key = PAIR.pack(blob_id, clock)
    try:
        had = batch.get("ref", key)
        row = lookup.blob(batch, blob_id)
    except RowDamaged as error:
        _log.error("damaged row in the index: table %s, key %s", error.table, error.key.hex())
        batch.delete("ref", key)
        return 0
    batch.delete("ref", key)
    if row is None or not had:
        return 0
    if had[0] & NAMES:
        row = replace(row, names=row.names - 1)
        if row.names:
            batch.totals.dedup_bytes -= row.size
    if row.dead or row.bad or is_referred(batch, blob_id):
        put(batch, row)
        return 0
    return die(batch, row, now_s)


def is_referred(batch: Batch, blob_id: int) -> bool:
    cursor = batch.cursor("ref")
    return bool(cursor.set_range(U64.pack(blob_id)) and cursor.key()[:8] == U64.pack(blob_id))


def die(batch: Batch, row: BlobRow, now_s: int, successor: int = 0) -> int:
    """A live blob without references goes to the grave. Returns its disk bytes."""
    retire(batch, row)
    _bury(batch, replace(row, successor=successor), now_s)
    return disk_bytes(row.form)


def retire(batch: Batch, row: BlobRow) -> None:
    """Take a live blob out of the sums, the work queues and the digests; the caller says what its row becomes."""
    if row.sha256 and lookup.by_sha256(batch, row.sha256) == row.id:
        batch.delete("addr", SHA256 + row.sha256)
    batch.delete("todo", TODO.pack(UNHASHED, row.id))
    batch.delete("todo", TODO.pack(UNPROBED, row.id))
    batch.totals.blobs -= 1
    batch.totals.raw_bytes -= row.size
    _leave_form(batch, row.form, row.tenant)


def _bury(batch: Batch, row: BlobRow, now_s: int) -> None:
    if isinstance(row.form, Filed):
        grave = GraveRow(0, row.form.file_id, GraveKind.FILES, row.form.parts, row.form.disk_bytes, row.id)
    else:
        grave = GraveRow(0, row.id, GraveKind.NOTHING, 0, 0, row.id)
    due_s = dig(batch, grave, now_s)
    put(batch, replace(row, dead=True, due_s=due_s))


def dig(batch: Batch, grave: GraveRow, now_s: int) -> int:
    """Put up a grave, due GRAVE_SECONDS from now. Returns when."""
    due_s = now_s + GRAVE_SECONDS
    while batch.has("grave", GRAVE.pack(due_s, grave.file_id)):
        due_s += 1
    batch.put("grave", GRAVE.pack(due_s, grave.file_id), pack_grave(grave))
    batch.totals.grave_bytes += grave.disk_bytes
    return due_s


def swap(batch: Batch, row: BlobRow, form: Form, now_s: int) -> None:
    """Give a live blob another form; old files go to the grave, an old record is dead at once."""
    _leave_form(batch, row.form, row.tenant)
    _take_form(batch, form, row.tenant)
    put(batch, replace(row, form=form))
    if isinstance(row.form, Filed):
        dig(batch, GraveRow(0, row.form.file_id, GraveKind.FILES, row.form.parts, row.form.disk_bytes, 0), now_s)
    if not _shrinkable(form):
        batch.delete("todo", TODO.pack(UNPROBED, row.id))


def _shrinkable(form: Form) -> bool:
    return isinstance(form, Filed) and not form.zstd


def _take_form(batch: Batch, form: Form, tenant: int) -> None:
    batch.totals.stored_bytes += stored_bytes(form)
    if isinstance(form, Filed):
        batch.totals.file_bytes += form.disk_bytes
    elif isinstance(form, Packed):
        _grow_segment(batch, form, live=1)
    _charge(batch, tenant, disk_bytes(form))


def _leave_form(batch: Batch, form: Form, tenant: int) -> None:
    batch.totals.stored_bytes -= stored_bytes(form)
    if isinstance(form, Filed):
        batch.totals.file_bytes -= form.disk_bytes
    elif isinstance(form, Packed):
        segment = lookup.segment(batch, form.segment)
        if segment is not None:
            left = replace(segment, live_bytes=segment.live_bytes - form.length, live_records=segment.live_records - 1)
            batch.put("segment", U64.pack(form.segment), pack_segment(left))
    _charge(batch, tenant, -disk_bytes(form))


def _grow_segment(batch: Batch, form: Packed, *, live: int) -> None:
    segment = lookup.segment(batch, form.segment)
    assert segment is not None
    length = max(segment.bytes, form.offset + form.length)
    batch.totals.segment_bytes += length - segment.bytes
    grown = replace(
        segment,
        bytes=length,
        live_bytes=segment.live_bytes + live * form.length,
        live_records=segment.live_records + live,
    )
    batch.put("segment", U64.pack(form.segment), pack_segment(grown))


def _charge(batch: Batch, tenant: int, size: int) -> None:
    row = batch.tenant(tenant) if size else None
    if row is not None:
        row.disk_bytes += size
