"""Uploads and reservations: an LMDB environment that need not survive the boot, so its commits do not sync.

The committer throws it away when it is of another boot (a file ``boot-id`` beside it says which), before LMDB looks at
pages that a power cut may have torn. Readers notice that it was replaced and open the new one.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from cachesrv.store import epochs
from cachesrv.store.commands import Space
from cachesrv.store.errors import FormatError, StoreUnavailable
from cachesrv.store.index.codec import RowDamaged, reservation_key, unseal
from cachesrv.store.index.environment import VOLATILE_MAP_BYTES, VOLATILE_TABLES, Environment, Rows
from cachesrv.store.index.lookup import U64
from cachesrv.store.index.rows import UploadRow, pack_upload, unpack_upload
from cachesrv.store.model import Namespace

_NAMES: Final = ("core", *VOLATILE_TABLES)
_BOOT: Final = "boot-id"
FINISHED_ROWS: Final = 65_536
"""Uploads whose outcome is remembered, so that a client that lost the answer to its commit hears it again."""


class Volatile:
    """What may be asked about uploads. A row that cannot be read counts as missing."""

    def __init__(self, path: Path, *, readonly: bool) -> None:
        self._path = path
        self._readonly = readonly
        self._environment: Environment | None = None
        self._identity: tuple[int, int] | None = None

    @classmethod
    def open(cls, path: Path, *, readonly: bool) -> Volatile:
        """Open. Not read-only (the committer): wipes it when it is of another boot or cannot be opened. Raises
        StoreUnavailable."""
        self = cls(path, readonly=readonly)
        if readonly:
            self._reopen()
            return self
        boot = epochs.boot_id()
        if not boot or _read(path / _BOOT) != boot:
            self._wipe(boot)
        try:
            self._environment = Environment.open(path, _NAMES, readonly=False, map_bytes=VOLATILE_MAP_BYTES, sync=False)
        except FormatError:
            self._wipe(boot)
            self._environment = Environment.open(path, _NAMES, readonly=False, map_bytes=VOLATILE_MAP_BYTES, sync=False)
        return self

    @property
    def environment(self) -> Environment:
        assert self._environment is not None
        return self._environment

    def _wipe(self, boot: bytes) -> None:
        shutil.rmtree(self._path, ignore_errors=True)
        self._path.mkdir(mode=0o700, parents=True, exist_ok=True)
        (self._path / _BOOT).write_bytes(boot)

    def _reopen(self) -> None:
        """A reader opens what is there now; nothing there reads as empty."""
        try:
            found = os.stat(self._path / "data.mdb")
        except FileNotFoundError:
            return
        # The old environment keeps its inode, so the number of the new one differs.
        identity = (found.st_dev, found.st_ino)
        if identity == self._identity:
            return
        if self._environment is not None:
            self._environment.close()
            self._environment = None
            self._identity = None
        try:
            self._environment = Environment.open(
                self._path, _NAMES, readonly=True, map_bytes=VOLATILE_MAP_BYTES, sync=False
            )
            self._identity = identity
        except (FormatError, StoreUnavailable):
            return

    @contextmanager
    def _reading(self) -> Iterator[Rows | None]:
        if self._readonly:
            self._reopen()
        if self._environment is None:
            yield None
            return
        with self._environment.reading() as rows:
            yield rows

    def upload(self, upload: int) -> UploadRow | None:
        with self._reading() as rows:
            return None if rows is None else upload_row(rows, upload)

    def reservation(self, namespace: Namespace, key: str) -> int | None:
        """The upload that holds this key."""
        space = Space(namespace.protocol, namespace.tenant, namespace.scope, namespace.version)
        with self._reading() as rows:
            return None if rows is None else holder(rows, space, key)

    def finished(self, upload: int) -> int | None:
        """The entry that this upload became; known for the last FINISHED_ROWS of them."""
        with self._reading() as rows:
            return None if rows is None else finished_as(rows, upload)

    def count(self) -> int:
        """How many uploads there are; costs one look at the table's head."""
        with self._reading() as rows:
            return 0 if rows is None else rows.count("upload")

    def uploads(self) -> list[UploadRow]:
        """All of them, oldest id first."""
        found = []
        with self._reading() as rows:
            if rows is not None:
                for key, value in rows.scan("upload", b"\0"):
                    number = U64.unpack(key)[0]
                    try:
                        found.append(unpack_upload(number, unseal("upload", key, value)))
                    except RowDamaged:
                        continue
        return found

    def close(self) -> None:
        if self._environment is not None:
            self._environment.close()
            self._environment = None


def upload_row(rows: Rows, upload: int) -> UploadRow | None:
    try:
        payload = rows.get("upload", U64.pack(upload))
    except RowDamaged:
        return None
    return None if payload is None else unpack_upload(upload, payload)


def holder(rows: Rows, space: Space, key: str) -> int | None:
    """The upload that holds a reservation."""
    try:
        payload = rows.get("reservation", reservation_key(space, key))
    except RowDamaged:
        return None
    return None if payload is None else int(U64.unpack(payload)[0])


def put_upload(rows: Rows, row: UploadRow) -> None:
    """Make an upload stand, and its reservation its own."""
    rows.put("upload", U64.pack(row.id), pack_upload(row))
    rows.put("reservation", reservation_key(row.space, row.key), U64.pack(row.id))


def finished_as(rows: Rows, upload: int) -> int | None:
    """The entry that an upload became."""
    try:
        payload = rows.get("finished", U64.pack(upload))
    except RowDamaged:
        return None
    return None if payload is None else int(U64.unpack(payload)[0])


def put_finished(rows: Rows, upload: int, clock: int) -> None:
    """Remember what an upload became; the oldest beyond FINISHED_ROWS is forgotten."""
    rows.put("finished", U64.pack(upload), U64.pack(clock))
    if rows.count("finished") > FINISHED_ROWS:
        for key, _ in rows.scan("finished", b"\0"):
            rows.delete("finished", key)
            break


def drop_upload(rows: Rows, upload: int) -> bool:
    """Forget an upload, and the reservation if it is still its own."""
    row = upload_row(rows, upload)
    if row is not None and holder(rows, row.space, row.key) == upload:
        rows.delete("reservation", reservation_key(row.space, row.key))
    return rows.delete("upload", U64.pack(upload))


def _read(path: Path) -> bytes | None:
    try:
        return path.read_bytes()
    except OSError:
        return None
