"""Eviction of 1 GB out of few and out of a million entries: the time must not depend on what stays."""

from __future__ import annotations

import asyncio
import os
import tempfile
import time
from collections.abc import AsyncIterator
from pathlib import Path

from benchmarks.fill import fill
from benchmarks.report import Report
from cachesrv.store.housekeeping import evict, graves
from cachesrv.store.model import EntryFlag, Namespace, RemovalReason
from cachesrv.store.options import StoreOptions
from cachesrv.store.store import Store

MIB = 1 << 20
BLOB = 8 * MIB


def run(report: Report) -> None:
    wanted = 64 * MIB if report.quick else 1_000_000_000
    many = 20_000 if report.quick else 1_000_000
    times: dict[int, float] = {}
    for entries in (1_000, many):
        with tempfile.TemporaryDirectory(prefix="cachesrv-bench-", dir="/var/tmp") as name:
            root = Path(name) / "data"
            asyncio.run(fill(root, entries, report.say))
            times[entries] = asyncio.run(_evict(root, wanted, report))
            report.note(f"{entries:,} entries stay: {wanted / 1e6:.0f} MB evicted in {times[entries]:.2f} s")
    report.compare(
        f"evicting {wanted / 1e6:.0f} MB, {many:,} entries stay, against 1,000 stay",
        [times[many]],
        [times[1_000]],
        unit="s",
        at_most=1.5,
    )


async def _evict(root: Path, wanted: int, report: Report) -> float:
    # The blobs are older than everything that was filled in: they are the victims.
    store = await Store.start(
        root, StoreOptions(max_size=1 << 40, min_free=0), local=True, clock=lambda: time.time() - 86_400
    )
    data = os.urandom(MIB)

    async def body(number: int) -> AsyncIterator[bytes]:
        yield number.to_bytes(8, "big") + data[8:]
        for _ in range(BLOB // MIB - 1):
            yield data

    place = Namespace("actions", "bench/old", "refs/heads/main", "v")
    for number in range(wanted // BLOB + 2):
        await store.put(place, f"old-{number}", body(number), flags=EntryFlag.IMMUTABLE, writer="bench", length=BLOB)
    await store.close()
    store = await Store.start(root, StoreOptions(max_size=1 << 40, min_free=0), local=True)
    began = time.perf_counter()
    freed = await evict.relieve(store, evict.Pressure(wanted, RemovalReason.BUDGET))
    took = time.perf_counter() - began
    await graves.bury(store)
    await store.close()
    if freed < wanted:
        raise RuntimeError(f"only {freed} bytes were evicted")
    return took
