"""Takes the rest of a large request body straight from the transport, past the HTTP parser.

The parser copies every body byte once more into fresh memory. A tap replaces the protocol of the connection
(``transport.set_protocol``) once the parser's own share of the body is used up, hands on what the socket gives, and
puts the protocol back after exactly Content-Length bytes; what follows belongs to the next request.

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
QUEUED_BYTES: Final = 8 * 1024 * 1024
"""Received and not yet taken by consumers, all taps of a worker together: each has its part, and above it its socket is
not read. A consumer is woken when half of the part has come, or all of the body: a task switch for each receive costs
more than that."""
MOST_BYTES: Final = 1024 * 1024
"""The part of one tap, at most ..."""
LEAST_BYTES: Final = 64 * 1024
"""... and at least."""


RECEIVE_BYTES: Final = 512 * 1024
"""One receive takes at most this much."""
_RECEIVED: Final = memoryview(bytearray(RECEIVE_BYTES))
"""Where every tap of the process receives: always the same memory, so it stays in the processor's cache. What came is
copied out, exactly as long as it is, before the next receive."""


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


class BodyTap(asyncio.BufferedProtocol):
    """The protocol of one connection while one body comes in. ``chunk`` gives its bytes; ``discard`` drops the rest."""

    active = 0
    """Taps of this process that have not come to their end."""

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
        BodyTap.active += 1
        transport.set_protocol(self)

    @staticmethod
    def part() -> int:
        """Bytes that each tap may hold now."""
        return min(MOST_BYTES, max(LEAST_BYTES, QUEUED_BYTES // max(1, BodyTap.active)))

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
        if self._paused and self._queued <= self.part() // 2:
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

    # -- asyncio.BufferedProtocol --------------------------------------------------------------------------------------

    def get_buffer(self, sizehint: int) -> memoryview:
        return _RECEIVED[: self._remaining]

    def buffer_updated(self, nbytes: int) -> None:
        self._remaining -= nbytes
        if not self._discarding:
            self._chunks.append(bytes(_RECEIVED[:nbytes]))
            self._queued += nbytes
        if not self._remaining:
            self._end()
            self._wake()
        else:
            part = self.part()
            if self._queued > part and not self._paused:
                self._paused = True
                self._transport.pause_reading()
            if self._queued > part // 2:
                self._wake()

    def _end(self) -> None:
        """The body is complete: the connection is aiohttp's again."""
        BodyTap.active -= 1
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
        BodyTap.active -= 1
        self._lost = exc or ConnectionResetError("the client left")
        self._connection.tap = None
        self._wake()
        self._connection.connection_lost(exc)
