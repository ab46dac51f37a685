"""Uploads in blocks, ranges and whole; finishing; two workers on one upload; stops at any step."""

from __future__ import annotations

import asyncio
import errno
import itertools
import os
import random
import threading
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cachesrv.store.constants import KiB, MiB
from cachesrv.store.data.io import Buffer, Disk
from cachesrv.store.data.layout import FOOTER_BYTES, Layout, trailer_length
from cachesrv.store.data.staging import FinishedFile, FinishedSmall, Staging
from cachesrv.store.errors import (
    BlobDamaged,
    LimitExceeded,
    SizeMismatch,
    StoreFull,
    StoreReadOnly,
    StoreUnavailable,
    UnknownBlock,
    UploadIncomplete,
    UploadUnknown,
)
from cachesrv.store.folder import DataFolder

UPLOAD = 0x1234_5678_9ABC
MANY = 50_000


def content(size: int, seed: int = 0) -> bytes:
    return random.Random(seed).randbytes(size)


async def body(data: bytes, chunk: int = 100_000) -> AsyncIterator[bytes]:
    for start in range(0, len(data), chunk):
        yield data[start : start + chunk]


def stored(folder: DataFolder, finished: FinishedFile) -> bytes:
    """The content as a reader finds it: from the trailer at the end of the last part."""
    form = finished.form
    last = Path(folder.part(form.file_id, form.parts - 1)).read_bytes()
    assert len(last) == form.trailer_offset + form.trailer_length
    assert trailer_length(last[-FOOTER_BYTES:]) == form.trailer_length
    layout = Layout.decode(last[form.trailer_offset :])
    files = [Path(folder.part(form.file_id, part)).read_bytes() for part in range(form.parts)]
    assert form.disk_bytes == sum(map(len, files))
    return b"".join(files[p.part][p.offset : p.offset + p.stored] for p in layout)


def result(folder: DataFolder, finished: FinishedFile | FinishedSmall) -> bytes:
    return finished.data if isinstance(finished, FinishedSmall) else stored(folder, finished)


@pytest.fixture
def folder(tmp_path: Path) -> DataFolder:
    made = DataFolder(tmp_path / "data")
    made.create_or_open()
    return made


@pytest.fixture
async def staging(folder: DataFolder) -> AsyncIterator[Staging]:
    made = Staging(folder)
    yield made
    await made.close()


@pytest.fixture
async def tiny_parts(folder: DataFolder) -> AsyncIterator[Staging]:
    made = Staging(folder, part_bytes=3 * MiB)
    yield made
    await made.close()


def overwrite(path: str, data: bytes) -> None:
    Path(path).write_bytes(data)


def files_of(folder: DataFolder) -> list[str]:
    return sorted(path.name for path in (folder.root / "f").rglob("*") if path.is_file())


@pytest.mark.parametrize("id_bytes", [1, 16, 48, 64])
async def test_blocks_out_of_order_and_put_again(folder: DataFolder, staging: Staging, id_bytes: int) -> None:
    names = [bytes([n + 1]) * id_bytes for n in range(5)]
    data = [content(300_000 + n, n) for n in range(5)]
    for n in (3, 0, 4, 1):
        await staging.stage_block(UPLOAD, names[n], body(data[n]), len(data[n]))
    await staging.stage_block(UPLOAD, names[2], body(b"old" * 1000), 3000)
    await staging.stage_block(UPLOAD, names[2], body(data[2]), len(data[2]))
    size = await staging.choose(UPLOAD, names, MANY)
    assert size == sum(map(len, data))
    finished = await staging.finish(UPLOAD, size, durable=True, note=b"note")
    assert result(folder, finished) == b"".join(data)


async def test_a_list_may_repeat_and_drop_blocks_and_be_put_again(folder: DataFolder, staging: Staging) -> None:
    first, second = content(400_000, 1), content(500_000, 2)
    await staging.stage_block(UPLOAD, b"a", body(first), len(first))
    await staging.stage_block(UPLOAD, b"b", body(second), len(second))
    assert await staging.choose(UPLOAD, [b"a"], MANY) == 400_000
    assert await staging.choose(UPLOAD, [b"b", b"a", b"b"], MANY) == 1_400_000
    finished = await staging.finish(UPLOAD, 1_400_000, durable=False)
    assert result(folder, finished) == second + first + second


