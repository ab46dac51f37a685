"""Single rows by what names them, inside a transaction: shared by readers and the committer. All raise RowDamaged."""

from __future__ import annotations

import struct
from typing import Final

from cachesrv.store.commands import Space
from cachesrv.store.index.codec import cut, space_key
from cachesrv.store.index.environment import Rows
from cachesrv.store.index.rows import (
    BlobRow,
    RecRow,
    SegmentRow,
    SpaceRow,
    TenantRow,
    Totals,
    unpack_blob,
    unpack_rec,
    unpack_segment,
    unpack_space,
    unpack_tenant,
    unpack_totals,
)

U32: Final = struct.Struct(">I")
U64: Final = struct.Struct(">Q")
PAIR: Final = struct.Struct(">QQ")
"""Keys of ``ref`` (blob, clock) and ``member`` (clock, blob)."""
LRU: Final = struct.Struct(">IBIQ")
"""Key of ``lru``: tenant, class, seconds, clock."""
GRAVE: Final = struct.Struct(">IQ")
"""Key of ``grave``: due seconds, file id."""
TODO: Final = struct.Struct(">BQ")
"""Key of ``todo``: what is to be done, blob."""
SHA256: Final = b"\x01"
"""Algorithm in a key of ``addr``."""
UNHASHED: Final = 1
UNPROBED: Final = 2
STATE_KEY: Final = b"state"
TOTALS_KEY: Final = b"totals"


def blob(rows: Rows, blob_id: int) -> BlobRow | None:
    payload = rows.get("blob", U64.pack(blob_id))
    return None if payload is None else unpack_blob(blob_id, payload)


def by_sha256(rows: Rows, sha256: bytes) -> int | None:
    payload = rows.get("addr", SHA256 + sha256)
    return None if payload is None else int(U64.unpack(payload)[0])


def rec(rows: Rows, clock: int) -> RecRow | None:
    payload = rows.get("rec", U64.pack(clock))
    return None if payload is None else unpack_rec(payload)


def space_number(rows: Rows, names: Space) -> bytes | None:
    """The interned number of a namespace as u32."""
    return rows.get("space", space_key(names))


def space(rows: Rows, number: int) -> SpaceRow | None:
    payload = rows.get("spaceinfo", U32.pack(number))
    return None if payload is None else unpack_space(number, payload)


def tenant(rows: Rows, number: int) -> TenantRow | None:
    payload = rows.get("tenantinfo", U32.pack(number))
    return None if payload is None else unpack_tenant(number, payload)


def segment(rows: Rows, number: int) -> SegmentRow | None:
    payload = rows.get("segment", U64.pack(number))
    return None if payload is None else unpack_segment(number, payload)


def totals(rows: Rows) -> Totals:
    payload = rows.get("core", TOTALS_KEY)
    return Totals() if payload is None else unpack_totals(payload)


def entry(rows: Rows, number: bytes, key: str) -> tuple[int, RecRow] | None:
    """Clock and rec of the entry with exactly this key in a space (u32)."""
    payload = rows.get("entry", number + cut(key.encode()))
    if payload is None:
        return None
    found = rec(rows, U64.unpack(payload)[0])
    if found is None or found.key != key:
        return None
    return int(U64.unpack(payload)[0]), found
