"""Commands to the committer, the one process that writes the index.

Every command is **idempotent**: the sender may repeat it after a lost answer or a dead committer and gets the same
result. They travel as msgpack over a unix socket (committer process) or are applied in the same process (tests, tools).
A command validates before it writes, so that one refused command never spoils the batch it shares a transaction with.

A store error crosses the wire by class name (``cachesrv.store.errors``) and is raised again at the sender.
Times are passed in by the sender (Unix milliseconds), so that tests own them.
"""

from __future__ import annotations

import msgspec

# -- forms: where the bytes of a blob lie ------------------------------------------------------------------------------


class Inline(msgspec.Struct, frozen=True, tag="inline"):
    """The bytes themselves, at most INLINE_LIMIT; ``xxh3`` is the 64-bit checksum."""

    data: bytes


class Packed(msgspec.Struct, frozen=True, tag="packed"):
    """A record in a pack segment: ``offset`` of its header, ``length`` of header and payload together."""

    segment: int
    offset: int
    length: int


class Filed(msgspec.Struct, frozen=True, tag="filed"):
    """Own files ``f/xx/<file_id>.<part>``, parts 0..parts-1; the trailer (piece table) ends the last part.

    ``disk_bytes`` is the sum of the file sizes, garbage of repeated blocks and the trailer included.
    """

    file_id: int
    parts: int
    trailer_offset: int
    trailer_length: int
    disk_bytes: int
    zstd: bool = False


Form = Inline | Packed | Filed


class NewBlob(msgspec.Struct, frozen=True):
    """A blob that is on disk (and synced, in durable mode) but not yet named. ``sha256`` is b"" while unknown.

    ``epoch`` is the sync epoch it was written in, 0 when it is proven durable.
    """

    id: int
    form: Form
    size: int
    sha256: bytes = b""
    epoch: int = 0


class Space(msgspec.Struct, frozen=True):
    """Wire form of a Namespace."""

    protocol: str
    tenant: str
    scope: str
    version: str


class Removed(msgspec.Struct, frozen=True):
    """What left the index, for events and counters."""

    entry_id: int
    protocol: str
    tenant: str
    scope: str
    version: str
    key: str
    size: int
    disk_bytes: int
    never_read: bool


# -- commands and their answers ----------------------------------------------------------------------------------------


class LeaseIds(msgspec.Struct, frozen=True, tag="lease"):
    """Take ``count`` fresh ids. Answer: the first (int). Repeating it wastes ids and harms nothing."""

    count: int


class Reserve(msgspec.Struct, frozen=True, tag="reserve"):
    """Reserve (space, key) for an upload.

    Answer: :class:`Reserved`. ``replacing`` names an upload that the sender found stale: its reservation is taken over
    if it still stands. Repeating with the same upload id answers "reserved" again.
    """

    upload_id: int
    space: Space
    key: str
    flags: int
    writer: str
    now_ms: int
    replacing: int = 0


class Reserved(msgspec.Struct, frozen=True):
    """``outcome``: "reserved", "committed" (an immutable entry stands, ``holder`` is its entry id) or "in-flight"
    (``holder`` is the other upload's id)."""

    outcome: str
    holder: int = 0


class DropUpload(msgspec.Struct, frozen=True, tag="drop-upload"):
    """Forget an upload and its reservation. Answer: whether it stood. The sender then removes its files."""

    upload_id: int


class Commit(msgspec.Struct, frozen=True, tag="commit"):
    """Name a blob: one transaction that makes the entry visible, newest of its prefix, and accounted.

    ``blob`` is a NewBlob, or the id (int) of one that is already committed. ``upload_id`` != 0: the reservation must
    still be this upload's, else UploadUnknown (unless the entry already points at this blob: a repeat); it ends here.
    IMMUTABLE and taken by another blob: EntryExists. Not immutable: replaces. Answer: :class:`Committed`.
    """

    space: Space
    key: str
    flags: int
    blob: NewBlob | int
    writer: str
    now_ms: int
    upload_id: int = 0
    members: list[int] = []


