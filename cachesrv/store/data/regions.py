"""Regions: where in the part files the bytes of a body may go.

A region is handed out once and never again: every attempt of a block writes into a fresh one, and a part file grows
only. Two kinds: the parts of an upload, shared by all workers (the lock on the upload log guards their growth), and
the parts of a value that one task writes alone. Blocking calls: use in threads.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import Final, Protocol

from cachesrv.store.constants import PART_BYTES, MiB
from cachesrv.store.data.io import Disk, disk_errors
from cachesrv.store.data.layout import MAX_PARTS
from cachesrv.store.data.uploadlog import LockedLog, UploadLogs
from cachesrv.store.errors import LimitExceeded, StoreFull, UploadUnknown
from cachesrv.store.folder import DataFolder

REGION_BYTES: Final = 64 * MiB
"""A body takes regions of at most this, as its bytes come: who announces much and sends little gets little."""


@dataclass(frozen=True, slots=True)
class OpenExtent:
    """A place to write: ``fd`` is open for as long as the regions it came from."""

    fd: int
    part: int
    offset: int
    length: int


class Regions(Protocol):
    """What the pipeline asks for places."""

    def take(self, length: int) -> list[OpenExtent]:
        """Fresh places for ``length`` bytes in the order of the bytes. Raises UploadUnknown, StoreUnavailable."""
        ...

    def close(self) -> None:
        """No more writes to what was taken."""
        ...


@dataclass(slots=True)
class OpenParts:
    """Part files of one id, opened on demand and closed together."""

    folder: DataFolder
    file_id: int
    part_bytes: int = PART_BYTES
    min_free: int = 0
    fds: dict[int, int] = field(default_factory=dict)

    def open(self, part: int, flags: int = 0) -> int:
        """A descriptor for reading and writing. Raises OSError, LimitExceeded."""
        fd = self.fds.get(part)
        if fd is None:
            if part >= MAX_PARTS:
                raise LimitExceeded(f"a blob has at most {MAX_PARTS} parts")
            fd = os.open(self.folder.part(self.file_id, part), os.O_RDWR | os.O_CLOEXEC | flags, 0o600)
            self.fds[part] = fd
        return fd

    def check_space(self, length: int) -> None:
        """Raises StoreFull when ``length`` more bytes would go below the free-space floor."""
        if not self.folder.has_room(length, self.min_free):
            raise StoreFull("the data disk is at its free-space floor")

    def close(self) -> None:
        for fd in self.fds.values():
            os.close(fd)
        self.fds.clear()


class UploadRegions:
    """Regions of an upload that any worker may write to."""

    def __init__(self, logs: UploadLogs, upload_id: int, parts: OpenParts, disk: Disk) -> None:
        self._logs = logs
        self._upload_id = upload_id
        self._parts = parts
        self._disk = disk
        self._begun = False

    def take(self, length: int) -> list[OpenExtent]:
        return self._take(length, whole=False)

    def take_one(self, length: int) -> OpenExtent:
        """The same in one extent, for a length that is small against a part."""
        return self._take(length, whole=True)[0]

    def _take(self, length: int, *, whole: bool) -> list[OpenExtent]:
        self._parts.check_space(length)
        # The first bytes make the log. If it is gone later on, the upload was dropped while this body came.
        with disk_errors(), self._logs.open(self._upload_id, create=not self._begun) as log:
            self._begun = True
            if log.state.sealed is not None:
                raise UploadUnknown("this upload is already finished")
            return reserve(log, self._parts, self._disk, length, whole=whole)

    def close(self) -> None:
        self._parts.close()


def reserve(log: LockedLog, parts: OpenParts, disk: Disk, length: int, *, whole: bool = False) -> list[OpenExtent]:
    """Grow the part files of a locked upload by ``length`` bytes. ``whole``: in one extent. Raises OSError."""
    taken: list[OpenExtent] = []
    part = _last_part(log, parts)
    while length:
        fd = parts.open(part, os.O_CREAT)
        size = os.fstat(fd).st_size
        room = parts.part_bytes - size
        if room <= 0 or (whole and room < length and size):
            part += 1
            continue
        amount = length if whole else min(room, length)
        disk.grow(fd, size + amount)
        taken.append(OpenExtent(fd, part, size, amount))
        length -= amount
    log.state.last_part = part
    return taken


def _last_part(log: LockedLog, parts: OpenParts) -> int:
    part = log.state.last_part
    while os.path.exists(parts.folder.part(parts.file_id, part + 1)):
        part += 1
    return part


class OwnRegions:
    """Regions of a value that nobody else writes to: one after the other, files grow by being written."""

    def __init__(self, parts: OpenParts) -> None:
        self._parts = parts
        self._part = -1
        self._offset = parts.part_bytes

    def take(self, length: int) -> list[OpenExtent]:
        self._parts.check_space(length)
        taken: list[OpenExtent] = []
        with disk_errors():
            while length:
                if self._offset == self._parts.part_bytes:
                    self._next_part()
                amount = min(self._parts.part_bytes - self._offset, length)
                taken.append(OpenExtent(self._parts.fds[self._part], self._part, self._offset, amount))
                self._offset += amount
                length -= amount
        return taken

    def _next_part(self) -> None:
        self._parts.open(self._part + 1, os.O_CREAT | os.O_EXCL)
        self._part, self._offset = self._part + 1, 0

    def close(self) -> None:
        self._parts.close()
