"""What may be asked of the index. Every call is synchronous, takes microseconds and ends its read transaction itself.

A damaged row counts as missing and is reported once a call through ``on_damage`` and the log; nothing is guessed.
"""

from __future__ import annotations

import logging
import struct
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import TypeVar

from cachesrv.store.api import EntryFilter, EntryPage, Usage
from cachesrv.store.commands import Space
from cachesrv.store.constants import MAP_BYTES
from cachesrv.store.index import listing, lookup, newest
from cachesrv.store.index.codec import RowDamaged, unseal
from cachesrv.store.index.environment import Environment, Rows
from cachesrv.store.index.lookup import GRAVE, LRU, PAIR, TODO, U32, U64, UNHASHED, UNPROBED
from cachesrv.store.index.rows import (
    BlobRow,
    GraveRow,
    LruRow,
    RecRow,
    SegmentRow,
    TenantRow,
    Totals,
    disk_bytes,
    unpack_blob,
    unpack_grave,
    unpack_segment,
    unpack_tenant,
)
from cachesrv.store.model import BlobId, Digest, Entry, EntryFlag, EntryId, Namespace
from cachesrv.store.recency import Recency

_log = logging.getLogger(__name__)
_Row = TypeVar("_Row")


class _Reading:
    """A read transaction; a damaged row inside ends it quietly, and the caller falls through to "missing"."""

    __slots__ = ("_environment", "_report", "_txn")

    def __init__(self, environment: Environment, report: Callable[[RowDamaged], None]) -> None:
        self._environment = environment
        self._report = report

    def __enter__(self) -> Rows:
        self._txn = self._environment.env.begin()
        return Rows(self._txn, self._environment.tables)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> bool:
        self._txn.abort()
        if isinstance(error, RowDamaged):
            self._report(error)
            return True
        return False


