"""What happens to a blob that is not what was stored: its entries become misses at once, its files move to ``q/``."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from cachesrv.store.client import Writer
from cachesrv.store.commands import Filed, Form, Quarantine
from cachesrv.store.events import BlobQuarantined, Listener
from cachesrv.store.folder import DataFolder
from cachesrv.store.index import Index
from cachesrv.store.model import BlobId, RemovalReason
from cachesrv.store.removal import report_removed


class Quarantiner:
    """One per process. Both calls may be repeated, and do nothing when the blob has another form by now: what was
    found concerns files that are not its any more."""

    def __init__(
        self, folder: DataFolder, index: Index, writer: Writer, listener: Listener, clock: Callable[[], float]
    ) -> None:
        self._folder = folder
        self._index = index
        self._writer = writer
        self._listener = listener
        self._clock = clock

    async def damaged(self, blob: BlobId | int, form: Form, reason: str) -> None:
        """A checksum failed: drop the entries, keep the files in ``q/`` for whoever wants to look."""
        if self._has(blob, form):
            await self._drop(blob, form, reason)

    async def missing(self, blob: BlobId | int, form: Form) -> None:
        """A file was not there, or too short. If that still is so, the same."""
        if self._has(blob, form) and not await asyncio.to_thread(self._folder.holds, form):
            await self._drop(blob, form, "its files are missing or too short")

    def _has(self, blob: BlobId | int, form: Form) -> bool:
        row = self._index.blob(blob)
        return row is not None and not row.bad and row.form == form

    async def _drop(self, blob: BlobId | int, form: Form, reason: str) -> None:
        removed = await self._writer.submit(Quarantine(blob, reason, int(self._clock() * 1000)))
        report_removed(self._listener, RemovalReason.DAMAGED, removed)
        if removed:  # else somebody else was first
            self._listener(BlobQuarantined(blob, reason, len(removed)))
        if isinstance(form, Filed):
            await asyncio.to_thread(self._folder.quarantine, form.file_id, form.parts)
