"""Pack segments: sealing what a dead worker left open, letting go of dead ones, rewriting those that are mostly dead.

Every entry has its own place in the eviction order, so a segment empties record by record; one whose live share fell
below LIVE_SHARE (PRESSED_SHARE while the disk is short) is rewritten, the emptiest first, which bounds the disk that
packs take. A record is copied to a segment of this process, synced whatever the durability, and swapped in the index
if it still is where it was.
"""

from __future__ import annotations

import asyncio
import os

from cachesrv.store.commands import DropSegment, Packed, SealSegment, SwapForm
from cachesrv.store.constants import COMMIT_BATCH, COMMITTER_TIMEOUT_SECONDS, MiB
from cachesrv.store.data.packs import is_owned, read_record, scan
from cachesrv.store.data.records import HEADER_BYTES
from cachesrv.store.errors import BlobDamaged, BlobMissing
from cachesrv.store.index.rows import BlobRow, SegmentRow
from cachesrv.store.store import Store

LIVE_SHARE = 0.5
"""A sealed segment with a smaller share of live bytes is rewritten."""
PRESSED_SHARE = 0.75
"""The same while the disk is short: three bytes are copied to win one, at worst."""
SETTLE_SECONDS = 1.5 * COMMITTER_TIMEOUT_SECONDS
"""A segment is left alone this long after it was sealed: commits of its last records may be under way."""
MOVE_BYTES = 8 * MiB
"""Records moved together, so that they share syncs: at most so many bytes ..."""
MOVE_RECORDS = 128
"""... and records."""


async def tidy(store: Store, *, pressed: bool = False) -> int:
    """One round. Returns how many segments were sealed, rewritten or dropped."""
    done = await seal_orphans(store)
    share = PRESSED_SHARE if pressed else LIVE_SHARE
    for row in sorted(store.index.segments(), key=_live_share):
        if _is_settled(store, row) and row.live_records and _live_share(row) < share:
            await rewrite(store, row.segment)
            done += 1
    return done + await drop_dead(store)


def coming_back(store: Store) -> int:
    """Bytes of dead records that will be given back without evicting anything."""
    return sum(
        row.bytes - row.live_bytes
        for row in store.index.segments()
        if not _is_settled(store, row) or _live_share(row) < PRESSED_SHARE
    )


async def seal_orphans(store: Store) -> int:
    """Seal segments whose worker is gone: nobody holds their lock, or it died before it made the file."""
    sealed = 0
    for row in store.index.segments():
        if not row.sealed_ms and await asyncio.to_thread(_is_left, store, row):
            length = await asyncio.to_thread(store.folder.segment_bytes, row.segment)
            sealed += bool(await store.writer.submit(SealSegment(row.segment, length, store.now_ms())))
    return sealed


async def rewrite(store: Store, segment: int) -> int:
    """Move what lives in ``segment`` to a segment of this process. Returns how many records moved."""
    try:
        found = await asyncio.to_thread(lambda: list(scan(store.folder, segment)))
    except BlobMissing:
        found = []
    moved = await _move_all(
        store,
        [(header.blob_id, Packed(segment, offset, HEADER_BYTES + header.length)) for offset, header in found],
    )
    left = next((row.live_records for row in store.index.segments() if row.segment == segment), 0)
    if left:
        # Records that a scan does not find are damaged: their blobs are known to the index alone. Rare, and slow.
        moved += await _move_all(store, await _blobs_in(store, segment))
    return moved


async def drop_dead(store: Store) -> int:
    """Let go of sealed segments in which nothing lives. Returns how many."""
    dropped = 0
    for row in store.index.segments():
        if _is_settled(store, row) and row.live_records == 0:
            dropped += bool(await store.writer.submit(DropSegment(row.segment, store.now_ms())))
    return dropped


def _is_settled(store: Store, row: SegmentRow) -> bool:
    return bool(row.sealed_ms) and store.now_ms() - row.sealed_ms >= SETTLE_SECONDS * 1000


def _live_share(row: SegmentRow) -> float:
    return row.live_bytes / row.bytes if row.bytes else 0.0


def _is_left(store: Store, row: SegmentRow) -> bool:
    if not is_owned(store.folder, row.segment):
        return True
    return not os.path.exists(store.folder.segment(row.segment)) and store.is_old(row.opened_ms / 1000)


async def _blobs_in(store: Store, segment: int) -> list[tuple[int, Packed]]:
    found: list[tuple[int, Packed]] = []
    at = 0
    while rows := store.index.blobs_after(at, COMMIT_BATCH):
        at = rows[-1].id
        found += [(row.id, row.form) for row in rows if isinstance(row.form, Packed) and row.form.segment == segment]
        await asyncio.sleep(0)
    return found


async def _move_all(store: Store, records: list[tuple[int, Packed]]) -> int:
    moved = 0
    group: list[BlobRow] = []
    size = 0
    for blob_id, form in records:
        row = store.index.blob(blob_id)
        if row is None or not row.live or row.form != form:
            continue
        group.append(row)
        size += form.length
        if size >= MOVE_BYTES or len(group) >= MOVE_RECORDS:
            moved += await _move_group(store, group)
            group, size = [], 0
    return moved + await _move_group(store, group)


async def _move_group(store: Store, rows: list[BlobRow]) -> int:
    results = await asyncio.gather(*(_move(store, row) for row in rows), return_exceptions=True)
    for result in results:
        if isinstance(result, BaseException):
            raise result
    return sum(result is True for result in results)


async def _move(store: Store, row: BlobRow) -> bool:
    assert isinstance(row.form, Packed)
    try:
        payload = await asyncio.to_thread(read_record, store.folder, row.form, row.id)
    except BlobDamaged as error:
        await store.quarantiner.damaged(row.id, row.form, str(error))
        return False
    except BlobMissing:
        await store.quarantiner.missing(row.id, row.form)
        return False
    form = await store.moved.append(row.id, payload, row.sha256)
    return await store.writer.submit(SwapForm(row.id, row.form, form, store.now_ms()))
