"""What the index holds, as values: one struct a row, with the codec of its bytes beside it (docs/format.md, Index).

Only this module and ``codec`` know how a row is laid out. Integers are big-endian and unsigned; a text is u16 length +
UTF-8. The version byte in front and the checksum behind every value are put on and taken off by ``codec``.
Sizes are bytes; a name ends in ``_ms`` or ``_s`` for Unix milliseconds or seconds.
"""

from __future__ import annotations

import enum
import struct
from typing import Final

import msgspec

from cachesrv.store.commands import Filed, Form, Inline, Packed, Space
from cachesrv.store.index.codec import pack_text, take_text
from cachesrv.store.model import EntryFlag, Namespace, UploadId, UploadInfo


class BlobRow(msgspec.Struct, frozen=True):
    """One blob. ``dead``: nothing refers to it, it can be read by id until ``due_s``; ``successor`` is then the blob of
    equal content that took its references, or 0. ``bad``: quarantined. ``sha256`` is b"" while unknown, ``epoch`` 0
    when the blob is proven durable. ``names`` counts the entries whose primary blob it is, ``tenant`` brought it."""

    id: int
    form: Form
    size: int
    sha256: bytes
    epoch: int
    dead: bool = False
    bad: bool = False
    probed: bool = False
    due_s: int = 0
    successor: int = 0
    tenant: int = 0
    names: int = 0

    @property
    def live(self) -> bool:
        return not (self.dead or self.bad)


class GraveKind(enum.IntEnum):
    """What the housekeeper unlinks for a grave before it purges it."""

    NOTHING = 0
    """No file: an inline or packed blob whose row is kept for a while, or a quarantined one (its files are in q/)."""
    FILES = 1
    """``f/xx/<file id>.<part>``, parts 0..parts-1."""
    SEGMENT = 2
    """``p/<file id>``."""


class GraveRow(msgspec.Struct, frozen=True):
    """Files that may be unlinked from ``due_s`` on. ``blob_id`` is the dead blob whose row goes with them, or 0."""

    due_s: int
    file_id: int
    kind: GraveKind
    parts: int
    disk_bytes: int
    blob_id: int

    @property
    def segment(self) -> bool:
        return self.kind is GraveKind.SEGMENT


class SegmentRow(msgspec.Struct, frozen=True):
    """One pack segment. ``sealed_ms`` is 0 while its worker may append. ``bytes``: its length as far as known."""

    segment: int
    opened_ms: int
    sealed_ms: int
    bytes: int
    live_bytes: int
    live_records: int


class TenantRow(msgspec.Struct):
    """One tenant. ``bytes`` are logical (sum of its entries' sizes); ``disk_bytes`` those of live blobs it brought."""

    number: int
    protocol: str
    tenant: str
    entries: int = 0
    bytes: int = 0
    disk_bytes: int = 0


class SpaceRow(msgspec.Struct):
    """One namespace: its interned number, its tenant's, and what it holds."""

    number: int
    tenant: int
    entries: int
    bytes: int
    names: Space


class LruRow(msgspec.Struct, frozen=True):
    """One place in the eviction order. ``seconds``: the time it is queued under (its creation, or its last use when it
    was queued). ``disk_bytes``: what its primary blob takes on disk, shared or not."""

    entry_id: int
    seconds: int
    slot: int
    size: int
    disk_bytes: int
    expires: bool


class UploadRow(msgspec.Struct, frozen=True):
    """One reservation in progress."""

    id: int
    space: Space
    key: str
    flags: int
    writer: str
    reserved_ms: int

    @property
    def info(self) -> UploadInfo:
        names = Namespace(self.space.protocol, self.space.tenant, self.space.scope, self.space.version)
        return UploadInfo(UploadId(self.id), names, self.key, self.reserved_ms, self.writer, EntryFlag(self.flags))


