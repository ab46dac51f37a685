"""The statistics a person or a program asks for: one value, the same from a live server and from a stopped store.

``collect`` reads the counters file, the history and the index, and writes nothing. The JSON form of :class:`Report` is
the documented schema (docs/stats.md): fields are only ever added to schema 1. Sizes are bytes, times Unix milliseconds,
durations seconds. A rate or quantile without samples is null.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Final, Protocol

import msgspec

import cachesrv
from cachesrv.observe.counters import counters_path, read_counters, read_lag, read_started
from cachesrv.observe.history import SideRows, read_last, read_window
from cachesrv.observe.latency import quantile
from cachesrv.observe.layout import REASONS
from cachesrv.observe.totals import ProtocolTotals, Snapshot, Totals
from cachesrv.store.api import Usage

SCHEMA: Final = 1
REPOSITORIES: Final = 1000
"""Repositories listed in a report at most: the largest, or the busiest of a window."""
HOUR_MINUTES: Final = 60
DAY_MINUTES: Final = 24 * 60


class Sums(msgspec.Struct, frozen=True):
    """The store as a whole, now. Bytes; ``zstd`` and ``dedup`` are spared on disk by what is held at present,
    ``on_disk`` is what the byte budget counts, ``uploads`` were reserved and neither committed nor given up."""

    entries: int
    logical: int
    on_disk: int
    zstd: int
    dedup: int
    uploads: int


class StoreView(SideRows, Protocol):
    """What the report asks of a store. Reads only; called in one thread."""

    def usage(self) -> Iterable[Usage]: ...

    def sums(self) -> Sums: ...


class Lookups(msgspec.Struct):
    """Server time of lookups. ``p50`` and ``p99`` are at most 25 % off (docs/stats.md)."""

    count: int
    mean: float | None
    p50: float | None
    p99: float | None


class Removed(msgspec.Struct):
    """Entries that left, and their logical bytes."""

    entries: int
    bytes: int


class Activity(msgspec.Struct):
    """What one protocol, or all of them, did in a window. ``operations``: operation -> outcome -> requests."""

    requests: int
    hits: int
    misses: int
    hit_rate: float | None
    saves: int
    bytes_in: int
    bytes_out: int
    lookups: Lookups
    operations: dict[str, dict[str, int]]


class RepositoryActivity(msgspec.Struct):
    repository: str
    hits: int
    misses: int
    hit_rate: float | None
    saves: int
    failures: int
    bytes_in: int
    bytes_out: int
    removed: Removed


class Window(msgspec.Struct):
    """One stretch of time up to now. ``removed`` by reason; ``saved`` by how ("zstd", "dedup")."""

    since: int | None
    total: Activity
    protocols: dict[str, Activity]
    repositories: list[RepositoryActivity]
    removed: dict[str, Removed]
    saved: dict[str, int]
    restarts: dict[str, int]


class Holding(msgspec.Struct):
    """What one repository holds now in one protocol."""

    protocol: str
    repository: str
    entries: int
    bytes: int


class Stored(msgspec.Struct):
    """What the store holds now. ``saved``: bytes spared on disk at present, "zstd" and "dedup". ``free`` is None when
    the disk did not say."""

    entries: int
    logical: int
    on_disk: int
    saved: dict[str, int]
    budget: int
    free: int | None
    uploads_in_flight: int
    repositories: list[Holding]


class Report(msgspec.Struct):
    """``started``: None when no server ever ran on the folder. ``loop_lag``: the longest lag of an event loop in this
    or the last minute. ``windows`` has "start", "hour", "day" and "all"."""

    schema: int
    cachesrv: str
    taken: int
    started: int | None
    loop_lag: float
    store: Stored
    windows: dict[str, Window]


def collect(root: Path, view: StoreView, *, budget: int, now: float | None = None) -> Report:
    """Everything about the store in ``root``. ``budget`` is ``store.max_size``, ``now`` Unix seconds.

    Takes some milliseconds and reads files: on an event loop, call it in a thread.
    """
    now = time.time() if now is None else now
    now_ms = int(now * 1000)
    path = counters_path(root)
    snapshot = read_counters(path, now_ms=now_ms) or Snapshot(0, now_ms, Totals())
    started = read_started(root)
    recent = snapshot.since(read_last(view))

    def past(minutes: int) -> Totals:
        totals = read_window(view, int(now) // 60 - minutes)
        totals.add(recent)
        return totals

    return Report(
        schema=SCHEMA,
        cachesrv=cachesrv.__version__,
        taken=now_ms,
        started=started.taken_ms if started else None,
        loop_lag=read_lag(path, now),
        store=_stored(root, view, budget),
        windows={
            "start": _window(started.taken_ms if started else None, snapshot.since(started)),
            "hour": _window(now_ms - HOUR_MINUTES * 60_000, past(HOUR_MINUTES)),
            "day": _window(now_ms - DAY_MINUTES * 60_000, past(DAY_MINUTES)),
            "all": _window(snapshot.life or None, snapshot.totals),
        },
    )


def disk_free(root: Path) -> int | None:
    """Bytes that this user may still write on the disk of ``root``."""
    try:
        found = os.statvfs(root)
    except OSError:
        return None
    return found.f_bavail * found.f_frsize


def _stored(root: Path, view: StoreView, budget: int) -> Stored:
    holdings = [Holding(u.protocol, u.tenant, u.entries, u.bytes) for u in view.usage() if u.entries]
    holdings.sort(key=lambda holding: (-holding.bytes, holding.repository, holding.protocol))
    sums = view.sums()
    return Stored(
        entries=sums.entries,
        logical=sums.logical,
        on_disk=sums.on_disk,
        saved={"zstd": sums.zstd, "dedup": sums.dedup},
        budget=budget,
        free=disk_free(root),
        uploads_in_flight=sums.uploads,
        repositories=holdings[:REPOSITORIES],
    )


def _rate(hits: int, misses: int) -> float | None:
    return hits / (hits + misses) if hits + misses else None


def _activity(totals: ProtocolTotals) -> Activity:
    operations: dict[str, dict[str, int]] = {}
    for name, count in totals.requests.items():
        operation, outcome = name.split("/", 1)
        operations.setdefault(operation, {})[outcome] = count
    buckets = totals.buckets()
    count = sum(buckets)
    return Activity(
        requests=sum(totals.requests.values()),
        hits=totals.hits,
        misses=totals.misses,
        hit_rate=_rate(totals.hits, totals.misses),
        saves=totals.requests.get("finalize/ok", 0),
        bytes_in=totals.bytes_in,
        bytes_out=totals.bytes_out,
        lookups=Lookups(
            count,
            totals.lookup_ns / count / 1e9 if count else None,
            quantile(buckets, 0.5),
            quantile(buckets, 0.99),
        ),
        operations=operations,
    )


def _repository(name: str, counted: dict[str, int]) -> RepositoryActivity:
    hits, misses = counted.get("hits", 0), counted.get("misses", 0)
    return RepositoryActivity(
        repository=name,
        hits=hits,
        misses=misses,
        hit_rate=_rate(hits, misses),
        saves=counted.get("saves", 0),
        failures=counted.get("failures", 0),
        bytes_in=counted.get("bytes_in", 0),
        bytes_out=counted.get("bytes_out", 0),
        removed=Removed(counted.get("removed_entries", 0), counted.get("removed_bytes", 0)),
    )


def _window(since: int | None, totals: Totals) -> Window:
    together = ProtocolTotals()
    for protocol in totals.protocols.values():
        together.add(protocol)
    repositories = [_repository(name, counted) for name, counted in totals.tenants.items()]
    repositories.sort(key=lambda one: (-(one.hits + one.misses), -(one.bytes_in + one.bytes_out), one.repository))
    return Window(
        since=since,
        total=_activity(together),
        protocols={name: _activity(protocol) for name, protocol in sorted(totals.protocols.items())},
        repositories=repositories[:REPOSITORIES],
        removed={
            reason: Removed(totals.removed_entries[reason], totals.removed_bytes.get(reason, 0))
            for reason in REASONS
            if totals.removed_entries.get(reason)
        },
        saved={how: totals.saved.get(how, 0) for how in ("zstd", "dedup")},
        restarts=dict(totals.restarts),
    )