async def test_an_unknown_block_is_named_and_leaves_nothing(folder: DataFolder, staging: Staging) -> None:
    with pytest.raises(UnknownBlock, match="nobody"):
        await staging.choose(UPLOAD, [b"nobody"], MANY)
    assert files_of(folder) == []
    await staging.stage_block(UPLOAD, b"a", body(b"x"), 1)
    with pytest.raises(UnknownBlock, match="nobody"):
        await staging.choose(UPLOAD, [b"a", b"nobody"], MANY)
    with pytest.raises(LimitExceeded):
        await staging.choose(UPLOAD, [b"a"] * 3, 2)
    with pytest.raises(LimitExceeded):
        await staging.stage_block(UPLOAD, b"a" * 65, body(b"x"), 1)


async def test_sixteen_blocks_at_once_over_several_parts(folder: DataFolder, tiny_parts: Staging) -> None:
    data = [content(700_000 + 1000 * n, n) for n in range(16)]
    names = [f"{n:016}".encode() for n in range(16)]
    await asyncio.gather(
        *(
            tiny_parts.stage_block(UPLOAD, name, body(part, 50_000), len(part))
            for name, part in zip(names, data, strict=True)
        )
    )
    size = await tiny_parts.choose(UPLOAD, names, MANY)
    finished = await tiny_parts.finish(UPLOAD, size, durable=True)
    assert isinstance(finished, FinishedFile)
    assert finished.form.parts >= 4
    assert stored(folder, finished) == b"".join(data)
    assert max(status.st_size for _, status in folder.parts(UPLOAD)) <= 3 * MiB


async def test_two_workers_share_an_upload(folder: DataFolder, staging: Staging) -> None:
    other = Staging(folder)
    try:
        workers = [staging, other]
        data = [content(200_000, n) for n in range(12)]
        names = [bytes([n]) * 16 for n in range(12)]
        for n in range(12):
            await workers[n % 2].stage_block(UPLOAD, names[n], body(data[n]), len(data[n]))
        await asyncio.gather(
            *(workers[n % 2].stage_block(UPLOAD, names[n], body(data[-n]), len(data[-n])) for n in range(1, 12))
        )
        wanted = data[:1] + [data[-n] for n in range(1, 12)]
        size = await other.choose(UPLOAD, names, MANY)
        assert await staging.staged_bytes(UPLOAD) == 200_000 * 23
        assert result(folder, await staging.finish(UPLOAD, size, durable=True)) == b"".join(wanted)
        with pytest.raises(UploadUnknown):
            await other.stage_block(UPLOAD, b"late", body(b"x"), 1)
        with pytest.raises(UploadUnknown):
            await other.choose(UPLOAD, names, MANY)
    finally:
        await other.close()


async def test_small_content_comes_back_checked(folder: DataFolder, staging: Staging) -> None:
    await staging.stage_whole(UPLOAD, body(b"hello"), 5)
    assert await staging.finish(UPLOAD, 5, durable=True) == FinishedSmall(b"hello")
    overwrite(folder.part(UPLOAD, 0), b"hellO")
    with pytest.raises(BlobDamaged):
        await staging.finish(UPLOAD, 5, durable=True)


async def test_whole_and_blocks_the_latest_counts(folder: DataFolder, staging: Staging) -> None:
    await staging.stage_block(UPLOAD, b"a", body(b"block"), 5)
    await staging.choose(UPLOAD, [b"a"], MANY)
    await staging.stage_whole(UPLOAD, body(b"whole!"), 6)
    with pytest.raises(SizeMismatch):
        await staging.finish(UPLOAD, 5, durable=False)
    with pytest.raises(UnknownBlock):  # a whole content drops what was staged before
        await staging.choose(UPLOAD, [b"a"], MANY)
    await staging.stage_block(UPLOAD, b"b", body(b"later"), 5)
    with pytest.raises(SizeMismatch):  # staged is not chosen
        await staging.finish(UPLOAD, 5, durable=False)
    await staging.choose(UPLOAD, [b"b"], MANY)
    assert await staging.finish(UPLOAD, 5, durable=False) == FinishedSmall(b"later")


async def test_what_cannot_be_finished(staging: Staging) -> None:
    with pytest.raises(UploadIncomplete):
        await staging.finish(UPLOAD, 0, durable=False)
    await staging.stage_block(UPLOAD, b"a", body(b"x"), 1)
    with pytest.raises(UploadIncomplete, match="block list"):
        await staging.finish(UPLOAD, 1, durable=False)


@pytest.mark.parametrize("how", ["whole", "list", "range"])
async def test_nothing_at_all_is_content_when_it_was_said(staging: Staging, how: str) -> None:
    if how == "whole":
        await staging.stage_whole(UPLOAD, body(b""), 0)
    elif how == "list":
        assert await staging.choose(UPLOAD, [], MANY) == 0
    else:
        await staging.stage_range(UPLOAD, 0, body(b""), 0)
    assert await staging.finish(UPLOAD, 0, durable=True) == FinishedSmall(b"")


