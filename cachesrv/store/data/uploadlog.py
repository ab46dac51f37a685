"""The upload log: what of an upload has arrived, in which order it is to be read, and whether it is closed.

One file ``f/xx/<id>.log`` an upload, made when its first bytes come. Any worker may append at any time, so nothing that
a worker remembers counts until it has taken the lock (``flock`` on the log) and read the rest of the file. Bytes lie in
the part files; the log says where. It is not synced: an upload does not outlive a power cut, a committed blob does
not need it.

Format 1, all numbers big-endian. A file is a row of records, appended with one write each::

    0   1  type: 'B' block, 'C' chosen, 'S' sealed
    1   1  format of the record, 1
    2   2  zeros
    4   4  n, the length of the body
    8   n  body
    8+n 8  xxh3-64 of the 8 + n bytes before, seed 0

    body of 'B', a block of bytes that arrived whole
      0   1  kind: 1 whole content, 2 named block, 3 range
      1   1  i, the length of the id: 1..64 for a named block, else 0
      2   2  zeros
      4   8  start: offset of a range in the content, else 0
     12   8  length of the block
     20   4  e, extents    24   4  p, pieces
     28   i  id
          20 x e  extents, in the order of the bytes:   part u32, offset u64, length u64
          12 x p  pieces: raw length u32 (1..PIECE_BYTES), xxh3-64 u64; none crosses the end of an extent
    body of 'C', a block list
      0   8  size of the content
      8   4  c, the number of references
     12  8 x c  offset in this log of the 'B' record that each stands for, in the order of the content
    body of 'S': nothing is accepted any more
      0   8  size of the content

A torn or damaged record ends the log: it and what follows are ignored. The next writer cuts it off, under the lock,
before it appends (a worker that dies inside a write leaves one).

What counts: of two attempts of one block or range the later record; a whole content drops everything before it; of a
whole content and the block lists the latest; without those the ranges by offset.
"""

from __future__ import annotations

import errno
import fcntl
import os
import struct
import threading
import time
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Final, Self

from xxhash import xxh3_64_intdigest

from cachesrv.store.constants import MiB
from cachesrv.store.data.io import Disk, disk_errors, read_exactly
from cachesrv.store.data.layout import Piece
from cachesrv.store.errors import LimitExceeded, StoreBusy, StoreUnavailable, UploadUnknown
from cachesrv.store.folder import DataFolder

FORMAT: Final = 1
BLOCK: Final = 0x42
CHOSEN: Final = 0x43
SEALED: Final = 0x53
WHOLE: Final = 1
NAMED: Final = 2
RANGE: Final = 3
ID_BYTES: Final = 64
"""A block id has 1..ID_BYTES bytes."""
LOG_BYTES: Final = 64 * MiB
"""A log longer than this takes no more blocks: 400,000 of them, or one body of 5 TiB."""
LOCK_SECONDS: Final = 5.0
"""A log locked for longer belongs to a stopped worker: StoreBusy."""
CACHED_LOGS: Final = 256
"""Logs whose meaning one worker remembers (a hint: the rest of the file is read anyway)."""
_LOCK_POLL_SECONDS: Final = 0.00005
"""First pause when a log is locked; it doubles up to a hundred times that."""

_HEAD: Final = struct.Struct(">BBHI")
_SUM: Final = struct.Struct(">Q")
_BLOCK: Final = struct.Struct(">BBHQQII")
_EXTENT: Final = struct.Struct(">IQQ")
_PIECE: Final = struct.Struct(">IQ")
_CHOSEN: Final = struct.Struct(">QI")
_SIZE: Final = struct.Struct(">Q")
RECORD_OVERHEAD: Final = _HEAD.size + _SUM.size


@dataclass(frozen=True, slots=True)
class Extent:
    """Bytes [offset, offset + length) of part file ``part``."""

    part: int
    offset: int
    length: int


@dataclass(frozen=True, slots=True)
class Block:
    """One attempt that arrived whole. ``pieces`` are (raw length, xxh3), in the order of the bytes in ``extents``."""

    kind: int
    id: bytes
    start: int
    length: int
    extents: tuple[Extent, ...]
    pieces: tuple[tuple[int, int], ...]

    def placed(self) -> Iterator[Piece]:
        """The pieces with the place where each lies. Raises ValueError when they do not fill the extents exactly."""
        rest = iter(self.pieces)
        for extent in self.extents:
            offset, end = extent.offset, extent.offset + extent.length
            while offset < end:
                raw, xxh3 = next(rest, (0, 0))
                if raw == 0 or offset + raw > end:
                    raise ValueError("the pieces of a block do not fill its extents")
                yield Piece(extent.part, offset, raw, raw, xxh3)
                offset += raw
        if next(rest, None) is not None:
            raise ValueError("a block has more pieces than bytes")


