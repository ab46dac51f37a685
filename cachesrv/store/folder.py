"""The data folder: where everything of the store lies, and who may use it.

Promises: a folder that is not ours, or of a newer format, is refused before anything in it is touched; at most one
server owns it (``flock`` on ``LOCK``); every path inside it is made here and nowhere else. Blocking calls, all of them:
paths are free, the rest belongs in threads or before the event loop starts. docs/format.md draws the folder.

Names: ``f/<low byte of the id>/<id>.<part>`` with the id as 16 hex digits and the part as 4 or more, ``.log`` beside
them while the upload goes on; ``p/<id>.seg`` for pack segments; ``q/`` holds quarantined files under the same names.
A file is never renamed within ``f/`` or ``p/``, never truncated while it holds committed bytes, its name never reused.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from cachesrv.store.commands import Filed, Form, Packed
from cachesrv.store.constants import FORMAT_VERSION
from cachesrv.store.data.io import disk_errors, sync_file_system, sync_folder
from cachesrv.store.errors import FormatError, StoreLocked

BUCKETS: Final = 256
"""Folders under ``f/``: a million files are 4,000 a folder."""
FREE_CACHE_SECONDS: Final = 1.0
"""The free space of the disk is asked for at most this often."""
_FOLDERS: Final = ("index", "volatile", "f", "p", "q", "run")
_UNFINISHED: Final = frozenset({"LOCK", "format.new", "lost+found"})
"""What a folder may hold that was just made, or whose making was interrupted."""
_FILE_NAME: Final = re.compile(r"([0-9a-f]{16})\.(?:(log)|([0-9a-f]{4,8}))")


@dataclass(frozen=True, slots=True)
class FoundFiles:
    """What lies in ``f/`` under one id. ``newest_ms`` is the youngest mtime, ``disk_bytes`` the sum of the sizes."""

    file_id: int
    parts: tuple[int, ...]
    has_log: bool
    disk_bytes: int
    newest_ms: int


def free_space(root: Path) -> int:
    """Bytes that this user may still write on the disk of ``root``."""
    found = os.statvfs(root)
    return found.f_bavail * found.f_frsize


class DataFolder:
    """One data folder. ``free`` and ``clock`` (seconds) are passed in by tests."""

    def __init__(
        self,
        root: Path,
        *,
        free: Callable[[Path], int] = free_space,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.root = root
        self._f = str(root / "f")
        self._free = free
        self._clock = clock
        self._free_known: tuple[float, int] | None = None
        self._lock: int | None = None

    # -- making and owning ---------------------------------------------------------------------------------------------

    def create_or_open(self) -> None:
        """Make the folder or complete it; safe to repeat after an interruption at any point.

        Raises FormatError when it is newer than this program or holds something else, StoreUnavailable (and below)
        when the disk refuses.
        """
        with disk_errors():
            self.root.mkdir(mode=0o700, parents=True, exist_ok=True)
            if not self.check():
                self._write_format()
            for name in _FOLDERS:
                (self.root / name).mkdir(mode=0o700, exist_ok=True)
            for bucket in range(BUCKETS):
                Path(self._f, f"{bucket:02x}").mkdir(mode=0o700, exist_ok=True)
            sync_folder(self.root / "f")
            sync_folder(self.root)

    def check(self) -> bool:
        """Whether this is a data folder we can use; False for an empty one. Raises FormatError; changes nothing."""
        try:
            text = (self.root / "format").read_bytes()
        except FileNotFoundError:
            others = sorted(entry.name for entry in self.root.iterdir() if entry.name not in _UNFINISHED)
            if others:
                raise FormatError(f"the data folder is not empty and not ours: it holds {others[0]!r}") from None
            return False
        try:
            version = json.loads(text)["format"]
        except (ValueError, KeyError, TypeError):
            version = None
        if not isinstance(version, int) or version < 1:
            raise FormatError("the data folder is not ours: its file 'format' cannot be read")
        if version > FORMAT_VERSION:
            raise FormatError(
                f"the data folder has format {version}, this cachesrv knows up to format {FORMAT_VERSION}: "
                "use the cachesrv that wrote it, or another folder"
            )
        return True

    def _write_format(self) -> None:
        new = self.root / "format.new"
        fd = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        try:
            os.write(fd, json.dumps({"format": FORMAT_VERSION}).encode() + b"\n")
            os.fsync(fd)
        finally:
            os.close(fd)
        new.rename(self.root / "format")
        sync_folder(self.root)

    def lock(self) -> None:
        """Own the folder until :meth:`unlock` or the end of this process and of all it forked. Raises StoreLocked."""
        if self._lock is not None:
            return
        with disk_errors():
            fd = os.open(self.root / "LOCK", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                os.close(fd)
                raise StoreLocked("another cachesrv owns this data folder") from None
        self._lock = fd

    def unlock(self) -> None:
        """Give the folder up. Unlocked: nothing happens."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    # -- paths ---------------------------------------------------------------------------------------------------------

    @property
    def index(self) -> Path:
        return self.root / "index"

    @property
    def volatile(self) -> Path:
        return self.root / "volatile"

    @property
    def run(self) -> Path:
        """Sockets and other things that die with the server."""
        return self.root / "run"

    @property
    def recency(self) -> Path:
        return self.root / "recency.map"

    def bucket(self, file_id: int) -> str:
        """The folder that holds the files of this id."""
        return f"{self._f}/{file_id & 0xFF:02x}"

    def part(self, file_id: int, part: int) -> str:
        return f"{self._f}/{file_id & 0xFF:02x}/{file_id:016x}.{part:04x}"

    def log(self, file_id: int) -> str:
        return f"{self._f}/{file_id & 0xFF:02x}/{file_id:016x}.log"

    def segment(self, segment_id: int) -> str:
        return f"{self.root}/p/{segment_id:016x}.seg"

    def quarantined(self, path: str) -> str:
        """Where a damaged file is moved to."""
        return f"{self.root}/q/{os.path.basename(path)}"

    # -- space ---------------------------------------------------------------------------------------------------------

    def free_bytes(self) -> int:
        """Free bytes on the disk, at most FREE_CACHE_SECONDS old. Raises StoreUnavailable."""
        now = self._clock()
        known = self._free_known
        if known is not None and 0 <= now - known[0] < FREE_CACHE_SECONDS:
            return known[1]
        with disk_errors():
            free = self._free(self.root)
        self._free_known = (now, free)
        return free

    def has_room(self, size: int, min_free: int) -> bool:
        """Whether ``size`` more bytes leave ``min_free`` on the disk. Raises StoreUnavailable."""
        return self.free_bytes() - size >= min_free

    def holds(self, form: Form) -> bool:
        """Whether the files of a form are there and not too short: a few stats. Inline bytes always are."""
        try:
            if isinstance(form, Packed):
                return os.stat(self.segment(form.segment)).st_size >= form.offset + form.length
            if isinstance(form, Filed):
                sizes = [os.stat(self.part(form.file_id, part)).st_size for part in range(form.parts)]
                return bool(sizes) and sizes[-1] >= form.trailer_offset + form.trailer_length
        except FileNotFoundError:
            return False
        return True

    def written(self, form: Filed) -> float | None:
        """When the last byte of a blob's files was written (Unix seconds); None when they are gone."""
        try:
            return os.stat(self.part(form.file_id, form.parts - 1)).st_mtime
        except FileNotFoundError:
            return None

    def segment_bytes(self, segment_id: int) -> int:
        """Length of a pack segment on disk; 0 when it is gone."""
        try:
            return os.stat(self.segment(segment_id)).st_size
        except FileNotFoundError:
            return 0

    def sync_everything(self) -> None:
        """Returns when all that was written to this file system is on disk. Blocks, for seconds if there is much."""
        with disk_errors():
            sync_file_system(self.root)

    # -- damage --------------------------------------------------------------------------------------------------------

    def quarantine(self, file_id: int, parts: int) -> None:
        """Move the parts of a damaged blob to ``q/``. Repeats, and parts that are gone, do no harm."""
        with disk_errors():
            for part in range(parts):
                path = self.part(file_id, part)
                with contextlib.suppress(FileNotFoundError):
                    os.rename(path, self.quarantined(path))

    def forget_quarantined(self, before: float) -> int:
        """Unlink what was last written or moved to ``q/`` before this Unix time. Returns how many files."""
        removed = 0
        with disk_errors(), os.scandir(self.root / "q") as entries:
            for entry in entries:
                with contextlib.suppress(FileNotFoundError):
                    # Moving a file sets its ctime.
                    if entry.stat(follow_symlinks=False).st_ctime < before:
                        os.unlink(entry.path)
                        removed += 1
        return removed

    # -- sweeping and removing -----------------------------------------------------------------------------------------

    def files(self) -> Iterator[FoundFiles]:
        """Everything in ``f/``, id by id, one bucket listed at a time; the caller sets the pace by how it iterates."""
        for bucket in range(BUCKETS):
            yield from self._bucket_files(bucket)

    def _bucket_files(self, bucket: int) -> Iterator[FoundFiles]:
        found: dict[int, list[tuple[int | None, int, int]]] = {}
        with disk_errors(), os.scandir(f"{self._f}/{bucket:02x}") as entries:
            for entry in entries:
                named = _FILE_NAME.fullmatch(entry.name)
                if named is None:
                    continue
                try:
                    status = entry.stat(follow_symlinks=False)
                except FileNotFoundError:
                    continue
                part = None if named[2] else int(named[3], 16)
                row = (part, status.st_size, status.st_mtime_ns // 1_000_000)
                found.setdefault(int(named[1], 16), []).append(row)
        for file_id, rows in found.items():
            yield FoundFiles(
                file_id,
                tuple(sorted(part for part, _, _ in rows if part is not None)),
                any(part is None for part, _, _ in rows),
                sum(size for _, size, _ in rows),
                max(mtime for _, _, mtime in rows),
            )

    def segments(self) -> Iterator[tuple[int, int]]:
        """(segment id, bytes) of every pack segment on disk."""
        with disk_errors(), os.scandir(self.root / "p") as entries:
            for entry in entries:
                if re.fullmatch(r"[0-9a-f]{16}\.seg", entry.name):
                    try:
                        yield int(entry.name[:16], 16), entry.stat().st_size
                    except FileNotFoundError:
                        continue

    def parts(self, file_id: int) -> list[tuple[int, os.stat_result]]:
        """The parts that exist under an id, from 0 on without a gap, with their status."""
        found: list[tuple[int, os.stat_result]] = []
        with disk_errors():
            while True:
                try:
                    found.append((len(found), os.stat(self.part(file_id, len(found)))))
                except FileNotFoundError:
                    return found

    def remove_files(self, file_id: int, parts: int | Sequence[int]) -> int:
        """Unlink these parts (a count means 0..count-1); what is already gone is fine. Returns how many bytes left.
        An open reader keeps its bytes. Unlinking 256 MiB takes up to 0.2 s on a ``discard`` mount."""
        freed = 0
        with disk_errors():
            for part in range(parts) if isinstance(parts, int) else parts:
                freed += _unlink(self.part(file_id, part))
        return freed

    def remove_segment(self, segment_id: int) -> int:
        """Unlink a pack segment; gone is fine. Returns how many bytes left."""
        with disk_errors():
            return _unlink(self.segment(segment_id))

    def remove_log(self, file_id: int) -> None:
        """Unlink the upload log alone: the upload became a blob."""
        with disk_errors():
            _unlink(self.log(file_id))

    def remove_upload(self, file_id: int) -> int:
        """Unlink the log, then every part: without the log no worker adds to the parts. Returns the bytes freed."""
        self.remove_log(file_id)
        # A worker that was just making the next part leaves it behind: the parts are listed again until none is left.
        freed = 0
        while found := self.parts(file_id):
            # From the end, so that an interruption leaves no gap that would hide the rest.
            freed += self.remove_files(file_id, [number for number, _ in reversed(found)])
        return freed


def _unlink(path: str) -> int:
    try:
        size = os.stat(path).st_size
        os.unlink(path)
    except FileNotFoundError:
        return 0
    return size
