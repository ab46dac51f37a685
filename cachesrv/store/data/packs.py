"""Pack segments: small blobs are appended with one write and one sync for all that wait together; and walked.

Each worker appends to a segment of its own, made under a fresh id by this writer and sealed when it is full, when the
writer closes, or when a write or a sync of it failed: what such a segment holds beyond its last good group is never
referred to. A segment of a former life is never appended to. The writer holds an exclusive ``flock`` on its segment
from before the first byte until it is sealed, so that others can tell what a dead process left open.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import time
from collections import deque
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from typing import Final

from xxhash import xxh3_64_intdigest

from cachesrv.store.commands import Packed
from cachesrv.store.constants import SEGMENT_BYTES, MiB
from cachesrv.store.data.handles import Paths, open_segment, reading
from cachesrv.store.data.io import Disk, Threads, disk_errors, write_all
from cachesrv.store.data.records import (
    ALIGN,
    HEADER_BYTES,
    MAGIC,
    RecordHeader,
    decode_header,
    encode_header,
    padding,
    payload_of,
)
from cachesrv.store.errors import StoreError, StoreUnavailable

GROUP_BYTES: Final = 4 * MiB
"""One write and sync takes at most about this much, so that the first of a group does not wait for ever more."""

UNBORN_SECONDS: Final = 60.0
"""An empty segment younger than this may have a writer that has not locked it yet."""


@dataclass(slots=True)
class _Waiting:
    buffers: tuple[bytes, bytes, bytes]
    length: int
    padded: int
    placed: asyncio.Future[Packed]


@dataclass(slots=True)
class _Segment:
    id: int
    fd: int
    end: int = 0


class PackWriter:
    """For one event loop. ``open_segment`` registers a segment and gives its fresh id; ``seal_segment`` (id, length)
    says that it is complete. Both are called by one group at a time."""

    def __init__(
        self,
        paths: Paths,
        *,
        durable: bool,
        open_segment: Callable[[], Awaitable[int]],
        seal_segment: Callable[[int, int], Awaitable[None]],
        disk: Disk | None = None,
        segment_bytes: int = SEGMENT_BYTES,
    ) -> None:
        self._paths = paths
        self._durable = durable
        self._open_segment = open_segment
        self._seal_segment = seal_segment
        self._disk = disk or Disk()
        self._segment_bytes = segment_bytes
        self._threads = Threads("pack-write", 1)
        self._waiting: deque[_Waiting] = deque()
        self._segment: _Segment | None = None
        self._running: asyncio.Task[None] | None = None
        self._closed = False

    async def append(self, blob_id: int, payload: bytes, sha256: bytes = b"") -> Packed:
        """Store a record; returns when it is written (durable: when it is on disk).

        Raises StoreFull, StoreReadOnly, StoreUnavailable (also after :meth:`close`), ValueError above PACK_LIMIT.
        Cancelled, the record may be written or not; nobody will refer to it.
        """
        if self._closed:
            raise StoreUnavailable("the store is closing")
        header = encode_header(blob_id, payload, sha256)
        length = HEADER_BYTES + len(payload)
        gap = padding(length)
        waiting = _Waiting(
            (header, payload, bytes(gap)), length, length + gap, asyncio.get_running_loop().create_future()
        )
        self._waiting.append(waiting)
        if self._running is None:
            self._running = asyncio.create_task(self._run())
        return await waiting.placed

    async def close(self) -> None:
        """Write what waits, seal the segment (or leave that to the housekeeping, where the committer is gone)."""
        self._closed = True
        if self._running is not None:
            await self._running
        try:
            with contextlib.suppress(StoreError):
                await self._seal()
        finally:
            await asyncio.to_thread(self._threads.close)

    async def _run(self) -> None:
        group: list[_Waiting] = []
        try:
            while self._waiting:
                group = self._take()
                if group:
                    try:
                        await self._write(group)
                    except StoreError as error:
                        _refuse(group, error)
        except BaseException as error:
            unwritten = StoreUnavailable("a small blob could not be written")
            _refuse([*group, *self._waiting], error if isinstance(error, Exception) else unwritten)
            self._waiting.clear()
            if not isinstance(error, Exception):
                raise
        finally:
            self._running = None

    def _take(self) -> list[_Waiting]:
        """The next group: what fits in the segment, or in a fresh one when not even the first does."""
        while self._waiting and self._waiting[0].placed.done():
            self._waiting.popleft()
        end = self._segment.end if self._segment else 0
        if self._waiting and end + self._waiting[0].padded > self._segment_bytes:
            end = 0
        group: list[_Waiting] = []
        total = 0
        while self._waiting and (not group or total + self._waiting[0].padded <= self._room(end)):
            waiting = self._waiting.popleft()
            if not waiting.placed.done():
                group.append(waiting)
                total += waiting.padded
        return group

    def _room(self, end: int) -> int:
        return min(GROUP_BYTES, self._segment_bytes - end)

    async def _write(self, group: list[_Waiting]) -> None:
        if self._segment is not None and self._segment.end + group[0].padded > self._segment_bytes:
            await self._seal()
        segment = self._segment or await self._fresh()
        buffers = [buffer for waiting in group for buffer in waiting.buffers if buffer]
        try:
            await self._threads.run(self._put, segment, buffers)
        except BaseException:
            await self._seal()
            raise
        for waiting in group:
            if not waiting.placed.done():
                waiting.placed.set_result(Packed(segment.id, segment.end, waiting.length))
            segment.end += waiting.padded

    def _put(self, segment: _Segment, buffers: list[bytes]) -> None:
        with disk_errors():
            write_all(self._disk, segment.fd, buffers, segment.end)
            if self._durable:
                self._disk.sync_data(segment.fd)

    async def _fresh(self) -> _Segment:
        segment_id = await self._open_segment()
        try:
            fd = await self._threads.run(self._create, segment_id)
        except StoreError:
            await self._seal_segment(segment_id, 0)
            raise
        self._segment = _Segment(segment_id, fd)
        return self._segment

    def _create(self, segment_id: int) -> int:
        path = os.fspath(self._paths.segment(segment_id))
        with disk_errors():
            fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            try:
                # Waits for nobody but a housekeeper that asks at this moment whether we are here.
                fcntl.flock(fd, fcntl.LOCK_EX)
                if self._durable:
                    self._disk.sync_folder(os.path.dirname(path))
            except BaseException:
                os.close(fd)
                raise
        return fd

    async def _seal(self) -> None:
        segment, self._segment = self._segment, None
        if segment is not None:
            try:
                await self._seal_segment(segment.id, segment.end)
            finally:
                await self._threads.run(os.close, segment.fd)


def scan(paths: Paths, segment: int) -> Iterator[tuple[int, RecordHeader]]:
    """(offset, header) of each whole record whose payload passes its checksum, in order; what is torn or damaged is
    skipped. For rebuilding the index and for evicting whole segments. Blocks; holds about 1 MiB.

    Raises BlobMissing (no such segment), StoreUnavailable.
    """
    with reading(-1, -1), open(paths.segment(segment), "rb", buffering=0) as file:
        at, window, base = 0, b"", 0

        def have(count: int) -> bytes:
            nonlocal window, base
            if at < base or at + count > base + len(window):
                window, base = os.pread(file.fileno(), max(count, MiB), at), at
            return window[at - base : at - base + count]

        size = os.fstat(file.fileno()).st_size
        while at + HEADER_BYTES <= size:
            header = decode_header(have(HEADER_BYTES))
            if header is None:
                at = _next_magic(file.fileno(), at + ALIGN, size)
                continue
            record = have(HEADER_BYTES + header.length)
            if len(record) == HEADER_BYTES + header.length and (
                xxh3_64_intdigest(memoryview(record)[HEADER_BYTES:]) == header.xxh3
            ):
                yield at, header
            at += HEADER_BYTES + header.length + padding(header.length)


def _next_magic(fd: int, start: int, size: int) -> int:
    """Where the next record may begin, or the end."""
    at = start
    while at < size:
        chunk = os.pread(fd, MiB, at)
        if not chunk:
            break
        found = chunk.find(MAGIC)
        while found >= 0 and (at + found) % ALIGN:
            found = chunk.find(MAGIC, found + 1)
        if found >= 0:
            return at + found
        at += len(chunk) - len(chunk) % ALIGN or len(chunk)
    return size


def read_record(paths: Paths, form: Packed, blob_id: int) -> bytes:
    """The checked payload of one record. Blocks. Raises BlobDamaged, BlobMissing, StoreUnavailable."""
    with open_segment(paths, form.segment) as file:
        return bytes(payload_of(file.read(form.offset, form.length), blob_id))


def is_owned(paths: Paths, segment: int) -> bool:
    """Whether a live writer appends to this segment, or may be about to. Blocks.

    Without a byte in it there is no telling whether its writer died or is just making it: such a segment counts as
    owned until it is UNBORN_SECONDS old (and for good when its file is not there: nothing in it can be lost).
    """
    with disk_errors():
        try:
            fd = os.open(paths.segment(segment), os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            return True
        try:
            fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
            status = os.fstat(fd)
            return status.st_size == 0 and time.time() - status.st_mtime < UNBORN_SECONDS
        except BlockingIOError:
            return True
        finally:
            os.close(fd)


def _refuse(group: list[_Waiting], error: Exception) -> None:
    for waiting in group:
        if not waiting.placed.done():
            waiting.placed.set_exception(error)
