"""The vocabulary of the store: what every room above it says, and nothing of how it is kept.

Two nouns: a **blob** (immutable bytes under a private 64-bit id; digests are aliases) and an **entry** (a named pointer
to a blob inside a namespace). A third, volatile thing is the **upload**: bytes on their way to become a blob.

All types here are immutable values. Sizes are bytes, times are Unix milliseconds unless a name says seconds.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import NewType

BlobId = NewType("BlobId", int)
"""Private id of a blob, 1..2^63. Never shown to a client as a promise, never reused."""
EntryId = NewType("EntryId", int)
"""Hybrid logical clock of its creation: unique, growing, below 2^53 so that JavaScript keeps it whole."""
UploadId = NewType("UploadId", int)
"""Id of an upload, from the same counter as blobs, so a finished upload's file keeps its name. Below 2^53."""


@dataclass(frozen=True, slots=True)
class Namespace:
    """Where an entry lives. Lookups never cross a namespace.

    ``protocol`` names the room ("actions"), ``tenant`` the repository, ``scope`` the branch or trust scope inside it,
    ``version`` an opaque exact-match text (may be empty).
    """

    protocol: str
    tenant: str
    scope: str
    version: str


@dataclass(frozen=True, slots=True)
class Digest:
    """A content digest: ``algorithm`` is "sha256" or "sha512", ``value`` the raw bytes."""

    algorithm: str
    value: bytes

    def __str__(self) -> str:
        return f"{self.algorithm}:{self.value.hex()}"


@dataclass(frozen=True, slots=True)
class ByteRange:
    """Half-open range [start, stop) of a blob, 0 <= start <= stop."""

    start: int
    stop: int

    @property
    def length(self) -> int:
        return self.stop - self.start


class EntryFlag(enum.IntFlag):
    """How an entry behaves for its whole life."""

    NONE = 0
    IMMUTABLE = 1
    """A second commit of the same key is refused; without it the newer commit replaces the older."""
    LOW_TRUST = 2
    """Written by a pull request or the like: evicted before all others for as long as nobody has read it."""
    EXPIRES = 4
    """Removed when it was not used for ``store.expire_unused``."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One committed entry, as read from the index. ``last_used`` is None when nobody ever read it."""

    id: EntryId
    namespace: Namespace
    key: str
    blob: BlobId
    size: int
    created_ms: int
    last_used_ms: int | None
    writer: str
    flags: EntryFlag
    slot: int


@dataclass(frozen=True, slots=True)
class UploadInfo:
    """A reservation or upload in progress, seen by any worker."""

    id: UploadId
    namespace: Namespace
    key: str
    reserved_ms: int
    writer: str
    flags: EntryFlag


class RemovalReason(enum.StrEnum):
    """Why an entry left. The names are those in events, stats and metrics."""

    BUDGET = "budget"
    FREE_SPACE = "free-space"
    QUOTA = "quota"
    EXPIRED = "expired"
    DELETED = "deleted"
    REPLACED = "replaced"
    DAMAGED = "damaged"
