"""Unlinking what was removed, once its grace is over: one file at a time, in a thread, so that a disk that discards on
unlink never stalls a request. Removed rows come first, files second, the grave's own row last: a crash in between only
means that the unlink is tried again."""

from __future__ import annotations

import asyncio
import os
from contextlib import suppress

from cachesrv.store.commands import Purge
from cachesrv.store.constants import COMMIT_BATCH
from cachesrv.store.index.rows import GraveKind
from cachesrv.store.store import Store


async def bury(store: Store) -> int:
    """Unlink what is due now. Returns how many graves were closed."""
    closed = 0
    while graves := store.index.graves_due(int(store.now_ms() // 1000), COMMIT_BATCH):
        for grave in graves:
            if grave.kind is GraveKind.SEGMENT:
                with suppress(FileNotFoundError):
                    await asyncio.to_thread(os.unlink, store.folder.segment(grave.file_id))
            elif grave.kind is GraveKind.FILES:
                await asyncio.to_thread(store.folder.remove_files, grave.file_id, grave.parts)
        await store.writer.submit(Purge([(grave.due_s, grave.file_id) for grave in graves]))
        closed += len(graves)
    return closed
