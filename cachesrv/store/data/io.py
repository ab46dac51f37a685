"""The calls that touch data files, the threads they run in, and what their errors mean.

Everything that blocks goes through :class:`Disk` (tests replace it to make calls fail) inside a :class:`Threads` pool.
A job in a pool is always waited for, even when the task that started it is cancelled: so no thread writes to a
descriptor that was closed, and nothing is removed under a writer.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import errno
import fcntl
import os
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final, ParamSpec, TypeVar

from cachesrv.store.errors import StoreFull, StoreReadOnly, StoreUnavailable, UploadUnknown

P = ParamSpec("P")
T = TypeVar("T")

Buffer = bytes | bytearray | memoryview
WRITE_THREADS: Final = 2
"""Threads of one worker that write batches and checksum them. Writes to one file take its lock in turn and spin for it:
with 4 a worker a save of 1 GiB in 8 blocks at once cost 2.4 s of system time, with 2 it cost 1.3 s."""
HASH_THREADS: Final = 2
"""Threads of one worker that compute SHA-256 (one upload uses one at a time)."""
LOG_THREADS: Final = 4
"""Threads of one worker for short calls: reserve, record, stat. They may wait for a lock."""
SYNC_THREADS: Final = 8
"""Threads of one worker that wait for the disk: fdatasync, unlink."""
_IOV_MAX: Final = 1024
_SYNC_FILE_RANGE_WRITE: Final = 2


def _sync_file_range() -> Callable[[int, int, int, int], int] | None:
    if sys.platform != "linux":
        return None
    try:
        call = ctypes.CDLL(None, use_errno=True).sync_file_range
    except (OSError, AttributeError):
        return None
    call.argtypes = (ctypes.c_int, ctypes.c_int64, ctypes.c_int64, ctypes.c_uint)
    call.restype = ctypes.c_int
    found: Callable[[int, int, int, int], int] = call
    return found


_SYNC_RANGE: Final = _sync_file_range()


class Disk:
    """The system calls under the write path, one method each. All may raise OSError."""

    def pwritev(self, fd: int, buffers: Sequence[Buffer], offset: int) -> int:
        return os.pwritev(fd, buffers, offset)

    def append(self, fd: int, data: bytes) -> int:
        return os.write(fd, data)

    def grow(self, fd: int, size: int) -> None:
        os.ftruncate(fd, size)

    def sync_data(self, fd: int) -> None:
        """Returns when the bytes of the file are on disk."""
        if sys.platform == "darwin":
            fcntl.fcntl(fd, fcntl.F_FULLFSYNC)
        else:
            os.fdatasync(fd)

    def sync_folder(self, path: str) -> None:
        sync_folder(path)

    def write_behind(self, fd: int, offset: int, length: int) -> None:
        """Start writing dirty pages of a range to disk; a hint, so errors and other systems do nothing."""
        if _SYNC_RANGE is not None:
            _SYNC_RANGE(fd, offset, length, _SYNC_FILE_RANGE_WRITE)


def sync_folder(path: str | Path) -> None:
    """fsync a folder: the names in it are on disk."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def sync_file_system(path: str | Path) -> None:
    """syncfs(2) of the file system that holds ``path``; sync(2) where there is no such call. Raises OSError."""
    if sys.platform != "linux":
        os.sync()
        return
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        if ctypes.CDLL(None, use_errno=True).syncfs(fd) != 0:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number))
    finally:
        os.close(fd)


@contextlib.contextmanager
def disk_errors() -> Iterator[None]:
    """Turn an OSError into the store's word for it; messages name no path."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise StoreFull("the data disk is full") from error
        if error.errno in (errno.EROFS, errno.EACCES, errno.EPERM):
            raise StoreReadOnly("the data folder cannot be written") from error
        if error.errno == errno.ENOENT:
            raise UploadUnknown("the files of this upload are gone") from error
        name = errno.errorcode.get(error.errno or 0, "unknown")
        raise StoreUnavailable(f"the data disk answers {name}") from error


def write_all(disk: Disk, fd: int, buffers: Sequence[Buffer], offset: int) -> None:
    """Write every byte at ``offset``, however short the single writes are. Raises OSError."""
    rest = list(buffers)
    while rest:
        group = rest[:_IOV_MAX]
        done = disk.pwritev(fd, group, offset)
        if done <= 0:
            raise OSError(errno.EIO, "nothing was written")
        offset += done
        while rest and done >= len(rest[0]):
            done -= len(rest.pop(0))
        if done:
            rest[0] = memoryview(rest[0])[done:]


def read_exactly(fd: int, length: int, offset: int) -> bytes:
    """The bytes [offset, offset + length), fewer at the end of the file. Raises OSError."""
    data = os.pread(fd, length, offset)
    while len(data) < length:
        more = os.pread(fd, length - len(data), offset + len(data))
        if not more:
            break
        data += more
    return data


async def settled(*futures: asyncio.Future[Any]) -> None:
    """Wait until all are done, even while this task is being cancelled; the cancellation is raised after that."""
    pending = {future for future in futures if not future.done()}
    cancelled: asyncio.CancelledError | None = None
    while pending:
        try:
            _, pending = await asyncio.wait(pending)
        except asyncio.CancelledError as error:
            cancelled = error
            pending = {future for future in pending if not future.done()}
    if cancelled is not None:
        raise cancelled


def _yield_cores() -> None:
    if sys.platform == "linux":
        with contextlib.suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), 19)


class Threads:
    """A named pool of threads. They start at first use, so a process may fork before that."""

    def __init__(self, name: str, size: int, *, yielding: bool = False) -> None:
        """``yielding``: the threads take what others leave of the cores (Linux)."""
        self._pool = ThreadPoolExecutor(size, thread_name_prefix=name, initializer=_yield_cores if yielding else None)

    def start(self, call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> asyncio.Future[T]:
        """Begin a job. Never await the future itself (a cancelled await would drop it while the job goes on): use
        :func:`settled`."""
        return asyncio.wrap_future(self._pool.submit(call, *args, **kwargs))

    async def run(self, call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """The result of one job; cancelled or not, the job has ended when this returns or raises."""
        future = self.start(call, *args, **kwargs)
        try:
            await settled(future)
        except asyncio.CancelledError:
            if not future.cancelled():
                future.exception()  # seen: nobody else will ask
            raise
        return future.result()

    def close(self) -> None:
        """Wait for the jobs that run, start no more."""
        self._pool.shutdown(wait=True, cancel_futures=False)
