"""Eviction: what goes when the disk budget, the free-space floor, a quota, the index's bound or the expiry says so.

Order of victims:

1. a repository over its quota loses its own least recently used entries, nobody else's;
2. entries that a pull request wrote and nobody ever read, oldest first;
3. the least recently used entries of repositories that hold more than their fair share (the budget divided by the
   repositories that hold anything), each down to that share, so that one noisy repository does not push out
   everybody's main;
4. the least recently used entries of all.

An entry that was read within PROMISE_SECONDS stays: somebody was told that it is here. The order in the index is
corrected lazily: a row whose recency is newer than its place moves there before anything is judged by its place.

Cost: each repository's order is read from its head, page by page and only as far as it is needed, and what leaves is
written: that follows what is evicted (and the number of repositories), not the entries that stay.
"""

from __future__ import annotations

import asyncio
import heapq
import math
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from cachesrv.store.commands import Delete, Removed, Requeue
from cachesrv.store.constants import PROMISE_SECONDS, MiB
from cachesrv.store.housekeeping import segments
from cachesrv.store.index.ballast import Ballast
from cachesrv.store.index.entries import REST, UNREAD
from cachesrv.store.index.rows import LruRow, TenantRow
from cachesrv.store.model import RemovalReason
from cachesrv.store.removal import report_removed
from cachesrv.store.store import Store

START_SHARE = 0.95
"""Eviction begins above this share of the budget ..."""
STOP_SHARE = 0.90
"""... and ends below this one, so that it works in runs."""
FLOOR_SHARE = 50
"""The free-space floor is kept with this part of the budget to spare, but no more than the floor itself: below the
floor saves are refused, so eviction begins when half of the spare is gone."""
LEAST_SPARE = 64 * MiB
"""The same where there is no floor: a budget larger than the disk would fill it for good."""
BATCH = 128
"""Entries in one command: keeps the committer free for others."""
FIRST_PAGE = 4
"""Rows of a repository's order read at first; each page after it is twice as long, up to BATCH."""
LOOK_PAST = 4096
"""Promised entries of one repository that one pass looks past before it leaves that repository alone."""


@dataclass(frozen=True, slots=True)
class Pressure:
    """How many disk bytes must leave, and why."""

    size: int
    reason: RemovalReason


def pressure(store: Store, uploads: int) -> Pressure | None:
    """What the disk asks for now. ``uploads``: bytes of uploads in flight, which count and cannot be evicted.

    What comes back by itself is not asked for a second time: graves, dead records in packs (see ``segments``)."""
    totals = store.index.totals()
    used = totals.file_bytes + totals.segment_bytes + uploads
    budget = store.options.max_size
    if used > budget * START_SHARE:
        used -= segments.coming_back(store)
        if used > budget * START_SHARE:
            return Pressure(math.ceil(used - budget * STOP_SHARE), RemovalReason.BUDGET)
    start, stop = _floor(store)
    free = store.folder.free_bytes() + totals.grave_bytes
    if free < start:
        free += segments.coming_back(store)
        if free < start:
            return Pressure(stop - free, RemovalReason.FREE_SPACE)
    return None


def is_pressed(store: Store) -> bool:
    """Whether the disk is so short that dead records in packs are worth copying live ones."""
    totals = store.index.totals()
    used = totals.file_bytes + totals.segment_bytes
    return used > store.options.max_size * START_SHARE or store.folder.free_bytes() < _floor(store)[0]


def is_tight(store: Store, uploads: int) -> bool:
    """Whether the disk cannot wait for the graves: with them the budget is passed, or the floor is near."""
    used = store.index.totals().disk_bytes + uploads
    return used > store.options.max_size or store.folder.free_bytes() < _floor(store)[0]


