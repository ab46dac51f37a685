"""Takes the rest of a large request body straight from the transport, past the HTTP parser.

The parser copies every body byte once more into fresh memory, which costs about as much as receiving it. A tap replaces
the protocol of the connection (``transport.set_protocol``) once the parser's own share of the body is used up, hands on
what the socket gives as it is, and puts the protocol back after exactly Content-Length bytes; what follows belongs to
the next request.

Only bodies of known length are tapped, on a connection whose protocol is :class:`Tapped`. It relies on three things of
aiohttp that are not documented (pinned below 4): ``RequestHandler._messages`` and ``_upgraded``, and that a parser may
be replaced between two messages.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Final, cast

from aiohttp import StreamReader, web
from aiohttp.web_protocol import RequestHandler

TAP_BYTES: Final = 256 * 1024
"""Less than this still to come is left to the parser: switching costs more than it saves."""
WAKE_BYTES: Final = 128 * 1024
"""The consumer is woken when so much has come (or all of it): a task switch for each receive costs more than that."""
QUEUE_BYTES: Final = 256 * 1024
"""Received and not yet taken: above it the socket is not read."""


class Tapped(RequestHandler):
    """A connection whose bodies may be tapped."""

    __slots__ = ("tap",)

    tap: BodyTap | None

    def fresh_parser(self) -> None:
        """Start a new parser: the next byte begins a request."""
        raise NotImplementedError


def tap(request: web.BaseRequest) -> BodyTap | None:
    """A tap on the body of this request; None where it is not worth it or not possible. What the parser has handed out
    so far must be taken from ``request.content`` first."""
    connection = request.protocol
    content = request.content
    if not isinstance(connection, Tapped) or not isinstance(content, StreamReader):
        return None
    length, transport = request.content_length, connection.transport
    if length is None or request.headers.get("Transfer-Encoding") or transport is None or transport.is_closing():
        return None
    remaining = length - content.total_bytes
    if remaining < TAP_BYTES or content.exception() is not None or content.is_eof():
        return None
    if connection._messages or connection._upgraded or connection._reading_paused or connection._buffer_paused:
        return None
    return BodyTap(connection, transport, content, remaining)


class BodyTap(asyncio.Protocol):
    """The protocol of one connection while one body comes in. ``chunk`` gives its bytes; ``discard`` drops the rest."""

    def __init__(self, connection: Tapped, transport: asyncio.Transport, content: StreamReader, remaining: int) -> None:
        self._connection = connection
        self._transport = transport
        self._content = content
        self._remaining = remaining
        self._chunks: deque[bytes] = deque()
        self._queued = 0
        self._paused = False
        self._discarding = False
        self._lost: BaseException | None = None
        self._waiter: asyncio.Future[None] | None = None
        self._watched = remaining
        self._watch: asyncio.TimerHandle | None = None
        connection.tap = self
        transport.set_protocol(self)

    async def chunk(self, idle: float) -> bytes:
        """The next bytes, b"" at the end. Raises ConnectionError when the client left before the end, TimeoutError when
        it sent nothing for ``idle`` seconds."""
        while not self._chunks:
            if not self._remaining:
                return b""
            if self._lost is not None:
                raise ConnectionResetError("the client left") from self._lost
            await self._more(idle)
        data = self._chunks.popleft()
        self._queued -= len(data)
        if self._paused and self._queued <= QUEUE_BYTES // 2:
            self._resume()
        return data

    async def _more(self, idle: float) -> None:
        loop = asyncio.get_running_loop()
        self._waiter = loop.create_future()
        self._watched = self._remaining
        self._watch = loop.call_later(idle, self._check, idle)
        try:
            await self._waiter
        finally:
            if self._watch is not None:
                self._watch.cancel()
            self._waiter = None

    def _check(self, idle: float) -> None:
        """Every ``idle`` seconds of waiting: has anything come since?"""
        if self._waiter is None or self._waiter.done():
            return
        if self._remaining == self._watched:
            self._waiter.set_exception(TimeoutError("the client sends nothing"))
            return
        self._watched = self._remaining
        self._watch = asyncio.get_running_loop().call_later(idle, self._check, idle)

    def discard(self) -> None:
        """Nobody wants the rest: it is read and dropped, so that the connection can go on."""
        self._discarding = True
        self._chunks.clear()
        self._queued = 0
        if self._paused:
            self._resume()

    def _resume(self) -> None:
        self._paused = False
        if not self._transport.is_closing():
            self._transport.resume_reading()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    # -- asyncio.Protocol ----------------------------------------------------------------------------------------------

    def data_received(self, data: bytes) -> None:
        rest = b""
        if len(data) > self._remaining:
            data, rest = data[: self._remaining], data[self._remaining :]
        self._remaining -= len(data)
        if not self._discarding:
            self._chunks.append(data)
            self._queued += len(data)
        if not self._remaining:
            self._end()
            if rest:
                self._connection.data_received(rest)
            self._wake()
        elif self._queued >= WAKE_BYTES:
            if self._queued > QUEUE_BYTES and not self._paused:
                self._paused = True
                self._transport.pause_reading()
            self._wake()

    def _end(self) -> None:
        """The body is complete: the connection is aiohttp's again."""
        self._connection.tap = None
        self._connection.fresh_parser()
        self._transport.set_protocol(self._connection)
        self._content.feed_eof()

    def eof_received(self) -> bool | None:
        return cast("bool | None", self._connection.eof_received())

    def pause_writing(self) -> None:
        self._connection.pause_writing()

    def resume_writing(self) -> None:
        self._connection.resume_writing()

    def connection_lost(self, exc: Exception | None) -> None:
        self._lost = exc or ConnectionResetError("the client left")
        self._connection.tap = None
        self._wake()
        self._connection.connection_lost(exc)
