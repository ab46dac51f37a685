"""Who may hold how many bytes of request bodies.

All bodies of a worker together hold BODY_BUDGET_BYTES (and one received chunk each). Half is for bytes that are
being gathered: a body gathers no more than its share of it (half / bodies in progress) and then writes a part of a
piece. Half is for batches under way: a body waits for room there before it reads on. That room comes back as the disk
works, never by waiting for a client, so bodies cannot block each other for good.
"""

from __future__ import annotations

import asyncio
from collections import deque

from cachesrv.store.constants import BODY_BUDGET_BYTES


class BodyBudget:
    """Who may hold how many bytes of bodies. For one event loop."""

    def __init__(self, limit: int = BODY_BUDGET_BYTES) -> None:
        self._half = max(limit // 2, 1)
        self._waiting: deque[tuple[int, asyncio.Future[None]]] = deque()
        self.bodies = 0
        self.under_way = 0
        """Bytes of batches that are being written or hashed."""

    def share(self) -> int:
        """Bytes that one body may gather before it writes."""
        return max(self._half // max(self.bodies, 1), 1)

    async def admit(self, size: int) -> None:
        """Wait for room for a batch, first come first served. A batch larger than everything goes alone."""
        if not self._waiting and self._fits(size):
            self.under_way += size
            return
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((size, turn))
        try:
            await turn
        except asyncio.CancelledError:
            if not turn.cancelled():
                self.release(size)  # it was this body's turn already
            self._grant()  # a cancelled turn that stands first is passed over
            raise

    def release(self, size: int) -> None:
        self.under_way -= size
        self._grant()

    def _fits(self, size: int) -> bool:
        return self.under_way == 0 or self.under_way + size <= self._half

    def _grant(self) -> None:
        while self._waiting:
            size, turn = self._waiting[0]
            if not turn.cancelled():
                if not self._fits(size):
                    return
                self.under_way += size
                turn.set_result(None)
            self._waiting.popleft()
