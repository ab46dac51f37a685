"""Newest entry under a prefix, in time that does not grow with the matches: a maximum per block of keys.

The entries of a namespace, in key order, fall into blocks of at most NEWEST_BLOCK; ``newest`` holds for each block its
lower bound (the key of a row) and the greatest clock and the number of entries in it. A lookup reads the maxima of the
blocks inside the prefix, looks into the two at its ends only if they could win, and is sure of the winner by its rec.

An insert raises one maximum; deleting the maximum rescans one block. A damaged row of ``newest`` is counted again from
the entries, since it says nothing that they do not.
"""

from __future__ import annotations

import contextlib
import struct
from typing import Any, Final

from cachesrv.store.constants import KEY_INDEX_BYTES, NEWEST_BLOCK
from cachesrv.store.index.codec import RowDamaged, after, unseal
from cachesrv.store.index.environment import Rows
from cachesrv.store.index.rows import RecRow, unpack_rec

MERGE_BELOW: Final = NEWEST_BLOCK // 8
"""A block that shrinks below this joins the next one, when both fill at most half a block."""
_SPACE_BYTES: Final = 4
_BLOCK: Final = struct.Struct(">QH")  # greatest clock, entries
_CLOCK: Final = struct.Struct(">Q")
_CLOCK_AT: Final = slice(1, 9)
"""Where the clock stands in the value of an ``entry`` row, and the greatest clock in one of ``newest``."""


def insert(rows: Rows, key: bytes, clock: int) -> None:
    """Count an entry in. Its row (``key``: space u32 | key) already stands in ``entry``."""
    cursor = rows.cursor("newest")
    first = _block_of(cursor, key)
    if first is None:
        first = _below_all(rows, cursor, key)
        if first is None:
            rows.put("newest", key, _BLOCK.pack(clock, 1))
            return
    block = _load(cursor)
    if block is None:
        greatest, count = _count(rows, min(first, key), _stop_of(cursor, first))
    else:
        greatest, count = max(block[0], clock), block[1] + 1
    if first > key:
        rows.delete("newest", first)
        first = key
    if count > NEWEST_BLOCK:
        _split(rows, first)
    else:
        rows.put("newest", first, _BLOCK.pack(greatest, count))


def remove(rows: Rows, key: bytes, clock: int) -> None:
    """Count an entry out. Its row is already gone from ``entry``."""
    cursor = rows.cursor("newest")
    first = _block_of(cursor, key)
    if first is None:
        return
    block = _load(cursor)
    stop = _stop_of(cursor, first)
    if block is None or clock >= block[0] or block[1] <= 1:
        greatest, count = _count(rows, first, stop)
    else:
        greatest, count = block[0], block[1] - 1
    if count == 0:
        rows.delete("newest", first)
        return
    if count < MERGE_BELOW and stop[:_SPACE_BYTES] == first[:_SPACE_BYTES] and cursor.set_key(stop):
        block = _load(cursor)
        if block is not None and count + block[1] <= NEWEST_BLOCK // 2:
            greatest, count = max(greatest, block[0]), count + block[1]
            rows.delete("newest", stop)
    rows.put("newest", first, _BLOCK.pack(greatest, count))


def find(rows: Rows, space: bytes, prefix: bytes) -> tuple[int, RecRow] | None:
    """The entry with the greatest clock in a space (u32) whose key starts with ``prefix`` (UTF-8), and its rec.

    What is damaged counts as missing; the next newest answers."""
    if len(prefix) <= KEY_INDEX_BYTES:
        try:
            clock = _find_by_blocks(rows, space, prefix)
            return (clock, _match(rows, clock, space, prefix)) if clock else None
        except RowDamaged:
            clocks = _clocks(rows, space + prefix, after(space + prefix))
    else:
        # Keys behind the cut stand in the order of their hashes: look at all that begin alike.
        start = space + prefix[:KEY_INDEX_BYTES]
        clocks = _clocks(rows, start, after(start))
    for clock in sorted(clocks, reverse=True):
        with contextlib.suppress(RowDamaged):
            return clock, _match(rows, clock, space, prefix)
    return None


def _find_by_blocks(rows: Rows, space: bytes, prefix: bytes) -> int | None:
    start = space + prefix
    stop = after(start)
    cursor = rows.cursor("newest")
    if _block_of(cursor, start) is None and not cursor.set_range(start):
        return None
    blocks: list[tuple[bytes, bytes]] = []
    end = after(space)
    for first, value in cursor:
        if stop and first >= stop:
            end = min(end, first) if end else first
            break
        if end and first >= end:
            break
        blocks.append((first, value))
    if not blocks:
        return None
    best = 0
    inside = blocks[1:-1]
    if inside:
        first, value = max(inside, key=_value)
        best = _BLOCK.unpack(unseal("newest", first, value))[0]
    for at in sorted({0, len(blocks) - 1}):
        first, value = blocks[at]
        greatest = _BLOCK.unpack(unseal("newest", first, value))[0]
        if greatest <= best:
            continue
        if _in_range(rows, greatest, space, prefix):
            best = greatest
            continue
        until = blocks[at + 1][0] if at + 1 < len(blocks) else end
        if stop and (not until or stop < until):
            until = stop
        best = max(best, _greatest(rows, max(first, start), until))
    return best or None


