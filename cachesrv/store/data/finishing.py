"""From an upload log to a blob: which bytes are the content, the seal, the trailer, the sync.

Every step may be repeated after a stop at any point: the content follows from the log alone, the seal stands once, a
trailer is written anew behind whatever is there. Blocking calls: use in threads.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from xxhash import xxh3_64_intdigest

from cachesrv.store.commands import Filed
from cachesrv.store.data.io import Disk, disk_errors, read_exactly, write_all
from cachesrv.store.data.layout import Layout, Piece
from cachesrv.store.data.regions import OpenExtent, OpenParts, reserve
from cachesrv.store.data.uploadlog import (
    BLOCK,
    CHOSEN,
    ID_BYTES,
    LockedLog,
    UploadLogs,
    decode_block,
    decode_chosen,
    encode_chosen,
    encode_sealed,
)
from cachesrv.store.errors import (
    BlobDamaged,
    LimitExceeded,
    SizeMismatch,
    StoreUnavailable,
    UnknownBlock,
    UploadIncomplete,
    UploadUnknown,
)

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Written:
    """A blob whose files are complete: ``parts`` to sync before it may be named."""

    form: Filed
    parts: tuple[int, ...]


def choose(log: LockedLog, blocks: Sequence[bytes], max_blocks: int) -> int:
    """Record a block list; returns the size of the content. Raises UnknownBlock, LimitExceeded, UploadUnknown."""
    if len(blocks) > max_blocks:
        raise LimitExceeded(f"a block list names at most {max_blocks} blocks")
    if log.state.sealed is not None:
        raise UploadUnknown("this upload is already finished")
    offsets: list[int] = []
    size = 0
    for block in blocks:
        found = log.state.blocks.get(block)
        if found is None:
            raise unknown_block(block)
        offsets.append(found[0])
        size += found[1]
    log.append(encode_chosen(size, offsets))
    return size


def unknown_block(block: bytes) -> UnknownBlock:
    return UnknownBlock(f"block {block[:ID_BYTES]!r} was never staged")


def seal(log: LockedLog, size: int) -> list[Piece]:
    """Settle the content: its pieces in order. From here on the upload takes nothing more.

    Raises UploadIncomplete and SizeMismatch before anything is changed: the upload may be mended then.
    """
    state = log.state
    actual, offsets = _content(log)
    if actual != size:
        raise SizeMismatch(size, actual)
    read: dict[int, list[Piece]] = {}
    pieces: list[Piece] = []
    for offset in offsets:
        if offset not in read:
            read[offset] = _pieces(log, offset)
        pieces += read[offset]
    if sum(piece.raw for piece in pieces) != size:
        raise StoreUnavailable("the log of this upload is damaged")
    if state.sealed is None:
        log.append(encode_sealed(size))
    return pieces


def _content(log: LockedLog) -> tuple[int, Iterable[int]]:
    """(size, log offsets of the blocks in order). Raises UploadIncomplete."""
    state = log.state
    if state.whole is not None:
        return state.whole[1], (state.whole[0],)
    if state.chosen is not None:
        return _decoded(decode_chosen, log.record(state.chosen[0], CHOSEN))
    if not state.ranges and not state.empty_range:
        raise UploadIncomplete("no content was staged: a block list is missing" if state.blocks else "nothing staged")
    offsets = []
    end = 0
    for start, (offset, length) in sorted(state.ranges.items()):
        if start != end:
            raise UploadIncomplete(f"bytes {end} to {start} are missing" if start > end else f"overlap at {start}")
        offsets.append(offset)
        end = start + length
    return end, offsets


def _pieces(log: LockedLog, offset: int) -> list[Piece]:
    return _decoded(lambda body: list(decode_block(body).placed()), log.record(offset, BLOCK))


def _decoded(decode: Callable[[bytes], T], body: bytes) -> T:
    try:
        return decode(body)
    except ValueError as error:
        raise StoreUnavailable("the log of this upload is damaged") from error


def read_back(parts: OpenParts, pieces: Iterable[Piece]) -> bytes:
    """Small content as bytes, each piece checked. Raises BlobDamaged, StoreUnavailable."""
    found = []
    with disk_errors():
        for piece in pieces:
            data = read_exactly(parts.open(piece.part), piece.stored, piece.offset)
            if len(data) != piece.stored or xxh3_64_intdigest(data) != piece.xxh3:
                raise BlobDamaged("the staged bytes are not those that arrived")
            found.append(data)
    return b"".join(found)


def write_upload(logs: UploadLogs, upload_id: int, parts: OpenParts, disk: Disk, layout: Layout) -> Written:
    """The trailer of a sealed upload, behind all its bytes. Raises StoreUnavailable."""
    trailer = layout.encode()
    with disk_errors(), logs.open(upload_id) as log:
        place = reserve(log, parts, disk, len(trailer), whole=True)[0]
    return _write(place, trailer, parts, disk, layout)


def write_own(parts: OpenParts, disk: Disk, layout: Layout) -> Written:
    """The trailer of a value that one task wrote alone. Raises StoreUnavailable."""
    trailer = layout.encode()
    part, offset = len(layout.part_ends) - 1, layout.part_ends[-1]
    if offset + len(trailer) > parts.part_bytes:
        part, offset = part + 1, 0
    with disk_errors():
        place = OpenExtent(parts.open(part, os.O_CREAT), part, offset, len(trailer))
    return _write(place, trailer, parts, disk, layout)


def _write(place: OpenExtent, trailer: bytes, parts: OpenParts, disk: Disk, layout: Layout) -> Written:
    with disk_errors():
        write_all(disk, place.fd, [trailer], place.offset)
    disk_bytes = sum(status.st_size for _, status in parts.folder.parts(parts.file_id))
    used = {part for part, end in enumerate(layout.part_ends) if end} | {place.part}
    form = Filed(parts.file_id, place.part + 1, place.offset, len(trailer), disk_bytes)
    return Written(form, tuple(sorted(used)))
