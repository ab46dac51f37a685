"""What is done behind the acknowledgement: SHA-256 of blobs that arrived in blocks (equal content is then stored once),
zstd of what shrinks. Nothing depends on either for correctness; both take from small work queues in the index."""

from __future__ import annotations

import asyncio

from cachesrv.store.commands import Filed, MarkProbed, SetDigest, SwapForm
from cachesrv.store.constants import COMMIT_BATCH
from cachesrv.store.errors import BlobDamaged, BlobMissing
from cachesrv.store.events import BytesSaved
from cachesrv.store.index import BlobRow
from cachesrv.store.store import Store

SETTLE_SECONDS = 30.0
"""A blob is left alone for this long: jobs that save often restore at once, and hashing 1 GiB beside them on two cores
made the restore a third slower."""


async def digest_some(store: Store, *, settle: float = 0.0) -> int:
    """Hash what has no digest yet and was saved ``settle`` seconds ago, oldest first. Returns how many were looked
    at."""
    done = 0
    for blob_id in store.index.unhashed(COMMIT_BATCH):
        row = store.index.blob(blob_id)
        if row is None or not row.live:
            continue
        if not _is_settled(store, row, settle):
            break
        done += 1
        try:
            sha256 = await store.background.sha256_of(row.form, blob_id, row.size)
        except BlobDamaged as error:
            await store.quarantiner.damaged(blob_id, row.form, str(error))
            continue
        except BlobMissing:
            await store.quarantiner.missing(blob_id, row.form)
            continue
        stands = await store.writer.submit(SetDigest(blob_id, sha256, store.now_ms()))
        if stands not in (0, blob_id):
            size = row.form.disk_bytes if isinstance(row.form, Filed) else row.size
            store.listener(BytesSaved("dedup", size))
    return done


async def compress_some(store: Store, *, settle: float = 0.0) -> int:
    """Rewrite what shrinks and was saved ``settle`` seconds ago as zstd frames, oldest first. Returns how many were
    looked at.

    What would not leave the free-space floor alone, were it as large as before, waits."""
    done = 0
    for blob_id in store.index.unprobed(COMMIT_BATCH):
        row = store.index.blob(blob_id)
        if row is None or not row.live or not isinstance(row.form, Filed) or row.form.zstd:
            continue
        if not _is_settled(store, row, settle):
            break
        if store.options.zstd_level and not store.folder.has_room(row.form.disk_bytes, store.options.min_free):
            continue
        done += 1
        smaller: Filed | None = None
        if store.options.zstd_level:
            try:
                smaller = await store.background.compress(
                    row.form, blob_id, row.size, await store.new_id(), store.options.zstd_level
                )
            except BlobDamaged as error:
                await store.quarantiner.damaged(blob_id, row.form, str(error))
                continue
            except BlobMissing:
                await store.quarantiner.missing(blob_id, row.form)
                continue
        if smaller is None:
            await store.writer.submit(MarkProbed([blob_id]))
        elif await store.writer.submit(SwapForm(blob_id, row.form, smaller, store.now_ms())):
            store.listener(BytesSaved("zstd", row.form.disk_bytes - smaller.disk_bytes))
        else:
            await asyncio.to_thread(store.folder.remove_files, smaller.file_id, smaller.parts)
    return done


def _is_settled(store: Store, row: BlobRow, settle: float) -> bool:
    """Ids grow with time: what comes after one that is not settled is not settled either."""
    if not settle or not isinstance(row.form, Filed):
        return True
    written = store.folder.written(row.form)
    return written is None or store.now_ms() / 1000 - written >= settle
