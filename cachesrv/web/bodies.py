"""Request bodies: as a stream for the store, or whole for the small documents that a protocol parses.

Memory: one chunk at a time (what the socket had, at most the server's read buffer); the socket is read no faster than
the consumer asks. Large bodies pass the HTTP parser by (``bodytap``). A client that stalls or leaves raises ClientGone,
so that no half body is ever taken for a whole one.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import aiohttp
from aiohttp import hdrs, http_exceptions, web

from cachesrv.web.bodytap import BodyTap, tap

_BROKEN = (OSError, aiohttp.ClientError, http_exceptions.HttpProcessingError)


class ClientGone(Exception):
    """The client left, stalled longer than the limit, or broke off in the middle of its body. Nobody reads an answer,
    unless it only stalled."""


class BodyTooLarge(Exception):
    """The body is longer than ``limit`` bytes. Answer 413."""

    def __init__(self, limit: int) -> None:
        super().__init__(f"the request body is larger than {limit} bytes")
        self.limit = limit


class RequestBody(AsyncIterator[bytes]):
    """The body of a request as the store wants it (``store.api.Body``): chunks in order, to be iterated once.

    * ``idle``: seconds without a byte after which ClientGone is raised; time the consumer takes does not count.
    * ``limit``: BodyTooLarge is raised by the constructor when Content-Length passes it, else by the chunk that does.
    * ``received``: bytes handed out so far.

    Answers ``Expect: 100-continue`` when the first chunk is asked for, so refusals cost no upload.
    """

    def __init__(self, request: web.BaseRequest, *, idle: float, limit: int | None = None) -> None:
        self.received = 0
        self.length = request.content_length
        self._content = request.content
        self._idle = idle
        self._limit = limit
        self._request: web.BaseRequest | None = request
        self._tappable: web.BaseRequest | None = None
        self._tap: BodyTap | None = None
        if limit is not None and self.length is not None and self.length > limit:
            raise BodyTooLarge(limit)

    async def __anext__(self) -> bytes:
        if self._request is not None:
            _continue(self._request)
            self._tappable, self._request = self._request, None
        try:
            chunk = await self._next()
        except TimeoutError as error:
            raise ClientGone(f"no byte of the body for {self._idle:g} seconds") from error
        except _BROKEN as error:
            raise ClientGone("the client broke off its body") from error
        if not chunk:
            if self.length is not None and self.received < self.length:
                raise ClientGone("the body ended before its Content-Length")
            raise StopAsyncIteration
        self.received += len(chunk)
        if self._limit is not None and self.received > self._limit:
            raise BodyTooLarge(self._limit)
        return chunk

    async def _next(self) -> bytes:
        """The next bytes: what the parser has first, then past it if that is worth it."""
        if self._tap is None:
            chunk = self._content.read_nowait()
            if chunk:
                return chunk
            if self._tappable is not None:
                self._tap, self._tappable = tap(self._tappable), None
        if self._tap is None and self._content.at_eof():
            return b""
        if self._tap is not None:
            return await self._tap.chunk(self._idle)
        async with asyncio.timeout(self._idle):
            return await self._content.readany()


async def read_document(request: web.BaseRequest, limit: int, *, idle: float = 120.0) -> bytes:
    """The whole body, at most ``limit`` bytes. Raises BodyTooLarge, ClientGone."""
    return b"".join([chunk async for chunk in RequestBody(request, idle=idle, limit=limit)])


def _continue(request: web.BaseRequest) -> None:
    if request.headers.get(hdrs.EXPECT, "").lower() != "100-continue" or request.version < aiohttp.HttpVersion11:
        return
    if request.transport is not None and not request.transport.is_closing():
        request.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