async def test_a_wrong_size_can_be_mended(folder: DataFolder, staging: Staging) -> None:
    data = content(2 * MiB)
    await staging.stage_range(UPLOAD, 0, body(data[:MiB]), MiB)
    with pytest.raises(SizeMismatch) as caught:
        await staging.finish(UPLOAD, 2 * MiB, durable=False)
    assert (caught.value.expected, caught.value.actual) == (2 * MiB, MiB)
    await staging.stage_range(UPLOAD, MiB, body(data[MiB:]), MiB)
    assert result(folder, await staging.finish(UPLOAD, 2 * MiB, durable=False)) == data
    with pytest.raises(SizeMismatch):
        await staging.finish(UPLOAD, MiB, durable=False)


@pytest.mark.parametrize("announced", [999, 1001])
async def test_a_body_of_another_length_is_not_recorded(staging: Staging, announced: int) -> None:
    with pytest.raises(SizeMismatch):
        await staging.stage_block(UPLOAD, b"a", body(b"x" * 1000, 10), announced)
    with pytest.raises(UnknownBlock):
        await staging.choose(UPLOAD, [b"a"], MANY)


async def test_a_client_that_leaves_records_nothing(folder: DataFolder, staging: Staging) -> None:
    async def leaving() -> AsyncIterator[bytes]:
        yield b"x" * MiB
        yield b"x" * 1000
        raise ConnectionResetError

    async def coming() -> AsyncIterator[bytes]:
        for chunk in (b"",):
            yield chunk
        raise ConnectionResetError

    with pytest.raises(ConnectionResetError):
        await staging.stage_block(UPLOAD, b"a", coming(), 4 * MiB)
    assert files_of(folder) == []  # sessions cost no file until data comes
    with pytest.raises(ConnectionResetError):
        await staging.stage_block(UPLOAD, b"a", leaving(), 4 * MiB)
    assert await staging.staged_bytes(UPLOAD) == 0
    assert staging.disk_bytes(UPLOAD) > 0
    await staging.remove(UPLOAD)
    assert files_of(folder) == []


async def test_a_cancelled_upload_leaves_no_thread_at_work(folder: DataFolder) -> None:
    entered, leave = asyncio.Event(), threading.Event()
    loop = asyncio.get_running_loop()
    written: list[bool] = []

    class Slow(Disk):
        def pwritev(self, fd: int, buffers: Sequence[Buffer], offset: int) -> int:
            loop.call_soon_threadsafe(entered.set)
            assert leave.wait(10)
            os.fstat(fd)  # fails on a closed descriptor
            written.append(True)
            return super().pwritev(fd, buffers, offset)

    staging = Staging(folder, disk=Slow())
    data = content(2 * MiB)

    async def never_ending() -> AsyncIterator[bytes]:
        yield data
        await asyncio.Event().wait()

    task = asyncio.create_task(staging.stage_block(UPLOAD, b"a", never_ending(), 4 * MiB))
    await entered.wait()
    task.cancel()
    loop.call_later(0.01, task.cancel)  # and again, while it waits for its threads
    loop.call_later(0.05, leave.set)
    with pytest.raises(asyncio.CancelledError):
        await task
    assert written == [True, True]
    assert await staging.staged_bytes(UPLOAD) == 0
    await staging.close()


@pytest.mark.parametrize(
    ("number", "error"),
    [
        (errno.ENOSPC, StoreFull),
        (errno.EDQUOT, StoreFull),
        (errno.EROFS, StoreReadOnly),
        (errno.EACCES, StoreReadOnly),
        (errno.EIO, StoreUnavailable),
    ],
)
async def test_a_failing_disk_has_its_name_and_recovers(
    folder: DataFolder, number: int, error: type[StoreUnavailable]
) -> None:
    class Failing(Disk):
        broken = True
        writes = 0

        def pwritev(self, fd: int, buffers: Sequence[Buffer], offset: int) -> int:
            self.writes += 1
            if self.broken and self.writes == 3:
                raise OSError(number, "injected")
            return super().pwritev(fd, buffers, offset)

    disk = Failing()
    staging = Staging(folder, disk=disk)
    data = content(5 * MiB)
    with pytest.raises(StoreUnavailable) as caught:
        await staging.stage_block(UPLOAD, b"a", body(data), len(data))
    assert type(caught.value) is error
    with pytest.raises(UnknownBlock):
        await staging.choose(UPLOAD, [b"a"], MANY)
    disk.broken = False
    await staging.stage_block(UPLOAD, b"a", body(data), len(data))
    await staging.choose(UPLOAD, [b"a"], MANY)
    assert result(folder, await staging.finish(UPLOAD, len(data), durable=True)) == data
    await staging.close()


