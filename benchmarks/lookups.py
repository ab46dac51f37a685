"""Twirp lookups at 500 a second, offered on schedule (a late answer delays nobody's question), with a million entries
in one repository: exact keys, and a restore key that matches 10,000 entries.
And how long such a store needs to start."""

from __future__ import annotations

import asyncio
import json
import random
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import aiohttp

from benchmarks.fill import WIDE, fill
from benchmarks.processes import cachesrv
from benchmarks.report import Report, stolen
from benchmarks.wire import SERVICE, token, version

OFFERED = 500
"""Lookups a second."""


def run(report: Report) -> None:
    entries = 20_000 if report.quick else 1_000_000
    seconds = 2 if report.quick else 20
    with tempfile.TemporaryDirectory(prefix="cachesrv-bench-", dir="/var/tmp") as name:
        root = Path(name) / "data"
        rate = asyncio.run(fill(root, entries, report.say))
        report.note(f"filled {entries:,} entries at {rate:,.0f}/s")
        began = time.perf_counter()
        with cachesrv(root, workers=1) as server:
            report.figure(f"start-up with {entries:,} entries", time.perf_counter() - began, unit="s", at_most=2.0)
            exact = [f"linux-{n % 977:03d}-{n:08d}" for n in random.sample(range(10_000, entries), 5_000)]
            for question, bodies in (
                ("exact key", [{"key": key, "version": version()} for key in exact]),
                ("restore key matching 10,000", [{"key": "none", "restore_keys": [WIDE], "version": version()}]),
                ("miss", [{"key": f"absent-{n}", "version": version()} for n in range(1000)]),
            ):
                before = stolen()
                times = asyncio.run(_offer(server.base, bodies, seconds))
                taken = (stolen() - before) / seconds
                times.sort()
                p50, p99 = times[len(times) // 2], times[int(len(times) * 0.99)]
                report.note(
                    f"{question}: p50 {p50 * 1000:.2f} ms, p99 {p99 * 1000:.2f} ms, max {times[-1] * 1000:.2f} ms; "
                    f"the hypervisor took {taken:.2f} of a core meanwhile"
                )
                report.figure(f"lookup p99 at {OFFERED}/s, {question}", p99 * 1000, unit="ms", at_most=2.0)


async def _offer(base: str, bodies: Sequence[Mapping[str, object]], seconds: float) -> list[float]:
    headers = {"Authorization": f"Bearer {token()}", "Content-Type": "application/json"}
    ready = [json.dumps(body).encode() for body in bodies]
    times: list[float] = []
    async with aiohttp.ClientSession(base, headers=headers, connector=aiohttp.TCPConnector(limit=64)) as session:

        async def ask(due: float, body: bytes) -> None:
            async with session.post(SERVICE + "GetCacheEntryDownloadURL", data=body) as answer:
                await answer.read()
                if answer.status != 200:
                    raise RuntimeError(await answer.text())
            times.append(time.perf_counter() - due)

        tasks = []
        start = time.perf_counter() + 0.05
        for number in range(int(OFFERED * seconds)):
            due = start + number / OFFERED
            if (pause := due - time.perf_counter()) > 0:
                await asyncio.sleep(pause)
            # From when it was sent, not from when a busy client got round to it: the client is not what is measured.
            tasks.append(asyncio.create_task(ask(time.perf_counter(), ready[number % len(ready)])))
        await asyncio.gather(*tasks)
    return times[OFFERED // 2 :]
