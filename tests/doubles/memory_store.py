"""The store's contract in memory: for protocol tests without a disk, and as the model that the real store is held to.

Deterministic: one event loop, one clock that the test owns. Bodies are kept whole, so keep contents small.
``SickStore`` is the failing double: named operations raise what the test says.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from hashlib import sha256, sha512
from typing import Any

from cachesrv.store.api import Body, EntryFilter, EntryPage, Usage, Window
from cachesrv.store.constants import CLOCK_COUNTER_BITS, CLOCK_EPOCH_MS, MiB
from cachesrv.store.errors import (
    BlobDamaged,
    BlobMissing,
    DigestMismatch,
    EntryExists,
    LimitExceeded,
    SizeMismatch,
    StoreError,
    UnknownBlock,
    UploadIncomplete,
    UploadInFlight,
    UploadUnknown,
)
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
from cachesrv.store.options import StoreOptions

_WINDOW = 1 * MiB


@dataclass
class _Upload:
    info: UploadInfo
    active_ms: int
    blocks: dict[bytes, bytes] = field(default_factory=dict)
    ranges: dict[int, bytes] = field(default_factory=dict)
    content: bytes | None = None


@dataclass
class MemoryReader:
    """A blob in hand: its bytes stay when the entry goes."""

    blob: BlobId
    size: int
    data: bytes
    damaged_at: int | None

    async def windows(self, wanted: ByteRange | None = None) -> AsyncIterator[Window]:
        wanted = wanted or ByteRange(0, self.size)
        for start in range(wanted.start, wanted.stop, _WINDOW):
            stop = min(start + _WINDOW, wanted.stop)
            if self.damaged_at is not None and start <= self.damaged_at < stop:
                raise BlobDamaged("a piece failed its checksum")
            yield self.data[start:stop]

    async def __aenter__(self) -> MemoryReader:
        return self

    async def __aexit__(self, *exc: object) -> None:
        return


class MemoryStore:
    """CacheStore over dictionaries. ``clock`` gives Unix seconds."""

    def __init__(self, options: StoreOptions | None = None, clock: Callable[[], float] = time.time) -> None:
        self.options = options or StoreOptions()
        self.clock = clock
        self.by_name: dict[tuple[Namespace, str], Entry] = {}
        self.by_id: dict[EntryId, tuple[Namespace, str]] = {}
        self.blobs: dict[BlobId, bytes] = {}
        self.damaged: dict[BlobId, int] = {}
        self.uploads: dict[UploadId, _Upload] = {}
        self.became: dict[UploadId, EntryId] = {}
        self.unproven: set[BlobId] = set()
        self._next = 0
        self._last_id = 0

    def _now_ms(self) -> int:
        return int(self.clock() * 1000)

    def _fresh(self) -> int:
        self._next += 1
        return self._next

    def _entry_id(self) -> EntryId:
        self._last_id = max(self._last_id + 1, (self._now_ms() - CLOCK_EPOCH_MS) << CLOCK_COUNTER_BITS)
        return EntryId(self._last_id)

    # -- entries ------------------------------------------------------------------------------------------------------

    def lookup(self, namespace: Namespace, key: str) -> Entry | None:
        return self.by_name.get((namespace, key))

    def newest(self, namespace: Namespace, prefix: str) -> Entry | None:
        found = [e for (n, k), e in self.by_name.items() if n == namespace and k.startswith(prefix)]
        return max(found, key=lambda e: e.id, default=None)

    def entry(self, entry_id: EntryId) -> Entry | None:
        name = self.by_id.get(entry_id)
        return self.by_name[name] if name else None

    def touch(self, entry: Entry) -> None:
        name = self.by_id.get(entry.id)
        if name:
            self.by_name[name] = replace(self.by_name[name], last_used_ms=self._now_ms())

    async def prove(self, entry: Entry) -> bool:
        return entry.blob in self.blobs and entry.blob not in self.unproven

    def entries(self, wanted: EntryFilter, *, limit: int, cursor: bytes | None = None) -> EntryPage:
        def fits(entry: Entry) -> bool:
            n = entry.namespace
            asked = (wanted.protocol, wanted.tenant, wanted.scope, wanted.version)
            have = (n.protocol, n.tenant, n.scope, n.version)
            return all(a is None or a == h for a, h in zip(asked, have, strict=True)) and entry.key.startswith(
                wanted.key_prefix
            )

        def order(entry: Entry) -> tuple[str, str, str, str, bytes]:
            n = entry.namespace
            return n.protocol, n.tenant, n.scope, n.version, entry.key.encode("utf-8", "surrogatepass")

        found = sorted(filter(fits, self.by_name.values()), key=order)
        start = int(cursor) if cursor else 0
        more = start + limit < len(found)
        return EntryPage(found[start : start + limit], str(start + limit).encode() if more else None)

    def usage(self) -> Iterable[Usage]:
        totals: dict[tuple[str, str], list[int]] = {}
        for entry in self.by_name.values():
            total = totals.setdefault((entry.namespace.protocol, entry.namespace.tenant), [0, 0])
            total[0] += 1
            total[1] += entry.size
        return [Usage(protocol, tenant, n, size) for (protocol, tenant), (n, size) in totals.items()]

    async def delete(self, entry_ids: Sequence[EntryId], reason: RemovalReason) -> int:
        gone = 0
        for entry_id in entry_ids:
            name = self.by_id.pop(entry_id, None)
            if name:
                gone += 1
                self.blobs.pop(self.by_name.pop(name).blob, None)
        return gone

    # -- bytes out ----------------------------------------------------------------------------------------------------

    async def open(self, blob: BlobId) -> MemoryReader:
        if blob not in self.blobs:
            raise BlobMissing("no such blob")
        data = self.blobs[blob]
        return MemoryReader(blob, len(data), data, self.damaged.get(blob))

    # -- uploads ------------------------------------------------------------------------------------------------------

    async def reserve(
        self, namespace: Namespace, key: str, *, flags: EntryFlag, writer: str, size: int | None
    ) -> UploadId:
        if size is not None and size > (self.options.max_entry or self.options.max_size):
            raise LimitExceeded(f"{size} bytes are more than an entry may have")
        if EntryFlag.IMMUTABLE in flags and (namespace, key) in self.by_name:
            raise EntryExists("an entry with this key, version and scope already exists")
        now = self._now_ms()
        other = self.find_upload(namespace, key)
        if other:
            if now - self.uploads[other.id].active_ms < self.options.stale_upload * 1000:
                raise UploadInFlight("another upload of this key is in progress")
            del self.uploads[other.id]
        upload = UploadId(self._fresh())
        self.uploads[upload] = _Upload(UploadInfo(upload, namespace, key, now, writer, flags), now)
        return upload

    def upload(self, upload: UploadId) -> UploadInfo | None:
        found = self.uploads.get(upload)
        return found.info if found else None

    def committed(self, upload: UploadId) -> Entry | None:
        entry_id = self.became.get(upload)
        return self.entry(entry_id) if entry_id else None

    def find_upload(self, namespace: Namespace, key: str) -> UploadInfo | None:
        for upload in self.uploads.values():
            if (upload.info.namespace, upload.info.key) == (namespace, key):
                return upload.info
        return None

    def _upload(self, upload: UploadId) -> _Upload:
        if upload not in self.uploads:
            raise UploadUnknown("no such upload")
        return self.uploads[upload]

    async def _receive(self, upload: UploadId, body: Body, length: int) -> bytes:
        data = bytearray()
        self._upload(upload)
        async for chunk in body:
            data += chunk
            self._upload(upload).active_ms = self._now_ms()
            if len(data) > length:
                break
        self._upload(upload)
        if len(data) != length:
            raise SizeMismatch(length, len(data))
        return bytes(data)

    async def stage_whole(self, upload: UploadId, body: Body, length: int) -> None:
        data = await self._receive(upload, body, length)
        staged = self._upload(upload)
        staged.content, staged.blocks, staged.ranges = data, {}, {}

    async def stage_block(self, upload: UploadId, block: bytes, body: Body, length: int) -> None:
        data = await self._receive(upload, body, length)
        self._upload(upload).blocks[block] = data

    async def stage_range(self, upload: UploadId, start: int, body: Body, length: int) -> None:
        data = await self._receive(upload, body, length)
        self._upload(upload).ranges[start] = data

    async def choose_blocks(self, upload: UploadId, blocks: Sequence[bytes]) -> int:
        staged = self._upload(upload)
        if len(blocks) > self.options.max_blocks:
            raise LimitExceeded(f"more than {self.options.max_blocks} blocks")
        if any(block not in staged.blocks for block in blocks):
            raise UnknownBlock("the list names a block that was never staged")
        staged.content = b"".join(staged.blocks[block] for block in blocks)
        return len(staged.content)

    async def commit(self, upload: UploadId, size: int) -> Entry:
        staged = self._upload(upload)
        info = staged.info
        content = staged.content
        if content is None:
            content = self._joined(staged.ranges)
        if len(content) != size:
            raise SizeMismatch(size, len(content))
        if EntryFlag.IMMUTABLE in info.flags and (info.namespace, info.key) in self.by_name:
            del self.uploads[upload]
            raise EntryExists("an entry with this key, version and scope already exists")
        entry = self._name(info.namespace, info.key, content, info.flags, info.writer)
        del self.uploads[upload]
        self.became[upload] = entry.id
        return entry

    @staticmethod
    def _joined(ranges: dict[int, bytes]) -> bytes:
        if not ranges:
            raise UploadIncomplete("no bytes were sent, or no block list")
        content = b""
        for start in sorted(ranges):
            if start != len(content):
                raise UploadIncomplete(f"a hole or an overlap at byte {start}")
            content += ranges[start]
        return content

    def _name(self, namespace: Namespace, key: str, content: bytes, flags: EntryFlag, writer: str) -> Entry:
        blob = BlobId(self._fresh())
        self.blobs[blob] = content
        entry_id = self._entry_id()
        entry = Entry(
            entry_id, namespace, key, blob, len(content), self._now_ms(), None, writer, flags, slot=entry_id & 0xFF
        )
        old = self.by_name.get((namespace, key))
        if old:
            del self.by_id[old.id]
        self.by_name[namespace, key] = entry
        self.by_id[entry_id] = (namespace, key)
        return entry

    async def abort(self, upload: UploadId) -> None:
        self.uploads.pop(upload, None)

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
        content = b"".join([chunk async for chunk in body])
        if length is not None and len(content) != length:
            raise SizeMismatch(length, len(content))
        if digest and {"sha256": sha256, "sha512": sha512}[digest.algorithm](content).digest() != digest.value:
            raise DigestMismatch("the bytes do not have the digest they were announced with")
        old = self.lookup(namespace, key)
        if old and EntryFlag.IMMUTABLE in flags:
            if self.blobs.get(old.blob) == content:
                return old
            raise EntryExists("an entry with this key, version and scope already exists")
        return self._name(namespace, key, content, flags, writer)


class SickStore(MemoryStore):
    """Raises ``sick[operation]`` where it is set; everything else works."""

    def __init__(self, options: StoreOptions | None = None, clock: Callable[[], float] = time.time) -> None:
        super().__init__(options, clock)
        self.sick: dict[str, StoreError | Exception] = {}

    def __getattribute__(self, name: str) -> Any:
        if not name.startswith("_") and name != "sick" and name in (sick := object.__getattribute__(self, "sick")):
            raise sick[name]
        return super().__getattribute__(name)
