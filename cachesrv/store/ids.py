"""Fresh ids for uploads, blobs and files: leased from the committer in runs, so that most cost nothing."""

from __future__ import annotations

import asyncio

from cachesrv.store.client import Writer
from cachesrv.store.commands import LeaseIds

LEASE = 256
"""Ids in one lease. A worker that dies wastes the rest of its lease, which harms nothing."""


class IdPool:
    """One per process."""

    def __init__(self, writer: Writer) -> None:
        self._writer = writer
        self._next = 0
        self._end = 0
        self._lock = asyncio.Lock()

    async def take(self) -> int:
        """A never used id. Raises StoreUnavailable."""
        while True:
            if self._next < self._end:
                self._next += 1
                return self._next - 1
            async with self._lock:
                if self._next >= self._end:
                    self._next = await self._writer.submit(LeaseIds(LEASE))
                    self._end = self._next + LEASE
