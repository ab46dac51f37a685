"""Reading whole blobs in the background: for the scrub, for blobs an unclean stop left unproven, for late digests.

Reads go as :mod:`cachesrv.store.data.walk` says, at the given pace. What is in memory is checked there: the disk under
it is looked at once the kernel has let it go.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass

from cachesrv.store.commands import Filed, Form, Inline, Packed
from cachesrv.store.data.handles import DamageFound, DataFile, Paths
from cachesrv.store.data.io import Threads
from cachesrv.store.data.pace import Pace
from cachesrv.store.data.packs import read_record
from cachesrv.store.data.walk import dropping_behind, jobs, opened


@dataclass(frozen=True, slots=True)
class DamagedPiece:
    """``part``: number of the part file, -1 in a pack; ``piece``: its index, -1 for the trailer or a record."""

    part: int
    piece: int


async def verify(
    paths: Paths, blob_id: int, size: int, form: Form, *, threads: Threads, pace: Pace
) -> list[DamagedPiece]:
    """Check every stored byte of a blob; an empty list says that it is whole.

    Raises BlobMissing when a file is gone, StoreUnavailable when it cannot be read now.
    """
    found: list[DamagedPiece] = []

    def check(file: DataFile, pieces: range) -> None:
        found.extend(_check(file, pieces))

    try:
        if isinstance(form, Filed):
            await _walk(paths, blob_id, size, form, check, threads, pace)
        else:
            await threads.run(_small, paths, form, blob_id, size)
            await pace.take(size)
    except DamageFound as damage:
        return [DamagedPiece(damage.part, damage.piece)]
    return found


async def sha256_of(paths: Paths, blob_id: int, size: int, form: Form, *, threads: Threads, pace: Pace) -> bytes:
    """The SHA-256 of the raw content; every piece is checked on the way, so a damaged blob never gets a digest.

    Raises BlobDamaged, BlobMissing, StoreUnavailable.
    """
    digest = hashlib.sha256()

    def feed(file: DataFile, pieces: range) -> None:
        for index in pieces:
            dropping_behind(file, index, lambda at: digest.update(file.raw(at)))

    if isinstance(form, Filed):
        await _walk(paths, blob_id, size, form, feed, threads, pace)
    else:
        digest.update(await threads.run(_small, paths, form, blob_id, size))
        await pace.take(size)
    return digest.digest()


async def _walk(
    paths: Paths,
    blob_id: int,
    size: int,
    form: Filed,
    job: Callable[[DataFile, range], None],
    threads: Threads,
    pace: Pace,
) -> None:
    async with opened(paths, form, blob_id, size, threads) as file:
        for pieces in jobs(file.table):
            await threads.run(job, file, pieces)
            await pace.take(sum(file.table[index].stored for index in pieces))


def _small(paths: Paths, form: Inline | Packed, blob_id: int, size: int) -> bytes:
    data = form.data if isinstance(form, Inline) else read_record(paths, form, blob_id)
    if len(data) != size:
        raise DamageFound(-1, -1)
    return data


def _check(file: DataFile, pieces: range) -> list[DamagedPiece]:
    found: list[DamagedPiece] = []

    def check(index: int) -> None:
        try:
            file.check(index)
        except DamageFound as damage:
            found.append(DamagedPiece(damage.part, damage.piece))

    for index in pieces:
        dropping_behind(file, index, check)
    return found
