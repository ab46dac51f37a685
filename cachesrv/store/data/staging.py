"""Uploads of one worker: staging bytes, choosing the order, finishing; and values that come in one go.

All state is in the data folder (upload log, part files): any worker goes on where another stopped, at any call. What a
call did not finish is garbage inside the files of the upload and goes with them. Ids, reservations and who may write
are the caller's business.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from functools import partial

from xxhash import xxh3_64

from cachesrv.store.api import Body
from cachesrv.store.commands import Filed
from cachesrv.store.constants import BODY_BUDGET_BYTES, PACK_LIMIT, PART_BYTES, KiB
from cachesrv.store.data import finishing
from cachesrv.store.data.io import Disk, disk_errors
from cachesrv.store.data.layout import Layout, Piece
from cachesrv.store.data.pipeline import Batch, BodyHash, Pipeline, Poured
from cachesrv.store.data.regions import OpenParts, OwnRegions, UploadRegions
from cachesrv.store.data.uploadlog import ID_BYTES, NAMED, RANGE, WHOLE, Block, Extent, UploadLogs, encode_block
from cachesrv.store.errors import (
    DigestMismatch,
    LimitExceeded,
    SizeMismatch,
    StoreUnavailable,
    UploadIncomplete,
    UploadUnknown,
)
from cachesrv.store.folder import DataFolder
from cachesrv.store.model import Digest

HASH_ON_LOOP_BYTES = 64 * KiB
"""A value up to this is hashed on the event loop: 40 us, less than a hop to a thread and back."""


@dataclass(frozen=True, slots=True)
class FinishedSmall:
    """At most PACK_LIMIT bytes, checked: the caller keeps them elsewhere and removes the files of the upload."""

    data: bytes


@dataclass(frozen=True, slots=True)
class FinishedFile:
    """A blob in files of its own, ready to be named."""

    form: Filed
    size: int


@dataclass(frozen=True, slots=True)
class Received:
    """A value that came in one go: its bytes (``small``, at most PACK_LIMIT) or its files (``form``)."""

    size: int
    sha256: bytes
    small: bytes | None
    form: Filed | None


class Staging:
    """One per worker and event loop; it starts its threads at first use. ``part_bytes`` is for tests."""

    def __init__(
        self,
        folder: DataFolder,
        *,
        disk: Disk | None = None,
        min_free: int = 0,
        write_behind: bool = True,
        budget: int = BODY_BUDGET_BYTES,
        part_bytes: int = PART_BYTES,
    ) -> None:
        """``min_free``: bytes of the disk that are never used. ``write_behind``: start writing to disk as bytes come
        (right when finishing is durable)."""
        self._folder = folder
        self._disk = disk or Disk()
        self._min_free = min_free
        self._part_bytes = part_bytes
        self._logs = UploadLogs(folder, self._disk)
        self._pipeline = Pipeline(self._disk, budget=budget, write_behind=write_behind)

    async def close(self) -> None:
        """Wait for the threads. No call may be in progress."""
        await asyncio.to_thread(self._pipeline.close)

    # -- staging -------------------------------------------------------------------------------------------------------

    async def stage_whole(self, upload_id: int, body: Body, length: int) -> None:
        """The whole content in one body; replaces everything staged or chosen before.

        Staging raises SizeMismatch when the body is not ``length`` bytes long, UploadUnknown when the upload was
        finished or dropped, StoreUnavailable, and what the body raises; then nothing is recorded.
        """
        await self._stage(upload_id, WHOLE, b"", 0, body, length)

    async def stage_block(self, upload_id: int, block: bytes, body: Body, length: int) -> None:
        """A block under an opaque id of 1..64 bytes; of several attempts the one that ended last counts."""
        if not 1 <= len(block) <= ID_BYTES:
            raise LimitExceeded(f"a block id has 1 to {ID_BYTES} bytes")
        await self._stage(upload_id, NAMED, block, 0, body, length)

    async def stage_range(self, upload_id: int, start: int, body: Body, length: int) -> None:
        """Bytes [start, start + length) of the content; a range that starts at the same byte replaces."""
        await self._stage(upload_id, RANGE, b"", start, body, length)

    async def _stage(self, upload_id: int, kind: int, name: bytes, start: int, body: Body, length: int) -> None:
        regions = UploadRegions(self._logs, upload_id, self._parts(upload_id), self._disk)
        if self._pipeline.is_small(length):
            batch = await self._pipeline.gather(body, length)
            job = partial(self._stage_at_once, upload_id, kind, name, start, batch, regions)
            await self._pipeline.work(length, job)
            return
        try:
            poured = await self._pipeline.pour(body, length, regions)
        except (Exception, asyncio.CancelledError):
            await self._pipeline.logs.run(regions.close)
            raise
        pieces = tuple((piece.raw, piece.xxh3) for piece in poured.pieces)
        block = Block(kind, name, start, length, poured.extents, pieces)
        await self._pipeline.logs.run(self._record, upload_id, block, regions)

    def _stage_at_once(
        self, upload_id: int, kind: int, name: bytes, start: int, batch: Batch, regions: UploadRegions
    ) -> None:
        checksum = xxh3_64()
        try:
            place = regions.take_one(batch.size)
            self._pipeline.write(place.fd, batch, place.offset, checksum)
        except Exception:
            regions.close()
            raise
        extents = (Extent(place.part, place.offset, batch.size),)
        pieces = ((batch.size, checksum.intdigest()),)
        self._record(upload_id, Block(kind, name, start, batch.size, extents, pieces), regions)

    def _record(self, upload_id: int, block: Block, regions: UploadRegions) -> None:
        regions.close()
        # Only a block without bytes makes the log here; a log that is gone by now belonged to a dropped upload.
        with disk_errors(), self._logs.open(upload_id, create=not block.length) as log:
            if log.state.sealed is not None:
                raise UploadUnknown("this upload is already finished")
            log.append(encode_block(block))

    async def choose(self, upload_id: int, blocks: Sequence[bytes], max_blocks: int) -> int:
        """Fix the content as these blocks in this order, each in its newest attempt; returns its size.

        Raises UnknownBlock (naming the block), LimitExceeded, UploadUnknown, StoreUnavailable.
        """
        return await self._pipeline.logs.run(self._choose, upload_id, blocks, max_blocks)

    def _choose(self, upload_id: int, blocks: Sequence[bytes], max_blocks: int) -> int:
        if blocks and not os.path.exists(self._folder.log(upload_id)):
            raise finishing.unknown_block(blocks[0])
        # Only a list without blocks makes the log here.
        with disk_errors(), self._logs.open(upload_id, create=not blocks) as log:
            return finishing.choose(log, blocks, max_blocks)

    # -- finishing -----------------------------------------------------------------------------------------------------

    async def finish(
        self, upload_id: int, size: int, *, durable: bool, note: bytes = b""
    ) -> FinishedSmall | FinishedFile:
        """Close an upload of ``size`` bytes. May be repeated, also after a crash in the middle of it.

        ``durable``: files and names are on disk when it returns. ``note`` goes into the trailer. Raises
        UploadIncomplete and SizeMismatch (the upload stays open and may be mended), BlobDamaged, StoreUnavailable.
        When the disk fails to sync, the upload is gone: what reached it is not known.
        """
        logs = self._pipeline.logs
        pieces = await logs.run(self._seal, upload_id, size)
        parts = self._parts(upload_id)
        try:
            if size <= PACK_LIMIT:
                return FinishedSmall(await self._pipeline.writes.run(finishing.read_back, parts, pieces))
            layout = await logs.run(Layout.build, upload_id, pieces, note=note)
            written = await logs.run(finishing.write_upload, self._logs, upload_id, parts, self._disk, layout)
            if durable:
                await self._sync(parts, written)
            return FinishedFile(written.form, size)
        finally:
            await logs.run(parts.close)

    def _seal(self, upload_id: int, size: int) -> list[Piece]:
        try:
            with disk_errors(), self._logs.open(upload_id) as log:
                return finishing.seal(log, size)
        except UploadUnknown:
            raise UploadIncomplete("nothing was staged") from None

    async def _sync(self, parts: OpenParts, written: finishing.Written) -> None:
        """All parts at once, then the folder that names them. A failed sync is final: the kernel forgets the pages."""

        async def sync(call: partial[None]) -> None:
            with disk_errors():
                await self._pipeline.syncs.run(call)

        fds = await self._pipeline.logs.run(self._open_all, parts, written.parts)
        calls = [partial(self._disk.sync_data, fd) for fd in fds]
        try:
            results = await asyncio.gather(*map(sync, calls), return_exceptions=True)
            for result in results:
                if isinstance(result, BaseException):
                    raise result
            await sync(partial(self._disk.sync_folder, self._folder.bucket(parts.file_id)))
        except StoreUnavailable:
            await self.remove(parts.file_id)
            raise

    @staticmethod
    def _open_all(parts: OpenParts, numbers: Sequence[int]) -> list[int]:
        with disk_errors():
            return [parts.open(number) for number in numbers]

    # -- values in one go ----------------------------------------------------------------------------------------------

    async def receive(
        self,
        file_id: int,
        body: Body,
        length: int | None,
        *,
        digest: Digest | None = None,
        durable: bool,
        note: bytes = b"",
        limit: int | None = None,
    ) -> Received:
        """Take a value of known or unknown length, hashed with SHA-256 while it passes. ``file_id`` must be fresh.

        Raises SizeMismatch, DigestMismatch, LimitExceeded (more than ``limit`` bytes), StoreUnavailable, and what the
        body raises; then no file is left.
        """
        algorithms = {"sha256"} | ({digest.algorithm} if digest is not None else set())
        digests = BodyHash(self._pipeline.hashes, sorted(algorithms))
        chunks = aiter(body)
        head = Batch()
        budget = self._pipeline.budget
        budget.bodies += 1
        try:
            async for chunk in chunks:
                head.add(chunk)
                if head.size > min(PACK_LIMIT, budget.share()):
                    break
            else:
                return await self._small(head, length, digest, digests, limit)
        finally:
            budget.bodies -= 1
        parts = self._parts(file_id)
        try:
            return await self._filed(parts, _chain(head, chunks), length, digest, digests, durable, note, limit)
        except (Exception, asyncio.CancelledError):
            await self.remove(file_id)
            raise
        finally:
            await self._pipeline.logs.run(parts.close)

    async def _small(
        self, head: Batch, length: int | None, digest: Digest | None, digests: BodyHash, limit: int | None
    ) -> Received:
        if length is not None and head.size != length:
            raise SizeMismatch(length, head.size)
        if limit is not None and head.size > limit:
            raise LimitExceeded(f"the value is larger than {limit} bytes")
        if head.size <= HASH_ON_LOOP_BYTES:
            digests.update_now(head.buffers)
        else:
            await self._pipeline.hashes.run(digests.update_now, head.buffers)
        _compare(digests, digest)
        return Received(head.size, digests.digest("sha256"), b"".join(head.buffers), None)

    async def _filed(
        self,
        parts: OpenParts,
        body: Body,
        length: int | None,
        digest: Digest | None,
        digests: BodyHash,
        durable: bool,
        note: bytes,
        limit: int | None,
    ) -> Received:
        regions = OwnRegions(parts)
        poured = await self._pipeline.pour(body, length, regions, digests=digests, limit=limit)
        _compare(digests, digest)
        sha256 = digests.digest("sha256")
        if poured.size <= PACK_LIMIT:
            data = await self._pipeline.writes.run(finishing.read_back, parts, poured.pieces)
            await self.remove(parts.file_id)
            return Received(poured.size, sha256, data, None)
        written = await self._pipeline.logs.run(self._write_own, parts, poured, sha256, note)
        if durable:
            await self._sync(parts, written)
        return Received(poured.size, sha256, None, written.form)

    def _write_own(self, parts: OpenParts, poured: Poured, sha256: bytes, note: bytes) -> finishing.Written:
        layout = Layout.build(parts.file_id, poured.pieces, sha256=sha256, note=note)
        return finishing.write_own(parts, self._disk, layout)

    # -- what lies there -----------------------------------------------------------------------------------------------

    def last_activity_ms(self, upload_id: int) -> int | None:
        """When bytes last came (mtime of log and parts, Unix ms); None when none ever did. A few stats."""
        times = [status.st_mtime_ns for status in self._statuses(upload_id)]
        return max(times) // 1_000_000 if times else None

    def disk_bytes(self, upload_id: int) -> int:
        """Size of all its files, repeated and unfinished blocks included. A few stats."""
        return sum(status.st_size for status in self._statuses(upload_id))

    async def staged_bytes(self, upload_id: int) -> int:
        """Bytes of all blocks that arrived whole, repeats included; 0 when there is no such upload."""

        def read() -> int:
            try:
                with disk_errors(), self._logs.open(upload_id) as log:
                    return log.state.staged_bytes
            except UploadUnknown:
                return 0

        return await self._pipeline.logs.run(read)

    async def remove(self, upload_id: int) -> None:
        """Unlink all its files, whatever their state. Unknown: nothing happens."""
        self._logs.forget(upload_id)
        await self._pipeline.syncs.run(self._folder.remove_upload, upload_id)

    async def remove_log(self, upload_id: int) -> None:
        """The upload is a committed blob now: its log is not needed."""
        self._logs.forget(upload_id)
        await self._pipeline.logs.run(self._folder.remove_log, upload_id)

    def _statuses(self, upload_id: int) -> list[os.stat_result]:
        found = [status for _, status in self._folder.parts(upload_id)]
        try:
            with disk_errors():
                found.append(os.stat(self._folder.log(upload_id)))
        except UploadUnknown:
            pass
        return found

    def _parts(self, file_id: int) -> OpenParts:
        return OpenParts(self._folder, file_id, self._part_bytes, self._min_free)


async def _chain(head: Batch, rest: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    for buffer in head.buffers:
        yield bytes(buffer)
    async for chunk in rest:
        yield chunk


def _compare(digests: BodyHash, digest: Digest | None) -> None:
    if digest is not None and digests.digest(digest.algorithm) != digest.value:
        raise DigestMismatch("the bytes do not have the digest they were announced with")
