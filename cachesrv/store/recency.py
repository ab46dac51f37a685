"""When each entry was last used: a shared memory-mapped array of u32 Unix seconds by slot (docs/format.md, Recency).

A touch is one aligned 4-byte store into shared memory: no system call, no lock, kept by the kernel when a process is
killed (a power cut may lose the last half minute, which costs at most an early eviction). 0 means never used. Slot 0 is
shared by all entries for which there was no slot: it always reads 0, so they look old.
"""

from __future__ import annotations

import mmap
import os
from pathlib import Path
from types import TracebackType

from cachesrv.store.constants import RECENCY_SLOTS

_NEVER = 0
_LATEST = 0xFFFFFFFF


class Recency:
    """The map, open for reading and touching. Every process opens its own; they share the pages."""

    def __init__(self, mapped: mmap.mmap) -> None:
        self._map = mapped
        self._seconds = memoryview(mapped).cast("I")
        self.slots = len(mapped) // 4

    @classmethod
    def open(cls, path: Path, slots: int = RECENCY_SLOTS) -> Recency:
        """Open or create (sparse) the file. A longer file keeps its length. Raises OSError."""
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            length = max(os.fstat(descriptor).st_size // 4 * 4, slots * 4)
            os.ftruncate(descriptor, length)
            return cls(mmap.mmap(descriptor, length))
        finally:
            os.close(descriptor)

    def touch(self, slot: int, seconds: int) -> None:
        """Note a use at ``seconds``. Slot 0, and slots beyond the map, note nothing."""
        if 0 < slot < self.slots:
            self._seconds[slot] = min(max(seconds, 1), _LATEST)

    def get(self, slot: int) -> int:
        """The last use, or 0."""
        return self._seconds[slot] if 0 < slot < self.slots else _NEVER

    def clear(self, slot: int) -> None:
        """Make a slot never used, for its next entry. The committer's call."""
        if 0 < slot < self.slots:
            self._seconds[slot] = _NEVER

    def close(self) -> None:
        self._seconds.release()
        self._map.close()

    def __enter__(self) -> Recency:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()
