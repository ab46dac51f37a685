"""The piece table of one blob that has files of its own, and its form on disk: the trailer.

A **piece** is 1..PIECE_BYTES raw bytes of the blob under one xxh3-64 checksum. The pieces in the order of the table,
one after the other, are the blob; where they lie in the part files is free (any order, gaps between, twice the same
region). In a raw layout a piece is stored as it is. In a zstd layout it is one zstd frame when ``stored < raw`` and
stored as it is when ``stored == raw`` (a frame that would not be smaller is never kept).

The **trailer** ends the last part file. Format 1, all numbers big-endian::

    header, 72 bytes
       0   8  magic  89 "CSLAY" 0d 0a
       8   2  version, 1
      10   2  flags: 1 zstd, 2 the SHA-256 is known
      12   4  n, the number of pieces
      16   8  blob id
      24   8  raw size of the blob
      32  32  SHA-256 of the raw content, or zeros
      64   4  m, the length of the note
      68   4  zeros
    72   m  note: opaque to this module (the entry it was saved for, so that an index can be rebuilt)
    72+m  32 x n  piece table
       0   8  offset in the part file
       8   8  xxh3-64 of the stored bytes, seed 0
      16   4  part number
      20   4  stored length
      24   4  raw length
      28   4  zeros
    footer, 24 bytes, the last of the file
       0   8  xxh3-64 of everything before it in the trailer, seed 0
       8   8  length of the trailer, footer included
      16   8  magic  89 "CSEND" 0d 0a

In memory a layout is that table plus the start of each piece: 40 bytes a piece, so 400 kB for 10 GB.
Nothing here does I/O.
"""

from __future__ import annotations

import struct
from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Final, Self

from xxhash import xxh3_64_intdigest

from cachesrv.store.constants import PIECE_BYTES
from cachesrv.store.errors import BlobDamaged
from cachesrv.store.model import ByteRange

VERSION: Final = 1
MAGIC: Final = b"\x89CSLAY\r\n"
END_MAGIC: Final = b"\x89CSEND\r\n"
_HEADER: Final = struct.Struct(">8sHHIQQ32sI4x")
_ROW: Final = struct.Struct(">QQIII4x")
_FOOTER: Final = struct.Struct(">QQ8s")
_RAW_LENGTHS: Final = struct.Struct(">24xI4x")
HEADER_BYTES: Final = _HEADER.size
ROW_BYTES: Final = _ROW.size
FOOTER_BYTES: Final = _FOOTER.size
MAX_PARTS: Final = 1 << 16
"""Part numbers are below this (16 TiB in parts of 256 MiB)."""
MAX_OFFSET: Final = 1 << 48
"""Stored bytes end below this offset in their part."""
_ZSTD: Final = 1
_SHA256: Final = 2
_NO_SHA256: Final = bytes(32)


class LayoutDamaged(BlobDamaged):
    """These bytes are not a whole trailer of a version we know."""


@dataclass(frozen=True, slots=True)
class Piece:
    """``offset``: of the stored bytes in part file ``part``; ``stored`` and ``raw``: lengths; ``xxh3``: 64 bits over
    the stored bytes."""

    part: int
    offset: int
    stored: int
    raw: int
    xxh3: int


