"""Space that nothing names comes back: stale uploads, and files that a crash left between disk and index.

A file is live when the blob of its id lies in it, or the blob that its trailer names does (zstd makes a new file for an
old blob), or an upload has its id, or a grave will unlink it. Anything else is an orphan once it has not been written
to for ``stale_upload`` (and ORPHAN_SECONDS at least): until then it may be a value on its way in.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice

from cachesrv.store.commands import DropUpload, Filed
from cachesrv.store.constants import COMMITTER_TIMEOUT_SECONDS
from cachesrv.store.data.layout import Layout, LayoutDamaged
from cachesrv.store.data.trailers import read_trailer
from cachesrv.store.events import UploadReclaimed
from cachesrv.store.folder import FoundFiles
from cachesrv.store.store import Store

ORPHAN_SECONDS = 1.5 * COMMITTER_TIMEOUT_SECONDS
"""However short ``stale_upload`` is, a complete file may wait this long for the commit that names it."""
SWEEP_RUN = 512
"""Files looked at between two pauses ..."""
SWEEP_PAUSE_SECONDS = 0.05
"""... of this length, so that a million files are looked at in the background."""
QUARANTINE_SECONDS = 7 * 86400
"""Damaged files stay in ``q/`` this long."""


@dataclass(frozen=True, slots=True)
class Swept:
    """``removed``: ids whose files are gone. ``young``: how many nothing names, but might be on their way in."""

    removed: int
    young: int


async def drop_stale_uploads(store: Store) -> int:
    """Drop uploads that saw no byte for ``stale_upload``. Returns how many."""
    dropped = 0
    for row in store.volatile.uploads():
        upload = row.id
        if not store.is_stale(upload):
            continue
        size = await asyncio.to_thread(store.staging.disk_bytes, upload)
        # False: somebody else dropped it, or it is a blob by now.
        if await store.writer.submit(DropUpload(upload)):
            await store.staging.remove(upload)
            store.listener(UploadReclaimed(upload, size))
            dropped += 1
        await asyncio.sleep(0)
    return dropped


async def upload_bytes(store: Store) -> int:
    """Disk bytes of all uploads in flight (a stat each)."""
    uploads = [row.id for row in store.volatile.uploads()]
    return await asyncio.to_thread(lambda: sum(map(store.staging.disk_bytes, uploads))) if uploads else 0


async def sweep_all(store: Store) -> None:
    """A sweep, and another one when what was too young to be judged no longer is."""
    if (await sweep(store)).young:
        await asyncio.sleep(_orphan_age(store))
        await sweep(store)


async def sweep(store: Store) -> Swept:
    """Remove files and segments that nothing names, and what was in quarantine for long."""
    removed = young = 0
    files = store.folder.files()
    while found := await asyncio.to_thread(_take, files):
        orphans = [one for one in found if not _is_named(store, one)]
        # Graves after blobs: what leaves a blob is in a grave at the same moment.
        graves = {grave.file_id for grave in store.index.graves()} if orphans else set()
        for one in orphans:
            if one.file_id in graves:
                continue
            if not _is_old(store, one.newest_ms / 1000):
                young += 1
            elif not await _is_rewritten(store, one):
                await asyncio.to_thread(_remove, store, one)
                removed += 1
        for one in found:
            if one.has_log and _is_blob(store, one.file_id) and _is_old(store, one.newest_ms / 1000):
                await asyncio.to_thread(store.folder.remove_log, one.file_id)
        await asyncio.sleep(SWEEP_PAUSE_SECONDS)
    segments = await asyncio.to_thread(lambda: [segment for segment, _ in store.folder.segments()])
    known = {row.segment for row in store.index.segments()} | {grave.file_id for grave in store.index.graves()}
    for segment in segments:
        if segment in known:
            continue
        with suppress(FileNotFoundError):
            if _is_old(store, os.stat(store.folder.segment(segment)).st_mtime):
                await asyncio.to_thread(store.folder.remove_segment, segment)
                removed += 1
            else:
                young += 1
    await asyncio.to_thread(store.folder.forget_quarantined, store.now_ms() / 1000 - QUARANTINE_SECONDS)
    return Swept(removed, young)


def _take(files: Iterator[FoundFiles]) -> list[FoundFiles]:
    return list(islice(files, SWEEP_RUN))


def _is_named(store: Store, found: FoundFiles) -> bool:
    # The upload first: it ends in the moment in which the blob begins.
    return store.volatile.upload(found.file_id) is not None or _is_blob(store, found.file_id)


def _is_blob(store: Store, file_id: int) -> bool:
    row = store.index.blob(file_id)
    return row is not None and isinstance(row.form, Filed) and row.form.file_id == file_id


async def _is_rewritten(store: Store, found: FoundFiles) -> bool:
    """Whether these are the zstd files of a blob with another id."""
    if not found.parts:
        return False
    layout = await asyncio.to_thread(_trailer, store.folder.part(found.file_id, found.parts[-1]))
    row = layout and store.index.blob(layout.blob_id)
    return bool(row and isinstance(row.form, Filed) and row.form.file_id == found.file_id)


def _is_old(store: Store, seconds: float) -> bool:
    """Whether files last written at this Unix time cannot be on their way in any more."""
    return store.now_ms() / 1000 - seconds >= _orphan_age(store)


def _orphan_age(store: Store) -> float:
    return max(store.options.stale_upload, ORPHAN_SECONDS)


def _remove(store: Store, found: FoundFiles) -> None:
    # The parts that were seen, not a count from 0: quarantine or an interrupted removal may have left a gap.
    store.folder.remove_log(found.file_id)
    store.folder.remove_files(found.file_id, found.parts)


def _trailer(path: str) -> Layout | None:
    try:
        return read_trailer(path)
    except (OSError, LayoutDamaged):
        return None