# -- records as bytes --------------------------------------------------------------------------------------------------


def encode_record(kind: int, body: bytes) -> bytes:
    head = _HEAD.pack(kind, FORMAT, 0, len(body)) + body
    return head + _SUM.pack(xxh3_64_intdigest(head))


def encode_block(block: Block) -> bytes:
    fixed = _BLOCK.pack(block.kind, len(block.id), 0, block.start, block.length, len(block.extents), len(block.pieces))
    extents = b"".join(_EXTENT.pack(e.part, e.offset, e.length) for e in block.extents)
    pieces = b"".join(_PIECE.pack(raw, xxh3) for raw, xxh3 in block.pieces)
    return encode_record(BLOCK, fixed + block.id + extents + pieces)


def encode_chosen(size: int, offsets: Sequence[int]) -> bytes:
    return encode_record(CHOSEN, _CHOSEN.pack(size, len(offsets)) + struct.pack(f">{len(offsets)}Q", *offsets))


def encode_sealed(size: int) -> bytes:
    return encode_record(SEALED, _SIZE.pack(size))


def decode_block(body: bytes) -> Block:
    """Raises ValueError (struct.error is not one: lengths are checked first)."""
    if len(body) < _BLOCK.size:
        raise ValueError("a block record is cut short")
    kind, id_length, _, start, length, extents, pieces = _BLOCK.unpack_from(body)
    at = _BLOCK.size + id_length
    middle = at + extents * _EXTENT.size
    if len(body) != middle + pieces * _PIECE.size:
        raise ValueError("a block record has the wrong length")
    return Block(
        kind,
        bytes(body[_BLOCK.size : at]),
        start,
        length,
        tuple(Extent(*row) for row in _EXTENT.iter_unpack(body[at:middle])),
        tuple(_PIECE.iter_unpack(body[middle:])),
    )


def decode_chosen(body: bytes) -> tuple[int, tuple[int, ...]]:
    """(size, log offsets). Raises ValueError."""
    if len(body) < _CHOSEN.size:
        raise ValueError("a block list is cut short")
    size, count = _CHOSEN.unpack_from(body)
    if len(body) != _CHOSEN.size + 8 * count:
        raise ValueError("a block list has the wrong length")
    return size, struct.unpack_from(f">{count}Q", body, _CHOSEN.size)


def records(data: bytes, base: int = 0) -> Iterator[tuple[int, int, bytes, int]]:
    """(offset, type, body, end) of each whole record, up to the first that is torn or damaged. ``base``: the offset of
    ``data`` in the log."""
    at = 0
    while at + RECORD_OVERHEAD <= len(data):
        kind, version, zeros, length = _HEAD.unpack_from(data, at)
        check = at + _HEAD.size + length
        if kind not in (BLOCK, CHOSEN, SEALED) or version != FORMAT or zeros or check + _SUM.size > len(data):
            return
        if xxh3_64_intdigest(memoryview(data)[at:check]) != _SUM.unpack_from(data, check)[0]:
            return
        end = check + _SUM.size
        yield base + at, kind, data[at + _HEAD.size : check], base + end
        at = end


# -- what a log means --------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class LogState:
    """A log read up to ``end``. Values are (offset of the record, length of the block)."""

    end: int = 0
    blocks: dict[bytes, tuple[int, int]] = field(default_factory=dict)
    ranges: dict[int, tuple[int, int]] = field(default_factory=dict)
    whole: tuple[int, int] | None = None
    chosen: tuple[int, int] | None = None
    """The latest of the two is kept, the other is None. For a list: (offset of its record, size)."""
    empty_range: bool = False
    sealed: int | None = None
    """The size it was sealed with."""
    staged_bytes: int = 0
    last_part: int = 0
    """A hint where to look for the last part file."""

    def read(self, data: bytes) -> None:
        """Continue with what stands at ``end``. A record that cannot be understood ends the log like a torn one."""
        for offset, kind, body, end in records(data, self.end):
            if kind == BLOCK:
                if len(body) < _BLOCK.size:
                    return
                self._block(offset, body)
            elif kind == CHOSEN:
                self.chosen, self.whole = (offset, _SIZE.unpack_from(body)[0]), None
            else:
                self.sealed = _SIZE.unpack_from(body)[0]
            self.end = end

    def _block(self, offset: int, body: bytes) -> None:
        kind, id_length, _, start, length, _, _ = _BLOCK.unpack_from(body)
        self.staged_bytes += length
        if kind == WHOLE:
            self.blocks.clear()
            self.ranges.clear()
            self.whole, self.chosen = (offset, length), None
        elif kind == NAMED:
            self.blocks[body[_BLOCK.size : _BLOCK.size + id_length]] = (offset, length)
        elif length:
            self.ranges[start] = (offset, length)
        else:
            self.empty_range = True


