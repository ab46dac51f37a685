"""Open data files: checked reads of their pieces, and the cache of them that one worker keeps.

A :class:`DataFile` is all parts of one filed blob with its layout, or one pack segment. Its reads block and belong in
a thread, except :meth:`DataFile.resident` (a microsecond) and reads that do not wait. It is counted by holders; the
last one to let go has its descriptors closed, and the last close of an unlinked file is the delete, which may take
long: the cache closes in a thread of its own, one file at a time.

Errors: a file that is not there is BlobMissing; a short file, a bad trailer, a wrong checksum or an error of the disk
is DamageFound; no descriptors left, or anything else the system says, is StoreUnavailable.
"""

from __future__ import annotations

import contextlib
import errno
import os
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Final, Protocol, Self

from xxhash import xxh3_64, xxh3_64_intdigest
from zstandard import ZstdDecompressor, ZstdError, frame_content_size

from cachesrv.store.commands import Filed
from cachesrv.store.constants import HANDLE_CACHE, LAYOUT_CACHE_BYTES, PIECE_BYTES, KiB
from cachesrv.store.data.layout import Layout, LayoutDamaged, Piece
from cachesrv.store.errors import BlobDamaged, BlobMissing, StoreUnavailable

CHECK_BYTES: Final = 256 * KiB
"""A check reads this much at once: it stays in the cache of the core (7.1 GB/s; 4.2 with 1 MiB)."""
_DAMAGE: Final = frozenset((errno.EIO, errno.EUCLEAN, errno.EBADMSG) if hasattr(errno, "EUCLEAN") else (errno.EIO,))
_NOWAIT: Final[int] = getattr(os, "RWF_NOWAIT", 0)


class Paths(Protocol):
    """What this room needs of the data folder."""

    def part(self, file_id: int, part: int, /) -> str | os.PathLike[str]: ...

    def segment(self, segment: int, /) -> str | os.PathLike[str]: ...


class DamageFound(BlobDamaged):
    """``part``: number of the part file, -1 in a pack segment; ``piece``: its index, -1 for the trailer or a record."""

    def __init__(self, part: int, piece: int) -> None:
        super().__init__("the stored bytes failed their checksum")
        self.part = part
        self.piece = piece


@contextlib.contextmanager
def reading(part: int, piece: int) -> Iterator[None]:
    """Says a system error of a read of this piece in the words of the store."""
    try:
        yield
    except FileNotFoundError:
        raise BlobMissing("the blob is not here any more") from None
    except OSError as error:
        if error.errno in _DAMAGE:
            raise DamageFound(part, piece) from error
        raise StoreUnavailable(f"the data cannot be read now ({errno.errorcode.get(error.errno or 0, '?')})") from error


class _Scratch(threading.local):
    """One buffer and one decompressor a thread."""

    def __init__(self) -> None:
        self.buffer = memoryview(bytearray(PIECE_BYTES))
        self.zstd = ZstdDecompressor()


_scratch = _Scratch()


class DataFile:
    """``layout`` is None for a pack segment, and ``blob_id`` then a blob in it. Starts with one holder: its maker."""

    __slots__ = ("_holders", "_lock", "_retire", "blob_id", "checked", "fds", "file_id", "layout")

    def __init__(
        self, file_id: int, fds: list[int], layout: Layout | None, retire: Callable[[list[int]], None]
    ) -> None:
        self.file_id = file_id
        self.blob_id = layout.blob_id if layout else 0
        self.fds = fds
        self.layout = layout
        self.checked = bytearray(len(layout) if layout else 0)
        """1 for each piece that was checked and not seen cold since."""
        self._retire = retire
        self._holders = 1
        self._lock = threading.Lock()

    def hold(self) -> None:
        with self._lock:
            self._holders += 1

    def release(self) -> None:
        with self._lock:
            self._holders -= 1
            last = not self._holders
        if last:
            self._retire(self.fds)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.release()

    @property
    def table(self) -> Layout:
        assert self.layout is not None
        return self.layout

    def resident(self, piece: Piece) -> bool:
        """Whether the first and the last page of the stored bytes are in memory. Never waits. (The kernel may begin to
        read ahead because we asked: who is told "no" must not ask again to be told "yes".)"""
        if not _NOWAIT:
            return False
        probe = [bytearray(1)]
        fd = self.fds[piece.part]
        try:
            return (
                os.preadv(fd, probe, piece.offset, _NOWAIT) == 1
                and os.preadv(fd, probe, piece.offset + piece.stored - 1, _NOWAIT) == 1
            )
        except OSError:
            return False

    def read_now(self, offset: int, length: int) -> bytes | None:
        """Bytes of a pack segment if that needs no waiting, else None."""
        if not _NOWAIT:
            return None
        buffer = bytearray(length)
        try:
            return bytes(buffer) if os.preadv(self.fds[0], [buffer], offset, _NOWAIT) == length else None
        except OSError:
            return None

    def read(self, offset: int, length: int) -> bytes:
        """Bytes of a pack segment; fewer than ``length`` where it ends."""
        with reading(-1, -1):
            return os.pread(self.fds[0], length, offset)

    def will_need(self, part: int, offset: int, length: int) -> None:
        with contextlib.suppress(OSError, AttributeError):
            os.posix_fadvise(self.fds[part], offset, length, os.POSIX_FADV_WILLNEED)

    def drop_behind(self, part: int, offset: int, length: int) -> None:
        with contextlib.suppress(OSError, AttributeError):
            os.posix_fadvise(self.fds[part], offset, length, os.POSIX_FADV_DONTNEED)

    def check(self, index: int) -> None:
        """Read the stored bytes of a piece and compare their checksum. Raises DamageFound."""
        piece = self.table[index]
        fd, at, stop = self.fds[piece.part], piece.offset, piece.offset + piece.stored
        digest = xxh3_64()
        with reading(piece.part, index):
            while at < stop:
                view = _scratch.buffer[: min(CHECK_BYTES, stop - at)]
                got = os.preadv(fd, [view], at)
                if not got:
                    raise DamageFound(piece.part, index)
                digest.update(view[:got])
                at += got
        if digest.intdigest() != piece.xxh3:
            raise DamageFound(piece.part, index)

    def stored(self, index: int) -> memoryview:
        """The checked stored bytes of a piece, good until this thread reads again. Raises DamageFound."""
        piece = self.table[index]
        view = _scratch.buffer[: piece.stored]
        done = 0
        with reading(piece.part, index):
            while done < piece.stored:
                got = os.preadv(self.fds[piece.part], [view[done:]], piece.offset + done)
                if not got:
                    raise DamageFound(piece.part, index)
                done += got
        if xxh3_64_intdigest(view) != piece.xxh3:
            raise DamageFound(piece.part, index)
        return view

    def raw(self, index: int) -> bytes:
        """The checked and decompressed bytes of a piece. Raises DamageFound."""
        piece = self.table[index]
        view = self.stored(index)
        if piece.stored == piece.raw:
            return bytes(view)
        try:
            if frame_content_size(view) == piece.raw:
                return _scratch.zstd.decompress(view)
        except ZstdError:
            pass
        raise DamageFound(piece.part, index)