def _value(block: tuple[bytes, bytes]) -> bytes:
    return block[1]


def _match(rows: Rows, clock: int, space: bytes, prefix: bytes) -> RecRow:
    """The rec of a clock. Raises RowDamaged when there is none, or it is not one of these entries."""
    key = _CLOCK.pack(clock)
    payload = rows.get("rec", key)
    rec = None if payload is None else unpack_rec(payload)
    if rec is None or rec.space != int.from_bytes(space, "big") or not rec.key.encode().startswith(prefix):
        raise RowDamaged("rec", key)
    return rec


def _in_range(rows: Rows, clock: int, space: bytes, prefix: bytes) -> bool:
    try:
        _match(rows, clock, space, prefix)
    except RowDamaged:
        return False
    return True


def _greatest(rows: Rows, start: bytes, stop: bytes) -> int:
    """The greatest clock in a key range, 0 if it is empty. Only the winner's checksum is looked at: a row that rotted
    downwards loses, as if it were missing; one that rotted upwards is found out here."""
    best = b""
    best_key = b""
    for key, value in rows.scan("entry", start, stop):
        if value[_CLOCK_AT] > best:
            best, best_key, winner = value[_CLOCK_AT], key, value
    if not best:
        return 0
    unseal("entry", best_key, winner)
    return int(_CLOCK.unpack(best)[0])


def _block_of(cursor: Any, key: bytes) -> bytes | None:
    """Place the cursor on the block of a key in its space: the last row at or before it."""
    if cursor.set_range(key):
        if cursor.key() != key and not cursor.prev():
            return None
    elif not cursor.last():
        return None
    first: bytes = cursor.key()
    return first if first[:_SPACE_BYTES] == key[:_SPACE_BYTES] and first <= key else None


def _below_all(rows: Rows, cursor: Any, key: bytes) -> bytes | None:
    """Place the cursor on the first block of the space, whose bound is to be lowered to ``key``; None: no block."""
    if cursor.set_range(key):
        first: bytes = cursor.key()
        if first[:_SPACE_BYTES] == key[:_SPACE_BYTES]:
            return first
    return None


def _load(cursor: Any) -> tuple[int, int] | None:
    try:
        greatest, count = _BLOCK.unpack(unseal("newest", cursor.key(), cursor.value()))
    except RowDamaged:
        return None
    return greatest, count


def _stop_of(cursor: Any, first: bytes) -> bytes:
    """Where the block under the cursor ends: the next row's bound, or the end of the space."""
    space = first[:_SPACE_BYTES]
    if cursor.next():
        key: bytes = cursor.key()
        if key[:_SPACE_BYTES] == space:
            return key
    return after(space)


def _clocks(rows: Rows, start: bytes, stop: bytes) -> list[int]:
    """The clocks in a key range; 0 for a damaged row."""
    clocks = []
    for key, value in rows.scan("entry", start, stop):
        try:
            clocks.append(int(_CLOCK.unpack(unseal("entry", key, value))[0]))
        except RowDamaged:
            clocks.append(0)
    return clocks


def _count(rows: Rows, first: bytes, stop: bytes) -> tuple[int, int]:
    clocks = _clocks(rows, first, stop)
    return max(clocks, default=0), len(clocks)


def _split(rows: Rows, first: bytes) -> None:
    cursor = rows.cursor("newest")
    stop = _stop_of(cursor, first) if cursor.set_key(first) else _end_without_row(cursor, first)
    found = [(key, value[_CLOCK_AT]) for key, value in rows.scan("entry", first, stop)]
    half = len(found) // 2
    for part in (found[:half], found[half:]):
        greatest = int(_CLOCK.unpack(max(raw for _, raw in part))[0])
        bound = first if part[0] is found[0] else part[0][0]
        rows.put("newest", bound, _BLOCK.pack(greatest, len(part)))


def _end_without_row(cursor: Any, first: bytes) -> bytes:
    """The same end for a block whose row was just taken away to lower its bound."""
    if cursor.set_range(first):
        key: bytes = cursor.key()
        if key[:_SPACE_BYTES] == first[:_SPACE_BYTES]:
            return key
    return after(first[:_SPACE_BYTES])
