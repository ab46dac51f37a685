"""Bytes out: any range of any form is exact, and a damaged byte is never handed on."""

from __future__ import annotations

import asyncio
import errno
import os
import tempfile
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cachesrv.store.api import FileWindow
from cachesrv.store.commands import Filed, Form, Inline
from cachesrv.store.constants import MiB
from cachesrv.store.data import handles
from cachesrv.store.data.frames import compress
from cachesrv.store.data.handles import Handles
from cachesrv.store.data.io import Threads
from cachesrv.store.data.pace import Pace
from cachesrv.store.data.packs import PackWriter
from cachesrv.store.data.reader import Blobs
from cachesrv.store.errors import BlobDamaged, BlobMissing, StoreUnavailable
from cachesrv.store.model import ByteRange
from tests.unit.store.data_files import (
    Paths,
    content,
    overwrite,
    read_blob,
    read_window,
    still_open,
    until,
    write_filed,
)

THREADS = Threads("test-reader", 1)
Reports = list[tuple[int, int, int]]


@pytest.fixture
def paths(tmp_path: Path, loop_guard: object) -> Paths:
    return Paths(tmp_path)


@pytest.fixture
def reports() -> Reports:
    return []


@pytest.fixture
async def blobs(paths: Paths, reports: Reports) -> AsyncIterator[Blobs]:
    made = Blobs(paths, on_damage=lambda *damage: reports.append(damage))
    yield made
    await made.close()


async def pack(paths: Paths, blob_id: int, payload: bytes, segment: int = 77) -> Form:
    async def opened() -> int:
        return segment

    async def sealed(segment: int, length: int) -> None:
        return

    writer = PackWriter(paths, durable=False, open_segment=opened, seal_segment=sealed)
    form = await writer.append(blob_id, payload)
    await writer.close()
    return form


async def framed(paths: Paths, form: Filed, size: int, *, part_bytes: int, piece_bytes: int) -> Filed | None:
    """Blob 5 as frames in file 6."""
    return await compress(
        paths,
        5,
        size,
        form,
        6,
        level=1,
        threads=THREADS,
        pace=Pace(0),
        part_bytes=part_bytes,
        piece_bytes=piece_bytes,
    )


# -- any range of any form ---------------------------------------------------------------------------------------------

EDGES = st.sampled_from([0, 1, 9, 10, 11, 20, 24, 25, 26, 49, 50, 51, 99, 100, 101, 1000])


