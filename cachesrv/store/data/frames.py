"""Making a raw blob smaller behind the acknowledgement: the same pieces as zstd frames in new files.

Format: each frame is one complete zstd frame (RFC 8878) of at most PIECE_BYTES of input, with its content size in the
frame header and no checksum of its own (the xxh3 of the piece covers it). Where a frame would not be smaller than its
input, the input is stored instead. Frames lie one behind the other, never across two parts; the trailer follows the
last. A range needs only the frames that it touches.

The caller leases the file id, and swaps the form of the blob in the index when this has returned; until then nothing
names the new files, and whatever goes wrong removes them.
"""

from __future__ import annotations

import contextlib
import os
from typing import Final

from xxhash import xxh3_64_intdigest
from zstandard import ZstdCompressor

from cachesrv.store.commands import Filed
from cachesrv.store.constants import PART_BYTES, PIECE_BYTES, SYNC_BEHIND_BYTES
from cachesrv.store.data.handles import DataFile, Paths, close_all
from cachesrv.store.data.io import Disk, Threads, disk_errors, write_all
from cachesrv.store.data.layout import Layout, Piece
from cachesrv.store.data.pace import Pace
from cachesrv.store.data.walk import dropping_behind, jobs, opened

MIN_SAVING: Final = 0.10
"""Content that shrinks by less than this part of its size stays raw, which is served without a copy."""
PROBE_PLACES: Final = 5
"""So many places, spread over the blob, are compressed to guess whether the rest would shrink."""
PROBE_LEVEL: Final = 1
"""A guess needs no more."""


async def compress(
    paths: Paths,
    blob_id: int,
    size: int,
    form: Filed,
    file_id: int,
    *,
    level: int,
    threads: Threads,
    pace: Pace,
    durable: bool = True,
    disk: Disk | None = None,
    part_bytes: int = PART_BYTES,
    piece_bytes: int = PIECE_BYTES,
) -> Filed | None:
    """Rewrite a raw blob as frames under ``file_id``; None when it would not shrink by MIN_SAVING.

    Every piece read is checked first. SHA-256 and note of the layout are carried over. Durable: the files are on disk
    when this returns. Memory: about 4 MiB. Raises BlobDamaged, BlobMissing, StoreFull, StoreReadOnly, StoreUnavailable,
    ValueError for a blob that is in frames already; then, and when cancelled, no new file is left.
    """
    if form.zstd:
        raise ValueError("the blob is in frames already")
    async with opened(paths, form, blob_id, size, threads) as source:
        if not await _would_shrink(source, threads, pace, piece_bytes):
            return None
        rewrite = _Rewrite(paths, file_id, level, durable, disk or Disk(), part_bytes, piece_bytes)
        filed: Filed | None = None
        try:
            for pieces in jobs(source.table):
                await threads.run(rewrite.add, source, pieces)
                await pace.take(source.table.start(pieces.stop) - source.table.start(pieces.start))
            filed = await threads.run(rewrite.finish, source.table)
        finally:
            if filed is None or filed.disk_bytes - filed.trailer_length > size * (1 - MIN_SAVING):
                filed = None
                await threads.run(rewrite.abandon)
        return filed


async def _would_shrink(source: DataFile, threads: Threads, pace: Pace, piece_bytes: int) -> bool:
    layout = source.table
    places = sorted({len(layout) * place // PROBE_PLACES for place in range(PROBE_PLACES)}) if len(layout) else []
    raw = small = 0
    for first in places:
        # One job a place, so that a cancelled probe ends soon.
        length, compressed = await threads.run(_probe, source, first, piece_bytes)
        raw, small = raw + length, small + compressed
        await pace.take(length)
    return raw > 0 and small <= raw * (1 - MIN_SAVING)


def _probe(source: DataFile, first: int, piece_bytes: int) -> tuple[int, int]:
    """(raw, compressed) bytes of the pieces from ``first`` on that make one frame."""
    layout = source.table
    sample = bytearray()

    def add(index: int) -> None:
        sample.extend(source.raw(index))

    for index in range(first, len(layout)):
        if sample and len(sample) + layout[index].raw > piece_bytes:
            break
        dropping_behind(source, index, add)
    return len(sample), len(ZstdCompressor(level=PROBE_LEVEL).compress(sample))


class _Rewrite:
    """The new files. Every method blocks; one job at a time."""

    def __init__(
        self, paths: Paths, file_id: int, level: int, durable: bool, disk: Disk, part_bytes: int, piece_bytes: int
    ) -> None:
        self._paths = paths
        self._file_id = file_id
        self._durable = durable
        self._disk = disk
        self._part_bytes = part_bytes
        self._piece_bytes = piece_bytes
        self._zstd = ZstdCompressor(level=level, write_content_size=True, write_checksum=False)
        self._buffer = bytearray()
        self._pieces: list[Piece] = []
        self._fds: list[int] = []
        self._ends: list[int] = []
        self._behind = 0

    def add(self, source: DataFile, pieces: range) -> None:
        for index in pieces:
            dropping_behind(source, index, lambda at: self._buffer.extend(source.raw(at)))
            while len(self._buffer) >= self._piece_bytes:
                self._frame(self._piece_bytes)

    def finish(self, source: Layout) -> Filed:
        """Write what is left and the trailer, make all of it durable, close."""
        if self._buffer:
            self._frame(len(self._buffer))
        layout = Layout.build(source.blob_id, self._pieces, zstd=True, sha256=source.sha256, note=source.note)
        trailer = layout.encode()
        offset = self._put(trailer)
        with disk_errors():
            if self._durable:
                for fd in self._fds:
                    self._disk.sync_data(fd)
                self._disk.sync_folder(os.path.dirname(self._path(0)))
        self._close()
        return Filed(self._file_id, len(self._ends), offset, len(trailer), sum(self._ends), zstd=True)

    def abandon(self) -> None:
        """Remove the new files."""
        self._close()
        for part in range(len(self._ends)):
            with contextlib.suppress(OSError):
                os.unlink(self._path(part))

    def _frame(self, length: int) -> None:
        with memoryview(self._buffer)[:length] as raw:
            frame = self._zstd.compress(raw)
            stored = frame if len(frame) < length else bytes(raw)
        del self._buffer[:length]
        offset = self._put(stored)
        self._pieces.append(Piece(len(self._fds) - 1, offset, len(stored), length, xxh3_64_intdigest(stored)))

    def _put(self, data: bytes) -> int:
        """Append to the last part, or to a new one where it would not fit. Returns the offset."""
        with disk_errors():
            if not self._fds or (self._ends[-1] and self._ends[-1] + len(data) > self._part_bytes):
                flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
                self._fds.append(os.open(self._path(len(self._fds)), flags, 0o600))
                self._ends.append(0)
                self._behind = 0
            offset = self._ends[-1]
            write_all(self._disk, self._fds[-1], [data], offset)
            self._ends[-1] = offset + len(data)
            if self._durable and self._ends[-1] - self._behind >= SYNC_BEHIND_BYTES:
                self._disk.write_behind(self._fds[-1], self._behind, self._ends[-1] - self._behind)
                self._behind = self._ends[-1]
        return offset

    def _close(self) -> None:
        close_all(self._fds)
        self._fds.clear()

    def _path(self, part: int) -> str:
        return os.fspath(self._paths.part(self._file_id, part))
