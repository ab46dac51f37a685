"""The envelope of every value in the index, and the bytes of its keys (docs/format.md, Index).

A value is: version u8 | payload | the low 32 bits of xxh3-64 over version and payload. LMDB 0.9 has no page checksum,
so this is how a rotten row is told from a good one. A row that fails raises :class:`RowDamaged`; nothing is guessed.
"""

from __future__ import annotations

import hashlib
import struct
from typing import Final

import xxhash

from cachesrv.store.commands import Space
from cachesrv.store.constants import KEY_INDEX_BYTES
from cachesrv.store.errors import LimitExceeded, StoreError

ROW_VERSION: Final = 1
_VERSION: Final = bytes([ROW_VERSION])
_TEXT: Final = struct.Struct(">H")
TEXT_LIMIT: Final = 0xFFFF
"""Bytes of UTF-8 in one text of a row."""
HASH_BYTES: Final = 16
"""Bytes of hash behind a key that was cut."""
CUT_BYTES: Final = KEY_INDEX_BYTES + HASH_BYTES
"""Length of every key that was cut; a whole key is at most KEY_INDEX_BYTES, so the two never meet."""

_SUM: Final = 0xFFFFFFFF
_xxh3 = xxhash.xxh3_64_intdigest
_pack_sum = struct.Struct(">I").pack


class RowDamaged(StoreError):
    """A row of the index failed its checksum or does not parse. Readers treat it as missing and report it."""

    def __init__(self, table: str, key: bytes) -> None:
        super().__init__(f"a row of the index table {table!r} is damaged")
        self.table = table
        self.key = key


def seal(payload: bytes) -> bytes:
    """The value that stands for a payload."""
    body = _VERSION + payload
    return body + _pack_sum(_xxh3(body) & _SUM)


def unseal(table: str, key: bytes, value: bytes) -> bytes:
    """The payload of a value. Raises RowDamaged."""
    if len(value) < 5 or value[0] != ROW_VERSION or _pack_sum(_xxh3(value[:-4]) & _SUM) != value[-4:]:
        raise RowDamaged(table, key)
    return value[1:-4]


def pack_text(text: str) -> bytes:
    """u16 length + UTF-8. Raises LimitExceeded above TEXT_LIMIT."""
    data = text.encode()
    if len(data) > TEXT_LIMIT:
        raise LimitExceeded(f"a name or key is longer than {TEXT_LIMIT} bytes")
    return _TEXT.pack(len(data)) + data


def take_text(data: bytes, at: int) -> tuple[str, int]:
    """A text at an offset, and the offset behind it."""
    start = at + 2
    stop = start + _TEXT.unpack_from(data, at)[0]
    return data[start:stop].decode(), stop


def _hash(data: bytes) -> bytes:
    return hashlib.sha256(data).digest()[:HASH_BYTES]


def cut(data: bytes) -> bytes:
    """A key of any length as at most CUT_BYTES: whole, or its beginning and a hash of all of it."""
    return data if len(data) <= KEY_INDEX_BYTES else data[:KEY_INDEX_BYTES] + _hash(data)


def space_key(names: Space, levels: int = 4) -> bytes:
    """Names so that byte order is the order of the names: each one with NUL doubled as 00 FF, ended by 00 01.

    ``levels`` < 4 gives the common beginning of all spaces that share the first names (uncut)."""
    texts = (names.protocol, names.tenant, names.scope, names.version)[:levels]
    data = b"".join(text.encode().replace(b"\0", b"\0\xff") + b"\0\1" for text in texts)
    return cut(data) if levels == 4 else data


def after(prefix: bytes) -> bytes:
    """The first byte string behind all those that start with ``prefix``; b"" when there is none."""
    stripped = prefix.rstrip(b"\xff")
    return stripped[:-1] + bytes([stripped[-1] + 1]) if stripped else b""


def reservation_key(names: Space, key: str) -> bytes:
    """The key of a reservation: hash16 of the names, hash16 of the key."""
    return _hash(b"".join(pack_text(t) for t in (names.protocol, names.tenant, names.scope, names.version))) + _hash(
        key.encode()
    )
