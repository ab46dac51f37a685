"""What each command does to the rows of a batch. The contract of every command is in ``cachesrv.store.commands``.

A command looks at everything first and writes last: a StoreError that is raised here left nothing behind in the batch
(RowDamaged excepted, which may come in the middle, so its batch must be thrown away).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import msgspec

from cachesrv.store.commands import (
    Command,
    Commit,
    Committed,
    Delete,
    DropSegment,
    DropUpload,
    LeaseIds,
    MarkProbed,
    MarkProven,
    NewBlob,
    OpenSegment,
    Packed,
    Purge,
    PutRows,
    Quarantine,
    Removed,
    Requeue,
    Reserve,
    Reserved,
    SealSegment,
    SetDigest,
    SetMeta,
    SwapForm,
)
from cachesrv.store.constants import COMMIT_BATCH
from cachesrv.store.errors import BlobMissing, DigestMismatch, EntryExists, LimitExceeded, UploadUnknown
from cachesrv.store.index import blobs, entries, lookup
from cachesrv.store.index.batch import Batch
from cachesrv.store.index.codec import TEXT_LIMIT, RowDamaged
from cachesrv.store.index.lookup import GRAVE, PAIR, SHA256, TODO, U64, UNHASHED, UNPROBED
from cachesrv.store.index.rows import (
    BlobRow,
    GraveKind,
    GraveRow,
    RecRow,
    SegmentRow,
    UploadRow,
    pack_segment,
    unpack_grave,
)
from cachesrv.store.index.volatile import drop_upload, holder, put_finished, put_upload, upload_row
from cachesrv.store.model import EntryFlag

SHA256_BYTES: Final = 32
TABLE_KEY_BYTES: Final = 511
"""A key of LMDB has at most this many bytes, and at least one."""
replace = msgspec.structs.replace
_IMMUTABLE: Final = int(EntryFlag.IMMUTABLE)
_GROWING: Final = frozenset({Reserve, Commit})


def apply(batch: Batch, command: Command) -> Any:
    """Apply one command; its answer. Raises StoreError, having written nothing, when it is refused."""
    return _APPLY[type(command)](batch, command)


def grows(command: Command) -> bool:
    """Whether a command is refused while the index is full."""
    return type(command) in _GROWING


def _lease(batch: Batch, command: LeaseIds) -> int:
    if not 0 < command.count <= 1 << 20:
        raise LimitExceeded("a lease takes between one and 1,048,576 ids")
    return batch.lease(command.count)


# -- uploads -----------------------------------------------------------------------------------------------------------


def _reserve(batch: Batch, command: Reserve) -> Reserved:
    _check_texts(command.key, command.writer)
    standing = holder(batch.volatile, command.space, command.key)
    if standing == command.upload_id and upload_row(batch.volatile, standing) is not None:
        return Reserved("reserved")
    found = entries.find(batch, command.space, command.key)
    if found is not None and found[1].flags & _IMMUTABLE:
        return Reserved("committed", found[0])
    if standing is not None and standing != command.replacing and upload_row(batch.volatile, standing) is not None:
        return Reserved("in-flight", standing)
    if batch.refusal is not None:
        raise batch.refusal
    if standing is not None:
        drop_upload(batch.volatile, standing)
    put_upload(
        batch.volatile,
        UploadRow(command.upload_id, command.space, command.key, command.flags, command.writer, command.now_ms),
    )
    return Reserved("reserved")


def _drop_upload(batch: Batch, command: DropUpload) -> bool:
    stood = drop_upload(batch.volatile, command.upload_id)
    # An upload whose commit stands while its row survived a crash: its files are a blob's now, and not the sender's.
    return stood and lookup.blob(batch, command.upload_id) is None


# -- entries -----------------------------------------------------------------------------------------------------------


def _commit(batch: Batch, command: Commit) -> Committed:
    _check_texts(command.key, command.writer)
    found = entries.find(batch, command.space, command.key)
    primary, twin = _primary(batch, command)
    if found is not None and primary is not None and primary.id == found[1].blob:
        return _commit_again(batch, command, found, primary, twin)
    if command.upload_id:
        _check_reservation(batch, command)
    if found is not None and (found[1].flags | command.flags) & _IMMUTABLE:
        raise EntryExists("an entry with this key is already committed")
    if primary is not None and not primary.live:
        raise BlobMissing("the blob is gone")
    if primary is None and isinstance(command.blob, int):
        raise BlobMissing("no such blob")
    members = _members(batch, command, primary)
    if batch.refusal is not None:
        raise batch.refusal
    if primary is None or twin:
        _check_form(batch, command.blob)

    clock = batch.tick(command.now_ms)
    space = batch.make_space(command.space)
    if primary is None:
        assert isinstance(command.blob, NewBlob)
        primary = blobs.create(batch, command.blob, space.tenant)
    elif twin:
        assert isinstance(command.blob, NewBlob)
        blobs.bury_twin(batch, command.blob, primary.id, command.now_ms // 1000)
    entries.insert(
        batch, clock, space, command.key, command.flags, command.writer, command.now_ms, primary, members, found
    )
    if command.upload_id:
        drop_upload(batch.volatile, command.upload_id)
        put_finished(batch.volatile, command.upload_id, clock)
    return Committed(clock, True)


def _commit_again(batch: Batch, command: Commit, found: tuple[int, RecRow], primary: BlobRow, twin: bool) -> Committed:
    """The entry has this content already: a repeat of its own commit, or somebody who saved the same again."""
    clock, rec = found
    if twin:
        assert isinstance(command.blob, NewBlob)
        if command.upload_id:
            _check_reservation(batch, command)
        _check_form(batch, command.blob)
        blobs.bury_twin(batch, command.blob, primary.id, command.now_ms // 1000)
    if command.upload_id:
        drop_upload(batch.volatile, command.upload_id)
        put_finished(batch.volatile, command.upload_id, clock)
    return Committed(clock, not twin and rec.created_ms == command.now_ms and rec.writer == command.writer)


def _primary(batch: Batch, command: Commit) -> tuple[BlobRow | None, bool]:
    """The blob that a commit is about, as far as the index has it; and whether that is another one of equal content,
    while the new blob itself is not known yet."""
    new = command.blob
    if isinstance(new, int):
        return _standing(batch, new), False
    row = _standing(batch, new.id)
    if row is not None:
        return row, False
    twin = blobs.live_twin(batch, new.sha256, new.size)
    return twin, twin is not None


def _standing(batch: Batch, blob_id: int) -> BlobRow | None:
    """A blob, or the one of equal content that took its place."""
    row = lookup.blob(batch, blob_id)
    if row is not None and row.successor:
        return lookup.blob(batch, row.successor)
    return row


def _members(batch: Batch, command: Commit, primary: BlobRow | None) -> list[BlobRow]:
    own = primary.id if primary is not None else command.blob.id if isinstance(command.blob, NewBlob) else 0
    found: dict[int, BlobRow] = {}
    for member in command.members:
        row = _standing(batch, member)
        if row is None or not row.live:
            raise BlobMissing("a member of the entry is gone")
        if row.id != own:
            found[row.id] = row
    return list(found.values())


def _check_reservation(batch: Batch, command: Commit) -> None:
    row = upload_row(batch.volatile, command.upload_id)
    if row is None or holder(batch.volatile, command.space, command.key) != command.upload_id:
        raise UploadUnknown("no such upload")


def _check_form(batch: Batch, blob: NewBlob | int) -> None:
    if not isinstance(blob, NewBlob):
        return
    if blob.sha256 and len(blob.sha256) != SHA256_BYTES:
        raise DigestMismatch("a SHA-256 has 32 bytes")
    if isinstance(blob.form, Packed) and lookup.segment(batch, blob.form.segment) is None:
        raise BlobMissing("the pack segment is gone")


def _check_texts(*texts: str) -> None:
    if any(len(text.encode()) > TEXT_LIMIT for text in texts):
        raise LimitExceeded(f"a key or name is longer than {TEXT_LIMIT} bytes")


def _delete(batch: Batch, command: Delete) -> list[Removed]:
    _check_count(command.entry_ids)
    removed = []
    since = command.unless_used_since_s
    for clock in command.entry_ids:
        try:
            rec = lookup.rec(batch, clock)
        except RowDamaged:
            removed.append(entries.expunge(batch, clock, command.now_ms // 1000))
            continue
        if rec is not None and not (since and batch.recency.get(rec.slot) >= since):
            removed.append(entries.remove(batch, clock, rec, command.now_ms // 1000))
    return removed


def _requeue(batch: Batch, command: Requeue) -> int:
    _check_count(command.entry_ids)
    return sum(entries.requeue(batch, clock) for clock in command.entry_ids)


def _check_count(ids: list[Any]) -> None:
    if len(ids) > COMMIT_BATCH:
        raise LimitExceeded(f"a command names at most {COMMIT_BATCH} rows")


# -- blobs -------------------------------------------------------------------------------------------------------------


def _purge(batch: Batch, command: Purge) -> int:
    _check_count(command.graves)
    count = 0
    for due_s, file_id in command.graves:
        key = GRAVE.pack(due_s, file_id)
        payload = batch.get("grave", key)
        if payload is None:
            continue
        grave = unpack_grave(due_s, file_id, payload)
        batch.delete("grave", key)
        batch.totals.grave_bytes -= grave.disk_bytes
        row = lookup.blob(batch, grave.blob_id) if grave.blob_id else None
        if row is not None and not row.live:
            batch.delete("blob", U64.pack(row.id))
        count += 1
    return count


def _swap_form(batch: Batch, command: SwapForm) -> bool:
    row = lookup.blob(batch, command.blob_id)
    if row is None:
        return False
    if row.form == command.form:
        return True
    if not row.live or row.form != command.expected:
        return False
    if isinstance(command.form, Packed) and lookup.segment(batch, command.form.segment) is None:
        raise BlobMissing("the pack segment is gone")
    blobs.swap(batch, row, command.form, command.now_ms // 1000)
    return True


def _set_digest(batch: Batch, command: SetDigest) -> int:
    if len(command.sha256) != SHA256_BYTES:
        raise DigestMismatch("a SHA-256 has 32 bytes")
    row = lookup.blob(batch, command.blob_id)
    if row is None or row.bad or (row.dead and not row.successor):
        return 0
    if row.dead:
        return row.successor
    if row.sha256:
        if row.sha256 != command.sha256:
            raise DigestMismatch("the blob has another digest")
        return row.id
    twin = blobs.live_twin(batch, command.sha256, row.size, other_than=row.id)
    if twin is None:
        blobs.put(batch, replace(row, sha256=command.sha256))
        batch.put("addr", SHA256 + command.sha256, U64.pack(row.id))
        batch.delete("todo", TODO.pack(UNHASHED, row.id))
        return row.id
    names = row.names
    for key, _ in list(batch.scan("ref", U64.pack(row.id), U64.pack(row.id + 1))):
        clock = PAIR.unpack(key)[1]
        role = batch.get("ref", key)
        assert role is not None
        twin = entries.redirect(batch, clock, role[0], row, twin)
    # The references that it had beyond the first were counted as saved with it, and are now counted with its twin.
    batch.totals.dedup_bytes -= max(names - 1, 0) * row.size
    blobs.die(batch, replace(row, names=0), command.now_ms // 1000, successor=twin.id)
    return twin.id


def _mark_probed(batch: Batch, command: MarkProbed) -> int:
    return _mark(batch, command.blob_ids, UNPROBED, probed=True)


def _mark_proven(batch: Batch, command: MarkProven) -> int:
    return _mark(batch, command.blob_ids, None, epoch=0)


def _mark(batch: Batch, ids: list[int], done: int | None, **changes: Any) -> int:
    _check_count(ids)
    count = 0
    for blob_id in ids:
        row = lookup.blob(batch, blob_id)
        if row is None or not row.live:
            continue
        blobs.put(batch, replace(row, **changes))
        if done is not None:
            batch.delete("todo", TODO.pack(done, blob_id))
        count += 1
    return count


def _quarantine(batch: Batch, command: Quarantine) -> list[Removed]:
    row = lookup.blob(batch, command.blob_id)
    if row is None or row.bad:
        return []
    now_s = command.now_ms // 1000
    if row.dead:
        blobs.put(batch, replace(row, bad=True))
        return []
    blobs.retire(batch, row)
    blobs.put(batch, replace(row, bad=True))
    clocks = [PAIR.unpack(key)[1] for key, _ in batch.scan("ref", U64.pack(row.id), U64.pack(row.id + 1))]
    removed = []
    for clock in clocks:
        try:
            rec = lookup.rec(batch, clock)
        except RowDamaged:
            removed.append(entries.expunge(batch, clock, now_s))
            continue
        if rec is not None:
            removed.append(entries.remove(batch, clock, rec, now_s))
    blobs.dig(batch, GraveRow(0, row.id, GraveKind.NOTHING, 0, 0, row.id), now_s)
    return removed


# -- segments ----------------------------------------------------------------------------------------------------------


def _open_segment(batch: Batch, command: OpenSegment) -> bool:
    if lookup.segment(batch, command.segment) is None:
        row = SegmentRow(command.segment, command.now_ms, 0, 0, 0, 0)
        batch.put("segment", U64.pack(command.segment), pack_segment(row))
    return True


def _seal_segment(batch: Batch, command: SealSegment) -> bool:
    row = lookup.segment(batch, command.segment)
    if row is not None and not row.sealed_ms:
        length = max(row.bytes, command.length)
        batch.totals.segment_bytes += length - row.bytes
        sealed = replace(row, sealed_ms=command.now_ms, bytes=length)
        batch.put("segment", U64.pack(command.segment), pack_segment(sealed))
    return True


def _drop_segment(batch: Batch, command: DropSegment) -> bool:
    row = lookup.segment(batch, command.segment)
    if row is None:
        return True
    if not row.sealed_ms or row.live_records:
        return False
    batch.delete("segment", U64.pack(command.segment))
    batch.totals.segment_bytes -= row.bytes
    blobs.dig(batch, GraveRow(0, command.segment, GraveKind.SEGMENT, 0, row.bytes, 0), command.now_ms // 1000)
    return True


# -- named values ------------------------------------------------------------------------------------------------------


def _set_meta(batch: Batch, command: SetMeta) -> bool:
    return _put_rows(batch, "meta", {name.encode(): value for name, value in command.values.items()})


def _put_side(batch: Batch, command: PutRows) -> bool:
    return _put_rows(batch, "side", command.rows)


def _put_rows(batch: Batch, table: str, rows: dict[bytes, bytes]) -> bool:
    if any(not 0 < len(key) <= TABLE_KEY_BYTES for key in rows):
        raise LimitExceeded(f"the key of a row has between one and {TABLE_KEY_BYTES} bytes")
    for key, value in rows.items():
        if value or table == "meta":
            batch.put(table, key, value)
        else:
            batch.delete(table, key)
    return True


_APPLY: Final[dict[type[Command], Callable[[Batch, Any], Any]]] = {
    LeaseIds: _lease,
    Reserve: _reserve,
    DropUpload: _drop_upload,
    Commit: _commit,
    Delete: _delete,
    Requeue: _requeue,
    Purge: _purge,
    SwapForm: _swap_form,
    SetDigest: _set_digest,
    MarkProbed: _mark_probed,
    MarkProven: _mark_proven,
    Quarantine: _quarantine,
    OpenSegment: _open_segment,
    SealSegment: _seal_segment,
    DropSegment: _drop_segment,
    SetMeta: _set_meta,
    PutRows: _put_side,
}