async def test_short_writes_are_continued(folder: DataFolder) -> None:
    class Short(Disk):
        def pwritev(self, fd: int, buffers: Sequence[Buffer], offset: int) -> int:
            return os.pwrite(fd, bytes(buffers[0])[:70_001], offset)

    staging = Staging(folder, disk=Short())
    data = content(MiB + 17)
    await staging.stage_whole(UPLOAD, body(data, 300_000), len(data))
    assert result(folder, await staging.finish(UPLOAD, len(data), durable=False)) == data
    await staging.close()


async def test_a_record_that_does_not_fit_on_the_disk_is_taken_back(folder: DataFolder) -> None:
    class Full(Disk):
        full = False

        def append(self, fd: int, data: bytes) -> int:
            return super().append(fd, data[:20] if self.full else data)

    disk = Full()
    staging = Staging(folder, disk=disk)
    await staging.stage_block(UPLOAD, b"a", body(b"aaa"), 3)
    disk.full = True
    with pytest.raises(StoreFull):
        await staging.stage_block(UPLOAD, b"b", body(b"bbb"), 3)
    disk.full = False
    await staging.stage_block(UPLOAD, b"b", body(b"BBB"), 3)
    await staging.choose(UPLOAD, [b"a", b"b"], MANY)
    assert await staging.finish(UPLOAD, 6, durable=True) == FinishedSmall(b"aaaBBB")
    await staging.close()


async def test_the_free_space_floor(tmp_path: Path) -> None:
    folder = DataFolder(tmp_path / "data", free=lambda _: 10 * MiB)
    folder.create_or_open()
    staging = Staging(folder, min_free=8 * MiB)
    await staging.stage_block(UPLOAD, b"a", body(content(MiB)), MiB)
    with pytest.raises(StoreFull):
        await staging.stage_block(UPLOAD, b"b", body(content(3 * MiB)), 3 * MiB)
    await staging.close()


class Stop(BaseException):
    """The process ends here."""


