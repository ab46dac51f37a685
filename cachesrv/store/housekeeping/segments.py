"""Pack segments: sealing what a dead worker left open, letting go of dead ones, rewriting those that are mostly dead.

Every entry has its own place in the eviction order, so a segment empties record by record; one whose live share fell
below LIVE_SHARE is rewritten, oldest first, which bounds the disk that packs take to 1 / LIVE_SHARE of what lives in
them. A record is copied to this process's own segment, synced, and swapped in the index if it still is where it was.
"""

from __future__ import annotations

import asyncio

from cachesrv.store.commands import Packed, SealSegment, SwapForm
from cachesrv.store.data.packs import is_owned, read_record, scan
from cachesrv.store.errors import BlobDamaged
from cachesrv.store.housekeeping.reclaim import drop_dead_segments
from cachesrv.store.model import BlobId
from cachesrv.store.store import Store

LIVE_SHARE = 0.5
"""A sealed segment with a smaller share of live bytes is rewritten."""


async def tidy(store: Store) -> int:
    """One round. Returns how many segments were sealed, rewritten or dropped."""
    done = await seal_orphans(store)
    for row in sorted(store.index.segments(), key=lambda row: row.sealed_ms):
        if row.sealed_ms and row.live_records and row.live_bytes < row.bytes * LIVE_SHARE:
            await rewrite(store, row.segment)
            done += 1
    return done + await drop_dead_segments(store)


async def seal_orphans(store: Store) -> int:
    """Seal segments whose worker is gone: nobody holds their lock."""
    sealed = 0
    for row in store.index.segments():
        if not row.sealed_ms and not await asyncio.to_thread(is_owned, store.folder, row.segment):
            length = await asyncio.to_thread(store.folder.segment_bytes, row.segment)
            sealed += bool(await store.writer.submit(SealSegment(row.segment, length, store.now_ms())))
    return sealed


async def rewrite(store: Store, segment: int) -> int:
    """Move what lives in ``segment`` to the open segment of this process. Returns how many records moved."""
    moved = 0
    for offset, header in await asyncio.to_thread(lambda: list(scan(store.folder, segment))):
        row = store.index.blob(BlobId(header.blob_id))
        if row is None or row.dead or not isinstance(row.form, Packed):
            continue
        if (row.form.segment, row.form.offset) != (segment, offset):
            continue
        try:
            payload = await asyncio.to_thread(read_record, store.folder, row.form, header.blob_id)
        except BlobDamaged as error:
            await store.quarantiner.damaged(BlobId(header.blob_id), str(error))
            continue
        form = await store.packs.append(header.blob_id, payload, row.sha256)
        moved += bool(await store.writer.submit(SwapForm(header.blob_id, row.form, form, store.now_ms())))
    return moved
