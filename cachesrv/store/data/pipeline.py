"""The write pipeline: a request body becomes checksummed pieces in part files, with back-pressure.

While the body arrives on the event loop, batches of at most PIECE_BYTES are written and checksummed in threads (both
release the GIL), several at a time; SHA-256 runs beside them in another thread. Receiving and writing overlap.

A piece never crosses the end of an extent. Nothing is recorded here: a body that fails leaves garbage in its regions
and no thread at work.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from typing import Final

from xxhash import xxh3_64

from cachesrv.store.api import Body
from cachesrv.store.constants import BODY_BUDGET_BYTES, PIECE_BYTES, SYNC_BEHIND_BYTES, KiB
from cachesrv.store.data.budget import BodyBudget
from cachesrv.store.data.io import (
    HASH_THREADS,
    LOG_THREADS,
    SYNC_THREADS,
    WRITE_THREADS,
    Buffer,
    Disk,
    Threads,
    disk_errors,
    settled,
    write_all,
)
from cachesrv.store.data.layout import Piece
from cachesrv.store.data.regions import REGION_BYTES, OpenExtent, Regions
from cachesrv.store.data.uploadlog import Extent
from cachesrv.store.errors import LimitExceeded, SizeMismatch, StoreUnavailable

BATCHES_IN_FLIGHT: Final = 8
"""Batches of one body that may be under way."""
SMALL_CHUNK_BYTES: Final = 16 * KiB
"""Chunks below this are copied together: a body of single bytes must not cost fifty times its size."""
COPIED_BYTES: Final = 256 * KiB
"""Small chunks are copied together up to this."""


class Batch:
    """Chunks in order, small ones copied together."""

    __slots__ = ("buffers", "size")

    def __init__(self) -> None:
        self.buffers: list[Buffer] = []
        self.size = 0

    def add(self, chunk: Buffer) -> None:
        self.size += len(chunk)
        if len(chunk) >= SMALL_CHUNK_BYTES:
            self.buffers.append(chunk)
            return
        last = self.buffers[-1] if self.buffers else None
        if isinstance(last, bytearray) and len(last) < COPIED_BYTES:
            last += chunk
        else:
            self.buffers.append(bytearray(chunk))


class BodyHash:
    """Digests of a body, computed in a thread in the order of the bytes while it is being written."""

    def __init__(self, threads: Threads, algorithms: Sequence[str]) -> None:
        self._threads = threads
        self._hashes = {name: hashlib.new(name, usedforsecurity=False) for name in algorithms}
        self._queue: list[tuple[Sequence[Buffer], Callable[[], None]]] = []
        self._running: asyncio.Future[None] | None = None
        self._failure: BaseException | None = None

    def update(self, buffers: Sequence[Buffer], done: Callable[[], None]) -> None:
        """Take these bytes next; ``done`` is called on the loop when they are no longer needed."""
        self._queue.append((buffers, done))
        if self._running is None:
            self._next()

    def update_now(self, buffers: Sequence[Buffer]) -> None:
        """The same in the calling thread, for a body that was small. Nothing may be queued."""
        for buffer in buffers:
            for digest in self._hashes.values():
                digest.update(buffer)

    async def settle(self) -> None:
        """Wait until everything queued is hashed."""
        while self._running is not None:
            await settled(self._running)
            await asyncio.sleep(0)  # let the callback of the job start the next one
        if self._failure is not None:
            raise StoreUnavailable("a digest could not be computed") from self._failure

    def digest(self, algorithm: str) -> bytes:
        return self._hashes[algorithm].digest()

    def _next(self) -> None:
        taken, self._queue = self._queue, []

        def ended(job: asyncio.Future[None]) -> None:
            self._running = None
            self._failure = job.exception() or self._failure
            for _, done in taken:
                done()
            if self._queue:
                self._next()

        self._running = self._threads.start(self._hash, [buffers for buffers, _ in taken])
        self._running.add_done_callback(ended)

    def _hash(self, batches: Sequence[Sequence[Buffer]]) -> None:
        for buffers in batches:
            self.update_now(buffers)


@dataclass(frozen=True, slots=True)
class Poured:
    """A body on disk: not synced, not recorded."""

    size: int
    extents: tuple[Extent, ...]
    pieces: tuple[Piece, ...]


@dataclass(slots=True)
class _OpenPiece:
    """A piece that is being filled; ``last`` is the batch of it under way (batches of a piece go one by one)."""

    place: OpenExtent
    offset: int
    room: int
    raw: int = 0
    checksum: xxh3_64 | None = field(default_factory=xxh3_64)
    xxh3: int = 0
    last: asyncio.Future[None] | None = None

    def close(self) -> None:
        """All its bytes are in: keep the number, not the 600 bytes it was made from."""
        assert self.checksum is not None
        self.xxh3, self.checksum = self.checksum.intdigest(), None

    def piece(self) -> Piece:
        return Piece(self.place.part, self.offset, self.raw, self.raw, self.xxh3)


class Pipeline:
    """The threads and the budget of one worker; :meth:`pour` runs any number of bodies at once."""

    def __init__(self, disk: Disk, *, budget: int = BODY_BUDGET_BYTES, write_behind: bool = True) -> None:
        self.disk = disk
        self.budget = BodyBudget(budget)
        self.writes = Threads("cachesrv-write", WRITE_THREADS)
        self.hashes = Threads("cachesrv-hash", HASH_THREADS)
        self.logs = Threads("cachesrv-log", LOG_THREADS)
        self.syncs = Threads("cachesrv-sync", SYNC_THREADS)
        self._write_behind = write_behind

    def close(self) -> None:
        for threads in (self.writes, self.hashes, self.logs, self.syncs):
            threads.close()

    def is_small(self, length: int) -> bool:
        """Whether a body of this length may be gathered as a whole and written by one job: one hop instead of three."""
        return 0 < length <= min(PIECE_BYTES, self.budget.share())

    async def gather(self, body: Body, length: int) -> Batch:
        """A small body in memory. Raises SizeMismatch and what the body raises."""
        batch = Batch()
        self.budget.bodies += 1
        try:
            async for chunk in body:
                batch.add(chunk)
                if batch.size > length:
                    break
        finally:
            self.budget.bodies -= 1
        if batch.size != length:
            raise SizeMismatch(length, batch.size)
        return batch

    async def work(self, size: int, job: Callable[[], None]) -> None:
        """Run a job that holds ``size`` bytes, when the budget has room for them."""
        await self.budget.admit(size)
        try:
            await self.writes.run(job)
        finally:
            self.budget.release(size)

    def write(self, fd: int, batch: Batch, offset: int, checksum: xxh3_64) -> None:
        """In a thread: write and checksum. The bytes are read twice and copied once (to the page cache). Raises
        StoreUnavailable."""
        with disk_errors():
            write_all(self.disk, fd, batch.buffers, offset)
        for buffer in batch.buffers:
            checksum.update(buffer)
        if self._write_behind:
            # Whoever passes a multiple of SYNC_BEHIND_BYTES starts the write-back of the stretch before it.
            passed = (offset + batch.size) // SYNC_BEHIND_BYTES * SYNC_BEHIND_BYTES
            if passed > offset:
                self.disk.write_behind(fd, passed - SYNC_BEHIND_BYTES, SYNC_BEHIND_BYTES)

    async def pour(
        self,
        body: Body,
        length: int | None,
        regions: Regions,
        *,
        digests: BodyHash | None = None,
        limit: int | None = None,
    ) -> Poured:
        """Write a body of ``length`` bytes (None: until it ends, at most ``limit``) into fresh regions, which the
        caller closes.

        Raises SizeMismatch, LimitExceeded, StoreUnavailable and what the body raises; by then no thread works on it.
        """
        pour = _Pour(self, regions, length, digests, limit)
        self.budget.bodies += 1
        try:
            await pour.receive(body)
        finally:
            self.budget.bodies -= 1
            await pour.settle()
        return pour.result()


class _Pour:
    """One body on its way."""

    def __init__(
        self,
        pipeline: Pipeline,
        regions: Regions,
        length: int | None,
        digests: BodyHash | None,
        limit: int | None,
    ) -> None:
        self._pipeline = pipeline
        self._regions = regions
        self._length = length
        self._digests = digests
        self._limit = limit
        self._size = 0
        self._taken = 0
        self._places: list[OpenExtent] = []
        self._extents: list[Extent] = []
        self._pieces: list[_OpenPiece] = []
        self._batch = Batch()
        self._batch_offset = 0
        self._under_way: deque[asyncio.Future[None]] = deque()
        self._failure: BaseException | None = None

    async def receive(self, body: AsyncIterator[bytes]) -> None:
        budget = self._pipeline.budget
        async for chunk in body:
            self._count(len(chunk))
            rest = memoryview(chunk)
            while rest:
                piece = self._pieces[-1] if self._pieces else None
                if piece is None or piece.raw == piece.room:
                    piece = await self._next_piece()
                taken = rest[: piece.room - piece.raw]
                # A chunk that goes in whole is kept as it is: a view of it would cost more than it saves.
                self._batch.add(chunk if len(taken) == len(chunk) else taken)
                piece.raw += len(taken)
                rest = rest[len(taken) :]
                if piece.raw == piece.room or self._batch.size >= budget.share():
                    await self._submit(piece, last=piece.raw == piece.room)
        if self._length is not None and self._size != self._length:
            raise SizeMismatch(self._length, self._size)
        if self._pieces and self._pieces[-1].raw < self._pieces[-1].room:
            await self._submit(self._pieces[-1], last=True)

    async def settle(self) -> None:
        """Wait for the threads."""
        try:
            await settled(*self._under_way)
        finally:
            for future in self._under_way:
                self._failure = future.exception() or self._failure
            self._under_way.clear()
        if self._digests is not None:
            await self._digests.settle()

    def result(self) -> Poured:
        self._check()
        extents = list(self._extents)
        if self._pieces:  # the last extent ends where the bytes do
            last, end = extents[-1], self._pieces[-1].offset + self._pieces[-1].raw
            extents[-1] = Extent(last.part, last.offset, end - last.offset)
        return Poured(self._size, tuple(extents), tuple(piece.piece() for piece in self._pieces))

    def _count(self, arrived: int) -> None:
        self._size += arrived
        if self._length is not None and self._size > self._length:
            raise SizeMismatch(self._length, self._size)
        if self._limit is not None and self._size > self._limit:
            raise LimitExceeded(f"the value is larger than {self._limit} bytes")

    async def _next_piece(self) -> _OpenPiece:
        place = self._pieces[-1].place if self._pieces else None
        offset = self._pieces[-1].offset + self._pieces[-1].raw if self._pieces else 0
        if place is None or offset == place.offset + place.length:
            place = await self._next_place()
            offset = place.offset
        self._batch_offset = offset
        piece = _OpenPiece(place, offset, min(PIECE_BYTES, place.offset + place.length - offset))
        self._pieces.append(piece)
        return piece

    async def _next_place(self) -> OpenExtent:
        if not self._places:
            wanted = REGION_BYTES if self._length is None else min(REGION_BYTES, self._length - self._taken)
            self._places = await self._pipeline.logs.run(self._regions.take, wanted)
            self._taken += wanted
        place = self._places.pop(0)
        last = self._extents[-1] if self._extents else None
        if last is not None and last.part == place.part and last.offset + last.length == place.offset:
            self._extents[-1] = Extent(last.part, last.offset, last.length + place.length)
        else:
            self._extents.append(Extent(place.part, place.offset, place.length))
        return place

    async def _submit(self, piece: _OpenPiece, *, last: bool) -> None:
        """Give the gathered batch to the threads (``last``: it completes the piece); waits while too much is under
        way."""
        self._check()
        batch, self._batch = self._batch, Batch()
        budget = self._pipeline.budget
        await budget.admit(batch.size)
        left = 1 if self._digests is None else 2

        def done() -> None:
            nonlocal left
            left -= 1
            if not left:
                budget.release(batch.size)

        try:
            if piece.last is not None:
                await settled(piece.last)
            offset, self._batch_offset = self._batch_offset, self._batch_offset + batch.size
            future = self._pipeline.writes.start(self._write, piece, batch, offset, last)
        except BaseException:
            budget.release(batch.size)
            raise
        future.add_done_callback(lambda _: done())
        piece.last = None if last else future
        if self._digests is not None:
            self._digests.update(batch.buffers, done)
        self._under_way.append(future)
        while len(self._under_way) > BATCHES_IN_FLIGHT or (self._under_way and self._under_way[0].done()):
            await self._reap()
        self._check()

    async def _reap(self) -> None:
        """Wait for the oldest batch and remember its failure."""
        oldest = self._under_way[0]
        await settled(oldest)
        self._under_way.popleft()
        self._failure = oldest.exception() or self._failure

    def _write(self, piece: _OpenPiece, batch: Batch, offset: int, last: bool) -> None:
        assert piece.checksum is not None
        self._pipeline.write(piece.place.fd, batch, offset, piece.checksum)
        if last:
            piece.close()

    def _check(self) -> None:
        if isinstance(self._failure, Exception):
            raise self._failure
        if self._failure is not None:
            raise StoreUnavailable("a write ended early") from self._failure
