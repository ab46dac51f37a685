"""The store as the statistics see it: :class:`cachesrv.observe.report.StoreView` over an open index."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from cachesrv.observe.report import Sums
from cachesrv.store.api import Usage
from cachesrv.store.folder import DataFolder
from cachesrv.store.index import Index, Volatile


class IndexView:
    """Reads the index of a worker, or one that :func:`opened` opened. Holds nothing and closes nothing."""

    def __init__(self, index: Index, volatile: Volatile) -> None:
        self._index = index
        self._volatile = volatile

    def side_range(self, start: bytes, stop: bytes, limit: int | None = None) -> list[tuple[bytes, bytes]]:
        return self._index.side_range(start, stop, limit)

    def usage(self) -> Iterable[Usage]:
        return self._index.usage()

    def sums(self) -> Sums:
        totals = self._index.totals()
        return Sums(
            entries=totals.entries,
            logical=totals.logical_bytes,
            on_disk=totals.disk_bytes,
            zstd=max(totals.raw_bytes - totals.stored_bytes, 0),
            dedup=totals.dedup_bytes,
            uploads=self._volatile.count(),
        )


@contextmanager
def opened(root: Path) -> Iterator[IndexView]:
    """The store in a data folder, read-only, whether or not a server runs on it.

    For processes that have no store open: an index can be open once a process. Raises FormatError, StoreUnavailable.
    """
    folder = DataFolder(root)
    folder.check()
    with (
        closing(Index.open(folder.index, readonly=True)) as index,
        closing(Volatile.open(folder.volatile, readonly=True)) as volatile,
    ):
        yield IndexView(index, volatile)