class Stopping(Disk):
    """Ends the world at the n-th call; with ``half`` the n-th write still lands in part."""

    def __init__(self, at: int, half: bool) -> None:
        self.at = at
        self.half = half
        self.calls = 0

    def _step(self) -> None:
        self.calls += 1
        if self.calls >= self.at:
            raise Stop

    def pwritev(self, fd: int, buffers: Sequence[Buffer], offset: int) -> int:
        if self.half and self.calls + 1 == self.at:
            data = b"".join(buffers)
            os.pwrite(fd, data[: len(data) // 2], offset)
        self._step()
        return super().pwritev(fd, buffers, offset)

    def append(self, fd: int, data: bytes) -> int:
        if self.half and self.calls + 1 == self.at:
            os.write(fd, data[: len(data) // 2])
        self._step()
        return super().append(fd, data)

    def grow(self, fd: int, size: int) -> None:
        self._step()
        super().grow(fd, size)

    def sync_data(self, fd: int) -> None:
        self._step()
        super().sync_data(fd)

    def sync_folder(self, path: str) -> None:
        self._step()
        super().sync_folder(path)


@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize("at", range(1, 8))
async def test_finish_goes_on_after_a_stop_at_any_step(folder: DataFolder, at: int, half: bool) -> None:
    """Steps of finish: seal, grow, trailer, two syncs of parts, sync of the folder, and none."""
    data = content(4 * MiB)
    before = Staging(folder, part_bytes=3 * MiB)
    for n in range(4):
        await before.stage_block(UPLOAD, bytes([n + 1]), body(data[n * MiB : (n + 1) * MiB]), MiB)
    await before.choose(UPLOAD, [b"\1", b"\2", b"\3", b"\4"], MANY)
    await before.close()
    stopped = Staging(folder, disk=Stopping(at, half), part_bytes=3 * MiB)
    try:
        await stopped.finish(UPLOAD, len(data), durable=True, note=b"n")
        assert at > 6
    except Stop:
        assert at <= 6
    await stopped.close()
    after = Staging(folder, part_bytes=3 * MiB)
    finished = await after.finish(UPLOAD, len(data), durable=True, note=b"n")
    assert result(folder, finished) == data
    with pytest.raises(UploadUnknown):
        await after.stage_block(UPLOAD, b"late", body(b"x"), 1)
    await after.close()


@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize("at", range(1, 7))
async def test_staging_goes_on_after_a_stop_at_any_step(folder: DataFolder, at: int, half: bool) -> None:
    stopped = Staging(folder, disk=Stopping(at, half))
    data = content(2 * MiB)

    async def stage() -> None:
        await stopped.stage_block(UPLOAD, b"a", body(data[:MiB]), MiB)
        await stopped.stage_block(UPLOAD, b"b", body(data[MiB:]), MiB)

    with pytest.raises(Stop):
        await stage()
    await stopped.close()
    after = Staging(folder)
    await after.stage_block(UPLOAD, b"b", body(data[MiB:]), MiB)
    await after.stage_block(UPLOAD, b"a", body(data[:MiB]), MiB)
    await after.choose(UPLOAD, [b"a", b"b"], MANY)
    assert result(folder, await after.finish(UPLOAD, len(data), durable=True)) == data
    await after.close()


async def test_a_failed_sync_loses_the_upload(folder: DataFolder) -> None:
    class Broken(Disk):
        def sync_data(self, fd: int) -> None:
            raise OSError(errno.EIO, "injected")

    staging = Staging(folder, disk=Broken())
    data = content(MiB)
    await staging.stage_whole(UPLOAD, body(data), len(data))
    with pytest.raises(StoreUnavailable):
        await staging.finish(UPLOAD, len(data), durable=True)
    with pytest.raises(UploadIncomplete):
        await staging.finish(UPLOAD, len(data), durable=True)
    assert files_of(folder) == []
    await staging.close()


async def test_an_upload_dropped_meanwhile(folder: DataFolder, staging: Staging) -> None:
    async def dropped() -> AsyncIterator[bytes]:
        yield content(2 * MiB)
        await staging.remove(UPLOAD)
        yield content(2 * MiB)

    with pytest.raises(UploadUnknown):
        await staging.stage_block(UPLOAD, b"a", dropped(), 4 * MiB)
    assert files_of(folder) == []


async def test_activity_and_sizes(folder: DataFolder, staging: Staging) -> None:
    assert staging.last_activity_ms(UPLOAD) is None
    assert staging.disk_bytes(UPLOAD) == 0
    assert await staging.staged_bytes(UPLOAD) == 0
    await staging.stage_block(UPLOAD, b"a", body(content(MiB)), MiB)
    os.utime(folder.log(UPLOAD), (1000, 1000))
    os.utime(folder.part(UPLOAD, 0), (2000, 2000))
    assert staging.last_activity_ms(UPLOAD) == 2_000_000
    assert await staging.staged_bytes(UPLOAD) == MiB
    assert MiB < staging.disk_bytes(UPLOAD) < MiB + 4 * KiB
    await staging.remove_log(UPLOAD)
    assert staging.disk_bytes(UPLOAD) == MiB


@given(
    cuts=st.lists(st.integers(0, 40_000), max_size=6),
    order=st.randoms(use_true_random=False),
    again=st.sets(st.integers(0, 6)),
    lost=st.one_of(st.none(), st.integers(0, 6)),
    shift=st.sampled_from([0, 0, 0, -1, 1]),
)
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
async def test_ranges_in_any_order(
    tmp_path_factory: pytest.TempPathFactory,
    cuts: list[int],
    order: random.Random,
    again: set[int],
    lost: int | None,
    shift: int,
) -> None:
    """Ranges that tile the content give the content; a lost or shifted one is a hole or an overlap, not wrong bytes."""
    folder = DataFolder(tmp_path_factory.mktemp("ranges"))
    folder.create_or_open()
    staging = Staging(folder)
    size = 40_000
    data = content(size)
    edges = sorted({0, size, *cuts})
    ranges = list(itertools.pairwise(edges))
    whole = True
    if lost is not None and lost < len(ranges) - 1:
        del ranges[lost]
        whole = False
    shuffled = ranges + [r for n, r in enumerate(ranges) if n in again]
    order.shuffle(shuffled)
    moved = shift if len(ranges) > 1 and ranges[-1][0] > 0 else 0
    for start, stop in shuffled:
        at = start + moved if (start, stop) == ranges[-1] else start
        await staging.stage_range(UPLOAD, at, body(data[start:stop], 7_000), stop - start)
    if whole and not moved:
        assert await staging.finish(UPLOAD, size, durable=False) == FinishedSmall(data)
    else:
        with pytest.raises((UploadIncomplete, SizeMismatch)):
            await staging.finish(UPLOAD, size, durable=False)
    await staging.close()
