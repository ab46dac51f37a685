"""zstd behind the acknowledgement: the same bytes, smaller, or nothing at all."""

from __future__ import annotations

import asyncio
import errno
import hashlib
from collections.abc import Sequence
from pathlib import Path

import pytest
import zstandard

from cachesrv.store.commands import Filed
from cachesrv.store.constants import PART_BYTES, PIECE_BYTES, KiB, MiB
from cachesrv.store.data import frames
from cachesrv.store.data.io import Buffer, Disk, Threads
from cachesrv.store.data.layout import Layout
from cachesrv.store.data.pace import Pace
from cachesrv.store.data.reader import Blobs
from cachesrv.store.data.trailers import read_trailer
from cachesrv.store.errors import BlobDamaged, StoreFull
from cachesrv.store.model import ByteRange
from tests.unit.store.data_files import Paths, content, overwrite, read_blob, write_filed

NOTE = b"what it was saved for"
THREADS = Threads("test-frames", 1)


@pytest.fixture
def paths(tmp_path: Path, loop_guard: object) -> Paths:
    return Paths(tmp_path)


async def compress(
    paths: Paths,
    form: Filed,
    blob_id: int,
    size: int,
    file_id: int,
    *,
    level: int,
    pace: Pace | None = None,
    disk: Disk | None = None,
    part_bytes: int = PART_BYTES,
    piece_bytes: int = PIECE_BYTES,
) -> Filed | None:
    return await frames.compress(
        paths,
        blob_id,
        size,
        form,
        file_id,
        level=level,
        threads=THREADS,
        pace=pace or Pace(0),
        disk=disk,
        part_bytes=part_bytes,
        piece_bytes=piece_bytes,
    )


def text(size: int) -> bytes:
    line = b"".join(b"%08d the quick brown fox\n" % (number * number) for number in range(2000))
    return (line * (size // len(line) + 1))[:size]


def layout_of(paths: Paths, form: Filed) -> Layout:
    return read_trailer(paths.part(form.file_id, form.parts - 1))


async def test_content_that_shrinks_is_rewritten_in_frames(paths: Paths) -> None:
    data = text(3 * MiB + 12_345)
    sha256 = hashlib.sha256(data).digest()
    raw = write_filed(paths, 1, data, piece_bytes=700_000, part_bytes=2 * MiB, note=NOTE, sha256=sha256)
    form = await compress(paths, raw, 1, len(data), 2, level=3, part_bytes=10 * KiB)
    assert form is not None
    assert form.zstd
    assert form.parts > 1
    assert form.disk_bytes < raw.disk_bytes / 2
    sizes = [(paths.root / f"2.{part}").stat().st_size for part in range(form.parts)]
    assert form.disk_bytes == sum(sizes)
    assert sizes[-1] == form.trailer_offset + form.trailer_length
    layout = layout_of(paths, form)
    assert (layout.blob_id, layout.size, layout.note, layout.sha256) == (1, len(data), NOTE, sha256)
    assert [piece.raw for piece in layout] == [MiB, MiB, MiB, 12_345]
    # Every frame stands alone, for stock decoders too.
    for number, piece in enumerate(layout):
        frame = (paths.root / f"2.{piece.part}").read_bytes()[piece.offset :][: piece.stored]
        assert zstandard.frame_content_size(frame) == piece.raw
        start = layout.start(number)
        assert zstandard.ZstdDecompressor().decompress(frame) == data[start : start + piece.raw]
    blobs = Blobs(paths, on_damage=lambda *_: None)
    assert await read_blob(blobs, 1, len(data), form) == data
    wanted = ByteRange(MiB - 5, 2 * MiB + 5)
    assert await read_blob(blobs, 1, len(data), form, wanted) == data[wanted.start : wanted.stop]
    await blobs.close()


async def test_content_that_does_not_shrink_stays_raw(paths: Paths) -> None:
    raw = write_filed(paths, 1, content(200_000), piece_bytes=10_000, part_bytes=MiB)
    assert await compress(paths, raw, 1, 200_000, 2, level=3) is None
    assert paths.names() == {"1.0"}


async def test_a_probe_that_was_wrong_leaves_nothing(paths: Paths) -> None:
    places = [content(10_000, n) if n % 20 else bytes(10_000) for n in range(100)]
    raw = write_filed(paths, 1, b"".join(places), piece_bytes=10_000, part_bytes=2 * MiB)
    assert await compress(paths, raw, 1, 1_000_000, 2, level=1, piece_bytes=10_000) is None
    assert paths.names() == {"1.0"}


async def test_a_frame_that_would_grow_is_kept_as_it_is(paths: Paths) -> None:
    data = bytes(90_000) + content(10_000) + bytes(100_000)
    raw = write_filed(paths, 1, data, piece_bytes=10_000, part_bytes=MiB)
    form = await compress(paths, raw, 1, len(data), 2, level=3, piece_bytes=10_000)
    assert form is not None
    assert [piece.stored == piece.raw for piece in layout_of(paths, form)] == [n == 9 for n in range(20)]
    blobs = Blobs(paths, on_damage=lambda *_: None)
    assert await read_blob(blobs, 1, len(data), form) == data
    await blobs.close()


async def test_a_damaged_source_is_not_passed_on(paths: Paths) -> None:
    data = text(100_000)
    raw = write_filed(paths, 1, data, piece_bytes=10_000, part_bytes=MiB)
    overwrite(paths.part(1, 0), 55_555, b"\0")
    with pytest.raises(BlobDamaged):
        await compress(paths, raw, 1, len(data), 2, level=3)
    assert paths.names() == {"1.0"}


class FullDisk(Disk):
    def __init__(self, room: int) -> None:
        self.room = room

    def pwritev(self, fd: int, buffers: Sequence[Buffer], offset: int) -> int:
        self.room -= 1
        if self.room < 0:
            raise OSError(errno.ENOSPC, "full")
        return super().pwritev(fd, buffers, offset)


@pytest.mark.parametrize("room", [0, 3, 10])
async def test_a_full_disk_leaves_nothing(paths: Paths, room: int) -> None:
    data = text(100_000)
    raw = write_filed(paths, 1, data, piece_bytes=10_000, part_bytes=MiB)
    with pytest.raises(StoreFull):
        await compress(paths, raw, 1, len(data), 2, level=3, piece_bytes=10_000, part_bytes=4_000, disk=FullDisk(room))
    assert paths.names() == {"1.0"}


@pytest.mark.parametrize("waits", range(0, 9, 2))
async def test_cancelled_at_any_time_it_leaves_nothing(paths: Paths, waits: int) -> None:
    data = text(20 * MiB)
    raw = write_filed(paths, 1, data, piece_bytes=MiB, part_bytes=32 * MiB)
    reached = asyncio.Event()
    left = waits

    async def sleep(seconds: float) -> None:
        nonlocal left
        left -= 1
        if left < 0:
            reached.set()
            await asyncio.Event().wait()

    pace = Pace(1, burst=0, sleep=sleep)
    job = asyncio.ensure_future(compress(paths, raw, 1, len(data), 2, level=1, pace=pace))
    await reached.wait()
    job.cancel()
    with pytest.raises(asyncio.CancelledError):
        await job
    assert paths.names() == {"1.0"}


async def test_frames_are_not_framed_again(paths: Paths) -> None:
    with pytest.raises(ValueError):
        await compress(paths, Filed(1, 1, 0, 0, 0, zstd=True), 1, 5, 2, level=1)