class Committed(msgspec.Struct, frozen=True):
    entry_id: int
    created: bool


class Delete(msgspec.Struct, frozen=True, tag="delete"):
    """Remove entries (at most COMMIT_BATCH ids). Those used at or after ``unless_used_since_s`` (Unix seconds, by the
    recency map) stay; 0 removes in any case. A blob without a reference goes to the grave: files are due for unlinking
    at ``now_ms`` + GRAVE_SECONDS and readable by blob id until then. Answer: list[Removed]."""

    entry_ids: list[int]
    now_ms: int
    unless_used_since_s: int = 0
    replaced_by: int = 0


class Requeue(msgspec.Struct, frozen=True, tag="requeue"):
    """Move entries to where their recency says they belong in the eviction order. Answer: how many moved."""

    entry_ids: list[int]


class Purge(msgspec.Struct, frozen=True, tag="purge"):
    """The files of these graves are unlinked: forget them (and their dead blob rows). Answer: how many.

    A grave is (due seconds, file id) as read from the index."""

    graves: list[tuple[int, int]]


class SwapForm(msgspec.Struct, frozen=True, tag="swap-form"):
    """Replace the form of a blob (zstd made behind the acknowledgement, a pack record moved). Only if its form still
    is ``expected``; the old files go to the grave. Answer: whether it was swapped. False: the sender removes its new
    files."""

    blob_id: int
    expected: Form
    form: Form
    now_ms: int


class SetDigest(msgspec.Struct, frozen=True, tag="set-digest"):
    """The SHA-256 of a blob became known. If another live blob of the same size has it, every entry moves to that one
    and this one's files go to the grave. Answer: the id that stands (int; 0 if the blob is gone)."""

    blob_id: int
    sha256: bytes
    now_ms: int


class MarkProbed(msgspec.Struct, frozen=True, tag="mark-probed"):
    """These blobs do not shrink (or are done): do not look again for zstd. Answer: how many."""

    blob_ids: list[int]


class MarkProven(msgspec.Struct, frozen=True, tag="mark-proven"):
    """These blobs were read whole and found right, or synced: their epoch becomes 0. Answer: how many."""

    blob_ids: list[int]


class Quarantine(msgspec.Struct, frozen=True, tag="quarantine"):
    """A piece is damaged: mark the blob bad, drop every entry that refers to it, keep its files for ``q/``.
    Answer: list[Removed]."""

    blob_id: int
    reason: str
    now_ms: int


class OpenSegment(msgspec.Struct, frozen=True, tag="open-segment"):
    """A worker starts a pack segment under this (leased) id. Answer: True."""

    segment: int
    now_ms: int


class SealSegment(msgspec.Struct, frozen=True, tag="seal-segment"):
    """No more appends to a segment of ``length`` bytes. Answer: True."""

    segment: int
    length: int
    now_ms: int


class DropSegment(msgspec.Struct, frozen=True, tag="drop-segment"):
    """Forget a sealed segment that holds no live record; its file goes to the grave. Answer: whether it was dropped."""

    segment: int
    now_ms: int


class SetMeta(msgspec.Struct, frozen=True, tag="set-meta"):
    """Small named values of the store itself (durable epoch, clean flag, keys of housekeeping). Answer: True."""

    values: dict[str, bytes]


class PutRows(msgspec.Struct, frozen=True, tag="put-rows"):
    """Rows of an opaque side table (``observe`` keeps its history here): key -> value, b"" deletes. Answer: True."""

    rows: dict[bytes, bytes]


Command = (
    LeaseIds
    | Reserve
    | DropUpload
    | Commit
    | Delete
    | Requeue
    | Purge
    | SwapForm
    | SetDigest
    | MarkProbed
    | MarkProven
    | Quarantine
    | OpenSegment
    | SealSegment
    | DropSegment
    | SetMeta
    | PutRows
)
