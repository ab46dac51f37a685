"""The store as one worker sees it: :class:`cachesrv.store.api.CacheStore` over the index, the committer and the files.

Reads go straight to the index (read-only LMDB) and the files; every change is a command to the committer. Nothing here
holds state that another worker would need: what is kept in memory (id leases, open files, piece tables) is a hint.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine, Iterable, Sequence
from pathlib import Path
from typing import Any

from cachesrv.store import epochs
from cachesrv.store.api import BlobReader, EntryFilter, EntryPage, Usage
from cachesrv.store.background import Background
from cachesrv.store.client import CommitterClient, LocalCommitter, Writer
from cachesrv.store.commands import Delete, Filed, MarkProven, Packed
from cachesrv.store.constants import COMMIT_BATCH
from cachesrv.store.data.reader import Blobs
from cachesrv.store.errors import BlobDamaged, BlobMissing
from cachesrv.store.events import Listener, ignore
from cachesrv.store.folder import DataFolder
from cachesrv.store.index import Index, Volatile
from cachesrv.store.model import BlobId, Entry, EntryId, Namespace, RemovalReason
from cachesrv.store.options import StoreOptions
from cachesrv.store.quarantine import Quarantiner
from cachesrv.store.recency import Recency
from cachesrv.store.removal import report_removed
from cachesrv.store.saves import Saves

FORGET_SECONDS = 5.0
"""How often a worker lets go of open files whose blobs are gone: their space comes back with the last close."""


class Store(Saves):
    """See the module's docstring. Make it with :meth:`start`, end it with :meth:`close`."""

    def __init__(
        self,
        folder: DataFolder,
        index: Index,
        volatile: Volatile,
        recency: Recency,
        writer: Writer,
        options: StoreOptions,
        listener: Listener,
        clock: Callable[[], float],
    ) -> None:
        super().__init__(folder, index, volatile, writer, options, clock)
        self.recency = recency
        self.listener = listener
        self.quarantiner = Quarantiner(folder, index, writer, listener, clock)
        self.blobs = Blobs(folder, on_damage=self._damaged)
        self.background = Background(folder, scrub_rate=options.scrub_rate)
        self._tasks: set[asyncio.Task[None]] = set()
        self._forgetter: asyncio.Task[None] | None = None
        self._owned: LocalCommitter | CommitterClient | None = None

    @classmethod
    async def start(
        cls,
        root: Path,
        options: StoreOptions | None = None,
        *,
        worker: int = 0,
        on_event: Listener = ignore,
        local: bool = False,
        clock: Callable[[], float] = time.time,
    ) -> Store:
        """Open the data folder ``root``. ``local``: this process is its own committer (tests and tools); otherwise a
        committer listens in the folder. Raises FormatError, StoreUnavailable."""
        options = options or StoreOptions()
        folder = DataFolder(root)
        folder.create_or_open()
        recency = Recency.open(folder.recency)
        committer: LocalCommitter | CommitterClient
        if local:
            committer = LocalCommitter(root, options, recency=recency)
            index, volatile = committer.index, committer.volatile
        else:
            committer = CommitterClient(root)
            index = Index.open(folder.index, readonly=True, recency=recency)
            volatile = Volatile.open(folder.volatile, readonly=True)
        store = cls(folder, index, volatile, recency, committer, options, on_event, clock)
        store._owned = committer
        store._forgetter = asyncio.create_task(store._forget_removed(), name="forget-removed-files")
        return store

    async def close(self) -> None:
        """Seal what is open, wait for what runs, let go of everything."""
        if self._forgetter:
            self._forgetter.cancel()
        await asyncio.gather(*self._tasks, *filter(None, [self._forgetter]), return_exceptions=True)
        await self.packs.close()
        await self.moved.close()
        await self.staging.close()
        await self.blobs.close()
        await self.background.close()
        if self._owned:
            await self._owned.close()
        if not isinstance(self._owned, LocalCommitter):
            self.index.close()
            self.volatile.close()
        self.recency.close()

    # -- entries ------------------------------------------------------------------------------------------------------

    def lookup(self, namespace: Namespace, key: str) -> Entry | None:
        return self.index.get(namespace, key)

    def newest(self, namespace: Namespace, prefix: str) -> Entry | None:
        return self.index.newest(namespace, prefix)

    def entry(self, entry_id: EntryId) -> Entry | None:
        return self.index.by_id(entry_id)

    def touch(self, entry: Entry) -> None:
        self.recency.touch(entry.slot, int(self._clock()))

    async def prove(self, entry: Entry) -> bool:
        row = self.index.blob(entry.blob)
        if row is None or not row.live:
            # Equal content was stored once a moment ago: the entry may point at the other copy by now.
            again = self.index.by_id(entry.id)
            return again is not None and again.blob != entry.blob and await self.prove(again)
        if not self.folder.holds(row.form):
            await self.quarantiner.missing(entry.blob, row.form)
            return False
        if row.epoch == 0 or not epochs.is_suspect(self.index, row.epoch):
            return True
        try:
            damage = await self.background.check_now(row.form, entry.blob, row.size)
        except BlobMissing:
            await self.quarantiner.missing(entry.blob, row.form)
            return False
        if damage:
            await self.quarantiner.damaged(entry.blob, row.form, "not whole after an unclean stop")
            return False
        await self.writer.submit(MarkProven([entry.blob]))
        return True

    def entries(self, wanted: EntryFilter, *, limit: int, cursor: bytes | None = None) -> EntryPage:
        return self.index.entries(wanted, limit=limit, cursor=cursor)

    def usage(self) -> Iterable[Usage]:
        return self.index.usage()

    async def delete(self, entry_ids: Sequence[EntryId], reason: RemovalReason) -> int:
        count = 0
        for start in range(0, len(entry_ids), COMMIT_BATCH):
            batch = [int(entry_id) for entry_id in entry_ids[start : start + COMMIT_BATCH]]
            removed = await self.writer.submit(Delete(batch, self.now_ms()))
            report_removed(self.listener, reason, removed)
            count += len(removed)
        return count

    # -- bytes out ----------------------------------------------------------------------------------------------------

    async def open(self, blob: BlobId) -> BlobReader:
        row = self.index.blob(blob)
        if row is None:
            raise BlobMissing("no such blob")
        if row.bad:
            raise BlobDamaged("the blob is in quarantine")
        try:
            return await self.blobs.open(blob, row.size, row.form)
        except BlobMissing:
            # Its form may have been swapped between the look-up and the open: look up once more.
            again = self.index.blob(blob)
            if again is None or again.form == row.form:
                raise
            return await self.blobs.open(blob, again.size, again.form)

    # -- inside -------------------------------------------------------------------------------------------------------

    def _damaged(self, blob_id: int, file_id: int, part: int) -> None:
        row = self.index.blob(blob_id)
        if row is not None and isinstance(row.form, Filed | Packed) and _file_of(row.form) == file_id:
            why = f"piece in part {part} failed its checksum" if part >= 0 else "a record failed its checksum"
            self._background(self.quarantiner.damaged(blob_id, row.form, why))

    def _background(self, job: Coroutine[Any, Any, None]) -> None:
        task = asyncio.ensure_future(job)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _forget_removed(self) -> None:
        while True:
            await asyncio.sleep(FORGET_SECONDS)
            gone = [file_id for file_id, blob_id in self.blobs.held() if not self._still(file_id, blob_id)]
            if gone:
                self.blobs.forget(gone)

    def _still(self, file_id: int, blob_id: int) -> bool:
        row = self.index.blob(BlobId(blob_id))
        return row is not None and isinstance(row.form, Filed | Packed) and _file_of(row.form) == file_id


def _file_of(form: Filed | Packed) -> int:
    return form.file_id if isinstance(form, Filed) else form.segment
