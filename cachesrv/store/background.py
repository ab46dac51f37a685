"""Reading and rewriting whole blobs behind the acknowledgement: a thread that yields the cores, at a bounded pace."""

from __future__ import annotations

import asyncio

from cachesrv.store.commands import Filed, Form
from cachesrv.store.constants import MiB
from cachesrv.store.data import frames, verify
from cachesrv.store.data.io import Threads
from cachesrv.store.data.pace import Pace
from cachesrv.store.folder import DataFolder

IMPROVE_RATE = 200 * MiB
"""Bytes a second that late digests and zstd read: they yield the disk and a core to requests."""


class Background:
    """One per process. ``scrub_rate`` in bytes a second (0: no limit); a check somebody waits for is never paced."""

    def __init__(self, folder: DataFolder, *, scrub_rate: int) -> None:
        self._folder = folder
        self._threads = Threads("background", 1, yielding=True)
        self._awaited = Threads("check", 1)
        self._scrub = Pace(scrub_rate)
        self._improve = Pace(IMPROVE_RATE)
        self._unpaced = Pace(0)

    async def check_now(self, form: Form, blob_id: int, size: int) -> list[verify.DamagedPiece]:
        """The damaged pieces of a blob that somebody waits for. Raises BlobMissing, StoreUnavailable."""
        return await verify.verify(self._folder, blob_id, size, form, threads=self._awaited, pace=self._unpaced)

    async def check(self, form: Form, blob_id: int, size: int) -> list[verify.DamagedPiece]:
        """The same at the pace of the scrub."""
        return await verify.verify(self._folder, blob_id, size, form, threads=self._threads, pace=self._scrub)

    async def sha256_of(self, form: Form, blob_id: int, size: int) -> bytes:
        """The SHA-256 of the content. Raises BlobDamaged, BlobMissing, StoreUnavailable."""
        return await verify.sha256_of(self._folder, blob_id, size, form, threads=self._threads, pace=self._improve)

    async def compress(self, form: Filed, blob_id: int, size: int, file_id: int, level: int) -> Filed | None:
        """The blob as zstd frames in new files, on disk, or None when it does not shrink enough. Synced in relaxed
        mode too: what they replace may be proven durable, and its files go soon."""
        return await frames.compress(
            self._folder,
            blob_id,
            size,
            form,
            file_id,
            level=level,
            threads=self._threads,
            pace=self._improve,
            durable=True,
        )

    async def close(self) -> None:
        await asyncio.to_thread(self._threads.close)
        await asyncio.to_thread(self._awaited.close)