class Totals(msgspec.Struct):
    """Sums over the whole store, kept in the transaction that changes them.

    ``logical_bytes``: sizes of all entries; ``raw_bytes``: sizes of live blobs; ``stored_bytes``: what these take in
    their form (inline: the bytes, packed: the record, filed: the files); ``dedup_bytes``: what entries that share a
    blob would take once more. On disk lie ``file_bytes`` (live), ``segment_bytes`` and ``grave_bytes`` (unlinked soon).
    """

    entries: int = 0
    blobs: int = 0
    logical_bytes: int = 0
    raw_bytes: int = 0
    stored_bytes: int = 0
    file_bytes: int = 0
    segment_bytes: int = 0
    grave_bytes: int = 0
    dedup_bytes: int = 0

    @property
    def disk_bytes(self) -> int:
        """Everything the byte budget counts."""
        return self.file_bytes + self.segment_bytes + self.grave_bytes


class State(msgspec.Struct):
    """The counters of the writer: the next id to lease, slot, space and tenant to hand out, and the last clock."""

    next_id: int = 1
    next_slot: int = 1
    next_space: int = 1
    next_tenant: int = 1
    last_clock: int = 0


class RecRow(msgspec.Struct, frozen=True):
    """One entry. ``queue`` and ``queued_s`` say under which row of ``lru`` it stands."""

    blob: int
    size: int
    space: int
    tenant: int
    slot: int
    flags: int
    created_ms: int
    queue: int
    queued_s: int
    writer: str
    key: str


def stored_bytes(form: Form) -> int:
    """What a form takes: inline bytes, the record in its segment, or the files."""
    if isinstance(form, Inline):
        return len(form.data)
    return form.length if isinstance(form, Packed) else form.disk_bytes


def disk_bytes(form: Form) -> int:
    """What dropping a form gives back on disk, sooner (files) or later (its segment)."""
    return 0 if isinstance(form, Inline) else stored_bytes(form)


# -- codecs ------------------------------------------------------------------------------------------------------------

_DEAD: Final = 1
_BAD: Final = 2
_PROBED: Final = 4
_HASHED: Final = 8

_BLOB: Final = struct.Struct(">BQIIQIIB")  # flags, size, epoch, due, successor, tenant, names, form
_INLINE: Final = 0
_PACKED: Final = 1
_FILED: Final = 2
_PACK: Final = struct.Struct(">QQQ")  # segment, offset, length
_FILE: Final = struct.Struct(">QHQQQB")  # file id, parts, trailer offset, trailer length, disk bytes, zstd
_REC: Final = struct.Struct(">QQIIIHQBI")  # blob, size, space, tenant, slot, flags, created ms, queue, queued s
_GRAVE: Final = struct.Struct(">BHQQ")  # kind, parts, disk bytes, blob
_SEGMENT: Final = struct.Struct(">QQQQI")  # opened ms, sealed ms, bytes, live bytes, live records
_TENANT: Final = struct.Struct(">QQQ")  # entries, bytes, disk bytes
_SPACE: Final = struct.Struct(">IQQ")  # tenant, entries, bytes
_TOTALS: Final = struct.Struct(">9Q")
_STATE: Final = struct.Struct(">QIIIQ")
_UPLOAD: Final = struct.Struct(">HQ")  # flags, reserved ms


def pack_form(form: Form) -> tuple[int, bytes]:
    if isinstance(form, Filed):
        return _FILED, _FILE.pack(
            form.file_id, form.parts, form.trailer_offset, form.trailer_length, form.disk_bytes, form.zstd
        )
    if isinstance(form, Packed):
        return _PACKED, _PACK.pack(form.segment, form.offset, form.length)
    return _INLINE, form.data


def unpack_form(kind: int, data: bytes) -> Form:
    if kind == _FILED:
        file_id, parts, offset, length, disk, zstd = _FILE.unpack(data)
        return Filed(file_id, parts, offset, length, disk, bool(zstd))
    if kind == _PACKED:
        return Packed(*_PACK.unpack(data))
    return Inline(data)


def pack_blob(row: BlobRow) -> bytes:
    """``_BLOB``, then 32 bytes of SHA-256 if flagged HASHED, then the form: its bytes, ``_PACK`` or ``_FILE``."""
    flags = (row.dead and _DEAD) | (row.bad and _BAD) | (row.probed and _PROBED) | (_HASHED if row.sha256 else 0)
    kind, form = pack_form(row.form)
    head = _BLOB.pack(flags, row.size, row.epoch, row.due_s, row.successor, row.tenant, row.names, kind)
    return head + row.sha256 + form


