"""Sends a blob: whole or one range, by sendfile where the bytes lie raw in a file.

* Content-Length is exact and there is never a Content-Encoding.
* What goes out was checked by the reader first. Damage found before the first byte is raised, so that the room can
  answer "missing"; later it breaks the connection: a truncated answer must never look complete.
* A client that takes nothing for ``idle_send`` seconds is dropped. Our side never pauses: the next window is
  asked for as soon as the last one left.

Cost: one sendfile call for each window, no copy and no thread hop; windows in memory are written in slices.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from typing import IO, Final, cast

from aiohttp import hdrs, web
from aiohttp.abc import AbstractStreamWriter

from cachesrv.store.api import BlobReader, FileWindow, Window
from cachesrv.store.errors import BlobDamaged
from cachesrv.web.ranges import BlobAnswer, plan_blob

SLOW_BYTES: Final = 256 * 1024
"""One sendfile call to a client not known to be fast: what it must take in ``idle_send`` to count as alive."""
FAST_SECONDS: Final = 1.0
"""A client that took its last piece within this time gets the rest of the window at once (8 MiB): for a fast client
pieces of 1 MiB cost half as much CPU again."""
WRITE_BYTES: Final = 256 * 1024
"""One write of bytes in memory: what the transport could not send at once is copied, so not too much of it."""


class BlobResponse(web.StreamResponse):
    """What ``send_blob`` answered, complete or not; return it from the handler.

    ``bytes_out`` are body bytes handed to the kernel. ``outcome`` is in the recorder's words: "ok",
    "invalid" (412, 416), "aborted" (the client left or stalled), "damaged" (broken off by us).
    """

    bytes_out: int = 0
    outcome: str = "ok"
    _fast: bool = False


async def send_blob(
    request: web.BaseRequest,
    reader: BlobReader,
    *,
    etag: str,
    headers: Mapping[str, str] | None = None,
    idle_send: float = 300.0,
    answer: BlobAnswer | None = None,
) -> BlobResponse:
    """Answer a GET or HEAD with the bytes of an open reader, which stays the caller's to close.

    ``etag`` without quotes, stable for the blob. ``headers`` are added (Content-Type defaults to
    application/octet-stream). ``answer``: a plan the caller made already, e.g. to word 412 and 416 in its own dialect;
    without one those are sent with an empty body.

    Raises BlobDamaged only while nothing was sent. Everything else ends in the response's ``outcome``.
    """
    if answer is None:
        answer = plan_blob(request.headers, reader.size, etag)
    response = BlobResponse(status=answer.status, headers=answer.headers)
    response.headers.update(headers or {})
    if answer.status in (412, 416):
        response.outcome = "invalid"
    windows: AsyncIterator[Window] | None = None
    try:
        first: Window | None = None
        if request.method != hdrs.METH_HEAD and answer.wanted.length:
            windows = reader.windows(answer.wanted)
            first = await anext(windows, None)
        try:
            writer = await response.prepare(request)
            if windows is not None and writer is not None:
                await _send(request, response, writer, first, windows, answer.wanted.length, idle_send)
            await response.write_eof()
        except BlobDamaged:
            _break_off(request, response, "damaged")
        except (OSError, TimeoutError):
            _break_off(request, response, "aborted")
        except BaseException:
            _break_off(request, response, "aborted")
            raise
    finally:
        if isinstance(windows, AsyncGenerator):
            await windows.aclose()
    return response


async def _send(
    request: web.BaseRequest,
    response: BlobResponse,
    writer: AbstractStreamWriter,
    window: Window | None,
    windows: AsyncIterator[Window],
    length: int,
    idle: float,
) -> None:
    while window is not None:
        if isinstance(window, FileWindow):
            await _send_file(request, response, writer, window, idle)
        else:
            view = memoryview(window)
            for start in range(0, len(view), WRITE_BYTES):
                await _write(response, writer, view[start : start + WRITE_BYTES], idle)
        window = await anext(windows, None)
    if response.bytes_out != length:
        raise BlobDamaged("the blob is shorter than it should be")


async def _write(response: BlobResponse, writer: AbstractStreamWriter, data: bytes | memoryview, idle: float) -> None:
    async with asyncio.timeout(idle):
        await writer.write(data)
    response.bytes_out += len(data)


async def _send_file(
    request: web.BaseRequest, response: BlobResponse, writer: AbstractStreamWriter, window: FileWindow, idle: float
) -> None:
    loop = asyncio.get_running_loop()
    offset, stop = window.offset, window.offset + window.length
    file = cast("IO[bytes]", _Descriptor(window.fd))
    while offset < stop:
        transport = request.transport
        if transport is None or transport.is_closing():
            raise ConnectionResetError("the client left")
        count = stop - offset if response._fast else min(SLOW_BYTES, stop - offset)
        began = loop.time()
        try:
            async with asyncio.timeout(idle):
                sent = await loop.sendfile(transport, file, offset, count, fallback=False)
        except (NotImplementedError, RuntimeError):
            # TLS, a loop without sendfile, or a socket that failed at once: the write below finds out which.
            try:
                data = await asyncio.to_thread(os.pread, window.fd, min(WRITE_BYTES, count), offset)
            except OSError as error:
                raise BlobDamaged("the file cannot be read") from error
            sent = len(data)
            await _write(response, writer, data, idle)
        else:
            response.bytes_out += sent
            writer.output_size += sent
            response._fast = loop.time() - began < FAST_SECONDS
        if not sent:
            raise BlobDamaged("the file ended inside the blob")
        offset += sent


def _break_off(request: web.BaseRequest, response: BlobResponse, outcome: str) -> None:
    """Reset the connection: what was announced will not come."""
    response.outcome = outcome
    response.force_close()
    if request.transport is not None:
        request.transport.abort()


class _Descriptor:
    """As much of a file as sendfile looks at."""

    __slots__ = ("_fd",)

    def __init__(self, fd: int) -> None:
        self._fd = fd

    def fileno(self) -> int:
        return self._fd
