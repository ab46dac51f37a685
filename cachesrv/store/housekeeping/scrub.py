"""The scrub: every blob is read and checked in turn, at a bounded rate, for ever. What is damaged is quarantined before
a client meets it. The place where it stands is kept in the index (meta ``scrub-at``), so a restart goes on.

And the epochs of relaxed durability (see :mod:`cachesrv.store.epochs`): made durable while the store runs, checked
after an unclean stop."""

from __future__ import annotations

import asyncio

from cachesrv.store import epochs
from cachesrv.store.commands import Inline, MarkProven, SetMeta
from cachesrv.store.constants import COMMIT_BATCH
from cachesrv.store.errors import BlobMissing
from cachesrv.store.index.rows import BlobRow
from cachesrv.store.store import Store

PAUSE_SECONDS = 0.1
"""Pause after each COMMIT_BATCH of blobs: the rate counts bytes, and small blobs have few."""


async def scrub_all(store: Store) -> None:
    """Check from where the last scrub stood to the last blob, at ``scrub_rate``."""
    more = True
    while more:
        more = await scrub_some(store)
        await asyncio.sleep(PAUSE_SECONDS)


async def scrub_some(store: Store) -> bool:
    """Check the next run of blobs at ``scrub_rate``. Returns False when the end was reached and it starts over."""
    at = int(store.index.meta("scrub-at") or b"0")
    rows = store.index.blobs_after(at, COMMIT_BATCH)
    await _check(store, [row for row in rows if row.live and not isinstance(row.form, Inline)], "scrub")
    await store.writer.submit(SetMeta({"scrub-at": b"%d" % (rows[-1].id if rows else 0)}))
    return bool(rows)


async def prove_suspects(store: Store) -> int:
    """After an unclean stop in relaxed mode: check every blob that it left unproven, then forget the suspicion.
    Returns how many were checked. Until then each is checked when it is asked for."""
    suspect = store.index.meta("suspect")
    if not suspect:
        return 0
    checked = at = 0
    while rows := store.index.blobs_after(at, COMMIT_BATCH):
        at = rows[-1].id
        doubted = [row for row in rows if row.live and row.epoch and epochs.is_suspect(store.index, row.epoch)]
        await _check(store, doubted, "not whole after an unclean stop")
        checked += len(doubted)
    await store.writer.submit(SetMeta({"suspect": b""}))
    return checked


async def _check(store: Store, rows: list[BlobRow], why: str) -> None:
    proven: list[int] = []
    for row in rows:
        try:
            damage = await store.background.check(row.form, row.id, row.size)
        except BlobMissing:
            await store.quarantiner.missing(row.id, row.form)
            continue
        if damage:
            await store.quarantiner.damaged(row.id, row.form, f"{why}: {len(damage)} damaged pieces")
        elif row.epoch and epochs.is_suspect(store.index, row.epoch):
            proven.append(row.id)
    if proven:
        await store.writer.submit(MarkProven(proven))


class Epochs:
    """Relaxed mode: makes everything written up to now durable, and says so. Remembers what it saw last, so that a
    store in which nothing happens is left alone."""

    def __init__(self) -> None:
        self._seen = 0

    async def advance(self, store: Store) -> None:
        if store.index.changes() == self._seen:
            return
        epoch = epochs.current(store.index)
        await store.writer.submit(SetMeta({"epoch": b"%d" % (epoch + 1)}))
        began = store.index.changes()
        await asyncio.to_thread(store.folder.sync_everything)
        await store.writer.submit(SetMeta({"durable-epoch": b"%d" % epoch}))
        # Only our own change since the sync began: nothing to sync until somebody else writes.
        self._seen = store.index.changes() if store.index.changes() == began + 1 else 0
