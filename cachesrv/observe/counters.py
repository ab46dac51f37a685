"""Exact counters over all processes, in one shared memory-mapped file (bytes: ``cachesrv.observe.layout``).

The supervisor calls :func:`open_counters` once before it forks; each process then builds a :class:`SharedRecorder` on
its own slot. Counting is a few plain stores into mapped memory: no lock, no system call, no wait. What was counted
survives ``kill -9`` at any instruction (the pages belong to the kernel) and a restart; a power cut may set the counters
back by some seconds, never to nonsense. The file's space is reserved when it is made, so that a full disk cannot break
a store into it.

A slot has one writer: one process, one thread of it. Two threads of a process may lose counts to each other.
"""

from __future__ import annotations

import errno
import mmap
import os
import struct
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

import xxhash

from cachesrv.observe import latency
from cachesrv.observe import layout as at
from cachesrv.observe.latency import bucket_of
from cachesrv.observe.layout import BYTES_IN, BYTES_OUT, LATENCY, LOOKUP_NS
from cachesrv.observe.recorder import OPERATIONS, OUTCOMES
from cachesrv.observe.totals import ProtocolTotals, Snapshot, Totals, decode, encode
from cachesrv.store.model import RemovalReason

COUNTERS_FILE: Final = Path("stats/counters.map")
STARTED_FILE: Final = Path("stats/started")
"""Snapshot (``cachesrv.observe.totals``) taken when the server started: the baseline of "since start"."""

_HEAD: Final = struct.Struct("<8sIIQ")
_OPERATION: Final = {name: n * at.OUTCOME_PLACES for n, name in enumerate(OPERATIONS)}
_OUTCOME: Final = {name: n for n, name in enumerate(OUTCOMES)}
_PLANS: Final = 4096
"""Kinds of requests remembered: more than all there are, a bound in case of a caller that makes names up."""
_NAMES: Final = {name: [f"{name}/{outcome}" for outcome in OUTCOMES] for name in OPERATIONS}
_FAILURES: Final = frozenset({"denied", "invalid", "full", "damaged", "error"})
_HITS, _MISSES, _IN, _OUT, _SAVES, _FAILED, _GONE, _GONE_BYTES = range(
    at.TENANT_VALUES, at.TENANT_VALUES + len(at.TENANT_COUNTERS)
)


def counters_path(root: Path) -> Path:
    """The counters file of a data folder."""
    return root / COUNTERS_FILE


def open_counters(path: Path, processes: int, *, now_ms: int | None = None) -> None:
    """Make or enlarge the counters file for ``processes`` slots (:func:`layout.slots_for`).

    Call it before any process takes a slot. A file of another layout version, or damaged, is replaced by an empty one.
    Raises OSError (no space, read-only): the server can run with a NullRecorder then.
    """
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    head = _read_head(path)
    fresh = path
    if head is not None:
        slots, created = max(head[0], processes), head[1]
    else:
        slots, created = processes, int(time.time() * 1000) if now_ms is None else now_ms
        fresh = path.with_name(path.name + ".new")
        fresh.unlink(missing_ok=True)
    fd = os.open(fresh, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        _reserve(fd, at.HEAD_BYTES + slots * at.SLOT_BYTES)
        os.pwrite(fd, _HEAD.pack(at.MAGIC, at.VERSION, slots, created), 0)
        os.fsync(fd)
    finally:
        os.close(fd)
    if fresh != path:
        fresh.replace(path)


def _reserve(fd: int, size: int) -> None:
    """Give the file real space up to ``size``: a store into a hole of a mapped file on a full disk is a SIGBUS."""
    if hasattr(os, "posix_fallocate"):
        try:
            os.posix_fallocate(fd, 0, size)
            return
        except OSError as error:
            if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL):
                raise
    end = os.fstat(fd).st_size
    while end < size:
        end += os.pwrite(fd, bytes(min(size - end, 1 << 20)), end)


