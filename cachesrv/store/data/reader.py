"""Bytes out: any range of any blob, whatever its form, each byte checked before it is handed on.

What is checked, and when. ``sendfile`` looks at nothing, so a piece of a raw file is checked (its xxh3 against a read
of all its stored bytes, in a thread) **when this worker's handle reads it first, and whenever it is not resident in
memory** (the first and the last page are asked for without waiting). A piece that is resident and was checked before
is trusted: what happens to it in memory after its check is not seen. A file's length is compared with its layout when
it is opened. Records in packs and zstd frames pass through our memory anyway and are checked on every read.
After the first piece that had to be checked, a walk checks all that follow: the kernel's readahead makes the
next pieces resident, and they come from the disk all the same. Not caught: pages that are thrown out of memory between
their check and their sending, and come back wrong.

What it costs. Hot and checked: two probes a piece (2 us a MiB) on the event loop, no thread. Else one thread hop a
window of at most WINDOW_BYTES, with the next window read while the current one is being sent. Small records: one read
that does not wait and one xxh3, on the loop. Memory: 1 MiB a thread; for zstd two frames a reader.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Final, ParamSpec, Self, TypeVar

from cachesrv.store.api import FileWindow, Window
from cachesrv.store.commands import Form, Inline, Packed
from cachesrv.store.constants import MiB
from cachesrv.store.data.handles import DamageFound, DataFile, Handles, Paths, open_filed, open_segment
from cachesrv.store.data.records import HEADER_BYTES, payload_of
from cachesrv.store.errors import BlobDamaged
from cachesrv.store.model import BlobId, ByteRange

P = ParamSpec("P")
T = TypeVar("T")

WINDOW_BYTES: Final = 8 * MiB
"""A window is at most this long; with the one ahead of it, what a cold walk reads before it is asked to."""
READ_THREADS: Final = 8
"""Threads of one worker that read cold pieces and decompress frames."""

OnDamage = Callable[[int, int, int], None]
"""(blob id, file id, part), on the event loop; part is -1 for a record, and the file id then its segment."""


@dataclass(frozen=True, slots=True)
class _Span:
    """Neighbouring pieces that make one window; ``offset`` and ``length`` are of the wanted bytes in the part."""

    pieces: range
    part: int
    offset: int
    length: int


class Blobs:
    """The blobs that one worker reads. For its event loop only."""

    def __init__(
        self,
        paths: Paths,
        *,
        on_damage: OnDamage,
        handles: Handles | None = None,
        threads: int = READ_THREADS,
        window_bytes: int = WINDOW_BYTES,
    ) -> None:
        """``on_damage`` is called once for each damaged file or record that a reader met."""
        self._paths = paths
        self._on_damage = on_damage
        self._handles = handles or Handles()
        self._pool = ThreadPoolExecutor(threads, "read-data")
        self._window_bytes = window_bytes
        self._damaged: set[tuple[int, int]] = set()

    async def open(self, blob_id: int, size: int, form: Form) -> OpenBlob:
        """Raises BlobMissing (its files are gone: look it up again), BlobDamaged, StoreUnavailable."""
        if isinstance(form, Inline):
            if len(form.data) != size:
                raise BlobDamaged("an inline blob has the wrong length")
            return _InlineBlob(blob_id, form.data)
        file_id = form.segment if isinstance(form, Packed) else form.file_id
        if (blob_id, file_id) in self._damaged:
            raise BlobDamaged("the stored bytes failed their checksum")
        if isinstance(form, Packed):
            file = await self._file(file_id, open_segment, self._paths, file_id, self._handles.retire)
            file.blob_id = blob_id
            return _PackedBlob(self, blob_id, size, file, form)
        try:
            file = await self._file(file_id, open_filed, self._paths, blob_id, size, form, self._handles.retire)
        except DamageFound as damage:
            self.report(blob_id, file_id, damage)
            raise
        return (_FramedBlob if file.table.zstd else _RawBlob)(self, blob_id, size, file)

    def forget(self, file_ids: Iterable[int]) -> None:
        """These files and segments are removed: close them as soon as no reader needs them, so that space returns."""
        self._handles.forget(file_ids)

    def held(self) -> list[tuple[int, int]]:
        """(file id, blob id) of the files kept open; of a segment, the blob that was read from it last."""
        return self._handles.held()

    async def close(self) -> None:
        """Let go of everything; waits for reads in threads."""
        await asyncio.to_thread(self._pool.shutdown)
        self._handles.forget([file_id for file_id, _ in self._handles.held()])
        await asyncio.to_thread(self._handles.close)

    async def _file(self, file_id: int, opener: Callable[P, DataFile], *args: P.args, **kwargs: P.kwargs) -> DataFile:
        """The kept file of this id or a fresh one, held for the caller."""
        kept = self._handles.find(file_id)
        if kept is not None:
            return kept
        generation = self._handles.generation
        opening = self._pool.submit(opener, *args, **kwargs)
        try:
            file = await asyncio.wrap_future(opening)
        except asyncio.CancelledError:
            opening.add_done_callback(_release_result)
            raise
        if generation == self._handles.generation:
            self._handles.keep(file)
        return file

    def in_thread(self, file: DataFile, call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> asyncio.Future[T]:
        """A read of ``file`` in a thread, which holds the file until it has ended, whatever becomes of the future."""
        file.hold()
        try:
            job: Future[T] = self._pool.submit(call, *args, **kwargs)
        except BaseException:
            file.release()
            raise
        job.add_done_callback(lambda _: file.release())
        future = asyncio.wrap_future(job)
        future.add_done_callback(_seen)
        return future

    def spans(self, layout_of: DataFile, wanted: ByteRange) -> Iterator[_Span]:
        """The windows of a raw file, in order."""
        layout = layout_of.table
        covering = layout.covering(wanted)
        first, begin, end, part = 0, 0, 0, -1
        for index in covering:
            piece, at = layout[index], layout.start(index)
            skip = max(0, wanted.start - at)
            start = piece.offset + skip
            stop = piece.offset + min(piece.raw, wanted.stop - at)
            if piece.part == part and start == end and stop - begin <= self._window_bytes:
                end = stop
                continue
            if part >= 0:
                yield _Span(range(first, index), part, begin, end - begin)
            first, begin, end, part = index, start, stop, piece.part
        if part >= 0:
            yield _Span(range(first, covering.stop), part, begin, end - begin)

    @property
    def reach(self) -> int:
        """How far the readahead of the kernel may reach past what a thread reads, at most: bytes of the blob."""
        return 2 * self._window_bytes

    def report(self, blob_id: int, file_id: int, damage: DamageFound) -> None:
        """Say that a file or record is damaged, once; it is not opened again."""
        if (blob_id, file_id) not in self._damaged:
            self._damaged.add((blob_id, file_id))
            self._on_damage(blob_id, file_id, damage.part)


class OpenBlob:
    """What the forms have in common; see :class:`cachesrv.store.api.BlobReader`."""

    def __init__(self, blob_id: int, size: int) -> None:
        self.blob = BlobId(blob_id)
        self.size = size

    def windows(self, wanted: ByteRange | None = None) -> AsyncIterator[Window]:
        """See BlobReader. Also raises StoreUnavailable. A range is cut to the blob."""
        start, stop = (max(0, wanted.start), min(wanted.stop, self.size)) if wanted else (0, self.size)
        return self._walk(ByteRange(start, max(start, stop)))

    def _walk(self, wanted: ByteRange) -> AsyncIterator[Window]:
        raise NotImplementedError

    def close(self) -> None:
        """The reader is done; idempotent."""

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc: object) -> None:
        self.close()


class _InlineBlob(OpenBlob):
    def __init__(self, blob_id: int, data: bytes) -> None:
        super().__init__(blob_id, len(data))
        self._data = data

    async def _walk(self, wanted: ByteRange) -> AsyncIterator[Window]:
        if wanted.length:
            yield self._data[wanted.start : wanted.stop]


class _HeldBlob(OpenBlob):
    """A blob that lies in a file, which it holds until it is closed."""

    def __init__(self, blobs: Blobs, blob_id: int, size: int, file: DataFile) -> None:
        super().__init__(blob_id, size)
        self._blobs = blobs
        self._file = file
        self._closed = False

    def close(self) -> None:
        if not self._closed:
            self._closed = True
            self._file.release()


class _PackedBlob(_HeldBlob):
    def __init__(self, blobs: Blobs, blob_id: int, size: int, file: DataFile, form: Packed) -> None:
        super().__init__(blobs, blob_id, size, file)
        self._form = form

    async def _walk(self, wanted: ByteRange) -> AsyncIterator[Window]:
        if not wanted.length:
            return
        file, offset, length = self._file, self._form.offset, self._form.length
        try:
            if length != HEADER_BYTES + self.size:
                raise DamageFound(-1, -1)
            record = file.read_now(offset, length)
            if record is None:
                record = await self._blobs.in_thread(file, file.read, offset, length)
            payload = payload_of(record, self.blob)
        except DamageFound as damage:
            self._blobs.report(self.blob, file.file_id, damage)
            raise
        yield bytes(payload[wanted.start : wanted.stop])


class _RawBlob(_HeldBlob):
    async def _walk(self, wanted: ByteRange) -> AsyncIterator[Window]:
        walk = _RawWalk(self._blobs, self._file)
        current: _Span | None = None
        checking: asyncio.Future[None] | None = None
        upcoming: asyncio.Future[None] | None = None
        try:
            for span in self._blobs.spans(self._file, wanted):
                upcoming = walk.prepare(span)
                if current is not None:
                    if checking is not None:
                        await checking
                    yield FileWindow(self._file.fds[current.part], current.offset, current.length)
                current, checking, upcoming = span, upcoming, None
            if current is not None:
                if checking is not None:
                    await checking
                yield FileWindow(self._file.fds[current.part], current.offset, current.length)
        except DamageFound as damage:
            self._blobs.report(self.blob, self._file.file_id, damage)
            raise
        finally:
            for future in (checking, upcoming):
                if future is not None:
                    future.cancel()


class _RawWalk:
    """One walk over a raw file: decides what is checked."""

    def __init__(self, blobs: Blobs, file: DataFile) -> None:
        self._blobs = blobs
        self._file = file
        self._trusting = True

    def prepare(self, span: _Span) -> asyncio.Future[None] | None:
        """Begin to check what of the span needs it; None when all of it is trusted."""
        file = self._file
        doubted = [index for index in span.pieces if not self._trusts(index)]
        if not doubted:
            return None
        # Our read makes the kernel read on: neighbours that were evicted would look as if they had stayed.
        layout = file.table
        start = layout.start(doubted[0])
        for index in layout.covering(ByteRange(start, start + self._blobs.reach)):
            file.checked[index] = 0
        return self._blobs.in_thread(file, _check, file, doubted)

    def _trusts(self, index: int) -> bool:
        file = self._file
        self._trusting = self._trusting and bool(file.checked[index]) and file.resident(file.table[index])
        return self._trusting


def _check(file: DataFile, indexes: list[int]) -> None:
    layout = file.table
    first, last = layout[indexes[0]], layout[indexes[-1]]
    file.will_need(first.part, first.offset, last.offset + last.stored - first.offset)
    for index in indexes:
        file.check(index)
        file.checked[index] = 1


class _FramedBlob(_HeldBlob):
    async def _walk(self, wanted: ByteRange) -> AsyncIterator[Window]:
        file, layout = self._file, self._file.table
        covering = layout.covering(wanted)
        current: asyncio.Future[bytes] | None = None
        upcoming: asyncio.Future[bytes] | None = None
        try:
            for index in covering:
                current = upcoming or self._blobs.in_thread(file, file.raw, index)
                upcoming = self._blobs.in_thread(file, file.raw, index + 1) if index + 1 in covering else None
                data = await current
                current = None
                start = layout.start(index)
                if wanted.start > start or wanted.stop < start + len(data):
                    data = data[max(0, wanted.start - start) : wanted.stop - start]
                yield data
        except DamageFound as damage:
            self._blobs.report(self.blob, file.file_id, damage)
            raise
        finally:
            for future in (current, upcoming):
                if future is not None:
                    future.cancel()


def _seen(future: asyncio.Future[T]) -> None:
    """Nobody may be left to ask for it."""
    if not future.cancelled():
        future.exception()


def _release_result(opening: Future[DataFile]) -> None:
    if not opening.cancelled() and opening.exception() is None:
        opening.result().release()
