"""Pages of entries over namespaces in order of their names, and keys in byte order within each.

Names and keys behind the cut (KEY_INDEX_BYTES) stand in the order of their hashes. A cursor is: u16 length of a space
key | space key | entry key without its space; the page after it begins behind that entry.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from cachesrv.store.api import EntryFilter
from cachesrv.store.commands import Space
from cachesrv.store.constants import KEY_INDEX_BYTES
from cachesrv.store.errors import StoreError
from cachesrv.store.index import lookup
from cachesrv.store.index.codec import CUT_BYTES, RowDamaged, after, space_key, unseal
from cachesrv.store.index.environment import Rows
from cachesrv.store.index.lookup import U32, U64
from cachesrv.store.index.rows import RecRow
from cachesrv.store.model import Namespace

LOOK_LIMIT: Final = 2_000
"""Rows that one page looks at, at most, so that a filter that matches little does not hold the event loop."""
_LENGTH: Final = struct.Struct(">H")


@dataclass(slots=True)
class Found:
    """Rows of one page, and where the next one begins."""

    found: list[tuple[int, RecRow, Namespace]] = field(default_factory=list)
    cursor: bytes | None = None


def namespace(names: Space) -> Namespace:
    return Namespace(names.protocol, names.tenant, names.scope, names.version)


def page(
    rows: Rows, wanted: EntryFilter, limit: int, cursor: bytes | None, report: Callable[[RowDamaged], None]
) -> Found:
    """Up to ``limit`` entries behind ``cursor``. Raises StoreError when the cursor is not one of ours."""
    result = Found()
    bound = _common(wanted)
    at_space, at_key = _read_cursor(cursor)
    prefix = wanted.key_prefix.encode()
    looked = 0
    passed = b""
    for key, value in rows.scan("space", max(bound or b"\0", at_space), after(bound)):
        if looked >= LOOK_LIMIT:
            # Nothing begins with this byte, so the next page begins with the space behind.
            result.cursor = _cursor(passed, b"\xff")
            return result
        looked += 1
        passed = key
        try:
            space = unseal("space", key, value)
            row = lookup.space(rows, U32.unpack(space)[0])
        except RowDamaged as error:
            report(error)
            continue
        if row is None or not _wants(wanted, row.names):
            continue
        names = namespace(row.names)
        begin = space + prefix[:KEY_INDEX_BYTES]
        start = begin
        if key == at_space:
            # NUL is the smallest byte, so this is the first key behind the one of the cursor.
            start = max(begin, space + at_key + b"\0")
        for entry_key, clock_value in rows.scan("entry", start, after(begin)):
            looked += 1
            try:
                clock = int(U64.unpack(unseal("entry", entry_key, clock_value))[0])
                rec = lookup.rec(rows, clock)
            except RowDamaged as error:
                report(error)
                rec = None
            if rec is not None and rec.key.startswith(wanted.key_prefix):
                result.found.append((clock, rec, names))
            if len(result.found) >= limit or looked >= LOOK_LIMIT:
                result.cursor = _cursor(key, entry_key[4:])
                return result
    return result


def _common(wanted: EntryFilter) -> bytes:
    """The beginning that the space keys of all wanted namespaces share."""
    names = []
    for name in (wanted.protocol, wanted.tenant, wanted.scope, wanted.version):
        if name is None:
            break
        names.append(name)
    levels = len(names)
    full = Space(*names, *[""] * (4 - levels))
    return space_key(full, levels)[:KEY_INDEX_BYTES] if levels < 4 else space_key(full)


def _wants(wanted: EntryFilter, names: Space) -> bool:
    return (
        wanted.protocol in (None, names.protocol)
        and wanted.tenant in (None, names.tenant)
        and wanted.scope in (None, names.scope)
        and wanted.version in (None, names.version)
    )


def _cursor(space: bytes, key: bytes) -> bytes:
    return _LENGTH.pack(len(space)) + space + key


def _read_cursor(cursor: bytes | None) -> tuple[bytes, bytes]:
    if cursor is None:
        return b"", b""
    if len(cursor) >= _LENGTH.size:
        stop = _LENGTH.size + _LENGTH.unpack_from(cursor)[0]
        space, key = cursor[_LENGTH.size : stop], cursor[stop:]
        if 0 < len(space) <= CUT_BYTES and len(cursor) >= stop and len(key) <= CUT_BYTES:
            return space, key
    raise StoreError("the cursor is not one of this list")
