"""Blobs laid out on disk for tests, with pieces and parts as small as the test wants them."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
from collections.abc import Callable, Sequence
from pathlib import Path

from xxhash import xxh3_64_intdigest

from cachesrv.store.api import FileWindow
from cachesrv.store.commands import Filed, Form
from cachesrv.store.data.layout import Layout, Piece
from cachesrv.store.data.reader import Blobs
from cachesrv.store.model import ByteRange


class Paths:
    """A data folder without the rest."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def part(self, file_id: int, part: int) -> str:
        return f"{self.root}/{file_id:x}.{part:x}"

    def segment(self, segment: int) -> str:
        return f"{self.root}/{segment:x}.seg"

    def names(self) -> set[str]:
        return {path.name for path in self.root.iterdir()}


def content(size: int, seed: int = 1) -> bytes:
    return random.Random(seed).randbytes(size)


def write_filed(
    paths: Paths,
    file_id: int,
    data: bytes,
    *,
    blob_id: int | None = None,
    pieces: Sequence[int] = (),
    piece_bytes: int = 10,
    part_bytes: int = 25,
    gap: int = 0,
    note: bytes = b"",
    sha256: bytes = b"",
) -> Filed:
    """A raw blob; ``pieces`` are the first lengths, the rest has ``piece_bytes``. ``gap`` bytes lie before each 3rd."""
    lengths = list(pieces)
    while sum(lengths) < len(data):
        lengths.append(min(piece_bytes, len(data) - sum(lengths)))
    parts: list[bytearray] = [bytearray()]
    table, at = [], 0
    for number, length in enumerate(lengths):
        if parts[-1] and len(parts[-1]) + length > part_bytes:
            parts.append(bytearray())
        if gap and number % 3 == 2:
            parts[-1] += b"#" * gap
        stored = data[at : at + length]
        table.append(Piece(len(parts) - 1, len(parts[-1]), length, length, xxh3_64_intdigest(stored)))
        parts[-1] += stored
        at += length
    trailer = Layout.build(blob_id or file_id, table, note=note, sha256=sha256).encode()
    offset = len(parts[-1])
    parts[-1] += trailer
    for number, part in enumerate(parts):
        Path(paths.part(file_id, number)).write_bytes(part)
    return Filed(file_id, len(parts), offset, len(trailer), sum(map(len, parts)))


def overwrite(path: str, at: int, data: bytes) -> None:
    """Damage a file in place."""
    with open(path, "r+b") as file:
        file.seek(at)
        file.write(data)


def read_window(window: FileWindow | bytes) -> bytes:
    return window if isinstance(window, bytes) else os.pread(window.fd, window.length, window.offset)


def still_open(paths: Paths) -> set[str]:
    """Files of the folder that this process holds open."""
    found = set()
    for fd in os.listdir("/proc/self/fd"):
        with contextlib.suppress(FileNotFoundError):
            found.add(os.readlink(f"/proc/self/fd/{fd}"))
    return {name for name in found if name.startswith(str(paths.root))}


async def read_blob(blobs: Blobs, blob_id: int, size: int, form: Form, wanted: ByteRange | None = None) -> bytes:
    async with await blobs.open(blob_id, size, form) as reader:
        return b"".join([read_window(window) async for window in reader.windows(wanted)])


async def until(condition: Callable[[], bool]) -> None:
    """Wait until it is so."""
    async with asyncio.timeout(5):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.001)
