"""A record of a pack segment: how it looks.

A **segment** is a file of records, each starting at a multiple of 8, appended by one worker in one life. Format 1, all
numbers big-endian::

    header, 64 bytes
       0   4  magic  89 "PK" 0a
       4   2  version, 1
       6   2  zeros
       8   4  n, the length of the payload
      12   4  low 32 bits of the xxh3-64 over this header with these four bytes zero, seed 0
      16   8  blob id
      24  32  SHA-256 of the payload, or zeros while unknown
      56   8  xxh3-64 of the payload, seed 0
    64     n  payload
    64+n      zeros to the next multiple of 8

A segment may end anywhere in a record (a stop during an append): nothing refers to such a tail. ``Packed.length`` is
64 + n. Nothing here keeps state.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Final

from xxhash import xxh3_64_intdigest

from cachesrv.store.constants import PACK_LIMIT
from cachesrv.store.data.handles import DamageFound

VERSION: Final = 1
MAGIC: Final = b"\x89PK\n"
_HEADER: Final = struct.Struct(">4sH2xIIQ32sQ")
_CHECK: Final = slice(12, 16)
HEADER_BYTES: Final = _HEADER.size
ALIGN: Final = 8
_NO_SHA256: Final = bytes(32)


@dataclass(frozen=True, slots=True)
class RecordHeader:
    """``length``: of the payload; ``sha256``: b"" while unknown."""

    blob_id: int
    length: int
    sha256: bytes
    xxh3: int


def encode_header(blob_id: int, payload: bytes, sha256: bytes = b"") -> bytes:
    """The 64 bytes before ``payload``. Raises ValueError for a payload above PACK_LIMIT."""
    if len(payload) > PACK_LIMIT:
        raise ValueError(f"a record holds at most {PACK_LIMIT} bytes")
    if len(sha256) not in (0, 32):
        raise ValueError("a SHA-256 has 32 bytes")
    fields = (blob_id, sha256 or _NO_SHA256, xxh3_64_intdigest(payload))
    bare = _HEADER.pack(MAGIC, VERSION, len(payload), 0, *fields)
    return _HEADER.pack(MAGIC, VERSION, len(payload), xxh3_64_intdigest(bare) & 0xFFFF_FFFF, *fields)


def decode_header(data: bytes) -> RecordHeader | None:
    """None: this is no whole header of ours."""
    if len(data) < HEADER_BYTES or data[:4] != MAGIC:
        return None
    bare = bytearray(data[:HEADER_BYTES])
    _, version, length, check, blob_id, sha256, xxh3 = _HEADER.unpack(bare)
    bare[_CHECK] = bytes(4)
    if xxh3_64_intdigest(bytes(bare)) & 0xFFFF_FFFF != check or version != VERSION or length > PACK_LIMIT:
        return None
    return RecordHeader(blob_id, length, sha256 if sha256 != _NO_SHA256 else b"", xxh3)


def padding(length: int) -> int:
    """Zeros after a record of ``length`` bytes, header included."""
    return -length % ALIGN


def payload_of(record: bytes, blob_id: int) -> memoryview:
    """The payload of one whole record, checked. Raises DamageFound."""
    header = decode_header(record)
    payload = memoryview(record)[HEADER_BYTES:]
    if (
        header is None
        or header.blob_id != blob_id
        or header.length != len(payload)
        or xxh3_64_intdigest(payload) != header.xxh3
    ):
        raise DamageFound(-1, -1)
    return payload
