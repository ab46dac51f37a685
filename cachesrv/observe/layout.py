"""The bytes of ``DATA/stats/counters.map``, version 1. Shared memory of all processes; little-endian; counters u64.

Only the owner of a slot writes into it (plain aligned 8-byte stores: no lock, no system call), readers add up all
slots. Counters only grow. Indices of operations, outcomes and reasons are positions in the lists
below, to which names may only be appended. A file of another version or with a broken head is replaced by a new one.

Head, 4096 bytes::

    0     8  magic "csrvstat"
    8     4  version (u32) = 1
    12    4  slots (u32), grows when more workers are configured, never shrinks
    16    8  created, Unix milliseconds; names this life of the file
    24       zeros

Slot n (0 supervisor, 1 housekeeper, 2 committer, 3 + i worker i) at 4096 + n * SLOT_BYTES::

    0    16  event loop lag: Unix minute, longest lag in it (nanoseconds)
    16   16  the same of the last minute before in which there was a lag; all four set to 0 by whoever takes the slot
    32    8  calls of the recorder that were dropped because an argument made no sense
    40   24  zeros
    64   64  bytes saved, by index in SAVED_BY (8 places)
    128 128  restarts of a process, by index in ROLES (16 places)
    256 128  removals: entries, by index in REASONS (16 places)
    384 128  removals: logical bytes, by index in REASONS (16 places)
    512      16 protocol rows of PROTOCOL_BYTES; row 15 collects what found no row
    then     1,024 tenant rows of 256 bytes; row 1,023 collects what found no row

A row belongs to a name once its name length is not 0 (name first, then length), and to the same one for ever. The
tables are each slot's own, so no process waits for another to learn a row: readers match rows by name.

Protocol row, 1,792 bytes::

    0     8  length of the name in bytes
    8    40  name, UTF-8
    48    8  bytes in
    56    8  bytes out
    64    8  lookups timed, sum in nanoseconds
    72   24  zeros
    96 1024  requests: operation index * 16 + outcome index (8 operations, 16 outcomes)
    1120 656 lookups timed, by bucket (82, ``cachesrv.observe.latency``)
    1776  16 zeros

Tenant row, 256 bytes::

    0     8  length of the name in bytes
    8   184  name, UTF-8; a longer one is cut at 167 bytes and ends in "~" and 16 hex digits of its xxh3
    192   64 8 counters in the order of TENANT_COUNTERS
"""

from __future__ import annotations

from typing import Final

from cachesrv.observe.latency import BUCKETS
from cachesrv.observe.recorder import OPERATIONS, OUTCOMES
from cachesrv.store.model import RemovalReason

MAGIC: Final = b"csrvstat"
VERSION: Final = 1

SUPERVISOR: Final = 0
HOUSEKEEPER: Final = 1
COMMITTER: Final = 2
FIRST_WORKER: Final = 3

ROLES: Final = ("worker", "committer", "housekeeper")
SAVED_BY: Final = ("zstd", "dedup")
REASONS: Final = tuple(reason.value for reason in RemovalReason)
TENANT_COUNTERS: Final = (
    "hits",
    "misses",
    "bytes_in",
    "bytes_out",
    "saves",
    "failures",
    "removed_entries",
    "removed_bytes",
)

HEAD_BYTES: Final = 4096
OPERATION_PLACES: Final = 8
OUTCOME_PLACES: Final = 16
REASON_PLACES: Final = 16
PROTOCOL_ROWS: Final = 16
PROTOCOL_BYTES: Final = 1792
PROTOCOL_NAME_BYTES: Final = 40
TENANT_ROWS: Final = 1024
TENANT_BYTES: Final = 256
TENANT_NAME_BYTES: Final = 184
OTHER: Final = "(other)"
"""Name under which the last row of a table is shown."""

# Cells: indices of u64 from the start of a slot.
LAG_MINUTE: Final = 0
LAG_NS: Final = 1
LAG_MINUTE_BEFORE: Final = 2
LAG_NS_BEFORE: Final = 3
DROPPED: Final = 4
SAVED: Final = 8
RESTARTS: Final = 16
REMOVED_ENTRIES: Final = 32
REMOVED_BYTES: Final = 48
PROTOCOLS: Final = 64
PROTOCOL_CELLS: Final = PROTOCOL_BYTES // 8
TENANTS: Final = PROTOCOLS + PROTOCOL_ROWS * PROTOCOL_CELLS
TENANT_CELLS: Final = TENANT_BYTES // 8
SLOT_CELLS: Final = TENANTS + TENANT_ROWS * TENANT_CELLS + -(TENANTS + TENANT_ROWS * TENANT_CELLS) % 512
SLOT_BYTES: Final = SLOT_CELLS * 8
"""A multiple of the page size, so that two processes never write one page."""

# Cells from the start of a protocol row.
BYTES_IN: Final = 6
BYTES_OUT: Final = 7
LOOKUP_NS: Final = 8
REQUESTS: Final = 12
LATENCY: Final = 140
# Cells from the start of a tenant row.
TENANT_VALUES: Final = 24

assert len(OPERATIONS) <= OPERATION_PLACES
assert len(OUTCOMES) <= OUTCOME_PLACES
assert len(REASONS) <= REASON_PLACES
assert LATENCY == REQUESTS + OPERATION_PLACES * OUTCOME_PLACES
assert LATENCY + BUCKETS <= PROTOCOL_CELLS
assert TENANT_VALUES * 8 == 8 + TENANT_NAME_BYTES


def worker_slot(worker: int) -> int:
    """The slot of worker ``worker`` (0..N-1)."""
    return FIRST_WORKER + worker


def slots_for(workers: int) -> int:
    """How many slots a group with ``workers`` workers needs: what ``open_counters`` is told."""
    return FIRST_WORKER + workers
