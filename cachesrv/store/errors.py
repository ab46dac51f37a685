"""The one error tree of the store. Each protocol maps it to its own dialect in one place.

Every error carries a message fit for a client (no paths, no secrets). Anything else that escapes the store is a bug.
"""

from __future__ import annotations


class StoreError(Exception):
    """Base of everything the store raises on purpose."""


class EntryExists(StoreError):
    """An immutable entry with this namespace and key is already committed."""


class UploadInFlight(StoreError):
    """Somebody else holds a live reservation of this namespace and key."""


class UploadUnknown(StoreError):
    """No such upload: never made, aborted, superseded, reclaimed, or committed long ago."""


class UploadIncomplete(StoreError):
    """The upload cannot be committed as it stands: a hole, an overlap, or no block list."""


class SizeMismatch(StoreError):
    """The bytes that arrived are not as many as were announced."""

    def __init__(self, expected: int, actual: int) -> None:
        super().__init__(f"expected {expected} bytes, got {actual}")
        self.expected = expected
        self.actual = actual


class UnknownBlock(StoreError):
    """A block list names a block that was never staged."""


class DigestMismatch(StoreError):
    """The bytes do not have the digest they were announced with; nothing was kept."""


class BlobMissing(StoreError):
    """The blob is not here (any more)."""


class BlobDamaged(StoreError):
    """A piece of the blob failed its checksum; the blob is quarantined and must be treated as missing."""


class LimitExceeded(StoreError):
    """A named limit (key length, blob size, blocks in a list, quota) was passed. The message names it."""


class StoreUnavailable(StoreError):
    """The store cannot do this now; the same call may work later. Base of the three below."""


class StoreFull(StoreUnavailable):
    """The data disk or the byte budget has no room."""


class IndexFull(StoreUnavailable):
    """The index reached its bound."""


class StoreReadOnly(StoreUnavailable):
    """The data folder cannot be written (read-only file system or lost permission)."""


class StoreBusy(StoreUnavailable):
    """The committer did not answer in time."""


class FormatError(StoreError):
    """The data folder was written by a newer cachesrv, or is not one of ours. Raised at start only."""


class StoreLocked(StoreError):
    """Another cachesrv owns this data folder."""
