"""Space that nothing names comes back: stale uploads, and files that a crash left between disk and index.

A file is live when the blob of its id lies in it, or the blob that its trailer names does (zstd makes a new file for an
old blob), or an upload has its id, or a grave will unlink it. Anything else is an orphan once it has not been written
to for ``stale_upload``: until then it may be a value on its way in.
"""

from __future__ import annotations

import asyncio
import os
from contextlib import suppress

from cachesrv.store.commands import DropSegment, DropUpload, Filed
from cachesrv.store.data.layout import Layout, LayoutDamaged
from cachesrv.store.data.trailers import read_trailer
from cachesrv.store.events import UploadReclaimed
from cachesrv.store.folder import FoundFiles
from cachesrv.store.model import BlobId
from cachesrv.store.store import Store

SWEEP_PAUSE_SECONDS = 0.01
"""Pause after each bucket of the sweep, so that a million files are looked at in the background."""


async def drop_stale_uploads(store: Store) -> int:
    """Drop uploads that saw no byte for ``stale_upload``. Returns how many."""
    dropped = 0
    for row in store.volatile.uploads():
        upload = row.id
        if not store.is_stale(upload):
            continue
        size = await asyncio.to_thread(store.staging.disk_bytes, upload)
        if await store.writer.submit(DropUpload(upload)):
            if not _named(store, upload):
                await store.staging.remove(upload)
            store.listener(UploadReclaimed(upload, size))
            dropped += 1
    return dropped


def upload_bytes(store: Store) -> int:
    """Disk bytes of all uploads in flight (a stat each)."""
    return sum(store.staging.disk_bytes(row.id) for row in store.volatile.uploads())


async def sweep(store: Store) -> int:
    """Remove files and segments that nothing names. Returns how many ids."""
    removed = 0
    buckets = store.folder.files()
    while True:
        found = await asyncio.to_thread(next, buckets, None)
        if found is None:
            break
        removed += await _sweep_one(store, found)
    graves = {grave.file_id for grave in store.index.graves()}
    known = {row.segment for row in store.index.segments()} | graves
    for segment, _ in await asyncio.to_thread(lambda: list(store.folder.segments())):
        path = store.folder.segment(segment)
        with suppress(FileNotFoundError):
            if segment not in known and store.is_old(os.stat(path).st_mtime):
                await asyncio.to_thread(os.unlink, path)
                removed += 1
    return removed


async def _sweep_one(store: Store, found: FoundFiles) -> int:
    if not store.is_old(found.newest_ms / 1000) or store.volatile.upload(found.file_id) is not None:
        return 0
    if _named(store, found.file_id):
        if found.has_log:
            await asyncio.to_thread(store.folder.remove_log, found.file_id)
        return 0
    if any(grave.file_id == found.file_id for grave in store.index.graves()):
        return 0
    if found.parts:
        layout = await asyncio.to_thread(_trailer, store.folder.part(found.file_id, found.parts[-1]))
        row = layout and store.index.blob(BlobId(layout.blob_id))
        if row and isinstance(row.form, Filed) and row.form.file_id == found.file_id:
            return 0
    # The parts that were seen, not a count from 0: quarantine or an interrupted removal may have left a gap.
    await asyncio.to_thread(store.folder.remove_log, found.file_id)
    await asyncio.to_thread(store.folder.remove_files, found.file_id, found.parts)
    return 1


def _named(store: Store, file_id: int) -> bool:
    row = store.index.blob(BlobId(file_id))
    return row is not None and isinstance(row.form, Filed) and row.form.file_id == file_id


def _trailer(path: str) -> Layout | None:
    try:
        return read_trailer(path)
    except (OSError, LayoutDamaged):
        return None


async def drop_dead_segments(store: Store) -> int:
    """Let go of sealed segments in which nothing lives. Returns how many."""
    dropped = 0
    for row in store.index.segments():
        if row.sealed_ms and row.live_records == 0:
            dropped += bool(await store.writer.submit(DropSegment(row.segment, store.now_ms())))
    return dropped
