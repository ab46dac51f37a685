"""The real store on a temporary folder, with its committer in the same process and a clock that the test owns."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from cachesrv.store.events import StoreEvent
from cachesrv.store.options import StoreOptions
from cachesrv.store.store import Store


class Clock:
    """Seconds since 1970: real time plus what the test adds (file times are real)."""

    def __init__(self) -> None:
        self.ahead = 0.0

    def __call__(self) -> float:
        return time.time() + self.ahead

    def advance(self, seconds: float) -> None:
        self.ahead += seconds


@asynccontextmanager
async def open_store(
    root: Path,
    options: StoreOptions | None = None,
    *,
    clock: Clock | None = None,
    events: list[StoreEvent] | None = None,
) -> AsyncIterator[Store]:
    """Started and closed around the test."""
    store = await Store.start(
        root,
        options or StoreOptions(min_free=0),
        local=True,
        clock=clock or Clock(),
        on_event=(events if events is not None else []).append,
    )
    try:
        yield store
    finally:
        await store.close()
