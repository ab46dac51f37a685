"""sendfile(2) over the socket of a transport, with as little between two system calls as asyncio allows.

``loop.sendfile`` registers and unregisters the socket for each wait and goes through a future and a task switch for
each; here one callback stays registered for a whole run of bytes and calls sendfile itself. Measured with 256 MiB from
the page cache, server pinned to one core: 0.5x of nginx before, see docs/benchmarks.md for now.

The socket's descriptor is duplicated: asyncio refuses a second watcher on the descriptor that a transport owns. The
duplicate keeps the connection open, so it must be closed soon after the transport is (``close``).
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import sys
from typing import Final

STEP_BYTES: Final = 2 * 1024 * 1024
"""One system call sends at most this much, so that a fast client does not hold the loop (about 1 ms) ..."""
ALONE_BYTES: Final = 8 * 1024 * 1024
"""... but for a worker's only download, which waits for nobody else's (about 4 ms)."""


class FileEnded(Exception):
    """The file has fewer bytes than it should."""


class FileSender:
    """For one answer on one connection. ``idle``: seconds without a byte taken after which TimeoutError is raised.

    ``sent`` are all bytes handed to the kernel so far, right also after an error. Nothing else may be waiting in the
    transport's write buffer when :meth:`send` is called.
    """

    active = 0
    """Senders of this process between their making and their end."""

    def __init__(self, transport: asyncio.Transport, idle: float) -> None:
        """Raises OSError when the descriptor cannot be duplicated (EMFILE)."""
        connected = transport.get_extra_info("socket")
        self._transport = transport
        self._fd = os.dup(connected.fileno())
        self._socket = connected
        FileSender.active += 1
        self._cork(1)
        self._loop = asyncio.get_running_loop()
        self._idle = idle
        self._waiting: asyncio.Future[None] | None = None
        self._watch: asyncio.TimerHandle | None = None
        self._watched = 0
        self._file = -1
        self._offset = 0
        self._left = 0
        self.sent = 0

    @staticmethod
    def fits(transport: asyncio.BaseTransport) -> bool:
        """Whether bytes may go round the transport: a plain socket whose write buffer is empty."""
        return (
            isinstance(transport, asyncio.Transport)
            and hasattr(transport.get_extra_info("socket"), "fileno")
            and transport.get_extra_info("sslcontext") is None
            and transport.get_write_buffer_size() == 0
        )

    async def send(self, file: int, offset: int, length: int) -> None:
        """Send [offset, offset + length) of an open file. Raises FileEnded, TimeoutError, OSError (the client left)."""
        if self._transport.is_closing():
            raise ConnectionResetError("the client left")
        self._file, self._offset, self._left = file, offset, length
        if not length:
            return
        self._step()
        if not self._left:
            # A client that takes all at once must not keep the loop from everybody else.
            await asyncio.sleep(0)
            return
        self._waiting = self._loop.create_future()
        self._loop.add_writer(self._fd, self._writable)
        self._watched = self.sent
        self._watch = self._loop.call_later(self._idle, self._check)
        try:
            await self._waiting
        finally:
            if self._watch is not None:
                self._watch.cancel()
            self._loop.remove_writer(self._fd)

    def close(self) -> None:
        FileSender.active -= 1
        self._cork(0)
        os.close(self._fd)

    def _cork(self, on: int) -> None:
        """Headers and file in full segments; taken out, the last one leaves. A Unix socket knows no such thing."""
        if sys.platform == "linux":
            with contextlib.suppress(OSError):
                self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_CORK, on)

    def _step(self) -> None:
        try:
            most = ALONE_BYTES if FileSender.active == 1 else STEP_BYTES
            count = os.sendfile(self._fd, self._file, self._offset, min(self._left, most))
        except (BlockingIOError, InterruptedError):
            return
        if count == 0:
            raise FileEnded
        self._offset += count
        self._left -= count
        self.sent += count

    def _check(self) -> None:
        """Every ``idle`` seconds: has the client taken anything since?"""
        if self._waiting is None or self._waiting.done():
            return
        if self.sent == self._watched:
            self._waiting.set_exception(TimeoutError("the client takes nothing"))
            return
        self._watched = self.sent
        self._watch = self._loop.call_later(self._idle, self._check)

    def _writable(self) -> None:
        if self._waiting is None or self._waiting.done():
            return
        try:
            self._step()
        except (OSError, FileEnded) as error:
            self._waiting.set_exception(error)
        else:
            if not self._left:
                self._waiting.set_result(None)
