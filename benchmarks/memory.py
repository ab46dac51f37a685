"""Peak anonymous memory of a worker while 8 clients save and then restore 1 GiB each, at once: 64 MiB blocks, 8 at a
time a client, as the npm client sends them."""

from __future__ import annotations

import base64
import os
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from benchmarks.processes import Served, cachesrv, rss_anon
from benchmarks.report import Report
from benchmarks.wire import Api, get, put

MIB = 1 << 20
BLOCK = 64 * MIB


def run(report: Report) -> None:
    size = 128 * MIB if report.quick else 1024 * MIB
    clients = 8
    with tempfile.TemporaryDirectory(prefix="cachesrv-bench-", dir="/var/tmp") as name:
        block = Path(name) / "block"
        block.write_bytes(os.urandom(MIB) * (BLOCK // MIB))
        with cachesrv(Path(name) / "ours" / "data", workers=2, durable=False) as server:
            watch = Watch(server)
            with ThreadPoolExecutor(clients) as pool:
                began = time.perf_counter()
                list(pool.map(lambda n: _save(server.base, f"memory-{n}", str(block), size), range(clients)))
                report.note(f"{clients} saves of {size // MIB} MiB took {time.perf_counter() - began:.1f} s")
                saved = watch.take()
                began = time.perf_counter()
                list(pool.map(lambda n: get(Api(server.base).url(f"memory-{n}")), range(clients)))
                report.note(f"{clients} restores took {time.perf_counter() - began:.1f} s")
                restored = watch.take()
            watch.stop()
    report.figure("peak anonymous memory of any process, saving", saved / 1e6, unit="MB", at_most=120)
    report.figure("peak anonymous memory of any process, restoring", restored / 1e6, unit="MB", at_most=120)


def _save(base: str, key: str, block: str, size: int) -> None:
    api = Api(base)
    url = api.create(key)
    ids = [base64.b64encode(f"{number:048d}".encode()).decode() for number in range(size // BLOCK)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda name: put(f"{url}&comp=block&blockid={name.replace('=', '%3D')}", block), ids))
    listed = "".join(f"<Latest>{name}</Latest>" for name in ids)
    put(f"{url}&comp=blocklist", f"<?xml version='1.0' encoding='utf-8'?><BlockList>{listed}</BlockList>".encode())
    api.finalize(key, size)


class Watch:
    """Samples the anonymous memory of the server's children 50 times a second."""

    def __init__(self, server: Served) -> None:
        self._server = server
        self._peak = 0
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        while not self._ended.wait(0.02):
            for pid in self._server.workers():
                try:
                    self._peak = max(self._peak, rss_anon(pid))
                except OSError:
                    continue

    def take(self) -> int:
        """The peak since the last call."""
        peak, self._peak = self._peak, 0
        return peak

    def stop(self) -> None:
        self._ended.set()
        self._thread.join()
