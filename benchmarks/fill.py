"""A data folder with very many entries, made through the committer itself and kept for the benchmarks that need it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from pathlib import Path

from benchmarks.wire import version
from cachesrv.store.commands import Commit, Inline, LeaseIds, NewBlob, Space
from cachesrv.store.options import StoreOptions
from cachesrv.store.store import Store

REPOSITORY = "bench/repo"
SCOPE = "refs/heads/main"
WIDE = "wide-"
"""Prefix of the keys that one restore key matches 10,000 of."""


async def fill(root: Path, entries: int, say: Callable[[str], None]) -> float:
    """``entries`` tiny immutable entries in one namespace, 10,000 of them under WIDE. Returns inserts a second."""
    store = await Store.start(root, StoreOptions(max_size=1 << 40, min_free=0), local=True)
    space = Space("actions", REPOSITORY, SCOPE, version())
    began = time.perf_counter()
    batch = 256
    first = await store.writer.submit(LeaseIds(entries + batch))
    now = int(time.time() * 1000) - 3_600_000
    for start in range(0, entries, batch):
        jobs = []
        for number in range(start, min(entries, start + batch)):
            key = f"{WIDE}{number:08d}" if number < 10_000 else f"linux-{number % 977:03d}-{number:08d}"
            blob = NewBlob(first + number, Inline(key.encode()), len(key))
            jobs.append(store.writer.submit(Commit(space, key, 5, blob, "bench", now + number // 100)))
        await asyncio.gather(*jobs)
        if start and start % (batch * 1000) == 0:
            say(f"{start:,} entries")
    rate = entries / (time.perf_counter() - began)
    await store.close()
    return rate
