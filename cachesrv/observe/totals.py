"""What was counted, added up over all processes: a value that can be added, subtracted and kept.

Everything is sparse (a missing name is 0), so the difference of two totals a minute apart is small. The same value
serves as all-time totals, as the baseline "since start" and as one row of the history; its msgpack form begins with one
version byte (``encode``), and another version reads as None, never as wrong numbers.

A request is named ``operation/outcome``, as in ``cachesrv.observe.recorder``.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

import msgspec

from cachesrv.observe import latency

VERSION: Final = 1


def _add(into: dict[str, int], other: dict[str, int]) -> None:
    for name, value in other.items():
        into[name] = into.get(name, 0) + value


def _less(one: dict[str, int], other: dict[str, int]) -> dict[str, int]:
    return {name: left for name, value in one.items() if (left := value - other.get(name, 0)) > 0}


class ProtocolTotals(msgspec.Struct):
    """``lookup_ns``: time of all lookups; ``latency``: bucket index -> lookups (``cachesrv.observe.latency``)."""

    requests: dict[str, int] = {}
    bytes_in: int = 0
    bytes_out: int = 0
    lookup_ns: int = 0
    latency: dict[int, int] = {}

    def add(self, other: ProtocolTotals) -> None:
        _add(self.requests, other.requests)
        self.bytes_in += other.bytes_in
        self.bytes_out += other.bytes_out
        self.lookup_ns += other.lookup_ns
        for bucket, count in other.latency.items():
            self.latency[bucket] = self.latency.get(bucket, 0) + count

    def less(self, other: ProtocolTotals) -> ProtocolTotals:
        return ProtocolTotals(
            _less(self.requests, other.requests),
            max(self.bytes_in - other.bytes_in, 0),
            max(self.bytes_out - other.bytes_out, 0),
            max(self.lookup_ns - other.lookup_ns, 0),
            {n: left for n, count in self.latency.items() if (left := count - other.latency.get(n, 0)) > 0},
        )

    @property
    def hits(self) -> int:
        return self.requests.get("lookup/hit", 0)

    @property
    def misses(self) -> int:
        return self.requests.get("lookup/miss", 0)

    def buckets(self) -> list[int]:
        counts = [0] * latency.BUCKETS
        for bucket, count in self.latency.items():
            counts[bucket] = count
        return counts


class Totals(msgspec.Struct):
    """Everything in the counters file. ``tenants``: name -> counter name -> value."""

    protocols: dict[str, ProtocolTotals] = {}
    tenants: dict[str, dict[str, int]] = {}
    removed_entries: dict[str, int] = {}
    removed_bytes: dict[str, int] = {}
    saved: dict[str, int] = {}
    restarts: dict[str, int] = {}
    dropped: int = 0

    def add(self, other: Totals) -> None:
        for name, protocol in other.protocols.items():
            self.protocols.setdefault(name, ProtocolTotals()).add(protocol)
        for name, tenant in other.tenants.items():
            _add(self.tenants.setdefault(name, {}), tenant)
        _add(self.removed_entries, other.removed_entries)
        _add(self.removed_bytes, other.removed_bytes)
        _add(self.saved, other.saved)
        _add(self.restarts, other.restarts)
        self.dropped += other.dropped

    def less(self, other: Totals) -> Totals:
        """What was counted since ``other``. Never negative: a power cut may have set the counters back a little."""
        none = ProtocolTotals()
        protocols = {name: value.less(other.protocols.get(name, none)) for name, value in self.protocols.items()}
        tenants = {name: _less(value, other.tenants.get(name, {})) for name, value in self.tenants.items()}
        return Totals(
            {name: value for name, value in protocols.items() if value != none},
            {name: value for name, value in tenants.items() if value},
            _less(self.removed_entries, other.removed_entries),
            _less(self.removed_bytes, other.removed_bytes),
            _less(self.saved, other.saved),
            _less(self.restarts, other.restarts),
            max(self.dropped - other.dropped, 0),
        )

    def __bool__(self) -> bool:
        """Whether anything was counted at all."""
        return self != Totals()


class Snapshot(msgspec.Struct):
    """Totals at a moment. ``life`` is the creation time of the counters file they were read from: totals of
    different lives cannot be compared. ``taken_ms`` and ``life`` are Unix milliseconds."""

    life: int
    taken_ms: int
    totals: Totals

    def since(self, base: Snapshot | None) -> Totals:
        """What was counted after ``base``; everything, when there is none or it is of another life."""
        if base is None or base.life != self.life:
            return self.totals
        return self.totals.less(base.totals)


def encode(snapshot: Snapshot) -> bytes:
    return bytes((VERSION,)) + msgspec.msgpack.encode(snapshot)


def decode(raw: bytes) -> Snapshot | None:
    """None for anything that is not a snapshot of this version."""
    if raw[:1] != bytes((VERSION,)):
        return None
    try:
        return msgspec.msgpack.decode(raw[1:], type=Snapshot)
    except msgspec.DecodeError:
        return None


def added(many: Iterable[Totals]) -> Totals:
    result = Totals()
    for totals in many:
        result.add(totals)
    return result