def open_filed(
    paths: Paths, blob_id: int, size: int, form: Filed, retire: Callable[[list[int]], None] | None = None
) -> DataFile:
    """Open every part and read the trailer; each file must be as long as the layout needs. Blocks.

    Raises BlobMissing, DamageFound, StoreUnavailable. ``retire`` closes the descriptors after the last holder.
    """
    fds: list[int] = []
    last = form.parts - 1
    try:
        for part in range(form.parts):
            with reading(part, -1):
                fds.append(os.open(paths.part(form.file_id, part), os.O_RDONLY | os.O_CLOEXEC))
        with reading(last, -1):
            lengths = [os.fstat(fd).st_size for fd in fds]
            trailer = os.pread(fds[last], form.trailer_length, form.trailer_offset) if fds else b""
        try:
            layout = Layout.decode(trailer)
        except LayoutDamaged as error:
            raise DamageFound(last, -1) from error
        if layout.blob_id != blob_id or layout.size != size or len(layout.part_ends) > len(fds):
            raise DamageFound(last, -1)
        for part, end in enumerate(layout.part_ends):
            if lengths[part] < end:
                raise DamageFound(part, -1)
        return DataFile(form.file_id, fds, layout, retire or close_all)
    except BaseException:
        close_all(fds)
        raise


def open_segment(paths: Paths, segment: int, retire: Callable[[list[int]], None] | None = None) -> DataFile:
    """Open a pack segment for reading. Blocks. Raises BlobMissing, StoreUnavailable."""
    with reading(-1, -1):
        fd = os.open(paths.segment(segment), os.O_RDONLY | os.O_CLOEXEC)
    return DataFile(segment, [fd], None, retire or close_all)


def close_all(fds: Iterable[int]) -> None:
    for fd in fds:
        with contextlib.suppress(OSError):
            os.close(fd)


class Handles:
    """Files one worker keeps open, the longest unused let go first. For the event loop; closes happen in a thread.

    Bounded by ``descriptors`` (a blob counts with all its parts) and by ``layout_bytes``; files that a reader holds
    stay open beyond their place here.
    """

    def __init__(self, *, descriptors: int = HANDLE_CACHE, layout_bytes: int = LAYOUT_CACHE_BYTES) -> None:
        self._kept: OrderedDict[int, DataFile] = OrderedDict()
        self._limit = descriptors
        self._layout_limit = layout_bytes
        self._fds = 0
        self._layout_bytes = 0
        self._closer = ThreadPoolExecutor(1, "close-data")
        self.generation = 0
        """Grows with every :meth:`forget`: a file opened before and kept after might be a removed one."""

    def held(self) -> list[tuple[int, int]]:
        """(file id, blob id) of everything kept here."""
        return [(file.file_id, file.blob_id) for file in self._kept.values()]

    def find(self, file_id: int) -> DataFile | None:
        """The kept file, held once more for the caller, who releases it."""
        file = self._kept.get(file_id)
        if file is not None:
            self._kept.move_to_end(file_id)
            file.hold()
        return file

    def keep(self, file: DataFile) -> None:
        """Put a file here, unless one with its id is. The caller stays its holder."""
        if file.file_id in self._kept:
            return
        file.hold()
        self._kept[file.file_id] = file
        self._count(file, 1)
        while self._kept and (self._fds > self._limit or self._layout_bytes > self._layout_limit):
            self._drop(next(iter(self._kept)))

    def forget(self, file_ids: Iterable[int]) -> None:
        """Let go of these files (and segments): they are removed, and their space shall return."""
        self.generation += 1
        for file_id in file_ids:
            if file_id in self._kept:
                self._drop(file_id)

    def retire(self, fds: list[int]) -> None:
        """Close descriptors in the thread for that."""
        try:
            self._closer.submit(close_all, fds)
        except RuntimeError:
            close_all(fds)

    def close(self) -> None:
        """Wait for the closes. Blocks."""
        self._closer.shutdown()

    def _drop(self, file_id: int) -> None:
        file = self._kept.pop(file_id)
        self._count(file, -1)
        file.release()

    def _count(self, file: DataFile, sign: int) -> None:
        self._fds += sign * len(file.fds)
        self._layout_bytes += sign * (file.layout.memory + len(file.checked) if file.layout else 0)
