"""What the store tells whoever listens. The store counts nothing itself: observe listens and counts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from cachesrv.store.model import RemovalReason


@dataclass(frozen=True, slots=True)
class EntriesRemoved:
    """Entries of one tenant left the index; ``size`` is their logical bytes."""

    reason: RemovalReason
    tenant: str
    entries: int
    size: int


@dataclass(frozen=True, slots=True)
class BytesSaved:
    """``how`` "zstd" or "dedup" spares ``size`` bytes on disk from now on."""

    how: str
    size: int


@dataclass(frozen=True, slots=True)
class BlobQuarantined:
    """A blob failed its checksum; its files moved to ``q/`` and its entries became misses."""

    blob: int
    reason: str
    entries: int


@dataclass(frozen=True, slots=True)
class UploadReclaimed:
    """A stale upload was dropped; ``size`` bytes of disk come back."""

    upload: int
    size: int


StoreEvent = EntriesRemoved | BytesSaved | BlobQuarantined | UploadReclaimed
Listener = Callable[[StoreEvent], None]


def ignore(event: StoreEvent) -> None:
    """The listener of tools and tests that want none."""