class LockedLog:
    """An open log that this thread has locked: ``state`` is the truth until it is closed. A context manager."""

    def __init__(self, fd: int, state: LogState, disk: Disk) -> None:
        self.fd = fd
        self.state = state
        self._disk = disk

    def append(self, record: bytes) -> int:
        """Write one record whole or not at all; returns its offset. Raises OSError, LimitExceeded."""
        state = self.state
        if state.end + len(record) > LOG_BYTES:
            raise LimitExceeded(f"an upload log holds at most {LOG_BYTES} bytes: too many blocks")
        at = state.end
        if os.fstat(self.fd).st_size != at:
            os.ftruncate(self.fd, at)  # a torn record of a writer that died
        written = 0
        try:
            written = self._disk.append(self.fd, record)
            if written != len(record):
                raise OSError(errno.ENOSPC, "a record was written in part")
        except OSError:
            if written:
                os.ftruncate(self.fd, at)
            raise
        state.read(record)
        return at

    def record(self, offset: int, kind: int) -> bytes:
        """The body of the record at ``offset``. Raises StoreUnavailable when there is none of that type."""
        head = read_exactly(self.fd, _HEAD.size, offset)
        length = _HEAD.unpack(head)[3] if len(head) == _HEAD.size else 0
        for _, found, body, _ in records(read_exactly(self.fd, min(length, LOG_BYTES) + RECORD_OVERHEAD, offset)):
            if found == kind:
                return body
            break
        raise StoreUnavailable("the log of this upload is damaged")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.close(self.fd)


class UploadLogs:
    """The logs of one data folder, as one worker opens them. Blocking calls: use in threads."""

    def __init__(self, folder: DataFolder, disk: Disk, *, lock_seconds: float = LOCK_SECONDS) -> None:
        self._folder = folder
        self._disk = disk
        self._lock_seconds = lock_seconds
        self._known: OrderedDict[tuple[int, int], LogState] = OrderedDict()
        self._guard = threading.Lock()

    def open(self, upload_id: int, *, create: bool = False) -> LockedLog:
        """Lock the log and read what is new in it.

        Raises UploadUnknown when there is none (or it was removed meanwhile), StoreBusy when another worker keeps it
        locked, StoreUnavailable.
        """
        flags = os.O_RDWR | os.O_APPEND | os.O_CLOEXEC | (os.O_CREAT if create else 0)
        with disk_errors():
            fd = os.open(self._folder.log(upload_id), flags, 0o600)
            try:
                self._take_lock(fd)
                return LockedLog(fd, self._state(fd, upload_id), self._disk)
            except BaseException:
                os.close(fd)
                raise

    def forget(self, upload_id: int) -> None:
        """The upload is over."""
        with self._guard:
            for key in [key for key in self._known if key[0] == upload_id]:
                del self._known[key]

    def _take_lock(self, fd: int) -> None:
        deadline = time.monotonic() + self._lock_seconds
        pause = _LOCK_POLL_SECONDS
        while True:
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise StoreBusy("another worker holds this upload") from None
                time.sleep(pause)
                pause = min(pause * 2, _LOCK_POLL_SECONDS * 100)

    def _state(self, fd: int, upload_id: int) -> LogState:
        status = os.fstat(fd)
        if status.st_nlink == 0:
            raise UploadUnknown("this upload was dropped")
        key = (upload_id, status.st_ino)
        with self._guard:
            # Taken out while it changes: only the holder of the lock has it.
            state = self._known.pop(key, None)
        if state is None or state.end > status.st_size:
            state = LogState()
        if state.end < status.st_size:
            state.read(read_exactly(fd, status.st_size - state.end, state.end))
        with self._guard:
            self._known[key] = state
            while len(self._known) > CACHED_LOGS:
                self._known.popitem(last=False)
        return state
