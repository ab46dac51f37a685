"""Unlinking what was removed, once its grace is over: one file at a time, in a thread, so that a disk that discards on
unlink never stalls a request. Removed rows come first, files second, the grave's own row last: a crash in between only
means that the unlink is tried again. A file that cannot be unlinked now keeps its grave and holds up no other."""

from __future__ import annotations

import asyncio

from cachesrv.store.commands import Purge
from cachesrv.store.constants import COMMIT_BATCH, GRAVE_SECONDS
from cachesrv.store.errors import StoreError
from cachesrv.store.index.rows import GraveKind, GraveRow
from cachesrv.store.store import Store

HURRY_SECONDS = 5
"""The grace that is left when the disk cannot wait: longer than a look-up and the open behind it, and as long as
workers take to let go of files. What is evicted was promised to nobody; open readers finish in any case."""


async def bury(store: Store, *, hurry: bool = False) -> int:
    """Unlink what is due now; ``hurry``: what has lain for HURRY_SECONDS. Returns how many graves were closed.

    Raises the last error, when all is tried, if a file could not be unlinked."""
    now_s = store.now_ms() // 1000
    due_s = now_s + GRAVE_SECONDS - HURRY_SECONDS if hurry else now_s
    closed = 0
    stuck: set[GraveRow] = set()
    failure: StoreError | None = None
    while True:
        due = store.index.graves_due(due_s, COMMIT_BATCH + len(stuck))
        graves = [grave for grave in due if grave not in stuck][:COMMIT_BATCH]
        done: list[tuple[int, int]] = []
        for grave in graves:
            try:
                await asyncio.to_thread(_unlink, store, grave)
                done.append((grave.due_s, grave.file_id))
            except StoreError as error:
                stuck.add(grave)
                failure = error
        if done:
            await store.writer.submit(Purge(done))
            closed += len(done)
        elif failure is not None:
            raise failure
        else:
            return closed


def _unlink(store: Store, grave: GraveRow) -> None:
    if grave.kind is GraveKind.SEGMENT:
        store.folder.remove_segment(grave.file_id)
    elif grave.kind is GraveKind.FILES:
        store.folder.remove_files(grave.file_id, grave.parts)
