"""What rooms report: one call per answered request, and one per store event. No I/O, no allocation worth measuring."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from cachesrv.store.model import RemovalReason

OPERATIONS = ("lookup", "reserve", "upload", "finalize", "download", "proxy", "other")
"""lookup: which entry matches; reserve: may I save; upload: bytes in; finalize: make it visible; download: bytes
out. Append only: the position is part of the format (``cachesrv.observe.layout``), as it is of OUTCOMES."""
OUTCOMES = ("hit", "miss", "ok", "exists", "denied", "invalid", "full", "damaged", "aborted", "error")
"""hit and miss only for lookups; ok for everything else that worked; exists: told "somebody has it" (no failure);
invalid: the client's fault; full: no room; damaged: a piece failed its checksum; aborted: the client left."""


class Recorder(Protocol):
    """Counts what happened. Safe to call from the event loop at any rate; never raises."""

    def request(
        self,
        protocol: str,
        operation: str,
        outcome: str,
        *,
        tenant: str = "",
        seconds: float = 0.0,
        bytes_in: int = 0,
        bytes_out: int = 0,
    ) -> None:
        """One answered request. ``tenant`` is the repository, "" when unknown."""
        ...

    def removed(self, reason: RemovalReason, tenant: str, entries: int, size: int) -> None:
        """Entries left the store: logical bytes."""
        ...

    def saved(self, how: str, size: int) -> None:
        """``how`` "zstd" or "dedup": bytes on disk spared by it."""
        ...


@dataclass(frozen=True, slots=True)
class NullRecorder:
    """Counts nothing: for tools and tests."""

    def request(
        self,
        protocol: str,
        operation: str,
        outcome: str,
        *,
        tenant: str = "",
        seconds: float = 0.0,
        bytes_in: int = 0,
        bytes_out: int = 0,
    ) -> None:
        return

    def removed(self, reason: RemovalReason, tenant: str, entries: int, size: int) -> None:
        return

    def saved(self, how: str, size: int) -> None:
        return
