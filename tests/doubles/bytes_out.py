"""Bodies going in and bytes coming out, as tests want them."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator

from cachesrv.store.api import BlobReader, CacheStore, FileWindow
from cachesrv.store.model import BlobId, ByteRange


async def body_of(data: bytes, chunk: int = 65_536) -> AsyncIterator[bytes]:
    """A body of exactly these bytes."""
    for start in range(0, len(data), chunk):
        yield data[start : start + chunk]


async def drain(reader: BlobReader, wanted: ByteRange | None = None) -> bytes:
    """All bytes of a range, as a client would get them."""
    out = []
    async for window in reader.windows(wanted):
        if isinstance(window, FileWindow):
            out.append(os.pread(window.fd, window.length, window.offset))
        else:
            out.append(bytes(window))
    return b"".join(out)


async def read_all(store: CacheStore, blob: BlobId, wanted: ByteRange | None = None) -> bytes:
    async with await store.open(blob) as reader:
        return await drain(reader, wanted)
