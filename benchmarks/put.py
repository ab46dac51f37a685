"""Uploads of 256 MiB: an Actions upload (Put Blob + Finalize) relaxed against nginx's WebDAV PUT, durable against
``dd conv=fdatasync`` of the same bytes; and a value hashed with SHA-256 while it passes, durable, against that dd."""

from __future__ import annotations

import asyncio
import os
import statistics
import subprocess
import tempfile
import time
from collections.abc import AsyncIterator
from pathlib import Path

from benchmarks.processes import cachesrv, nginx
from benchmarks.report import Report
from benchmarks.wire import Api, put, put_blob
from cachesrv.store.model import EntryFlag, Namespace
from cachesrv.store.options import StoreOptions
from cachesrv.store.store import Store

MIB = 1 << 20


def run(report: Report) -> None:
    size = 16 * MIB if report.quick else 256 * MIB
    rounds = 2 if report.quick else 9
    with tempfile.TemporaryDirectory(prefix="cachesrv-bench-", dir="/var/tmp") as name:
        folder = Path(name)
        body = folder / "body"
        body.write_bytes(os.urandom(MIB) * (size // MIB))
        _against_nginx(report, folder, body, rounds)
        _against_dd(report, folder, body, rounds)
        _hashed(report, folder, body, rounds)


def _upload(api: Api, key: str, body: Path) -> float:
    url = api.create(key)
    began = time.perf_counter()
    put_blob(url, str(body))
    api.finalize(key, body.stat().st_size)
    return body.stat().st_size / (time.perf_counter() - began) / 1e9


def _against_nginx(report: Report, folder: Path, body: Path, rounds: int) -> None:
    ours: list[float] = []
    peers: list[float] = []
    data = folder / "relaxed" / "data"
    with nginx(folder / "nginx") as peer, cachesrv(data, durable=False) as server:
        api = Api(server.base)
        for round_ in range(rounds + 1):
            mine = _upload(api, f"relaxed-{round_}", body)
            began = time.perf_counter()
            put(f"{peer.base}put-{round_}", str(body))
            theirs = body.stat().st_size / (time.perf_counter() - began) / 1e9
            (folder / "nginx" / "www" / f"put-{round_}").unlink()
            os.sync()
            if round_:
                ours.append(mine)
                peers.append(theirs)
    report.compare("Actions upload, relaxed, against nginx PUT", ours, peers, unit="GB/s", at_least=1.0)


def dd(source: Path, target: Path) -> float:
    """GB/s of a plain synced copy of the same bytes from the page cache."""
    began = time.perf_counter()
    subprocess.run(["dd", f"if={source}", f"of={target}", "bs=1M", "conv=fdatasync"], check=True, capture_output=True)
    took = time.perf_counter() - began
    target.unlink()
    return source.stat().st_size / took / 1e9


def _against_dd(report: Report, folder: Path, body: Path, rounds: int) -> None:
    ours: list[float] = []
    peers: list[float] = []
    with cachesrv(folder / "durable" / "data", durable=True) as server:
        api = Api(server.base)
        for round_ in range(rounds + 1):
            mine = _upload(api, f"durable-{round_}", body)
            theirs = dd(body, folder / "dd")
            if round_:
                ours.append(mine)
                peers.append(theirs)
    report.compare("Actions upload, durable, against dd fdatasync", ours, peers, unit="GB/s", at_least=0.7)


def _hashed(report: Report, folder: Path, body: Path, rounds: int) -> None:
    async def measure() -> tuple[list[float], list[float]]:
        store = await Store.start(folder / "hashed", StoreOptions(max_size=1 << 40, min_free=0), local=True)
        ours: list[float] = []
        peers: list[float] = []
        for round_ in range(rounds + 1):

            async def chunks() -> AsyncIterator[bytes]:
                with open(body, "rb", buffering=0) as file:
                    while chunk := file.read(256 * 1024):
                        yield chunk
                        await asyncio.sleep(0)

            place = Namespace("bench", "t", "", "")
            began = time.perf_counter()
            size = body.stat().st_size
            await store.put(place, f"k{round_}", chunks(), flags=EntryFlag.IMMUTABLE, writer="bench", length=size)
            mine = size / (time.perf_counter() - began) / 1e9
            theirs = dd(body, folder / "dd")
            # Equal content is stored once: without this the next round would only link.
            with open(body, "r+b") as file:
                file.write(os.urandom(32))
            if round_:
                ours.append(mine)
                peers.append(theirs)
        await store.close()
        return ours, peers

    ours, peers = asyncio.run(measure())
    report.note(
        f"dd alone drifted by {max(peers) / min(peers):.1f}x meanwhile (median {statistics.median(peers):.2f} GB/s)"
    )
    report.compare("put hashed with SHA-256, durable, against dd fdatasync", ours, peers, unit="GB/s", at_least=0.45)