class Layout:
    """Immutable. Make one with :meth:`build` or :meth:`decode`; both check the same rules."""

    __slots__ = ("_rows", "_starts", "blob_id", "note", "part_ends", "sha256", "zstd")

    blob_id: int
    zstd: bool
    sha256: bytes
    """32 bytes, or b"" while unknown."""
    note: bytes
    part_ends: tuple[int, ...]
    """For each part up to the last that holds a piece: a file shorter than this is damaged."""

    def __init__(self, blob_id: int, rows: bytes, *, zstd: bool, sha256: bytes, note: bytes) -> None:
        """``rows``: the encoded piece table. Raises ValueError when a rule is broken."""
        if len(sha256) not in (0, 32):
            raise ValueError("a SHA-256 has 32 bytes")
        if not 0 <= blob_id < 1 << 64:
            raise ValueError("a blob id has 64 bits")
        self.blob_id = blob_id
        self.zstd = zstd
        self.sha256 = sha256
        self.note = note
        self._rows = rows
        self.part_ends = _checked_ends(rows, zstd)
        self._starts = array("Q", accumulate((raw for (raw,) in _RAW_LENGTHS.iter_unpack(rows)), initial=0))

    @classmethod
    def build(
        cls, blob_id: int, pieces: Sequence[Piece], *, zstd: bool = False, sha256: bytes = b"", note: bytes = b""
    ) -> Self:
        """Raises ValueError for a piece that breaks the rules of this module."""
        try:
            rows = b"".join(_ROW.pack(p.offset, p.xxh3, p.part, p.stored, p.raw) for p in pieces)
        except struct.error as error:
            raise ValueError(f"a piece does not fit its row: {error}") from None
        return cls(blob_id, rows, zstd=zstd, sha256=sha256, note=note)

    @classmethod
    def decode(cls, data: bytes) -> Self:
        """The layout of one whole trailer. Raises LayoutDamaged; allocates no more than a few times ``len(data)``."""
        if len(data) < HEADER_BYTES + FOOTER_BYTES:
            raise LayoutDamaged("a piece table is cut short")
        if trailer_length(data[-FOOTER_BYTES:]) != len(data):
            raise LayoutDamaged("a piece table has the wrong length")
        body = memoryview(data)[:-FOOTER_BYTES]
        if xxh3_64_intdigest(body) != _FOOTER.unpack_from(data, len(data) - FOOTER_BYTES)[0]:
            raise LayoutDamaged("a piece table failed its checksum")
        magic, version, flags, count, blob_id, size, sha256, note_length = _HEADER.unpack_from(data)
        if magic != MAGIC or version != VERSION or flags & ~(_ZSTD | _SHA256):
            raise LayoutDamaged("a piece table is of an unknown kind")
        table = HEADER_BYTES + note_length
        if table + ROW_BYTES * count != len(body):
            raise LayoutDamaged("a piece table has the wrong length")
        try:
            layout = cls(
                blob_id,
                bytes(body[table:]),
                zstd=bool(flags & _ZSTD),
                sha256=sha256 if flags & _SHA256 else b"",
                note=bytes(body[HEADER_BYTES:table]),
            )
        except ValueError as error:
            raise LayoutDamaged(f"a piece table breaks its rules: {error}") from None
        if layout.size != size:
            raise LayoutDamaged("a piece table has the wrong size")
        return layout

    def encode(self) -> bytes:
        """The trailer."""
        flags = (_ZSTD if self.zstd else 0) | (_SHA256 if self.sha256 else 0)
        header = _HEADER.pack(
            MAGIC, VERSION, flags, len(self), self.blob_id, self.size, self.sha256 or _NO_SHA256, len(self.note)
        )
        body = b"".join((header, self.note, self._rows))
        return body + _FOOTER.pack(xxh3_64_intdigest(body), len(body) + FOOTER_BYTES, END_MAGIC)

    @property
    def size(self) -> int:
        """Raw bytes of the blob."""
        return int(self._starts[-1])

    @property
    def memory(self) -> int:
        """Bytes this layout takes in memory, about."""
        return len(self._rows) + 8 * len(self._starts) + len(self.note) + 256

    def __len__(self) -> int:
        """The number of pieces."""
        return len(self._starts) - 1

    def __getitem__(self, index: int) -> Piece:
        if not 0 <= index < len(self):
            raise IndexError(index)
        offset, xxh3, part, stored, raw = _ROW.unpack_from(self._rows, index * ROW_BYTES)
        return Piece(part, offset, stored, raw, xxh3)

    def __iter__(self) -> Iterator[Piece]:
        for offset, xxh3, part, stored, raw in _ROW.iter_unpack(self._rows):
            yield Piece(part, offset, stored, raw, xxh3)

    def start(self, index: int) -> int:
        """Where piece ``index`` begins in the blob; ``len(self)`` gives the size."""
        return int(self._starts[index])

    def covering(self, wanted: ByteRange) -> range:
        """Indexes of the pieces that hold bytes of ``wanted`` (cut to the blob); empty for an empty range."""
        start, stop = max(wanted.start, 0), min(wanted.stop, self.size)
        if start >= stop:
            return range(0)
        return range(bisect_right(self._starts, start) - 1, bisect_left(self._starts, stop))


def trailer_length(footer: bytes) -> int:
    """Length of the trailer that ends with these FOOTER_BYTES (the last of the last part). Raises LayoutDamaged."""
    if len(footer) != FOOTER_BYTES:
        raise LayoutDamaged("a piece table is cut short")
    length: int
    _, length, magic = _FOOTER.unpack(footer)
    if magic != END_MAGIC or length < HEADER_BYTES + FOOTER_BYTES:
        raise LayoutDamaged("a file does not end with a piece table")
    return length


def _checked_ends(rows: bytes, zstd: bool) -> tuple[int, ...]:
    ends: list[int] = []
    for offset, _, part, stored, raw in _ROW.iter_unpack(rows):
        if not 1 <= stored <= raw <= PIECE_BYTES:
            raise ValueError(f"a piece of {raw} bytes, {stored} stored")
        if stored != raw and not zstd:
            raise ValueError("a raw piece is stored as it is")
        if part >= MAX_PARTS or offset + stored > MAX_OFFSET:
            raise ValueError(f"a piece at {offset} of part {part}")
        if part >= len(ends):
            ends.extend([0] * (part + 1 - len(ends)))
        if offset + stored > ends[part]:
            ends[part] = offset + stored
    return tuple(ends)
