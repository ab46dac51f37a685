"""The housekeeper: one process (or, in tests, one task) that does everything behind the acknowledgement.

It plans on the read-only index and sends small commands to the committer like any worker; killed at any instruction it
leaves nothing that its successor does not find. Each chore is a task with a period of its own; one that fails (disk
full, committer away) is logged and tried again, and never stops the others.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial

from cachesrv.store.constants import GRAVE_SECONDS
from cachesrv.store.errors import StoreError
from cachesrv.store.housekeeping import evict, graves, improve, reclaim, scrub, segments
from cachesrv.store.options import StoreOptions
from cachesrv.store.store import Store

log = logging.getLogger(__name__)

RETRY_SECONDS = 30.0
"""A chore that failed is tried again after its period, and after this at the latest."""


@dataclass(frozen=True, slots=True)
class Chore:
    """``run`` is called first after ``delay`` seconds, then ``period`` seconds after it ended."""

    name: str
    period: float
    run: Callable[[Store], Awaitable[object]]
    delay: float = 0.0


async def make_room(store: Store) -> int:
    """One look at the budget, the floor and the quotas. Returns the disk bytes evicted."""
    await evict.keep_quotas(store)
    uploads = await reclaim.upload_bytes(store)
    wanted = evict.pressure(store, uploads)
    freed = 0 if wanted is None else await evict.relieve(store, wanted)
    if evict.is_tight(store, uploads):
        await graves.bury(store, hurry=True)
    return freed


async def tidy_segments(store: Store) -> int:
    """One look at the pack segments. Returns how many changed."""
    return await segments.tidy(store, pressed=evict.is_pressed(store))


def chores(options: StoreOptions) -> list[Chore]:
    """Everything there is to do, with its period in seconds."""
    wanted = [
        Chore("make-room", 1.0, make_room),
        Chore("bury", 2.0, graves.bury),
        Chore("expire", 60.0, evict.expire),
        Chore("index-room", 1.5 * GRAVE_SECONDS, evict.keep_index),
        Chore("stale-uploads", min(30.0, max(1.0, options.stale_upload / 4)), reclaim.drop_stale_uploads),
        Chore("segments", 5.0, tidy_segments),
        Chore("digests", 2.0, partial(improve.digest_some, settle=improve.SETTLE_SECONDS)),
        Chore("zstd", 2.0, partial(improve.compress_some, settle=improve.SETTLE_SECONDS), delay=1.0),
        Chore("sweep", 6 * 3600.0, reclaim.sweep_all, delay=5.0),
        Chore("prove", 3600.0, scrub.prove_suspects),
    ]
    if options.scrub_rate:
        wanted.append(Chore("scrub", 6 * 3600.0, scrub.scrub_all, delay=60.0))
    if not options.durable:
        wanted.append(Chore("sync", 2.0, scrub.Epochs().advance))
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
        pause = chore.period
        try:
            await chore.run(store)
        except StoreError as error:
            log.warning("chore %s: %s", chore.name, error)
            pause = min(pause, RETRY_SECONDS)
        except Exception:
            log.exception("chore %s failed", chore.name)
            pause = min(pause, RETRY_SECONDS)
        await asyncio.sleep(pause)