def _read_head(path: Path) -> tuple[int, int] | None:
    """(slots, created ms), or None when there is no file that this version can go on with."""
    try:
        with path.open("rb") as file:
            raw = file.read(_HEAD.size)
            size = os.fstat(file.fileno()).st_size
    except FileNotFoundError:
        return None
    if len(raw) < _HEAD.size:
        return None
    magic, version, slots, created = _HEAD.unpack(raw)
    if magic != at.MAGIC or version != at.VERSION or size < at.HEAD_BYTES + slots * at.SLOT_BYTES:
        return None
    return slots, created


class SharedRecorder:
    """The Recorder of one process: counts into slot ``slot`` of the file at ``path``.

    Raises FileNotFoundError or ValueError when the file does not have this slot. A process that replaces another goes
    on in the same slot. A call costs 1 to 2 us of one core.
    """

    def __init__(self, path: Path, slot: int) -> None:
        head = _read_head(path)
        if head is None or slot >= head[0]:
            raise ValueError(f"no slot {slot} in {path.name}: open_counters comes first")
        with path.open("r+b") as file:
            self._map = mmap.mmap(file.fileno(), at.HEAD_BYTES + head[0] * at.SLOT_BYTES)
        self._start = at.HEAD_BYTES + slot * at.SLOT_BYTES
        self._cells = memoryview(self._map).cast("Q")[self._start // 8 : (self._start + at.SLOT_BYTES) // 8]
        for cell in (at.LAG_MINUTE, at.LAG_NS, at.LAG_MINUTE_BEFORE, at.LAG_NS_BEFORE):
            self._cells[cell] = 0
        self._protocols = dict(_rows(self._map, self._start, _PROTOCOL_TABLE))
        self._tenants = dict(_rows(self._map, self._start, _TENANT_TABLE))
        self._plans: dict[tuple[str, str, str], tuple[int, int, bool, int]] = {}

    def close(self) -> None:
        self._cells.release()

    def request(
        self,
        protocol: str,
        operation: str,
        outcome: str,
        *,
        tenant: str = "",
        seconds: float = 0.0,
        bytes_in: int = 0,
        bytes_out: int = 0,
    ) -> None:
        """One answered request. Unknown operations count as "other", unknown outcomes as "error"."""
        cells = self._cells
        try:
            plan = self._plans.get((protocol, operation, outcome))
            if plan is None:
                plan = self._plan(protocol, operation, outcome)
            counter, row, timed, tenant_counter = plan
            cells[counter] += 1
            if bytes_in:
                cells[row + BYTES_IN] += bytes_in
            if bytes_out:
                cells[row + BYTES_OUT] += bytes_out
            if timed:
                cells[row + LATENCY + bucket_of(seconds)] += 1
                cells[row + LOOKUP_NS] += int(seconds * 1e9)
            if tenant:
                row = self._tenants.get(tenant) or self._learn(self._tenants, _TENANT_TABLE, tenant)
                if tenant_counter:
                    cells[row + tenant_counter] += 1
                if bytes_in:
                    cells[row + _IN] += bytes_in
                if bytes_out:
                    cells[row + _OUT] += bytes_out
        except (TypeError, ValueError, OverflowError):
            cells[at.DROPPED] += 1

    def _plan(self, protocol: str, operation: str, outcome: str) -> tuple[int, int, bool, int]:
        """What a request of this kind counts: cell of the request, its protocol's row, whether it is timed, and the
        counter of its tenant (0: none)."""
        row = self._protocols.get(protocol) or self._learn(self._protocols, _PROTOCOL_TABLE, protocol)
        place = _OPERATION.get(operation, _OPERATION["other"]) + _OUTCOME.get(outcome, _OUTCOME["error"])
        counter = 0
        if operation == "lookup" and outcome in ("hit", "miss"):
            counter = _HITS if outcome == "hit" else _MISSES
        elif operation == "finalize" and outcome == "ok":
            counter = _SAVES
        elif outcome in _FAILURES:
            counter = _FAILED
        plan = (row + at.REQUESTS + place, row, operation == "lookup", counter)
        if len(self._plans) < _PLANS:
            self._plans[protocol, operation, outcome] = plan
        return plan

    def removed(self, reason: RemovalReason, tenant: str, entries: int, size: int) -> None:
        cells = self._cells
        try:
            n = at.REASONS.index(reason)
            cells[at.REMOVED_ENTRIES + n] += entries
            cells[at.REMOVED_BYTES + n] += size
            if tenant:
                row = self._tenants.get(tenant) or self._learn(self._tenants, _TENANT_TABLE, tenant)
                cells[row + _GONE] += entries
                cells[row + _GONE_BYTES] += size
        except (TypeError, ValueError, OverflowError):
            cells[at.DROPPED] += 1

    def saved(self, how: str, size: int) -> None:
        try:
            self._cells[at.SAVED + at.SAVED_BY.index(how)] += size
        except (TypeError, ValueError, OverflowError):
            self._cells[at.DROPPED] += 1

    def restarted(self, role: str) -> None:
        """The supervisor replaced a process that died: ``role`` is one of layout.ROLES."""
        self._cells[at.RESTARTS + at.ROLES.index(role)] += 1

    def lagged(self, seconds: float, now: float) -> None:
        """The event loop came late by ``seconds``; the longest of each minute is kept, for two minutes with one."""
        cells, minute, ns = self._cells, int(now) // 60, int(seconds * 1e9)
        if cells[at.LAG_MINUTE] != minute:
            cells[at.LAG_MINUTE_BEFORE], cells[at.LAG_NS_BEFORE] = cells[at.LAG_MINUTE], cells[at.LAG_NS]
            cells[at.LAG_NS] = 0
            cells[at.LAG_MINUTE] = minute
        if ns > cells[at.LAG_NS]:
            cells[at.LAG_NS] = ns

    def _learn(self, known: dict[str, int], table: _Table, name: str) -> int:
        """The row of a name seen for the first time here. With the table full, the last row, without remembering it:
        what a client can make up must not fill memory."""
        stored = table.stored(name)
        row = known.get(stored)
        if row is None:
            raw = stored.encode()
            if not raw or len(known) >= table.rows - 1:
                return table.last
            row = table.first + len(known) * table.cells
            place = self._start + row * 8
            self._map[place + 8 : place + 8 + len(raw)] = raw
            self._cells[row] = len(raw)
            known[stored] = row
        return row


class _Table:
    """One table of named rows in a slot. Cells of 8 bytes."""

    def __init__(self, first: int, rows: int, cells: int, name_bytes: int) -> None:
        self.first, self.rows, self.cells, self.name_bytes = first, rows, cells, name_bytes
        self.last = first + (rows - 1) * cells

    def stored(self, name: str) -> str:
        """The form of a name that fits into a row; its own when it does."""
        raw = name.encode("utf-8", "replace")
        if len(raw) <= self.name_bytes:
            return raw.decode()
        return raw[: self.name_bytes - 17].decode("utf-8", "ignore") + "~" + xxhash.xxh3_64_hexdigest(raw)


_PROTOCOL_TABLE: Final = _Table(at.PROTOCOLS, at.PROTOCOL_ROWS, at.PROTOCOL_CELLS, at.PROTOCOL_NAME_BYTES)
_TENANT_TABLE: Final = _Table(at.TENANTS, at.TENANT_ROWS, at.TENANT_CELLS, at.TENANT_NAME_BYTES)


def _rows(data: mmap.mmap | bytes, start: int, table: _Table) -> Iterator[tuple[str, int]]:
    """(name, first cell in the slot) of the named rows of a slot that begins at byte ``start``."""
    for n in range(table.rows - 1):
        row = table.first + n * table.cells
        place = start + row * 8
        length = int.from_bytes(data[place : place + 8], "little")
        if not 0 < length <= table.name_bytes:
            return
        yield data[place + 8 : place + 8 + length].decode("utf-8", "replace"), row


def read_counters(path: Path, *, now_ms: int | None = None, tenants: bool = True) -> Snapshot | None:
    """All slots added up; None when there is no counters file of this version. Reads a file in use.

    Without ``tenants`` 28 KiB a slot are read instead of 288, and the table of tenants stays empty. Milliseconds (with
    18 slots of 1,024 tenants 70 ms): on an event loop, call it in a thread.
    """
    head = _read_head(path)
    if head is None:
        return None
    slots, created = head
    totals = Totals()
    wanted = at.SLOT_BYTES if tenants else at.TENANTS * 8
    with path.open("rb") as file:
        for slot in range(slots):
            file.seek(at.HEAD_BYTES + slot * at.SLOT_BYTES)
            raw = file.read(wanted)
            if len(raw) == wanted:
                _add_slot(totals, raw, tenants)
    return Snapshot(created, int(time.time() * 1000) if now_ms is None else now_ms, totals)


def _add_slot(totals: Totals, raw: bytes, tenants: bool) -> None:
    cells = memoryview(raw).cast("Q")

    def named(first: int, names: Sequence[str]) -> dict[str, int]:
        found = cells[first : first + len(names)].tolist()
        return {name: value for name, value in zip(names, found, strict=True) if value}

    slot = Totals(
        removed_entries=named(at.REMOVED_ENTRIES, at.REASONS),
        removed_bytes=named(at.REMOVED_BYTES, at.REASONS),
        saved=named(at.SAVED, at.SAVED_BY),
        restarts=named(at.RESTARTS, at.ROLES),
        dropped=cells[at.DROPPED],
    )
    for name, row in (*_rows(raw, 0, _PROTOCOL_TABLE), (at.OTHER, _PROTOCOL_TABLE.last)):
        buckets = cells[row + LATENCY : row + LATENCY + latency.BUCKETS].tolist()
        found = ProtocolTotals(
            {
                name: value
                for operation, n in _OPERATION.items()
                for name, value in named(row + at.REQUESTS + n, _NAMES[operation]).items()
            },
            cells[row + BYTES_IN],
            cells[row + BYTES_OUT],
            cells[row + LOOKUP_NS],
            {n: count for n, count in enumerate(buckets) if count},
        )
        if found != ProtocolTotals():
            slot.protocols[name] = found
    if tenants:
        for name, row in (*_rows(raw, 0, _TENANT_TABLE), (at.OTHER, _TENANT_TABLE.last)):
            if values := named(row + at.TENANT_VALUES, at.TENANT_COUNTERS):
                slot.tenants[name] = values
    totals.add(slot)


def read_lag(path: Path, now: float) -> float:
    """The longest lag of any event loop in this or the last minute, in seconds; 0.0 without a file."""
    head = _read_head(path)
    longest = 0
    if head is not None:
        with path.open("rb") as file:
            for slot in range(head[0]):
                file.seek(at.HEAD_BYTES + slot * at.SLOT_BYTES)
                minute, ns, minute_before, ns_before = struct.unpack("<4Q", file.read(32))
                recent = int(now) // 60 - 1
                longest = max(longest, ns if minute >= recent else 0, ns_before if minute_before >= recent else 0)
    return longest / 1e9


def mark_started(root: Path) -> None:
    """Keep the counters as they are now as the baseline of "since start". Call it after ``open_counters`` and before
    the first process counts."""
    snapshot = read_counters(counters_path(root))
    if snapshot is None:
        return
    path = root / STARTED_FILE
    new = path.with_name(path.name + ".new")
    new.write_bytes(encode(snapshot))
    new.replace(path)


def read_started(root: Path) -> Snapshot | None:
    try:
        return decode((root / STARTED_FILE).read_bytes())
    except FileNotFoundError:
        return None