class Index:
    """The read side. ``recency`` fills ``Entry.last_used_ms``; without it that is None."""

    def __init__(self, environment: Environment, recency: Recency | None = None) -> None:
        self.environment = environment
        self._recency = recency
        self.on_damage: Callable[[RowDamaged], None] | None = None
        """Told of each damaged row that a call met, besides the log."""

    @classmethod
    def open(
        cls, path: Path, *, readonly: bool = True, recency: Recency | None = None, map_bytes: int = MAP_BYTES
    ) -> Index:
        """Open the environment in a folder. Raises FormatError (newer, or not ours), StoreUnavailable."""
        return cls(Environment.open(path, readonly=readonly, map_bytes=map_bytes), recency)

    def close(self) -> None:
        self.environment.close()

    # -- entries ------------------------------------------------------------------------------------------------------

    def get(self, namespace: Namespace, key: str) -> Entry | None:
        """The entry with exactly this key."""
        with self._reading() as rows:
            number = lookup.space_number(rows, _wire(namespace))
            found = number and lookup.entry(rows, number, key)
            return self._entry(found[0], found[1], namespace) if found else None
        return None

    def newest(self, namespace: Namespace, prefix: str) -> Entry | None:
        """The newest-created entry whose key starts with ``prefix``."""
        with self._reading() as rows:
            number = lookup.space_number(rows, _wire(namespace))
            found = number and newest.find(rows, number, prefix.encode())
            return self._entry(found[0], found[1], namespace) if found else None
        return None

    def by_id(self, entry_id: EntryId) -> Entry | None:
        with self._reading() as rows:
            rec = lookup.rec(rows, entry_id)
            space = rec and lookup.space(rows, rec.space)
            return self._entry(entry_id, rec, listing.namespace(space.names)) if rec and space else None
        return None

    def entries(self, wanted: EntryFilter, *, limit: int, cursor: bytes | None = None) -> EntryPage:
        """One page. Raises StoreError on a cursor that is not one of ours. A page may be short, even empty, and still
        have a cursor: one call looks at LOOK_LIMIT rows at most."""
        with self._reading() as rows:
            page = listing.page(rows, wanted, limit, cursor, self.report)
            found = [self._entry(clock, rec, names) for clock, rec, names in page.found]
            return EntryPage(found, page.cursor)
        return EntryPage([], None)

    def usage(self) -> list[Usage]:
        """Every tenant that holds an entry."""
        return [Usage(row.protocol, row.tenant, row.entries, row.bytes) for row in self.tenants() if row.entries]

    # -- blobs --------------------------------------------------------------------------------------------------------

    def blob(self, blob: BlobId | int) -> BlobRow | None:
        """The row of a blob, dead and bad ones too."""
        with self._reading() as rows:
            return lookup.blob(rows, blob)
        return None

    def by_digest(self, digest: Digest) -> BlobId | None:
        """The live blob with this content. Only SHA-256 is known."""
        if digest.algorithm != "sha256":
            return None
        with self._reading() as rows:
            found = lookup.by_sha256(rows, digest.value)
            return None if found is None else BlobId(found)
        return None

    def refs_of(self, blob: BlobId | int) -> list[EntryId]:
        """The entries that name a blob, as primary or as member."""
        with self._reading() as rows:
            keys = rows.scan("ref", U64.pack(blob), U64.pack(blob + 1))
            return [EntryId(PAIR.unpack(key)[1]) for key, _ in keys]
        return []

    def blobs_after(self, blob: BlobId | int, limit: int) -> list[BlobRow]:
        """The next blobs by id, for the scrub."""
        return self._list("blob", U64.pack(blob + 1), b"", limit, lambda k, v: unpack_blob(U64.unpack(k)[0], v))

    def unhashed(self, limit: int) -> list[BlobId]:
        """Live blobs whose SHA-256 is not known yet, oldest first."""
        return self._todo(UNHASHED, limit)

    def unprobed(self, limit: int) -> list[BlobId]:
        """Live raw file blobs that nobody tried to compress yet, oldest first."""
        return self._todo(UNPROBED, limit)

    # -- the housekeeper's --------------------------------------------------------------------------------------------

    def totals(self) -> Totals:
        with self._reading() as rows:
            return lookup.totals(rows)
        return Totals()

    def tenants(self) -> list[TenantRow]:
        return self._list("tenantinfo", b"\0", b"", None, lambda k, v: unpack_tenant(U32.unpack(k)[0], v))

    def lru_head(self, tenant: int, queue: int, limit: int, *, after: tuple[int, int] = (0, 0)) -> list[LruRow]:
        """The first rows of a tenant's eviction order behind ``after`` (seconds, entry id). ``queue``: 0 LOW_TRUST and
        never read as far as known when it was queued, 1 the rest. Cost: ``limit`` rows, whatever stays."""
        found: list[LruRow] = []
        with self._reading() as rows:
            start = LRU.pack(tenant, queue, after[0], after[1] + 1)
            for key, _ in rows.scan("lru", start, LRU.pack(tenant, queue + 1, 0, 0)):
                if len(found) >= limit:
                    break
                _, _, seconds, clock = LRU.unpack(key)
                try:
                    rec = lookup.rec(rows, clock)
                    blob = rec and lookup.blob(rows, rec.blob)
                except RowDamaged as error:
                    self.report(error)
                    rec = blob = None
                size, slot, expires = (rec.size, rec.slot, bool(rec.flags & EntryFlag.EXPIRES)) if rec else (0, 0, True)
                found.append(LruRow(clock, seconds, slot, size, disk_bytes(blob.form) if blob else 0, expires))
        return found

    def graves(self) -> list[GraveRow]:
        """All of them, the first due first."""
        return self.graves_due(0xFFFFFFFF, None)

    def graves_due(self, now_s: int, limit: int | None) -> list[GraveRow]:
        """Those due at or before ``now_s``."""
        stop = GRAVE.pack(now_s + 1, 0) if now_s < 0xFFFFFFFF else b""
        return self._list("grave", b"\0", stop, limit, _grave)

    def segments(self) -> list[SegmentRow]:
        """All pack segments, oldest id first."""
        return self._list("segment", b"\0", b"", None, lambda k, v: unpack_segment(U64.unpack(k)[0], v))

    def changes(self) -> int:
        """Grows by one with each transaction that was committed."""
        return int(self.environment.env.info()["last_txnid"])

    # -- named values -------------------------------------------------------------------------------------------------

    def meta(self, name: str) -> bytes | None:
        """A value of SetMeta."""
        with self._reading() as rows:
            return rows.get("meta", name.encode())
        return None

    def side(self, key: bytes) -> bytes | None:
        """A row of PutRows."""
        with self._reading() as rows:
            return rows.get("side", key)
        return None

    def side_range(self, start: bytes, stop: bytes, limit: int | None = None) -> list[tuple[bytes, bytes]]:
        """Rows of PutRows with start <= key < stop (b"": to the end), in key order."""
        return self._list("side", start or b"\0", stop, limit, lambda k, v: (k, v))

    # -- inside -------------------------------------------------------------------------------------------------------

    def _reading(self) -> _Reading:
        return _Reading(self.environment, self.report)

    def report(self, error: RowDamaged) -> None:
        """Say that a row is damaged."""
        _log.error("damaged row in the index: table %s, key %s", error.table, error.key.hex())
        if self.on_damage is not None:
            self.on_damage(error)

    def _list(
        self, table: str, start: bytes, stop: bytes, limit: int | None, unpack: Callable[[bytes, bytes], _Row]
    ) -> list[_Row]:
        found: list[_Row] = []
        with self._reading() as rows:
            for key, value in rows.scan(table, start, stop):
                if limit is not None and len(found) >= limit:
                    break
                try:
                    found.append(unpack(key, unseal(table, key, value)))
                except (RowDamaged, struct.error) as error:
                    self.report(error if isinstance(error, RowDamaged) else RowDamaged(table, key))
        return found

    def _todo(self, what: int, limit: int) -> list[BlobId]:
        return self._list(
            "todo", TODO.pack(what, 0), TODO.pack(what + 1, 0), limit, lambda k, _: BlobId(TODO.unpack(k)[1])
        )

    def _entry(self, clock: int, rec: RecRow, namespace: Namespace) -> Entry:
        used = self._recency.get(rec.slot) if self._recency is not None else 0
        return Entry(
            EntryId(clock),
            namespace,
            rec.key,
            BlobId(rec.blob),
            rec.size,
            rec.created_ms,
            used * 1000 or None,
            rec.writer,
            EntryFlag(rec.flags),
            rec.slot,
        )


def _grave(key: bytes, payload: bytes) -> GraveRow:
    due_s, file_id = GRAVE.unpack(key)
    return unpack_grave(due_s, file_id, payload)


def _wire(namespace: Namespace) -> Space:
    return Space(namespace.protocol, namespace.tenant, namespace.scope, namespace.version)