def unpack_blob(blob: int, data: bytes) -> BlobRow:
    flags, size, epoch, due, successor, tenant, names, kind = _BLOB.unpack_from(data)
    at = _BLOB.size
    sha256 = b""
    if flags & _HASHED:
        sha256 = data[at : at + 32]
        at += 32
    return BlobRow(
        blob,
        unpack_form(kind, data[at:]),
        size,
        sha256,
        epoch,
        bool(flags & _DEAD),
        bool(flags & _BAD),
        bool(flags & _PROBED),
        due,
        successor,
        tenant,
        names,
    )


def pack_rec(row: RecRow) -> bytes:
    head = _REC.pack(
        row.blob, row.size, row.space, row.tenant, row.slot, row.flags, row.created_ms, row.queue, row.queued_s
    )
    return head + pack_text(row.writer) + pack_text(row.key)


def unpack_rec(data: bytes) -> RecRow:
    writer, at = take_text(data, _REC.size)
    key, _ = take_text(data, at)
    blob, size, space, tenant, slot, flags, created_ms, queue, queued_s = _REC.unpack_from(data)
    return RecRow(blob, size, space, tenant, slot, flags, created_ms, queue, queued_s, writer, key)


def pack_grave(row: GraveRow) -> bytes:
    return _GRAVE.pack(row.kind, row.parts, row.disk_bytes, row.blob_id)


def unpack_grave(due_s: int, file_id: int, data: bytes) -> GraveRow:
    kind, parts, disk, blob = _GRAVE.unpack(data)
    return GraveRow(due_s, file_id, GraveKind(kind), parts, disk, blob)


def pack_segment(row: SegmentRow) -> bytes:
    return _SEGMENT.pack(row.opened_ms, row.sealed_ms, row.bytes, row.live_bytes, row.live_records)


def unpack_segment(segment: int, data: bytes) -> SegmentRow:
    return SegmentRow(segment, *_SEGMENT.unpack(data))


def pack_tenant(row: TenantRow) -> bytes:
    return _TENANT.pack(row.entries, row.bytes, row.disk_bytes) + pack_text(row.protocol) + pack_text(row.tenant)


def unpack_tenant(tenant: int, data: bytes) -> TenantRow:
    protocol, at = take_text(data, _TENANT.size)
    name, _ = take_text(data, at)
    return TenantRow(tenant, protocol, name, *_TENANT.unpack_from(data))


def _pack_names(names: Space) -> bytes:
    return b"".join(pack_text(text) for text in (names.protocol, names.tenant, names.scope, names.version))


def _take_names(data: bytes, at: int) -> tuple[Space, int]:
    texts = []
    for _ in range(4):
        text, at = take_text(data, at)
        texts.append(text)
    return Space(*texts), at


def pack_space(row: SpaceRow) -> bytes:
    return _SPACE.pack(row.tenant, row.entries, row.bytes) + _pack_names(row.names)


def unpack_space(space: int, data: bytes) -> SpaceRow:
    names, _ = _take_names(data, _SPACE.size)
    tenant, entries, size = _SPACE.unpack_from(data)
    return SpaceRow(space, tenant, entries, size, names)


def pack_totals(row: Totals) -> bytes:
    return _TOTALS.pack(*msgspec.structs.astuple(row))


def unpack_totals(data: bytes) -> Totals:
    return Totals(*_TOTALS.unpack(data))


def pack_state(row: State) -> bytes:
    return _STATE.pack(*msgspec.structs.astuple(row))


def unpack_state(data: bytes) -> State:
    return State(*_STATE.unpack(data))


def pack_upload(row: UploadRow) -> bytes:
    head = _UPLOAD.pack(row.flags, row.reserved_ms)
    return head + _pack_names(row.space) + pack_text(row.key) + pack_text(row.writer)


def unpack_upload(upload: int, data: bytes) -> UploadRow:
    flags, reserved_ms = _UPLOAD.unpack_from(data)
    space, at = _take_names(data, _UPLOAD.size)
    key, at = take_text(data, at)
    writer, _ = take_text(data, at)
    return UploadRow(upload, space, key, flags, writer, reserved_ms)
