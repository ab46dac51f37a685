"""SIGKILL of random processes and of the whole group, at random moments, under mixed load.

CACHESRV_CRASH_ROUNDS sets how many kills (default 200); CACHESRV_CRASH_SEED repeats a run's choices.
"""

from __future__ import annotations

import asyncio
import os
import random
import signal
import time
from contextlib import suppress
from pathlib import Path

from cachesrv.store.commands import Filed
from cachesrv.store.folder import DataFolder
from cachesrv.store.index import Index
from tests.faults.crash_load import Ledger, Load
from tests.server_process import ServerProcess

ROUNDS = int(os.environ.get("CACHESRV_CRASH_ROUNDS", "200"))
SEED = int(os.environ.get("CACHESRV_CRASH_SEED", str(random.randrange(1 << 30))))
GROUP_EVERY = 8
"""Every so many rounds everything dies at once, the supervisor included."""
START_SECONDS = 5.0
"""Bar for a start after a crash on a loaded machine with two cores; the figure itself is printed."""
SETTINGS = {
    "CACHESRV_STORE__STALE_UPLOAD": "3s",
    "CACHESRV_STORE__MIN_FREE": "100MB",
    "CACHESRV_STORE__MAX_SIZE": "20GB",
    "CACHESRV_LOG__ACCESS": "false",
}


def children(pid: int) -> list[int]:
    with suppress(OSError):
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    return []


def kill(pids: list[int]) -> None:
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


async def torment(server: ServerProcess, ledger: Ledger) -> list[float]:
    """All the kills; the seconds that each start after a death of everything took."""
    chosen = random.Random(SEED)
    stop = asyncio.Event()
    loads = [asyncio.create_task(Load(lambda: server.url, ledger, number).run(stop)) for number in range(6)]
    starts = []
    for number in range(1, ROUNDS + 1):
        await asyncio.sleep(chosen.uniform(0.02, 0.4))
        if number % GROUP_EVERY == 0:
            kill([server.pid, *children(server.pid)])
            server.kill()
            began = time.monotonic()
            await asyncio.to_thread(server.start)
            starts.append(time.monotonic() - began)
        elif alive := children(server.pid):
            kill([chosen.choice(alive)])
        for load in loads:
            if load.done():
                await load
    stop.set()
    await asyncio.gather(*loads)
    return starts


def unnamed_files(data: Path) -> list[int]:
    """Ids of files that neither the index names nor a grave will remove."""
    folder = DataFolder(data)
    index = Index.open(folder.index, readonly=True)
    try:
        named = {grave.file_id for grave in index.graves()}
        at = 0
        while rows := index.blobs_after(at, 256):
            at = rows[-1].id
            named |= {row.form.file_id for row in rows if isinstance(row.form, Filed)}
        return [found.file_id for found in folder.files() if found.file_id not in named]
    finally:
        index.close()


def test_faults_crash_loses_nothing(tmp_path: Path) -> None:
    server = ServerProcess(tmp_path / "server", environment=SETTINGS).start()
    ledger = Ledger()
    try:
        starts = asyncio.run(torment(server, ledger))
        asyncio.run(Load(lambda: server.url, ledger, 0).check_all())
        # A start sweeps what nothing names, once it is too old to be on its way in.
        server.stop()
        server.start()
        deadline = time.monotonic() + 60
        while (left := unnamed_files(server.data)) and time.monotonic() < deadline:
            time.sleep(0.2)
        server.stop()
    finally:
        server.kill()
    print(
        f"\nseed {SEED}: {ROUNDS} kills, {len(ledger.acknowledged)} saved, {ledger.restored} restored meanwhile, "
        f"{ledger.unanswered} unanswered, {len(ledger.wrong)} wrong, {len(left)} leaked, "
        f"start after a crash {max(starts):.2f} s at most"
    )
    assert ledger.wrong == [], f"seed {SEED}"
    assert left == [], f"seed {SEED}"
    assert len(ledger.acknowledged) >= ROUNDS, "too little load to prove anything"
    assert max(starts) < START_SECONDS
