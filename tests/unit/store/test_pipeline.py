"""The write pipeline and values in one go: back-pressure, budget, digests, lengths."""

from __future__ import annotations

import asyncio
import hashlib
import random
import threading
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import pytest

from cachesrv.store.constants import PACK_LIMIT, KiB, MiB
from cachesrv.store.data.budget import BodyBudget
from cachesrv.store.data.io import Buffer, Disk, settled
from cachesrv.store.data.layout import Layout
from cachesrv.store.data.pipeline import Batch
from cachesrv.store.data.staging import FinishedFile, Received, Staging
from cachesrv.store.errors import DigestMismatch, LimitExceeded, SizeMismatch
from cachesrv.store.folder import DataFolder
from cachesrv.store.model import Digest

FILE = 4242


def content(size: int, seed: int = 0) -> bytes:
    return random.Random(seed).randbytes(size)


async def body(data: bytes, chunk: int = 100_000) -> AsyncIterator[bytes]:
    for start in range(0, len(data), chunk):
        yield data[start : start + chunk]


@pytest.fixture
def folder(tmp_path: Path) -> DataFolder:
    made = DataFolder(tmp_path / "data")
    made.create_or_open()
    return made


@pytest.fixture
async def staging(folder: DataFolder) -> AsyncIterator[Staging]:
    made = Staging(folder, part_bytes=3 * MiB)
    yield made
    await made.close()


def stored(folder: DataFolder, received: Received) -> bytes:
    form = received.form
    assert form is not None
    files = [Path(folder.part(form.file_id, part)).read_bytes() for part in range(form.parts)]
    assert form.disk_bytes == sum(map(len, files))
    layout = Layout.decode(files[-1][form.trailer_offset :])
    assert layout.sha256 == received.sha256
    return b"".join(files[p.part][p.offset : p.offset + p.stored] for p in layout)


def layout_of(folder: DataFolder, finished: FinishedFile) -> Layout:
    last = Path(folder.part(finished.form.file_id, finished.form.parts - 1)).read_bytes()
    return Layout.decode(last[finished.form.trailer_offset :])


def no_files(folder: DataFolder) -> bool:
    return not list(folder.files())


@pytest.mark.parametrize("size", [0, 1, PACK_LIMIT, PACK_LIMIT + 1, MiB, 3 * MiB - 1, 3 * MiB, 7 * MiB + 5])
@pytest.mark.parametrize("known", [True, False])
async def test_a_value_of_any_size(folder: DataFolder, staging: Staging, size: int, known: bool) -> None:
    data = content(size)
    received = await staging.receive(FILE, body(data), size if known else None, durable=True)
    assert received.size == size
    assert received.sha256 == hashlib.sha256(data).digest()
    if size <= PACK_LIMIT:
        assert received.small == data
        assert no_files(folder)
    else:
        assert received.small is None
        assert stored(folder, received) == data


@pytest.mark.parametrize("size", [1000, 4 * MiB])
@pytest.mark.parametrize("algorithm", ["sha256", "sha512"])
async def test_digests_are_held(folder: DataFolder, staging: Staging, size: int, algorithm: str) -> None:
    data = content(size)
    right = Digest(algorithm, hashlib.new(algorithm, data).digest())
    received = await staging.receive(FILE, body(data), None, digest=right, durable=False)
    assert received.size == size
    with pytest.raises(DigestMismatch):
        await staging.receive(FILE + 1, body(data[:-1] + b"?"), None, digest=right, durable=False)
    assert [found.file_id for found in folder.files()] == ([FILE] if size > PACK_LIMIT else [])


@pytest.mark.parametrize("size", [1000, 4 * MiB])
async def test_what_is_refused_leaves_no_file(folder: DataFolder, staging: Staging, size: int) -> None:
    for announced in (size - 1, size + 1):
        with pytest.raises(SizeMismatch):
            await staging.receive(FILE, body(content(size)), announced, durable=False)
    with pytest.raises(LimitExceeded):
        await staging.receive(FILE, body(content(size)), None, durable=False, limit=size - 1)

    async def leaving() -> AsyncIterator[bytes]:
        yield content(size)
        raise ConnectionResetError

    with pytest.raises(ConnectionResetError):
        await staging.receive(FILE, leaving(), size + 1, durable=False)
    assert no_files(folder)


