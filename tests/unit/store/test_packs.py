"""Pack segments: appends share syncs, a torn tail harms nobody, a full disk is said and survived."""

from __future__ import annotations

import asyncio
import errno
import os
import tempfile
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cachesrv.store.commands import Packed
from cachesrv.store.constants import PACK_LIMIT
from cachesrv.store.data import packs
from cachesrv.store.data.io import Buffer, Disk
from cachesrv.store.data.packs import PackWriter, is_owned, read_record, scan
from cachesrv.store.data.records import HEADER_BYTES, RecordHeader, decode_header, encode_header
from cachesrv.store.errors import BlobDamaged, BlobMissing, StoreBusy, StoreFull, StoreUnavailable
from tests.unit.store.data_files import Paths, content, still_open


class CountingDisk(Disk):
    """A disk that counts, and that may fail."""

    def __init__(self) -> None:
        self.syncs = 0
        self.room: int | None = None
        self.sync_error = 0

    def pwritev(self, fd: int, buffers: Sequence[Buffer], offset: int) -> int:
        if self.room is not None:
            if not self.room:
                raise OSError(errno.ENOSPC, "full")
            some = b"".join(bytes(buffer) for buffer in buffers)[: self.room]
            self.room -= len(some)
            return os.pwrite(fd, some, offset)
        return super().pwritev(fd, buffers, offset)

    def sync_data(self, fd: int) -> None:
        self.syncs += 1
        if self.sync_error:
            raise OSError(self.sync_error, "made up")
        super().sync_data(fd)


class Segments:
    """What the index hears about segments."""

    def __init__(self, paths: Paths) -> None:
        self.paths = paths
        self.opened: list[int] = []
        self.sealed: list[tuple[int, int]] = []
        self.disk = CountingDisk()

    async def open(self) -> int:
        self.opened.append(100 + len(self.opened))
        return self.opened[-1]

    async def seal(self, segment: int, length: int) -> None:
        self.sealed.append((segment, length))

    def writer(self, *, durable: bool = True, segment_bytes: int = 1000) -> PackWriter:
        return PackWriter(
            self.paths,
            durable=durable,
            open_segment=self.open,
            seal_segment=self.seal,
            disk=self.disk,
            segment_bytes=segment_bytes,
        )


@pytest.fixture
def paths(tmp_path: Path, loop_guard: object) -> Paths:
    return Paths(tmp_path)


@pytest.fixture
def segments(paths: Paths) -> Segments:
    return Segments(paths)


@pytest.fixture
async def writer(segments: Segments) -> AsyncIterator[PackWriter]:
    made = segments.writer()
    yield made
    await made.close()


@settings(max_examples=40, deadline=None)
@given(st.lists(st.binary(max_size=400), max_size=12), st.integers(1, 4))
def test_what_was_appended_is_read_back(payloads: list[bytes], together: int) -> None:
    async def run() -> None:
        with tempfile.TemporaryDirectory() as root:
            segments = Segments(Paths(Path(root)))
            writer = segments.writer(durable=False)
            forms: list[Packed] = []
            for start in range(0, len(payloads), together):
                forms += await asyncio.gather(
                    *(writer.append(number + start, data) for number, data in enumerate(payloads[start:][:together]))
                )
            await writer.close()
            assert [segment for segment, _ in segments.sealed] == segments.opened
            found: dict[tuple[int, int], RecordHeader] = {}
            for segment, length in segments.sealed:
                assert (segments.paths.root / f"{segment:x}.seg").stat().st_size == length <= 1000
                found |= {(segment, offset): header for offset, header in scan(segments.paths, segment)}
            assert len(found) == len(payloads)
            for number, (form, data) in enumerate(zip(forms, payloads, strict=True)):
                assert form.length == HEADER_BYTES + len(data)
                assert form.offset % 8 == 0
                assert read_record(segments.paths, form, number) == data
                assert found[form.segment, form.offset].blob_id == number
                with pytest.raises(BlobDamaged):
                    read_record(segments.paths, form, number + 1)

    asyncio.run(run())


