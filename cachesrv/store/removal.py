"""Turns what a removal command answers into events, one per tenant."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

from cachesrv.store.commands import Removed
from cachesrv.store.events import EntriesRemoved, Listener
from cachesrv.store.model import RemovalReason


def report_removed(listener: Listener, reason: RemovalReason, removed: Iterable[Removed]) -> None:
    """Tell ``listener`` what left, summed by tenant."""
    sums: dict[str, list[int]] = defaultdict(lambda: [0, 0])
    for row in removed:
        sums[row.tenant][0] += 1
        sums[row.tenant][1] += row.size
    for tenant, (entries, size) in sums.items():
        listener(EntriesRemoved(reason, tenant, entries, size))