async def test_a_body_of_single_bytes(staging: Staging) -> None:
    data = content(20_000)
    await staging.stage_whole(FILE, body(data, 1), len(data))
    finished = await staging.finish(FILE, len(data), durable=False)
    assert not isinstance(finished, FinishedFile)
    assert finished.data == data


def test_small_chunks_are_copied_together() -> None:
    batch = Batch()
    for _ in range(100_000):
        batch.add(b"x")
    batch.add(bytes(20_000))
    batch.add(b"y")
    assert batch.size == 120_001 == sum(map(len, batch.buffers))
    assert len(batch.buffers) <= 3


@pytest.mark.parametrize("budget", [64 * KiB, 4 * MiB])
async def test_sixty_four_slow_bodies_do_not_block_each_other(folder: DataFolder, budget: int) -> None:
    """All wait for their clients with bytes in hand; one that sends gets through; then all end."""
    staging = Staging(folder, budget=budget)
    goes_on = asyncio.Event()
    waiting = 0
    all_wait = asyncio.Event()

    async def slow(data: bytes) -> AsyncIterator[bytes]:
        nonlocal waiting
        yield data[: MiB - 10_000]
        waiting += 1
        if waiting == 64:
            all_wait.set()
        await goes_on.wait()
        yield data[MiB - 10_000 :]

    data = [content(MiB, n) for n in range(64)]
    tasks = [asyncio.create_task(staging.stage_block(n + 1, b"a", slow(data[n]), MiB)) for n in range(64)]
    async with asyncio.timeout(30):
        await all_wait.wait()
        await staging.stage_block(1000, b"a", body(content(4 * MiB)), 4 * MiB)
        goes_on.set()
        await asyncio.gather(*tasks)
    for n in range(64):
        await staging.choose(n + 1, [b"a"], 1)
        finished = await staging.finish(n + 1, MiB, durable=False)
        assert isinstance(finished, FinishedFile)
        assert len(layout_of(folder, finished)) == 1  # written in parts, still one piece under one checksum
    await staging.close()


async def test_a_slow_disk_holds_the_client_back(folder: DataFolder) -> None:
    leave = threading.Event()

    class Stuck(Disk):
        def pwritev(self, fd: int, buffers: Sequence[Buffer], offset: int) -> int:
            assert leave.wait(20)
            return super().pwritev(fd, buffers, offset)

    staging = Staging(folder, disk=Stuck(), budget=4 * MiB)
    sent = 0

    async def eager(data: bytes) -> AsyncIterator[bytes]:
        nonlocal sent
        for start in range(0, len(data), 64 * KiB):
            sent += 64 * KiB
            yield data[start : start + 64 * KiB]

    data = content(32 * MiB)
    task = asyncio.create_task(staging.stage_block(FILE, b"a", eager(data), len(data)))
    for _ in range(2000):
        await asyncio.sleep(0)
    assert sent >= 2 * MiB
    assert sent <= 4 * MiB
    leave.set()
    await task
    assert sent == 32 * MiB
    await staging.close()


async def test_the_budget_goes_round_and_survives_a_cancelled_wait() -> None:
    budget = BodyBudget(20)
    await budget.admit(10)
    large, small = asyncio.create_task(budget.admit(30)), asyncio.create_task(budget.admit(4))
    await asyncio.sleep(0)
    large.cancel()
    budget.release(10)
    await small
    assert budget.under_way == 4
    next_one = asyncio.create_task(budget.admit(10))
    await asyncio.sleep(0)
    budget.release(4)
    next_one.cancel()  # it was its turn already
    await asyncio.gather(large, next_one, return_exceptions=True)
    await budget.admit(30)
    assert budget.under_way == 30


async def test_settled_waits_through_cancellations() -> None:
    future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    task = asyncio.create_task(settled(future))
    for _ in range(3):
        await asyncio.sleep(0)
        task.cancel()
    await asyncio.sleep(0)
    assert not task.done()
    future.set_result(None)
    with pytest.raises(asyncio.CancelledError):
        await task
    assert not future.cancelled()
