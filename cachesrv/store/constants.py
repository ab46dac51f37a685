"""Every number of the store, with its unit and its reason. Settings may override those that say so."""

from __future__ import annotations

from typing import Final

KiB: Final = 1024
MiB: Final = 1024 * KiB
GiB: Final = 1024 * MiB

FORMAT_VERSION: Final = 1
"""Version of everything on disk (docs/format.md). A folder with a larger number is refused."""

# -- content ----------------------------------------------------------------------------------------------------------
INLINE_LIMIT: Final = 1 * KiB
"""Blobs up to this many bytes live in their index row: one read, no file."""
PACK_LIMIT: Final = 256 * KiB
"""Blobs up to this many bytes live in a pack segment; above it they get files of their own."""
SEGMENT_BYTES: Final = 64 * MiB
"""A pack segment is sealed when the next record would pass this size."""
PART_BYTES: Final = 256 * MiB
"""A file part is at most this long: unlinking one bigger stalls a ``discard`` mount (1 GiB took 0.73 s)."""
PIECE_BYTES: Final = 1 * MiB
"""Raw bytes under one xxh3 checksum, and the input of one zstd frame, at most."""
SYNC_BEHIND_BYTES: Final = 8 * MiB
"""Start write-back of dirty pages every this many bytes, so that the final fdatasync finds little to do."""

# -- memory -----------------------------------------------------------------------------------------------------------
BODY_BUDGET_BYTES: Final = 16 * MiB
"""Bytes of request bodies one worker holds between socket and disk, all uploads together: 8 parallel saves of 1 GiB
must stay below 120 MB a worker, of which 48 are the program."""
HANDLE_CACHE: Final = 256
"""Open blob files one worker keeps."""
LAYOUT_CACHE_BYTES: Final = 8 * MiB
"""Piece tables one worker keeps in memory."""

# -- index ------------------------------------------------------------------------------------------------------------
MAP_BYTES: Final = 1 << 40
"""LMDB map: address space only; the index is bounded by INDEX_LIMIT instead."""
INDEX_LIMIT_BYTES: Final = 64 * GiB
"""Used index pages past which saves are refused (setting ``store.index_limit``)."""
BALLAST_BYTES: Final = 16 * MiB
"""Free pages the index always keeps, so that a delete still commits on a full disk."""
KEY_INDEX_BYTES: Final = 440
"""Longer keys are cut here and carry a hash: an LMDB key has at most 511 bytes."""
NEWEST_BLOCK: Final = 512
"""Keys under one row of the newest-by-prefix structure; a block splits above it."""
COMMIT_BATCH: Final = 256
"""Commands in one index transaction at most: 2,000 held the writer for 43-64 ms."""
RECENCY_SLOTS: Final = 1 << 26
"""Slots of the recency map (4 bytes each, sparse). Entries beyond share slot 0 and look always old."""

# -- time -------------------------------------------------------------------------------------------------------------
CLOCK_EPOCH_MS: Final = 1_704_067_200_000
"""2024-01-01T00:00:00Z: entry ids count milliseconds from here."""
CLOCK_COUNTER_BITS: Final = 12
"""Low bits of an entry id: 4,096 entries a millisecond; 41 bits of milliseconds keep ids below 2^53 until 2093."""
PROMISE_SECONDS: Final = 600
"""An entry used within this time is not evicted: a positive answer is a promise."""
GRAVE_SECONDS: Final = 60
"""Removed files stay this long, reachable by blob id."""
STALE_UPLOAD_SECONDS: Final = 900
"""A reservation without a byte for this long is reclaimable (setting ``store.stale_upload``)."""
COMMITTER_TIMEOUT_SECONDS: Final = 20
"""A command unanswered for this long raises StoreBusy; commands are idempotent, so a retry is safe."""
