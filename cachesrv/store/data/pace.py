"""A limit on how many bytes a second background work moves."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable

from cachesrv.store.constants import MiB


class Pace:
    """A token bucket of ``rate`` bytes a second (0: no limit) that holds at most ``burst`` bytes.

    A take larger than the bucket is allowed and waits for its debt afterwards. ``clock`` and ``sleep`` are seconds.
    """

    def __init__(
        self,
        rate: float,
        *,
        burst: float = 4 * MiB,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[object]] = asyncio.sleep,
    ) -> None:
        self._rate = rate
        self._burst = burst
        self._clock = clock
        self._sleep = sleep
        self._tokens = burst
        self._at = clock()

    async def take(self, count: int) -> None:
        """Account for ``count`` bytes moved; returns when the rate allows more."""
        if self._rate <= 0:
            return
        now = self._clock()
        self._tokens = min(self._burst, self._tokens + (now - self._at) * self._rate) - count
        self._at = now
        if self._tokens < 0:
            await self._sleep(-self._tokens / self._rate)
