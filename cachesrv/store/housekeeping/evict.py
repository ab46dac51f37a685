"""Eviction: what goes when the disk budget, the free-space floor, a quota or the expiry says so.

Order of victims:

1. a repository over its quota loses its own least recently used entries, nobody else's;
2. entries that a pull request wrote and nobody ever read, oldest first;
3. the least recently used entries of repositories that hold more than their fair share (the budget divided by the
   repositories that hold anything), so that one noisy repository does not push out everybody's main;
4. the least recently used entries of all.

An entry that was read within PROMISE_SECONDS stays: somebody was told that it is here. The order in the index is
corrected lazily: a head whose recency is newer than its place moves there instead of leaving. Every step reads heads of
the order and writes what leaves, so the cost follows what is evicted, not what stays.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from cachesrv.store.commands import Delete, Requeue
from cachesrv.store.constants import PROMISE_SECONDS
from cachesrv.store.index.rows import LruRow, TenantRow
from cachesrv.store.model import RemovalReason
from cachesrv.store.removal import report_removed
from cachesrv.store.store import Store

START_SHARE = 0.95
"""Eviction begins above this share of the budget ..."""
STOP_SHARE = 0.90
"""... and ends below this one, so that it works in runs."""
BATCH = 128
"""Entries in one delete command: keeps the committer free for others."""
WINDOW = 512
"""Heads of one repository looked at in one go: how far eviction looks past promised entries."""
UNREAD, REST = 0, 1
"""The two classes of the eviction order: pull-request entries that nobody read, and all others."""


@dataclass(frozen=True, slots=True)
class Pressure:
    """How many disk bytes must leave, and why."""

    size: int
    reason: RemovalReason


def pressure(store: Store, uploads: int) -> Pressure | None:
    """What the disk asks for now. ``uploads``: bytes of uploads in flight, which count and cannot be evicted."""
    totals = store.index.totals()
    used = totals.file_bytes + totals.segment_bytes + uploads
    budget = store.options.max_size
    if used > budget * START_SHARE:
        return Pressure(int(used - budget * STOP_SHARE), RemovalReason.BUDGET)
    # What is in graves comes back within a minute: do not evict for it twice.
    short = store.options.min_free - store.folder.free_bytes() - totals.grave_bytes
    if short > 0:
        return Pressure(short + budget // 50, RemovalReason.FREE_SPACE)
    return None


async def relieve(store: Store, wanted: Pressure) -> int:
    """Evict until ``wanted`` disk bytes are freed or nothing may go. Returns the bytes."""
    freed = await _drain(store, store.index.tenants(), UNREAD, wanted.size, wanted.reason)
    if freed >= wanted.size:
        return freed
    tenants = store.index.tenants()
    fair = store.options.max_size // max(1, sum(1 for tenant in tenants if tenant.entries))
    greedy = [tenant for tenant in tenants if tenant.disk_bytes > fair]
    if greedy:
        # No further than the fair share: below it a repository is one of all.
        excess = sum(tenant.disk_bytes - fair for tenant in greedy)
        freed += await _drain(store, greedy, REST, min(wanted.size - freed, excess), wanted.reason)
    if freed < wanted.size:
        freed += await _drain(store, store.index.tenants(), REST, wanted.size - freed, wanted.reason)
    return freed


async def keep_quotas(store: Store) -> int:
    """Bring repositories back under their quota of logical bytes. Returns the logical bytes that left."""
    freed = 0
    for tenant in store.index.tenants():
        quota = store.options.quotas.get(tenant.tenant, store.options.quota)
        if quota and tenant.bytes > quota:
            wanted = tenant.bytes - quota
            for order in (UNREAD, REST):
                if wanted > 0:
                    left = await _drain(store, [tenant], order, wanted, RemovalReason.QUOTA, by_size=True)
                    wanted -= left
                    freed += left
    return freed


async def expire(store: Store) -> int:
    """Remove entries that were not used for ``expire_unused``. Returns how many."""
    if not store.options.expire_unused:
        return 0
    before = int(store.now_ms() / 1000 - store.options.expire_unused)
    count = 0
    for tenant in store.index.tenants():
        for order in (UNREAD, REST):
            while True:
                heads = [row for row in store.index.lru_head(tenant.number, order, WINDOW) if row.seconds < before]
                stale, moved = _split(store, heads)
                if moved:
                    await store.writer.submit(Requeue([row.entry_id for row in moved]))
                gone = await _delete(store, stale, RemovalReason.EXPIRED, before)
                count += len(gone)
                if not moved and not gone:
                    break
    return count


def _split(store: Store, heads: list[LruRow]) -> tuple[list[LruRow], list[LruRow]]:
    """(still where they belong, used since): a used entry goes back into the order where its recency puts it."""
    stale: list[LruRow] = []
    moved: list[LruRow] = []
    for row in heads:
        if store.recency.get(row.slot) > row.seconds:
            moved.append(row)
        elif row.expires:
            stale.append(row)
    return stale, moved


async def _drain(
    store: Store,
    tenants: list[TenantRow],
    order: int,
    wanted: int,
    reason: RemovalReason,
    *,
    by_size: bool = False,
) -> int:
    """Evict the oldest of these tenants' entries of one class until ``wanted`` bytes are freed."""
    weight: Callable[[LruRow], int] = (lambda row: row.size) if by_size else (lambda row: row.disk_bytes)
    freed = 0
    while freed < wanted:
        now = int(store.now_ms() // 1000)
        heads: list[LruRow] = []
        for tenant in tenants:
            heads += store.index.lru_head(tenant.number, order, WINDOW)
        moved = [row for row in heads if store.recency.get(row.slot) > row.seconds]
        if moved:
            # Their place is wrong: correct it before anything is judged by its place.
            for start in range(0, len(moved), BATCH):
                await store.writer.submit(Requeue([row.entry_id for row in moved[start : start + BATCH]]))
            continue
        heads.sort(key=lambda row: (row.seconds, row.entry_id))
        victims: list[LruRow] = []
        for row in heads:
            if store.recency.get(row.slot) > now - PROMISE_SECONDS:
                continue
            victims.append(row)
            wanted_left = wanted - freed - sum(map(weight, victims))
            if wanted_left <= 0 or len(victims) >= BATCH:
                break
        if not victims:
            return freed
        gone = await _delete(store, victims, reason, now - PROMISE_SECONDS)
        if not gone:
            return freed
        freed += sum(weight(row) for row in victims if row.entry_id in gone)
    return freed


async def _delete(store: Store, rows: list[LruRow], reason: RemovalReason, used_since: int) -> set[int]:
    gone: set[int] = set()
    for start in range(0, len(rows), BATCH):
        ids = [row.entry_id for row in rows[start : start + BATCH]]
        removed = await store.writer.submit(Delete(ids, store.now_ms(), unless_used_since_s=max(1, used_since)))
        report_removed(store.listener, reason, removed)
        gone.update(row.entry_id for row in removed)
    return gone
