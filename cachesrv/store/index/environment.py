"""The LMDB environment of the index: how it is opened, its tables, and rows with their envelope.

lib_version 0 (the 0.9 format), synced, no readahead (a cold lookup is 0.13 ms instead of 11.9), a fixed map of address
space. One environment may be open once a process; it must not cross a fork.
"""

from __future__ import annotations

import contextlib
import errno
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import lmdb

from cachesrv.store.constants import FORMAT_VERSION, MAP_BYTES
from cachesrv.store.errors import FormatError, IndexFull, StoreError, StoreFull, StoreReadOnly, StoreUnavailable
from cachesrv.store.index.codec import seal, unseal

TABLES: Final = (
    "core",
    "meta",
    "space",
    "spaceinfo",
    "tenant",
    "tenantinfo",
    "entry",
    "newest",
    "rec",
    "member",
    "ref",
    "blob",
    "addr",
    "todo",
    "lru",
    "grave",
    "segment",
    "slotfree",
    "side",
)
VOLATILE_TABLES: Final = ("upload", "reservation", "finished")
MAX_READERS: Final = 512
"""Read transactions at one time over all processes: a worker holds one, for microseconds."""
VOLATILE_MAP_BYTES: Final = 1 << 32
"""Address space of the volatile environment: millions of uploads in flight."""
FORMAT_KEY: Final = b"format"
_MAX_TABLES: Final = 32
_U16: Final = struct.Struct(">H")


class Rows:
    """The rows of one transaction: payloads in and out, the envelope put on and taken off."""

    __slots__ = ("_tables", "txn")

    def __init__(self, txn: Any, tables: dict[str, Any]) -> None:
        self.txn = txn
        self._tables = tables

    def get(self, table: str, key: bytes) -> bytes | None:
        """The payload, or None. Raises RowDamaged."""
        value = self.txn.get(key, db=self._tables[table])
        return None if value is None else unseal(table, key, value)

    def put(self, table: str, key: bytes, payload: bytes) -> None:
        self.txn.put(key, seal(payload), db=self._tables[table])

    def has(self, table: str, key: bytes) -> bool:
        return self.txn.get(key, db=self._tables[table]) is not None

    def count(self, table: str) -> int:
        """How many rows a table has."""
        return int(self.txn.stat(self._tables[table])["entries"])

    def delete(self, table: str, key: bytes) -> bool:
        return bool(self.txn.delete(key, db=self._tables[table]))

    def cursor(self, table: str) -> Any:
        return self.txn.cursor(db=self._tables[table])

    def scan(self, table: str, start: bytes, stop: bytes = b"") -> Iterator[tuple[bytes, bytes]]:
        """(key, value in its envelope) of start <= key < stop; b"" as stop: to the end. Do not write to the table
        while this runs."""
        cursor = self.cursor(table)
        if not cursor.set_range(start):
            return
        for key, value in cursor:
            if stop and key >= stop:
                return
            yield key, value


class Environment:
    """One open LMDB environment and its tables."""

    def __init__(self, env: Any, tables: dict[str, Any]) -> None:
        self.env = env
        self.tables = tables

    @classmethod
    def open(
        cls,
        path: Path,
        names: tuple[str, ...] = TABLES,
        *,
        readonly: bool,
        map_bytes: int = MAP_BYTES,
        sync: bool = True,
    ) -> Environment:
        """Open (read-only: what exists; else make what is missing).

        Raises FormatError when a newer cachesrv wrote it or it is not ours, StoreUnavailable when it cannot be opened.
        """
        env = None
        try:
            if not readonly:
                path.mkdir(mode=0o700, parents=True, exist_ok=True)
            env = lmdb.open(
                str(path),
                map_size=map_bytes,
                readonly=readonly,
                create=not readonly,
                sync=sync,
                mode=0o600,
                readahead=False,
                max_readers=MAX_READERS,
                max_dbs=_MAX_TABLES,
                max_spare_txns=2,
                lib_version=0,
            )
            _check_format(env, readonly)
            return cls(env, {name: env.open_db(name.encode(), create=not readonly) for name in names})
        except (lmdb.InvalidError, lmdb.VersionMismatchError) as error:
            raise FormatError("the index is not one that this cachesrv can read") from error
        except (lmdb.Error, OSError) as error:
            if env is not None:
                env.close()
            raise refusal(error) from error
        except FormatError:
            if env is not None:
                env.close()
            raise

    @contextlib.contextmanager
    def reading(self) -> Iterator[Rows]:
        """A read transaction; never to be held across an await."""
        txn = self.env.begin()
        try:
            yield Rows(txn, self.tables)
        finally:
            txn.abort()

    def close(self) -> None:
        self.env.close()


def refusal(error: Exception) -> StoreError:
    """The store error that an error of LMDB or the disk means to a sender."""
    code = getattr(error, "code", None) or getattr(error, "errno", None)
    if isinstance(error, lmdb.MapFullError):
        return IndexFull("the index is full")
    if code == errno.ENOSPC or code == errno.EDQUOT:
        return StoreFull("the disk of the store is full")
    if code in (errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO):
        return StoreReadOnly("the disk of the store cannot be written")
    return StoreUnavailable("the index cannot be used")


def _check_format(env: Any, readonly: bool) -> None:
    """The version stands in ``core`` from the first transaction on."""
    with env.begin() as txn:
        fresh = txn.stat()["entries"] == 0
    if fresh:
        if readonly:
            raise StoreUnavailable("the index was not made yet")
        core = env.open_db(b"core")
        with env.begin(write=True) as txn:
            txn.put(FORMAT_KEY, seal(_U16.pack(FORMAT_VERSION)), db=core)
        return
    try:
        core = env.open_db(b"core", create=False)
    except lmdb.NotFoundError:
        raise FormatError("the index is not one of cachesrv's") from None
    with env.begin() as txn:
        value = txn.get(FORMAT_KEY, db=core)
    if value is None:
        raise FormatError("the index is not one of cachesrv's")
    (version,) = _U16.unpack(unseal("core", FORMAT_KEY, value))
    if version > FORMAT_VERSION:
        raise FormatError(f"the index has format {version}; this cachesrv reads up to {FORMAT_VERSION}")
