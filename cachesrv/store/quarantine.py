"""What happens to a blob that is not what was stored: its entries become misses at once, its files move to ``q/``."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from cachesrv.store.client import Writer
from cachesrv.store.commands import Filed, Quarantine
from cachesrv.store.events import BlobQuarantined, Listener
from cachesrv.store.folder import DataFolder
from cachesrv.store.index import Index
from cachesrv.store.model import BlobId, RemovalReason
from cachesrv.store.removal import report_removed


class Quarantiner:
    """One per process. Both calls may be repeated."""

    def __init__(
        self, folder: DataFolder, index: Index, writer: Writer, listener: Listener, clock: Callable[[], float]
    ) -> None:
        self._folder = folder
        self._index = index
        self._writer = writer
        self._listener = listener
        self._clock = clock

    async def damaged(self, blob: BlobId, reason: str) -> None:
        """A checksum failed: drop the entries, keep the files in ``q/`` for whoever wants to look."""
        row = self._index.blob(blob)
        if row is None or row.bad:
            return
        await self._drop(blob, reason)
        if isinstance(row.form, Filed):
            await asyncio.to_thread(self._folder.quarantine, row.form.file_id, row.form.parts)

    async def missing(self, blob: BlobId) -> None:
        """Its files are gone (somebody removed them): drop the entries."""
        await self._drop(blob, "its files are missing or too short")

    async def _drop(self, blob: BlobId, reason: str) -> None:
        removed = await self._writer.submit(Quarantine(blob, reason, int(self._clock() * 1000)))
        report_removed(self._listener, RemovalReason.DAMAGED, removed)
        self._listener(BlobQuarantined(blob, reason, len(removed)))
