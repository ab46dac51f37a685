"""The housekeeper: one process (or, in tests, one task) that does everything behind the acknowledgement.

It plans on the read-only index and sends small commands to the committer like any worker; killed at any instruction it
leaves nothing that its successor does not find. Each chore runs on its own period; one that fails (disk full, committer
away) is logged and tried again, and never stops the others.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

from cachesrv.store.errors import StoreError
from cachesrv.store.events import Listener, ignore
from cachesrv.store.housekeeping import evict, graves, improve, reclaim, scrub, segments
from cachesrv.store.options import StoreOptions
from cachesrv.store.store import Store

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Chore:
    """``run`` is called every ``period`` seconds, first after ``delay``; False or None: nothing done."""

    name: str
    period: float
    run: Callable[[Store], Awaitable[object]]
    delay: float = 0.0


async def make_room(store: Store) -> int:
    """One look at the budget, the floor and the quotas. Returns the disk bytes evicted."""
    await evict.keep_quotas(store)
    uploads = await asyncio.to_thread(reclaim.upload_bytes, store)
    wanted = evict.pressure(store, uploads)
    return 0 if wanted is None else await evict.relieve(store, wanted)


def chores(options: StoreOptions) -> list[Chore]:
    """Everything there is to do, with its period in seconds."""
    wanted = [
        Chore("make-room", 1.0, make_room),
        Chore("bury", 2.0, graves.bury),
        Chore("expire", 60.0, evict.expire),
        Chore("stale-uploads", min(30.0, max(1.0, options.stale_upload / 4)), reclaim.drop_stale_uploads),
        Chore("segments", 10.0, segments.tidy),
        Chore("digests", 2.0, improve.digest_some),
        Chore("zstd", 2.0, improve.compress_some, delay=1.0),
        Chore("sweep", 6 * 3600.0, reclaim.sweep, delay=5.0),
        Chore("prove", 3600.0, scrub.prove_suspects),
    ]
    if options.scrub_rate:
        wanted.append(Chore("scrub", 60.0, scrub.scrub_some, delay=60.0))
    if not options.durable:
        wanted.append(Chore("sync", 2.0, scrub.advance_epoch))
    return wanted


async def keep(store: Store, stop: asyncio.Event) -> None:
    """Run all chores until ``stop``; what runs is cancelled then (each chore may be cut anywhere)."""
    tasks = [asyncio.create_task(_repeat(chore, store), name=chore.name) for chore in chores(store.options)]
    try:
        await stop.wait()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _repeat(chore: Chore, store: Store) -> None:
    await asyncio.sleep(chore.delay)
    while True:
        try:
            await chore.run(store)
        except StoreError as error:
            log.warning("chore %s: %s", chore.name, error)
        except Exception:
            log.exception("chore %s failed", chore.name)
        await asyncio.sleep(chore.period)


async def housekeep(root: Path, options: StoreOptions, stop: asyncio.Event, *, on_event: Listener = ignore) -> None:
    """The life of the housekeeper process: open the folder (a committer listens in it), work until ``stop``."""
    store = await Store.start(root, options, on_event=on_event)
    try:
        await keep(store, stop)
    finally:
        await store.close()
