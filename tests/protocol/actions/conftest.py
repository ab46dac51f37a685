"""Protocol tests run over the model and over the real store: both keep the same promises."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import pytest
from blockbuster import blockbuster_ctx

from cachesrv.store.api import CacheStore
from cachesrv.store.options import StoreOptions
from cachesrv.store.store import Store
from tests.doubles.memory_store import MemoryStore, SickStore
from tests.protocol.actions.actions_server import ActionsServer, Clock, actions_server

STORES = ["memory", "disk"]


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture(params=STORES)
async def store(request: pytest.FixtureRequest, clock: Clock, tmp_path: Path) -> AsyncIterator[CacheStore]:
    if request.param == "memory":
        yield MemoryStore(clock=clock)
        return
    disk = await Store.start(tmp_path / "data", StoreOptions(min_free=0), local=True, clock=clock)
    yield disk
    await disk.close()


@pytest.fixture
async def cache(store: CacheStore, clock: Clock, tmp_path: Path) -> AsyncIterator[ActionsServer]:
    """The room, and a client with a token of repository 1001, refs/heads/main, read and write.

    Over the model a test also fails when the room or the web floor blocks the event loop; the store's own short file
    operations are its own tests' business."""
    async with actions_server(store, clock, tmp_path / "room") as running:
        guard: AbstractContextManager[object] = nullcontext()
        if isinstance(store, MemoryStore):
            guard = blockbuster_ctx(scanned_modules=["cachesrv"])
        with guard:
            yield running


@pytest.fixture
def sick_store(clock: Clock) -> SickStore:
    return SickStore(clock=clock)


@pytest.fixture
async def sick(sick_store: SickStore, clock: Clock, tmp_path: Path) -> AsyncIterator[ActionsServer]:
    """The room over a store that fails where ``sick_store.sick`` says."""
    async with actions_server(sick_store, clock, tmp_path / "room") as running:
        yield running
