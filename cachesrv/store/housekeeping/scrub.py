"""The scrub: every blob is read and checked in turn, at a bounded rate, for ever. What is damaged is quarantined before
a client meets it. The place where it stands is kept in the index (meta ``scrub-at``), so a restart goes on."""

from __future__ import annotations

import asyncio

from cachesrv.store import epochs
from cachesrv.store.commands import Inline, MarkProven, SetMeta
from cachesrv.store.constants import COMMIT_BATCH
from cachesrv.store.errors import BlobMissing
from cachesrv.store.model import BlobId
from cachesrv.store.store import Store


async def scrub_some(store: Store) -> bool:
    """Check the next run of blobs at ``scrub_rate``. Returns False when the end was reached and it starts over."""
    at = int(store.index.meta("scrub-at") or b"0")
    rows = store.index.blobs_after(at, COMMIT_BATCH)
    proven: list[int] = []
    for row in rows:
        at = row.id
        if row.dead or row.bad or isinstance(row.form, Inline):
            continue
        try:
            damage = await store.background.check(row.form, row.id, row.size)
        except BlobMissing:
            current = store.index.blob(BlobId(row.id))
            if current is not None and not current.dead and current.form == row.form:
                await store.quarantiner.missing(BlobId(row.id))
            continue
        if damage:
            await store.quarantiner.damaged(BlobId(row.id), f"scrub: {len(damage)} damaged pieces")
        elif row.epoch and epochs.is_suspect(store.index, row.epoch):
            proven.append(row.id)
    if proven:
        await store.writer.submit(MarkProven(proven))
    await store.writer.submit(SetMeta({"scrub-at": b"%d" % (at if rows else 0)}))
    return bool(rows)


async def advance_epoch(store: Store) -> None:
    """Relaxed mode: make everything written up to now durable, and say so (see :mod:`cachesrv.store.epochs`)."""
    epoch = epochs.current(store.index)
    await store.writer.submit(SetMeta({"epoch": b"%d" % (epoch + 1)}))
    await asyncio.to_thread(store.folder.sync_everything)
    await store.writer.submit(SetMeta({"durable-epoch": b"%d" % epoch}))


async def prove_suspects(store: Store) -> int:
    """After an unclean stop in relaxed mode: check every blob that it left unproven, then forget the suspicion.
    Returns how many were checked. Until then each is checked when it is asked for."""
    if not epochs.suspects(store.index):
        return 0
    checked = at = 0
    while rows := store.index.blobs_after(at, COMMIT_BATCH):
        proven: list[int] = []
        for row in rows:
            at = row.id
            if row.dead or row.bad or not row.epoch or not epochs.is_suspect(store.index, row.epoch):
                continue
            checked += 1
            try:
                damage = await store.background.check(row.form, row.id, row.size)
            except BlobMissing:
                await store.quarantiner.missing(BlobId(row.id))
                continue
            if damage:
                await store.quarantiner.damaged(BlobId(row.id), "not whole after an unclean stop")
            else:
                proven.append(row.id)
        if proven:
            await store.writer.submit(MarkProven(proven))
    await store.writer.submit(SetMeta({"suspect": b""}))
    return checked
