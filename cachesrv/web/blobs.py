"""Sends a blob: whole or one range, by sendfile where the bytes lie raw in a file.

* Content-Length is exact and there is never a Content-Encoding.
* What goes out was checked by the reader first. Damage found before the first byte is raised, so that the room can
  answer "missing"; later it breaks the connection: a truncated answer must never look complete.
* A client that takes nothing for ``idle_send`` seconds is dropped. Our side never pauses: the next window is
  asked for as soon as the last one left.

Cost: one sendfile call for each MiB, no copy and no thread hop; windows in memory are written in slices.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from typing import Final

from aiohttp import hdrs, web
from aiohttp.abc import AbstractStreamWriter
from aiohttp.http_writer import StreamWriter

from cachesrv.store.api import BlobReader, FileWindow, Window
from cachesrv.store.errors import BlobDamaged
from cachesrv.web.ranges import BlobAnswer, plan_blob
from cachesrv.web.sendfile import FileEnded, FileSender

WRITE_BYTES: Final = 256 * 1024
"""One write of bytes in memory: what the transport could not send at once is copied, so not too much of it."""


class BlobResponse(web.StreamResponse):
    """What ``send_blob`` answered, complete or not; return it from the handler.

    ``bytes_out`` are body bytes handed to the kernel. ``outcome`` is in the recorder's words: "ok",
    "invalid" (412, 416), "aborted" (the client left or stalled), "damaged" (broken off by us).
    """

    bytes_out: int = 0
    outcome: str = "ok"


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
    sender: FileSender | None = None
    try:
        while window is not None:
            if not isinstance(window, FileWindow):
                await _write(response, writer, memoryview(window), idle)
            elif await _flushed(request, writer, idle):
                sender = sender or FileSender(_transport(request), idle)
                await _send_file(response, writer, sender, window)
            else:
                await _read_and_write(response, writer, window, idle)
            window = await anext(windows, None)
    finally:
        if sender is not None:
            sender.close()
    if response.bytes_out != length:
        raise BlobDamaged("the blob is shorter than it should be")


async def _flushed(request: web.BaseRequest, writer: AbstractStreamWriter, idle: float) -> bool:
    """Whether the next bytes may go round the transport: all before them have left it, and it is no TLS."""
    if isinstance(writer, StreamWriter):
        writer.send_headers()
    if FileSender.fits(_transport(request)):
        return True
    async with asyncio.timeout(idle):
        await writer.drain()
    return FileSender.fits(_transport(request))


def _transport(request: web.BaseRequest) -> asyncio.Transport:
    transport = request.transport
    if transport is None or transport.is_closing():
        raise ConnectionResetError("the client left")
    return transport


async def _write(response: BlobResponse, writer: AbstractStreamWriter, data: memoryview, idle: float) -> None:
    for start in range(0, len(data), WRITE_BYTES):
        piece = data[start : start + WRITE_BYTES]
        async with asyncio.timeout(idle):
            await writer.write(piece)
        response.bytes_out += len(piece)


async def _read_and_write(
    response: BlobResponse, writer: AbstractStreamWriter, window: FileWindow, idle: float
) -> None:
    for offset in range(window.offset, window.offset + window.length, WRITE_BYTES):
        count = min(WRITE_BYTES, window.offset + window.length - offset)
        try:
            data = await asyncio.to_thread(os.pread, window.fd, count, offset)
        except OSError as error:
            raise BlobDamaged("the file cannot be read") from error
        if len(data) < count:
            raise BlobDamaged("the file ended inside the blob")
        await _write(response, writer, memoryview(data), idle)


async def _send_file(
    response: BlobResponse, writer: AbstractStreamWriter, sender: FileSender, window: FileWindow
) -> None:
    before = sender.sent
    try:
        await sender.send(window.fd, window.offset, window.length)
    except FileEnded:
        raise BlobDamaged("the file ended inside the blob") from None
    finally:
        response.bytes_out += sender.sent - before
        writer.output_size += sender.sent - before


def _break_off(request: web.BaseRequest, response: BlobResponse, outcome: str) -> None:
    """Reset the connection: what was announced will not come."""
    response.outcome = outcome
    response.force_close()
    if request.transport is not None:
        request.transport.abort()
