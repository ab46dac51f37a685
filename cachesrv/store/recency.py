"""When each entry was last used: a shared memory-mapped array of u32 Unix seconds by slot (docs/format.md, Recency).

A touch is one aligned 4-byte store into shared memory: no system call, no lock, kept by the kernel when a process is
killed (a power cut may lose the last half minute, which costs at most an early eviction). 0 means never used. Slot 0 is
shared by all entries for which there was no slot: it always reads 0, so they look old.

The file is sparse. A store into a hole of a mapped file on a full disk kills the process (SIGBUS), so the committer
gives the slots it hands out real space first (:meth:`Recency.reserve`); no others are ever written.
"""

from __future__ import annotations

import mmap
import os
from pathlib import Path
from types import TracebackType

from cachesrv.store.constants import RECENCY_SLOTS

_NEVER = 0
_LATEST = 0xFFFFFFFF
_RESERVE = 16_384
"""Slots that get space in one go."""


class Recency:
    """The map, open for reading and touching. Every process opens its own; they share the pages."""

    def __init__(self, mapped: mmap.mmap, descriptor: int) -> None:
        self._map = mapped
        self._descriptor: int | None = descriptor
        self._reserved = 0
        self._seconds = memoryview(mapped).cast("I")
        self.slots = len(mapped) // 4

    @classmethod
    def open(cls, path: Path, slots: int = RECENCY_SLOTS) -> Recency:
        """Open or create (sparse) the file. A longer file keeps its length. Raises OSError."""
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            found = os.fstat(descriptor).st_size
            length = max(found // 4 * 4, slots * 4)
            if length != found:
                os.ftruncate(descriptor, length)
            return cls(mmap.mmap(descriptor, length), descriptor)
        except BaseException:
            os.close(descriptor)
            raise

    def reserve(self, slot: int) -> bool:
        """Make sure that a slot has space on the disk. False: there is none, and the slot must not be used. The
        committer's call."""
        if slot < self._reserved:
            return True
        assert self._descriptor is not None, "closed"
        end = min((slot // _RESERVE + 1) * _RESERVE, self.slots)
        try:
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(self._descriptor, 0, end * 4)
        except OSError:
            return False
        self._reserved = end
        return True

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
        descriptor, self._descriptor = self._descriptor, None
        if descriptor is not None:
            os.close(descriptor)

    def __enter__(self) -> Recency:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()
