"""The interface of the store that protocols and the web floor use: they import this, the model and the errors.

Lookups are synchronous (an LMDB read of microseconds on the event loop); whatever may touch the disk or the
committer is awaited. One conformance suite (tests/unit/store/conformance.py) runs over every implementation.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

from cachesrv.store.model import (
    BlobId,
    ByteRange,
    Digest,
    Entry,
    EntryFlag,
    EntryId,
    Namespace,
    RemovalReason,
    UploadId,
    UploadInfo,
)

Body = AsyncIterator[bytes]
"""A request body: chunks of any size, in order. Ending early must raise (the client went away)."""


@dataclass(frozen=True, slots=True)
class FileWindow:
    """Checked bytes that lie raw in a file: hand them to sendfile at once. ``fd`` stays open while the reader is."""

    fd: int
    offset: int
    length: int


Window = FileWindow | bytes


class BlobReader(Protocol):
    """One open blob. Removal of the blob does not disturb it. Use as an async context manager."""

    blob: BlobId
    size: int

    def windows(self, wanted: ByteRange | None = None) -> AsyncIterator[Window]:
        """The bytes of a range (default: all) in order, each window checked before it is yielded (at most 8 MiB).

        Raises BlobDamaged when a piece fails its checksum: what was yielded before is right, nothing more follows.
        """
        ...

    async def __aenter__(self) -> BlobReader: ...

    async def __aexit__(self, *exc: object) -> None: ...


@dataclass(frozen=True, slots=True)
class EntryFilter:
    """What ``entries`` lists: None matches everything at that level."""

    protocol: str | None = None
    tenant: str | None = None
    scope: str | None = None
    version: str | None = None
    key_prefix: str = ""


@dataclass(frozen=True, slots=True)
class EntryPage:
    """One page and the cursor that continues after it (None: the end). Order: namespace, then key bytes."""

    entries: Sequence[Entry]
    cursor: bytes | None


@dataclass(frozen=True, slots=True)
class Usage:
    """What one tenant (repository) holds: logical bytes, as its users count them."""

    protocol: str
    tenant: str
    entries: int
    bytes: int


class CacheStore(Protocol):
    """What a protocol room may ask of the store."""

    # -- entries ------------------------------------------------------------------------------------------------------

    def lookup(self, namespace: Namespace, key: str) -> Entry | None:
        """The committed entry with exactly this key."""
        ...

    def newest(self, namespace: Namespace, prefix: str) -> Entry | None:
        """The newest-created committed entry whose key starts with ``prefix``, literally and case-sensitively."""
        ...

    def entry(self, entry_id: EntryId) -> Entry | None: ...

    def touch(self, entry: Entry) -> None:
        """Mark as used now (no write to the index). Touch first, then promise."""
        ...

    async def prove(self, entry: Entry) -> bool:
        """Before a positive answer: False when the entry's blob is not, or not provably, whole; the entry is then a
        miss. Costs one index read, except for blobs that an unclean stop left unproven (they are read and checked)."""
        ...

    def entries(self, wanted: EntryFilter, *, limit: int, cursor: bytes | None = None) -> EntryPage: ...

    def usage(self) -> Iterable[Usage]: ...

    async def delete(self, entry_ids: Sequence[EntryId], reason: RemovalReason) -> int:
        """Remove entries; open readers finish. Returns how many stood."""
        ...

    # -- bytes out ----------------------------------------------------------------------------------------------------

    async def open(self, blob: BlobId) -> BlobReader:
        """Raises BlobMissing or BlobDamaged."""
        ...

    # -- uploads ------------------------------------------------------------------------------------------------------

    async def reserve(
        self, namespace: Namespace, key: str, *, flags: EntryFlag, writer: str, size: int | None
    ) -> UploadId:
        """Reserve a key. Raises EntryExists (immutable, committed), UploadInFlight, LimitExceeded, StoreUnavailable.

        A reservation without a byte for ``stale_upload`` is taken over silently. ``size``: the announced one, if any.
        """
        ...

    def upload(self, upload: UploadId) -> UploadInfo | None: ...

    def find_upload(self, namespace: Namespace, key: str) -> UploadInfo | None: ...

    async def stage_whole(self, upload: UploadId, body: Body, length: int) -> None:
        """Put Blob: the whole content in one body; replaces everything staged or chosen before."""
        ...

    async def stage_block(self, upload: UploadId, block: bytes, body: Body, length: int) -> None:
        """Put Block: stage ``length`` bytes under an opaque id (1..64 bytes); the last attempt that ended wins."""
        ...

    async def stage_range(self, upload: UploadId, start: int, body: Body, length: int) -> None:
        """v1 PATCH: stage bytes [start, start + length). Order is by offset; the same range again replaces."""
        ...

    async def choose_blocks(self, upload: UploadId, blocks: Sequence[bytes]) -> int:
        """Put Block List: fix the content as these blocks in this order (repeats allowed). Returns its size.
        Raises UnknownBlock, LimitExceeded."""
        ...

    async def commit(self, upload: UploadId, size: int) -> Entry:
        """Make the entry visible, durable by the configured promise. Raises UploadUnknown, UploadIncomplete,
        SizeMismatch (the upload stays and may be mended), EntryExists, StoreUnavailable."""
        ...

    def committed(self, upload: UploadId) -> Entry | None:
        """The entry that this upload became, for as long as the store can tell (minutes at least): it makes a repeated
        commit idempotent for a client that lost our answer."""
        ...

    async def abort(self, upload: UploadId) -> None:
        """Drop an upload and its space. Unknown: no error."""
        ...

    # -- whole values -------------------------------------------------------------------------------------------------

    async def put(
        self,
        namespace: Namespace,
        key: str,
        body: Body,
        *,
        flags: EntryFlag,
        writer: str,
        length: int | None = None,
        digest: Digest | None = None,
    ) -> Entry:
        """Store a value in one go, hashed with SHA-256 while it passes. Raises SizeMismatch, DigestMismatch (nothing is
        kept), EntryExists (IMMUTABLE and taken by other content), LimitExceeded, StoreUnavailable."""
        ...