@settings(deadline=None)
@given(st.integers(0, 2**63), st.binary(max_size=50), st.one_of(st.just(b""), st.binary(min_size=32, max_size=32)))
def test_a_header_says_what_it_was_given(blob_id: int, payload: bytes, sha256: bytes) -> None:
    data = encode_header(blob_id, payload, sha256)
    header = decode_header(data)
    assert header is not None
    assert (header.blob_id, header.length) == (blob_id, len(payload))
    assert header.sha256 == (sha256 if any(sha256) else b"")
    for bit in range(8 * HEADER_BYTES):
        bad = bytearray(data)
        bad[bit // 8] ^= 1 << bit % 8
        assert decode_header(bytes(bad)) is None
    assert decode_header(data[:-1]) is None


async def test_those_who_wait_together_share_a_sync(segments: Segments, writer: PackWriter) -> None:
    await asyncio.gather(*(writer.append(number, b"x") for number in range(10)))
    assert segments.disk.syncs == 1
    await writer.append(11, b"y")
    assert segments.disk.syncs == 2


async def test_relaxed_writes_without_a_sync(segments: Segments) -> None:
    writer = segments.writer(durable=False)
    await writer.append(1, b"x")
    await writer.close()
    assert segments.disk.syncs == 0


async def test_a_payload_above_the_limit_is_refused(writer: PackWriter) -> None:
    with pytest.raises(ValueError):
        await writer.append(1, bytes(PACK_LIMIT + 1))


async def test_each_life_has_its_own_segment(segments: Segments) -> None:
    for life in range(3):
        writer = segments.writer()
        assert (await writer.append(life, b"x")).segment == 100 + life
        await writer.close()
        with pytest.raises(StoreUnavailable):
            await writer.append(9, b"late")
    assert segments.sealed == [(100, 72), (101, 72), (102, 72)]


async def test_a_full_disk_is_said_and_its_segment_abandoned(segments: Segments, writer: PackWriter) -> None:
    good = await writer.append(1, content(100))
    segments.disk.room = 90
    results = await asyncio.gather(*(writer.append(number, content(100)) for number in (2, 3)), return_exceptions=True)
    assert [type(result) for result in results] == [StoreFull, StoreFull]
    assert segments.sealed == [(100, 168)]
    segments.disk.room = None
    again = await writer.append(4, content(100, 4))
    assert again.segment == 101
    assert read_record(segments.paths, again, 4) == content(100, 4)
    assert read_record(segments.paths, good, 1) == content(100)
    assert [header.blob_id for _, header in scan(segments.paths, 100)] == [1]


async def test_a_failed_sync_acknowledges_nobody(segments: Segments, writer: PackWriter) -> None:
    segments.disk.sync_error = errno.EIO
    with pytest.raises(StoreUnavailable):
        await writer.append(1, b"x")
    segments.disk.sync_error = 0
    assert (await writer.append(2, b"x")).segment == 101
    assert segments.sealed == [(100, 0)]


async def test_a_cancelled_append_harms_no_other(segments: Segments, writer: PackWriter) -> None:
    tasks = [asyncio.ensure_future(writer.append(number, content(50, number))) for number in range(3)]
    await asyncio.sleep(0)
    tasks[0].cancel()
    forms = await asyncio.gather(*tasks[1:])
    for number, form in enumerate(forms, 1):
        assert read_record(segments.paths, form, number) == content(50, number)


async def test_closing_writes_what_waits(segments: Segments) -> None:
    writer = segments.writer()
    waiting = asyncio.ensure_future(writer.append(1, b"x"))
    await asyncio.sleep(0)
    await writer.close()
    assert read_record(segments.paths, await waiting, 1) == b"x"
    assert segments.sealed == [(100, 72)]


async def test_closing_without_a_committer_leaves_the_segment_to_others(
    segments: Segments, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer = segments.writer()
    form = await writer.append(1, b"x")

    async def gone(segment: int, length: int) -> None:
        raise StoreBusy("no committer")

    monkeypatch.setattr(writer, "_seal_segment", gone)
    await writer.close()
    assert not is_owned(segments.paths, form.segment)
    assert not still_open(segments.paths)


def records(count: int) -> tuple[list[int], bytearray]:
    offsets, data = [], bytearray()
    for number in range(count):
        payload = content(37 + number, number)
        offsets.append(len(data))
        data += encode_header(number, payload) + payload
        data += bytes(-len(data) % 8)
    return offsets, data


@settings(deadline=None)
@given(st.data())
def test_a_torn_tail_hides_no_whole_record(data: st.DataObject) -> None:
    offsets, segment = records(4)
    cut = data.draw(st.integers(0, len(segment)))
    junk = data.draw(st.binary(max_size=80))
    with tempfile.TemporaryDirectory() as root:
        paths = Paths(Path(root))
        Path(paths.segment(1)).write_bytes(segment[:cut] + junk)
        found = [header.blob_id for _, header in scan(paths, 1)]
    whole = [n for n, offset in enumerate(offsets) if offset + HEADER_BYTES + 37 + n <= cut]
    assert found[: len(whole)] == whole


@settings(deadline=None)
@given(st.data())
def test_a_damaged_record_hides_no_other(data: st.DataObject) -> None:
    offsets, segment = records(4)
    victim = data.draw(st.integers(0, 3))
    at = offsets[victim] + data.draw(st.integers(0, HEADER_BYTES + 36 + victim))
    segment[at] ^= data.draw(st.integers(1, 255))
    with tempfile.TemporaryDirectory() as root:
        paths = Paths(Path(root))
        Path(paths.segment(1)).write_bytes(segment)
        found = [(offset, header.blob_id) for offset, header in scan(paths, 1)]
    assert found == [(offset, n) for n, offset in enumerate(offsets) if n != victim]


async def test_a_segment_is_owned_while_its_writer_lives(
    segments: Segments, paths: Paths, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer = segments.writer()
    await writer.append(1, b"x")
    assert is_owned(paths, 100)
    await writer.close()
    assert not is_owned(paths, 100)
    (paths.root / "65.seg").write_bytes(b"")
    assert is_owned(paths, 0x65)
    monkeypatch.setattr(packs, "UNBORN_SECONDS", -1.0)
    assert not is_owned(paths, 0x65)
    assert is_owned(paths, 0x66)


def test_a_segment_that_is_gone_is_missing(paths: Paths) -> None:
    with pytest.raises(BlobMissing):
        list(scan(paths, 1))
    with pytest.raises(BlobMissing):
        read_record(paths, Packed(1, 0, 70), 1)