def _floor(store: Store) -> tuple[int, int]:
    """Free bytes below which eviction for the floor starts, and at which it stops."""
    floor = store.options.min_free
    spare = min(floor or LEAST_SPARE, store.options.max_size // FLOOR_SHARE)
    return floor + spare // 2, floor + spare


async def relieve(store: Store, wanted: Pressure) -> int:
    """Evict until ``wanted`` disk bytes are freed or nothing may go. Returns the bytes."""
    freed = await _drain(store, store.index.tenants(), UNREAD, wanted.size, wanted.reason, DISK)
    if freed < wanted.size:
        tenants = store.index.tenants()
        fair = store.options.max_size // max(1, sum(1 for tenant in tenants if tenant.entries))
        excess = {tenant.number: tenant.disk_bytes - fair for tenant in tenants if tenant.disk_bytes > fair}
        greedy = [tenant for tenant in tenants if tenant.number in excess]
        freed += await _drain(store, greedy, REST, wanted.size - freed, wanted.reason, DISK, most=excess)
    if freed < wanted.size:
        freed += await _drain(store, store.index.tenants(), REST, wanted.size - freed, wanted.reason, DISK)
    return freed


async def keep_quotas(store: Store) -> int:
    """Bring repositories back under their quota of logical bytes. Returns the logical bytes that left."""
    options = store.options
    if not options.quota and not options.quotas:
        return 0
    freed = 0
    for tenant in store.index.tenants():
        quota = options.quotas.get(tenant.tenant, options.quota)
        wanted = tenant.bytes - quota if quota else 0
        for order in (UNREAD, REST):
            left = await _drain(store, [tenant], order, wanted, RemovalReason.QUOTA, LOGICAL)
            wanted -= left
            freed += left
    return freed


async def keep_index(store: Store) -> int:
    """Bring the index back under its bound, a part of the entries at a time. Returns how many left.

    Pages come back when the graves are closed: call this less often than once in GRAVE_SECONDS."""
    used, _ = Ballast(store.index.environment).pages()
    limit = store.options.index_limit
    if used <= limit * START_SHARE:
        return 0
    wanted = math.ceil(store.index.totals().entries * (1 - STOP_SHARE * limit / used))
    gone = await _drain(store, store.index.tenants(), UNREAD, wanted, RemovalReason.BUDGET, COUNT)
    return gone + await _drain(store, store.index.tenants(), REST, wanted - gone, RemovalReason.BUDGET, COUNT)


async def expire(store: Store) -> int:
    """Remove entries that were not used for ``expire_unused``. Returns how many."""
    if not store.options.expire_unused:
        return 0
    before = int(store.now_ms() / 1000 - store.options.expire_unused)
    count = 0
    for tenant in store.index.tenants():
        for order in (UNREAD, REST):
            rows = _Order(store, tenant.number, order)
            stale: list[LruRow] = []
            while (row := await rows.next()) is not None and row.seconds < before:
                if row.expires:
                    stale.append(row)
                if len(stale) == BATCH:
                    count += len(await _delete(store, stale, RemovalReason.EXPIRED, before))
                    stale = []
            count += len(await _delete(store, stale, RemovalReason.EXPIRED, before))
    return count


@dataclass(frozen=True, slots=True)
class _Measure:
    """What is counted: as the order tells it beforehand, and as the index tells it when the entry left."""

    before: Callable[[LruRow], int]
    after: Callable[[Removed], int]


DISK = _Measure(lambda row: row.disk_bytes, lambda removed: removed.disk_bytes)
LOGICAL = _Measure(lambda row: row.size, lambda removed: removed.size)
COUNT = _Measure(lambda row: 1, lambda removed: 1)


class _Order:
    """One repository's entries of one class, the least recently used first, each at its right place."""

    def __init__(self, store: Store, tenant: int, order: int) -> None:
        self._store = store
        self._tenant = tenant
        self._order = order
        self._page: deque[LruRow] = deque()
        self._after = (0, 0)
        self._size = FIRST_PAGE
        self._ended = False

    async def next(self) -> LruRow | None:
        while not self._page and not self._ended:
            rows = self._store.index.lru_head(self._tenant, self._order, self._size, after=self._after)
            misplaced = [row.entry_id for row in rows if self._is_misplaced(row)]
            if misplaced:
                # Their new places may be inside this page: it is read again.
                await self._store.writer.submit(Requeue(misplaced))
                continue
            self._ended = len(rows) < self._size
            self._page.extend(rows)
            if rows:
                self._after = (rows[-1].seconds, rows[-1].entry_id)
            self._size = min(2 * self._size, BATCH)
            await asyncio.sleep(0)
        return self._page.popleft() if self._page else None

    def _is_misplaced(self, row: LruRow) -> bool:
        used = self._store.recency.get(row.slot)
        return used > row.seconds or (self._order == UNREAD and used > 0)


class _Victims:
    """The evictable entries of several repositories, the least recently used first: a merge of their orders.
    ``most``: what may be taken of each, in disk bytes; None: everything."""

    def __init__(self, store: Store, order: int, most: Mapping[int, int] | None) -> None:
        self._store = store
        self._order = order
        self._orders: dict[int, _Order] = {}
        self._left = dict(most) if most is not None else None
        self._past: dict[int, int] = {}
        self._heads: list[tuple[int, int, int, LruRow]] = []

    async def add(self, tenant: int) -> None:
        self._orders[tenant] = _Order(self._store, tenant, self._order)
        self._past[tenant] = 0
        await self._advance(tenant)

    async def take(self, wanted: int, measure: _Measure) -> list[LruRow]:
        """The next ones, at most BATCH, that are ``wanted`` or a little more; none: there are no more."""
        taken: list[LruRow] = []
        while self._heads and len(taken) < BATCH and wanted > 0:
            _, _, tenant, row = heapq.heappop(self._heads)
            taken.append(row)
            wanted -= measure.before(row)
            if self._left is not None:
                self._left[tenant] -= row.disk_bytes
            if self._left is None or self._left[tenant] > 0:
                await self._advance(tenant)
        return taken

    async def _advance(self, tenant: int) -> None:
        while self._past[tenant] <= LOOK_PAST and (row := await self._orders[tenant].next()) is not None:
            if self._store.recency.get(row.slot) < _promised_since(self._store):
                heapq.heappush(self._heads, (row.seconds, row.entry_id, tenant, row))
                return
            self._past[tenant] += 1


def _promised_since(store: Store) -> int:
    """Entries used at this time or later are promised."""
    return max(1, int(store.now_ms() // 1000) - PROMISE_SECONDS)


async def _drain(
    store: Store,
    tenants: list[TenantRow],
    order: int,
    wanted: int,
    reason: RemovalReason,
    measure: _Measure,
    *,
    most: Mapping[int, int] | None = None,
) -> int:
    """Evict the oldest of these repositories' entries of one class until ``wanted`` is freed."""
    if wanted <= 0:
        return 0
    victims = _Victims(store, order, most)
    for tenant in tenants:
        await victims.add(tenant.number)
    freed = 0
    while freed < wanted and (rows := await victims.take(wanted - freed, measure)):
        freed += sum(map(measure.after, await _delete(store, rows, reason, _promised_since(store))))
    return freed


async def _delete(store: Store, rows: list[LruRow], reason: RemovalReason, used_since: int) -> list[Removed]:
    if not rows:
        return []
    ids = [row.entry_id for row in rows]
    removed = await store.writer.submit(Delete(ids, store.now_ms(), unless_used_since_s=max(1, used_since)))
    report_removed(store.listener, reason, removed)
    return removed
