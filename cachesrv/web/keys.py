"""The keys behind signed URLs, kept in the data folder so that every worker and every restart knows them.

File ``url-keys``, mode 0600, version 1: a JSON list, newest first, of
``{"key": base64url of 32 bytes, "created": Unix seconds}``. It is written to a temporary name, synced, and put in place
whole: by link on first start (of several processes one wins, the others read its file), by rename on rotation.

One process calls ``rotate_if_due`` now and then. A key signs for ROTATE_SECONDS; a new one only after
ACTIVATION_SECONDS: by then every process that refreshes has it. An older key verifies until the URLs it signed have run
out.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import os
import secrets
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

import msgspec

ACTIVATION_SECONDS: Final = 30.0
"""Between the rotation and the first signature by the new key."""
REFRESH_SECONDS: Final = 10.0
"""How often a process looks for a rotation (one stat)."""
ROTATE_SECONDS: Final = 30 * 86400.0
"""How long one key signs before the next is made."""
KEY_BYTES: Final = 32


class UrlKeysError(Exception):
    """The key file cannot be read, made, or understood. Raised at start; the message names the file."""


class _Key(msgspec.Struct, frozen=True):
    key: str
    created: float

    def raw(self) -> bytes:
        return base64.urlsafe_b64decode(self.key + "=" * (-len(self.key) % 4))


class UrlKeys:
    """The keys of one data folder. ``ttl``: the longest life of a URL, in seconds.

    ``open`` blocks for a few file operations: call it before the loop runs, or in a thread. ``keep`` is a task that
    follows rotations by other processes.
    """

    def __init__(self, path: Path, ttl: float, clock: Callable[[], float] = time.time) -> None:
        self._path = path
        self._ttl = ttl
        self._clock = clock
        self._keys: Sequence[_Key] = ()
        self._seen: tuple[int, int] | None = None
        self.signing = b""
        """The key that signs now."""
        self.verifying: tuple[bytes, ...] = ()
        """Every key whose URLs may still be good, newest first."""

    @classmethod
    def open(cls, path: Path, ttl: float, clock: Callable[[], float] = time.time) -> UrlKeys:
        """Read the file, or make it with one fresh key. Raises UrlKeysError."""
        keys = cls(path, ttl, clock)
        try:
            if not path.exists():
                _place_new(path, [_fresh(clock())])
            keys.refresh()
        except OSError as error:
            raise UrlKeysError(f"{path}: {error.strerror}") from error
        return keys

    def refresh(self) -> None:
        """Re-read the file if it changed, and settle which key signs. Raises UrlKeysError, OSError."""
        status = self._path.stat()
        if self._seen != (status.st_mtime_ns, status.st_ino):
            if status.st_mode & 0o077:
                with contextlib.suppress(PermissionError):
                    self._path.chmod(0o600)
            self._keys = self._read()
            self._seen = (status.st_mtime_ns, status.st_ino)
        now = self._clock()
        ready = [key for key in self._keys if key.created <= now - ACTIVATION_SECONDS] or self._keys[-1:]
        self.signing = ready[0].raw()
        self.verifying = tuple(key.raw() for key in self._alive(now))

    def rotate(self) -> None:
        """Add a key and drop those whose URLs have all run out. Blocks; for one process at a time.

        Raises UrlKeysError, OSError.
        """
        now = self._clock()
        self._keys = self._read()
        _replace(self._path, [_fresh(now), *self._alive(now)])
        self.refresh()

    def rotate_if_due(self) -> bool:
        """``rotate`` when the newest key is older than ROTATE_SECONDS; whether it was. Blocks and raises as it does."""
        self.refresh()
        due = self._clock() - self._keys[0].created >= ROTATE_SECONDS
        if due:
            self.rotate()
        return due

    async def keep(self) -> None:
        """Follow rotations until cancelled. A file that cannot be read leaves the keys as they are."""
        while True:
            await asyncio.sleep(REFRESH_SECONDS)
            with contextlib.suppress(OSError, UrlKeysError):
                await asyncio.to_thread(self.refresh)

    def _alive(self, now: float) -> list[_Key]:
        """A key stops signing when its successor is active, and its last URL runs out ``ttl`` later."""
        alive = list(self._keys[:1])
        for newer, key in zip(self._keys, self._keys[1:], strict=False):
            if now < newer.created + ACTIVATION_SECONDS + REFRESH_SECONDS + self._ttl:
                alive.append(key)
        return alive

    def _read(self) -> list[_Key]:
        try:
            keys = msgspec.json.decode(self._path.read_bytes(), type=list[_Key])
            if not keys or any(len(key.raw()) != KEY_BYTES for key in keys):
                raise ValueError("no key, or one of the wrong length")
        except (msgspec.MsgspecError, ValueError) as error:
            raise UrlKeysError(
                f"{self._path}: not a key file of cachesrv ({error}); move it away to start anew"
            ) from None
        return keys


def _fresh(now: float) -> _Key:
    return _Key(base64.urlsafe_b64encode(secrets.token_bytes(KEY_BYTES)).decode().rstrip("="), now)


def _place_new(path: Path, keys: Sequence[_Key]) -> None:
    """Write the file unless somebody else just did."""
    written = _write_beside(path, keys)
    try:
        with contextlib.suppress(FileExistsError):
            os.link(written, path)
    finally:
        written.unlink()
    _sync_folder(path)


def _replace(path: Path, keys: Sequence[_Key]) -> None:
    _write_beside(path, keys).replace(path)
    _sync_folder(path)


def _write_beside(path: Path, keys: Sequence[_Key]) -> Path:
    beside = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    with os.fdopen(os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600), "wb") as file:
        file.write(msgspec.json.encode(keys))
        file.flush()
        os.fsync(file.fileno())
    return beside


def _sync_folder(path: Path) -> None:
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
