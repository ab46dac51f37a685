"""Reading whole blobs in the background: damage is found, a digest is right or there is none, the rate is kept."""

from __future__ import annotations

import asyncio
import hashlib
import os
from pathlib import Path

import pytest

from cachesrv.store.commands import Filed, Form, Inline, Packed
from cachesrv.store.data.frames import compress
from cachesrv.store.data.io import Threads
from cachesrv.store.data.pace import Pace
from cachesrv.store.data.records import encode_header
from cachesrv.store.data.verify import DamagedPiece, sha256_of, verify
from cachesrv.store.errors import BlobDamaged, BlobMissing
from tests.unit.store.data_files import Paths, content, overwrite, still_open, write_filed

SIZE = 600
THREADS = Threads("test-verify", 1)
DATA = content(30) * 20


@pytest.fixture
def paths(tmp_path: Path, loop_guard: object) -> Paths:
    return Paths(tmp_path)


class Verifier:
    """The functions with what does not change in these tests."""

    def __init__(self, paths: Paths) -> None:
        self.paths = paths

    async def verify(self, form: Form, blob_id: int, size: int, *, pace: Pace | None = None) -> list[DamagedPiece]:
        return await verify(self.paths, blob_id, size, form, threads=THREADS, pace=pace or Pace(0))

    async def sha256_of(self, form: Form, blob_id: int, size: int) -> bytes:
        return await sha256_of(self.paths, blob_id, size, form, threads=THREADS, pace=Pace(0))


@pytest.fixture
def verifier(paths: Paths) -> Verifier:
    return Verifier(paths)


async def make(paths: Paths, kind: str) -> Form:
    if kind == "inline":
        return Inline(DATA)
    if kind == "packed":
        (paths.root / "9.seg").write_bytes(encode_header(1, DATA) + DATA)
        return Packed(9, 0, 64 + SIZE)
    raw = write_filed(paths, 1, DATA, piece_bytes=100, part_bytes=250)
    if kind == "raw":
        return raw
    form = await compress(paths, 1, SIZE, raw, 2, level=1, threads=THREADS, pace=Pace(0), piece_bytes=200)
    assert form is not None
    return form


KINDS = ["inline", "packed", "raw", "zstd"]


@pytest.mark.parametrize("kind", KINDS)
async def test_a_whole_blob_is_found_whole(paths: Paths, verifier: Verifier, kind: str) -> None:
    form = await make(paths, kind)
    assert await verifier.verify(form, 1, SIZE) == []
    assert await verifier.sha256_of(form, 1, SIZE) == hashlib.sha256(DATA).digest()
    assert await verifier.verify(form, 1, SIZE + 1) != []
    with pytest.raises(BlobDamaged):
        await verifier.sha256_of(form, 1, SIZE + 1)


async def test_every_damaged_piece_is_named(paths: Paths, verifier: Verifier) -> None:
    form = await make(paths, "raw")
    for part, at in ((0, 50), (1, 150), (2, 197)):
        overwrite(paths.part(1, part), at, b"\0\0\0")
    assert await verifier.verify(form, 1, SIZE) == [DamagedPiece(0, 0), DamagedPiece(1, 3), DamagedPiece(2, 5)]
    with pytest.raises(BlobDamaged):
        await verifier.sha256_of(form, 1, SIZE)
    assert isinstance(form, Filed)
    overwrite(paths.part(1, 2), form.trailer_offset + 20, b"?")
    assert await verifier.verify(form, 1, SIZE) == [DamagedPiece(2, -1)]


async def test_a_damaged_record_and_frame_are_found(paths: Paths, verifier: Verifier) -> None:
    packed, zstd = await make(paths, "packed"), await make(paths, "zstd")
    overwrite(paths.segment(9), 300, b"\0\0\0")
    overwrite(paths.part(2, 0), 5, b"\0\0\0")
    assert await verifier.verify(packed, 1, SIZE) == [DamagedPiece(-1, -1)]
    assert await verifier.verify(zstd, 1, SIZE) == [DamagedPiece(0, 0)]
    for form in (packed, zstd):
        with pytest.raises(BlobDamaged):
            await verifier.sha256_of(form, 1, SIZE)


@pytest.mark.parametrize("kind", ["packed", "raw"])
async def test_what_is_gone_is_missing_not_damaged(paths: Paths, verifier: Verifier, kind: str) -> None:
    form = await make(paths, kind)
    os.unlink(paths.segment(9) if kind == "packed" else paths.part(1, 1))
    with pytest.raises(BlobMissing):
        await verifier.verify(form, 1, SIZE)


class Time:
    """A clock that sleeping moves."""

    def __init__(self) -> None:
        self.now = 50.0

    def __call__(self) -> float:
        return self.now

    async def sleep(self, seconds: float) -> None:
        self.now += seconds


async def test_verifying_keeps_to_its_rate(paths: Paths, verifier: Verifier) -> None:
    time = Time()
    pace = Pace(100, burst=200, clock=time, sleep=time.sleep)
    for kind in KINDS[1:3]:
        assert await verifier.verify(await make(paths, kind), 1, SIZE, pace=pace) == []
    assert time.now == pytest.approx(50 + (2 * SIZE - 200) / 100)


async def test_a_pace_saves_up_no_more_than_its_burst() -> None:
    time = Time()
    pace = Pace(100, burst=200, clock=time, sleep=time.sleep)
    time.now += 3600
    await pace.take(200)
    assert time.now == 3650
    await pace.take(50)
    assert time.now == 3650.5
    await Pace(0, clock=time, sleep=time.sleep).take(10**12)
    assert time.now == 3650.5


async def test_a_cancelled_verification_closes_its_files(paths: Paths, verifier: Verifier) -> None:
    form = await make(paths, "raw")
    reached = asyncio.Event()

    async def sleep(_: float) -> None:
        reached.set()
        await asyncio.Event().wait()

    job = asyncio.ensure_future(verifier.verify(form, 1, SIZE, pace=Pace(1, burst=0, sleep=sleep)))
    await reached.wait()
    job.cancel()
    with pytest.raises(asyncio.CancelledError):
        await job
    assert not still_open(paths)