@settings(max_examples=60, deadline=None)
@given(
    size=st.one_of(EDGES, st.integers(0, 300)),
    ranges=st.lists(st.tuples(st.one_of(EDGES, st.integers(0, 300)), st.integers(0, 320)), min_size=1, max_size=5),
    form_name=st.sampled_from(["raw", "gaps", "uneven", "zstd", "packed", "inline"]),
    window=st.sampled_from([1, 15, 64, 8 * MiB]),
)
def test_any_range_of_any_form_is_exact(
    size: int, ranges: Sequence[tuple[int, int]], form_name: str, window: int
) -> None:
    async def run() -> None:
        with tempfile.TemporaryDirectory() as root:
            paths = Paths(Path(root))
            data = content(size) if form_name != "zstd" else content(20) * (size // 20) + content(size % 20)
            form: Form | None
            if form_name == "packed":
                form = await pack(paths, 5, data)
            elif form_name == "inline":
                form = Inline(data)
            else:
                uneven = [1, 3, 25] if form_name == "uneven" and size > 29 else []
                form = write_filed(paths, 5, data, gap=7 * (form_name == "gaps"), pieces=uneven)
                if form_name == "zstd":
                    form = await framed(paths, form, size, part_bytes=60, piece_bytes=50) or form
            blobs = Blobs(paths, on_damage=lambda *_: pytest.fail("no damage here"), window_bytes=window)
            for _ in range(2):  # unchecked, then trusted
                assert await read_blob(blobs, 5, size, form) == data
                for start, length in ranges:
                    wanted = ByteRange(start, start + length)
                    assert await read_blob(blobs, 5, size, form, wanted) == data[start : start + length]
            await blobs.close()

    asyncio.run(run())


async def test_neighbouring_pieces_are_one_window_up_to_its_limit(paths: Paths, reports: Reports) -> None:
    form = write_filed(paths, 1, content(100), part_bytes=60)
    blobs = Blobs(paths, on_damage=lambda *damage: reports.append(damage), window_bytes=30)
    async with await blobs.open(1, 100, form) as reader:
        windows = [window async for window in reader.windows()]
        places = [(window.offset, window.length) for window in windows if isinstance(window, FileWindow)]
        assert places == [(0, 30), (30, 30), (0, 30), (30, 10)]
    await blobs.close()


# -- damage ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["raw", "zstd", "packed"])
async def test_a_flipped_bit_anywhere_is_never_served(paths: Paths, kind: str) -> None:
    data = content(40) * 12
    form: Form | None
    if kind == "packed":
        form = await pack(paths, 5, data)
    else:
        form = write_filed(paths, 5, data, piece_bytes=48, part_bytes=300)
    if kind == "zstd":
        assert isinstance(form, Filed)
        form = await framed(paths, form, len(data), part_bytes=150, piece_bytes=160)
    assert form is not None
    used = [name for name in paths.names() if kind != "zstd" or name.startswith("6.")]
    for name in sorted(used):
        whole = (paths.root / name).read_bytes()
        for at in range(0, len(whole), 3):
            bad = bytearray(whole)
            bad[at] ^= 1 << at % 8
            (paths.root / name).write_bytes(bad)
            reports: Reports = []
            blobs = Blobs(paths, on_damage=lambda *damage, seen=reports: seen.append(damage), threads=1)
            got = bytearray()
            try:
                async with await blobs.open(5, len(data), form) as reader:
                    async for window in reader.windows():
                        got += read_window(window)
            except BlobDamaged:
                assert data.startswith(got)
                if kind == "packed":
                    assert reports == [(5, 77, -1)]
                else:
                    assert reports == [(5, int(name[0]), int(name.split(".")[1], 16))]
                with pytest.raises(BlobDamaged):
                    await blobs.open(5, len(data), form)
                assert len(reports) == 1
            else:
                assert kind == "packed"  # the padding after the record
                assert at >= form.length if not isinstance(form, Inline | Filed) else False
                assert got == data
                assert not reports
            await blobs.close()
        (paths.root / name).write_bytes(whole)


async def test_two_readers_of_a_damaged_blob_report_it_once(paths: Paths, blobs: Blobs, reports: Reports) -> None:
    data = content(40)
    form = write_filed(paths, 1, data)
    async with await blobs.open(1, 40, form) as one, await blobs.open(1, 40, form) as two:
        overwrite(paths.part(1, 0), 0, bytes([data[0] ^ 1]))
        for reader in (one, two):
            with pytest.raises(BlobDamaged):
                await anext(aiter(reader.windows()))
    assert reports == [(1, 1, 0)]


@pytest.mark.parametrize("cut", [1, 30, 10_000])
async def test_a_truncated_file_is_damage(paths: Paths, blobs: Blobs, reports: Reports, cut: int) -> None:
    form = write_filed(paths, 1, content(60))
    for part in range(form.parts):
        path = paths.root / f"1.{part}"
        whole = path.read_bytes()
        path.write_bytes(whole[: max(0, len(whole) - cut)])
        fresh = Blobs(paths, on_damage=lambda *damage: reports.append(damage))
        with pytest.raises(BlobDamaged):
            await fresh.open(1, 60, form)
        await fresh.close()
        path.write_bytes(whole)
    assert [report[2] for report in reports] == [0, 1, 2]
    assert len(await read_blob(blobs, 1, 60, form)) == 60


async def test_another_blobs_file_is_not_served(paths: Paths, blobs: Blobs) -> None:
    form = write_filed(paths, 1, content(60), blob_id=9)
    with pytest.raises(BlobDamaged):
        await blobs.open(1, 60, form)
    with pytest.raises(BlobDamaged):
        await blobs.open(9, 61, form)


async def test_files_that_are_gone_are_a_miss(paths: Paths, blobs: Blobs, reports: Reports) -> None:
    form = write_filed(paths, 1, content(60))
    os.unlink(paths.part(1, 1))
    with pytest.raises(BlobMissing):
        await blobs.open(1, 60, form)
    packed = await pack(paths, 5, b"small")
    os.unlink(paths.segment(77))
    with pytest.raises(BlobMissing):
        await blobs.open(5, 5, packed)
    assert reports == []


@pytest.mark.parametrize(
    ("number", "raised"), [(errno.EIO, BlobDamaged), (errno.EMFILE, StoreUnavailable), (errno.ENOMEM, StoreUnavailable)]
)
async def test_errors_of_the_system(
    paths: Paths, blobs: Blobs, monkeypatch: pytest.MonkeyPatch, number: int, raised: type[Exception]
) -> None:
    form = write_filed(paths, 1, content(60))

    def fail(*_: object) -> int:
        raise OSError(number, "made up")

    with monkeypatch.context() as patch:
        patch.setattr(os, "pread", fail)
        with pytest.raises(raised):
            await blobs.open(1, 60, form)


# -- what is checked again ---------------------------------------------------------------------------------------------


class Checks:
    """Which pieces were read for a check."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.pieces: list[int] = []
        self.cold: set[int] = set()
        real = handles.DataFile.check

        def check(file: handles.DataFile, index: int) -> None:
            self.pieces.append(index)
            real(file, index)

        def resident(file: handles.DataFile, piece: Any) -> bool:
            return list(file.table).index(piece) not in self.cold

        monkeypatch.setattr(handles.DataFile, "check", check)
        monkeypatch.setattr(handles.DataFile, "resident", resident)

    def taken(self) -> list[int]:
        taken, self.pieces = self.pieces, []
        return sorted(taken)


async def test_a_piece_is_checked_at_first_and_when_it_is_cold(paths: Paths, monkeypatch: pytest.MonkeyPatch) -> None:
    checks = Checks(monkeypatch)
    data = content(60)
    form = write_filed(paths, 1, data, part_bytes=1000)
    blobs = Blobs(paths, on_damage=lambda *_: None, window_bytes=10)
    assert await read_blob(blobs, 1, 60, form, ByteRange(15, 35)) == data[15:35]
    assert checks.taken() == [1, 2, 3]
    assert await read_blob(blobs, 1, 60, form) == data
    assert checks.taken() == [0, 1, 2, 3, 4, 5]
    assert await read_blob(blobs, 1, 60, form) == data
    assert checks.taken() == []
    checks.cold = {2}
    assert await read_blob(blobs, 1, 60, form, ByteRange(0, 20)) == data[:20]
    assert checks.taken() == []
    # What follows a cold piece may be in memory only because the kernel read ahead.
    assert await read_blob(blobs, 1, 60, form) == data
    assert checks.taken() == [2, 3, 4, 5]
    await blobs.close()


async def test_a_change_of_trusted_bytes_is_seen_once_they_are_cold(
    paths: Paths, blobs: Blobs, monkeypatch: pytest.MonkeyPatch
) -> None:
    checks = Checks(monkeypatch)
    form = write_filed(paths, 1, content(60), part_bytes=1000)
    await read_blob(blobs, 1, 60, form)
    overwrite(paths.part(1, 0), 25, b"\0\0")
    checks.cold = {2}
    with pytest.raises(BlobDamaged):
        await read_blob(blobs, 1, 60, form)


async def test_residency_is_asked_of_the_kernel(paths: Paths) -> None:
    size = 8 * MiB
    form = write_filed(paths, 1, content(size), piece_bytes=MiB, part_bytes=64 * MiB)
    with handles.open_filed(paths, 1, size, form) as file:
        file.check(7)
        if not file.resident(file.table[7]):
            pytest.skip("this file system cannot read without waiting")
        os.fsync(file.fds[0])

        def dropped() -> bool:  # the kernel takes it as a hint, and may be at work on the pages
            file.drop_behind(0, 0, 0)
            return not file.resident(file.table[3])

        await until(dropped)


async def test_the_next_window_is_read_while_one_is_sent(paths: Paths, monkeypatch: pytest.MonkeyPatch) -> None:
    checks = Checks(monkeypatch)
    form = write_filed(paths, 1, content(60), part_bytes=1000)
    blobs = Blobs(paths, on_damage=lambda *_: None, window_bytes=10)
    async with await blobs.open(1, 60, form) as reader:
        windows = aiter(reader.windows())
        await anext(windows)
        await until(lambda: sorted(checks.pieces) == [0, 1])
        await anext(windows)
        await until(lambda: sorted(checks.pieces) == [0, 1, 2])
    await blobs.close()


# -- handles -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["raw", "packed"])
async def test_a_reader_survives_the_removal_of_its_blob(paths: Paths, blobs: Blobs, kind: str) -> None:
    data = content(60)
    form: Form = write_filed(paths, 1, data) if kind == "raw" else await pack(paths, 1, data)
    async with await blobs.open(1, 60, form) as reader:
        for name in paths.names():
            os.unlink(paths.root / name)
        blobs.forget([1, 77])
        assert b"".join([read_window(window) async for window in reader.windows()]) == data
        assert still_open(paths)
    await until(lambda: not still_open(paths))
    with pytest.raises(BlobMissing):
        await blobs.open(1, 60, form)


async def test_eviction_of_handles_leaves_readers_alone(paths: Paths) -> None:
    blobs = Blobs(paths, on_damage=lambda *_: None, handles=Handles(descriptors=3))
    data = {number: content(60, number) for number in range(1, 6)}
    forms = {number: write_filed(paths, number, data[number]) for number in data}
    async with await blobs.open(1, 60, forms[1]) as one, await blobs.open(1, 60, forms[1]) as again:
        for number in (2, 3, 4, 5, 2):
            assert await read_blob(blobs, number, 60, forms[number]) == data[number]
        assert [file_id for file_id, _ in blobs.held()] == [2]
        for reader in (one, again):
            assert b"".join([read_window(window) async for window in reader.windows()]) == data[1]
    await until(lambda: len(still_open(paths)) == forms[2].parts)
    await blobs.close()
    assert not still_open(paths)


async def test_layouts_are_bounded_in_memory(paths: Paths) -> None:
    forms = {number: write_filed(paths, number, content(60), part_bytes=1000) for number in range(1, 6)}
    blobs = Blobs(paths, on_damage=lambda *_: None, handles=Handles(layout_bytes=1100))
    for number, form in forms.items():
        await read_blob(blobs, number, 60, form)
    assert [file_id for file_id, _ in blobs.held()] == [4, 5]
    await blobs.close()


async def test_a_file_removed_while_it_was_being_opened_is_not_kept(
    paths: Paths, blobs: Blobs, monkeypatch: pytest.MonkeyPatch
) -> None:
    form = write_filed(paths, 1, content(60))
    opening = asyncio.ensure_future(blobs.open(1, 60, form))
    await asyncio.sleep(0)
    blobs.forget([1])
    async with await opening:
        assert blobs.held() == []


async def test_a_reader_that_is_left_in_the_middle_lets_go(paths: Paths, blobs: Blobs) -> None:
    form = write_filed(paths, 1, content(60))
    async with await blobs.open(1, 60, form) as reader:
        windows = aiter(reader.windows())
        await anext(windows)
        blobs.forget([1])
    await until(lambda: not still_open(paths))


async def test_a_cancelled_open_leaves_nothing_open(paths: Paths, monkeypatch: pytest.MonkeyPatch) -> None:
    form = write_filed(paths, 1, content(60))
    blobs = Blobs(paths, on_damage=lambda *_: None)
    opening = asyncio.ensure_future(blobs.open(1, 60, form))
    await asyncio.sleep(0)
    opening.cancel()
    with pytest.raises(asyncio.CancelledError):
        await opening
    await blobs.close()
    assert not still_open(paths)
