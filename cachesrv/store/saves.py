"""The writing half of the store: reservations, uploads, and values that come whole.

Order of a save, which the crash tests hold: bytes and trailer on disk (and synced, when durable) -> one index
transaction -> the caller hears of it. Whatever stops in between leaves files that nothing names; the sweep takes them.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager

import msgspec

from cachesrv.store import epochs
from cachesrv.store.api import Body
from cachesrv.store.client import Writer
from cachesrv.store.commands import (
    Commit,
    DropUpload,
    Filed,
    Form,
    Inline,
    NewBlob,
    OpenSegment,
    Reserve,
    SealSegment,
    Space,
)
from cachesrv.store.constants import INLINE_LIMIT
from cachesrv.store.data.packs import PackWriter
from cachesrv.store.data.staging import FinishedFile, FinishedSmall, Staging
from cachesrv.store.errors import (
    BlobMissing,
    EntryExists,
    LimitExceeded,
    StoreBusy,
    StoreError,
    StoreFull,
    UploadIncomplete,
    UploadInFlight,
    UploadUnknown,
)
from cachesrv.store.folder import DataFolder
from cachesrv.store.ids import IdPool
from cachesrv.store.index import Index, Volatile
from cachesrv.store.model import BlobId, Digest, Entry, EntryFlag, EntryId, Namespace, UploadId, UploadInfo
from cachesrv.store.options import StoreOptions


def wire(namespace: Namespace) -> Space:
    """The form in which a namespace travels to the committer."""
    return Space(namespace.protocol, namespace.tenant, namespace.scope, namespace.version)


class Saves:
    """What of ``CacheStore`` brings bytes in; :class:`cachesrv.store.store.Store` adds the rest."""

    def __init__(
        self,
        folder: DataFolder,
        index: Index,
        volatile: Volatile,
        writer: Writer,
        options: StoreOptions,
        clock: Callable[[], float],
    ) -> None:
        self.folder = folder
        self.index = index
        self.volatile = volatile
        self.writer = writer
        self.options = options
        self._clock = clock
        self._ids = IdPool(writer)
        # Relaxed too: what is written behind early does not pile up before the next sync of the whole file system.
        self.staging = Staging(folder, min_free=options.min_free)
        self.packs = PackWriter(
            folder, durable=options.durable, open_segment=self._open_segment, seal_segment=self._seal_segment
        )
        # Records that the housekeeping moves may be proven durable where they are: they are synced where they go.
        self.moved = PackWriter(folder, durable=True, open_segment=self._open_segment, seal_segment=self._seal_segment)
        self._committing: dict[int, asyncio.Lock] = {}

    def now_ms(self) -> int:
        return int(self._clock() * 1000)

    # -- uploads ------------------------------------------------------------------------------------------------------

    async def reserve(
        self, namespace: Namespace, key: str, *, flags: EntryFlag, writer: str, size: int | None
    ) -> UploadId:
        self._admit(size or 0, max(size or 0, 1))
        quota = self.options.quotas.get(namespace.tenant, self.options.quota)
        if quota and (size or 0) > quota:
            raise LimitExceeded(f"{size} bytes are more than the repository may hold ({quota} bytes, store.quota)")
        upload = await self._ids.take()
        command = Reserve(upload, wire(namespace), key, int(flags), writer, self.now_ms())
        reserved = await self.writer.submit(command)
        if reserved.outcome == "in-flight" and self.is_stale(reserved.holder):
            stale = reserved.holder
            reserved = await self.writer.submit(msgspec.structs.replace(command, replacing=stale))
            if reserved.outcome == "reserved" and self.index.blob(BlobId(stale)) is None:
                await self.staging.remove(stale)
        if reserved.outcome == "committed":
            raise EntryExists("an entry with the same key, version and scope already exists")
        if reserved.outcome == "in-flight":
            raise UploadInFlight("another upload of the same key, version and scope is in progress")
        return UploadId(upload)

    def upload(self, upload: UploadId) -> UploadInfo | None:
        row = self.volatile.upload(upload)
        return None if row is None else row.info

    def find_upload(self, namespace: Namespace, key: str) -> UploadInfo | None:
        upload = self.volatile.reservation(namespace, key)
        return None if upload is None else self.upload(UploadId(upload))

    async def stage_whole(self, upload: UploadId, body: Body, length: int) -> None:
        self._stand(upload, length, length)
        await self.staging.stage_whole(upload, body, length)

    async def stage_block(self, upload: UploadId, block: bytes, body: Body, length: int) -> None:
        self._stand(upload, length, length)
        await self.staging.stage_block(upload, block, body, length)

    async def stage_range(self, upload: UploadId, start: int, body: Body, length: int) -> None:
        self._stand(upload, start + length, length)
        await self.staging.stage_range(upload, start, body, length)

    async def choose_blocks(self, upload: UploadId, blocks: Sequence[bytes]) -> int:
        self._stand(upload, 0, 0)
        if len(blocks) > self.options.max_blocks:
            raise LimitExceeded(f"a block list names at most {self.options.max_blocks} blocks (limits.max_blocks)")
        return await self.staging.choose(upload, blocks, self.options.max_blocks)

    async def commit(self, upload: UploadId, size: int) -> Entry:
        # Two Finalize calls of one upload on one worker go one after the other; on two workers both are right, for
        # finishing and committing repeat without harm.
        async with self._one_at_a_time(upload):
            info = self.upload(upload)
            if info is None:
                raise UploadUnknown("no such upload")
            self._admit(size, 0)
            note = msgspec.json.encode(
                {"space": wire(info.namespace), "key": info.key, "flags": int(info.flags), "writer": info.writer}
            )
            try:
                finished = await self.staging.finish(upload, size, durable=self.options.durable, note=note)
            except (UploadUnknown, UploadIncomplete):
                # Another worker may have committed this very upload while we looked at it.
                entry = self.committed(upload)
                if entry is None or entry.size != size:
                    raise
                return entry
            blob = await self._blob_of(upload, finished)
            command = Commit(
                wire(info.namespace), info.key, int(info.flags), blob, info.writer, self.now_ms(), upload_id=upload
            )
            try:
                committed = await self.writer.submit(command)
            except EntryExists:
                await self.abort(upload)
                raise
            if isinstance(finished, FinishedFile):
                await self.staging.remove_log(upload)
            else:
                await self.staging.remove(upload)
        entry = self.index.by_id(EntryId(committed.entry_id))
        if entry is None:
            raise UploadUnknown("the entry was removed right after it was made")
        return entry

    def committed(self, upload: UploadId) -> Entry | None:
        entry_id = self.volatile.finished(upload)
        return None if entry_id is None else self.index.by_id(EntryId(entry_id))

    async def abort(self, upload: UploadId) -> None:
        if await self.writer.submit(DropUpload(upload)):
            await self.staging.remove(upload)

    # -- whole values -------------------------------------------------------------------------------------------------

    async def put(
        self,
        namespace: Namespace,
        key: str,
        body: Body,
        *,
        flags: EntryFlag,
        writer: str,
        length: int | None = None,
        digest: Digest | None = None,
    ) -> Entry:
        self._admit(length or 0, length or 0)
        blob_id = await self._ids.take()
        note = msgspec.json.encode({"space": wire(namespace), "key": key, "flags": int(flags), "writer": writer})
        received = await self.staging.receive(
            blob_id,
            body,
            length,
            digest=digest,
            durable=self.options.durable,
            note=note,
            limit=self._largest(),
        )
        form = received.form or await self._small_form(blob_id, received.small or b"", received.sha256)
        blob = NewBlob(blob_id, form, received.size, received.sha256, self._epoch(form))
        try:
            committed = await self.writer.submit(Commit(wire(namespace), key, int(flags), blob, writer, self.now_ms()))
        except StoreBusy:
            # It may yet be committed: the files stay, and the sweep takes them if it was not.
            raise
        except StoreError:
            if isinstance(form, Filed):
                await self.staging.remove(blob_id)
            raise
        entry = self.index.by_id(EntryId(committed.entry_id))
        if entry is None:
            raise BlobMissing("the entry was removed right after it was made")
        return entry

    # -- inside -------------------------------------------------------------------------------------------------------

    @asynccontextmanager
    async def _one_at_a_time(self, upload: int) -> AsyncIterator[None]:
        lock = self._committing.setdefault(upload, asyncio.Lock())
        try:
            async with lock:
                yield
        finally:
            if not lock.locked():
                self._committing.pop(upload, None)

    async def _blob_of(self, upload: int, finished: FinishedSmall | FinishedFile) -> NewBlob:
        if isinstance(finished, FinishedFile):
            return NewBlob(upload, finished.form, finished.size, b"", self._epoch(finished.form))
        sha256 = hashlib.sha256(finished.data).digest()
        form = await self._small_form(upload, finished.data, sha256)
        return NewBlob(upload, form, len(finished.data), sha256, self._epoch(form))

    async def _small_form(self, blob_id: int, data: bytes, sha256: bytes) -> Form:
        if len(data) <= INLINE_LIMIT:
            return Inline(data)
        return await self.packs.append(blob_id, data, sha256)

    def _epoch(self, form: Form) -> int:
        """0 for what is synced already: everything in durable mode, and what the (always synced) index row holds."""
        return 0 if self.options.durable or isinstance(form, Inline) else epochs.current(self.index)

    def _admit(self, size: int, arriving: int) -> None:
        """Refuse what cannot be kept before its bytes cross the wire: an entry of ``size``, ``arriving`` now."""
        limit = self._largest()
        if size > limit:
            raise LimitExceeded(f"{size} bytes are more than one entry may have ({limit} bytes, limits.max_entry)")
        if arriving and not self.folder.has_room(arriving, self.options.min_free):
            raise StoreFull("the disk has no room")

    def _largest(self) -> int:
        return min(self.options.max_entry or self.options.max_size, self.options.max_size)

    def _stand(self, upload: int, size: int, arriving: int) -> None:
        if self.volatile.upload(upload) is None:
            raise UploadUnknown("no such upload")
        self._admit(size, arriving)

    def is_stale(self, upload: int) -> bool:
        """Whether this upload saw no byte for ``stale_upload``, or is gone. A few stats."""
        row = self.volatile.upload(upload)
        if row is None:
            return True
        return self.is_old(max(row.reserved_ms, self.staging.last_activity_ms(upload) or 0) / 1000)

    def is_old(self, seconds: float) -> bool:
        """Whether a file last written at this Unix time cannot be on its way in any more."""
        return self._clock() - seconds >= self.options.stale_upload

    async def new_id(self) -> int:
        """A fresh id, for files that replace others."""
        return await self._ids.take()

    async def _open_segment(self) -> int:
        segment = await self._ids.take()
        await self.writer.submit(OpenSegment(segment, self.now_ms()))
        return segment

    async def _seal_segment(self, segment: int, length: int) -> None:
        await self.writer.submit(SealSegment(segment, length, self.now_ms()))
