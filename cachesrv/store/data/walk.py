"""Reading a whole filed blob in the background: what verifying, hashing and compressing have in common.

Reads are jobs in threads of a few MiB each, so that a cancelled walk ends soon. What was not in memory before is
dropped from memory behind the read, so that background work pushes nothing useful out.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from typing import Final

from cachesrv.store.commands import Filed
from cachesrv.store.constants import MiB
from cachesrv.store.data.handles import DataFile, Paths, open_filed
from cachesrv.store.data.io import Threads
from cachesrv.store.data.layout import Layout

JOB_BYTES: Final = 4 * MiB
"""Raw bytes that one job reads, about."""


@asynccontextmanager
async def opened(paths: Paths, form: Filed, blob_id: int, size: int, threads: Threads) -> AsyncIterator[DataFile]:
    """The blob's files; opened and closed in ``threads``. Raises what :func:`open_filed` does."""
    found: list[DataFile] = []
    try:
        # Through a list, because a result is lost when the wait for it is cancelled.
        await threads.run(lambda: found.append(open_filed(paths, blob_id, size, form)))
        yield found[0]
    finally:
        for file in found:
            await threads.run(file.release)


def jobs(layout: Layout) -> Iterator[range]:
    """All pieces in order, in runs of about JOB_BYTES."""
    first = 0
    for index in range(len(layout)):
        if layout.start(index + 1) - layout.start(first) >= JOB_BYTES:
            yield range(first, index + 1)
            first = index + 1
    if first < len(layout):
        yield range(first, len(layout))


def dropping_behind(file: DataFile, index: int, read: Callable[[int], None]) -> None:
    """Call ``read`` for a piece; if the piece was not in memory before, it is not after."""
    piece = file.table[index]
    stays = file.resident(piece)
    read(index)
    if not stays:
        file.drop_behind(piece.part, piece.offset, piece.stored)
