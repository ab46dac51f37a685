"""GET of blobs that the page cache holds, against nginx serving the same bytes as a file. One worker each on core 0,
the client on core 1."""

from __future__ import annotations

import os
import tempfile
import time
from pathlib import Path

from benchmarks.processes import cachesrv, nginx
from benchmarks.report import Report
from benchmarks.wire import Api, get, put_blob

MIB = 1 << 20


def run(report: Report) -> None:
    rounds = 2 if report.quick else 25
    sizes = [(256 * MIB, 1.0)] if not report.quick else [(16 * MIB, 1.0)]
    os.sched_setaffinity(0, {1} if (os.cpu_count() or 1) > 1 else {0})
    with tempfile.TemporaryDirectory(prefix="cachesrv-bench-", dir="/var/tmp") as name:
        folder = Path(name)
        with nginx(folder / "nginx", cpus="0") as peer, cachesrv(folder / "ours" / "data", cpus="0") as ours:
            api = Api(ours.base)
            for size, bar in sizes:
                data = os.urandom(MIB) * (size // MIB)
                (folder / "nginx" / "www" / "blob").write_bytes(data)
                put_blob(api.create(f"get-{size}"), data)
                api.finalize(f"get-{size}", size)
                url = api.url(f"get-{size}")
                rates: tuple[list[float], list[float]] = ([], [])
                for round_ in range(rounds + 1):
                    for place, target in enumerate((url, peer.base + "blob")):
                        began = time.perf_counter()
                        if get(target) != size:
                            raise RuntimeError("short answer")
                        if round_:
                            rates[place].append(size / (time.perf_counter() - began) / 1e9)
                report.compare(f"GET {size // MIB} MiB against nginx", *rates, unit="GB/s", at_least=bar)
