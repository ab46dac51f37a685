"""Large bodies that pass the parser by, on the connections of the real server."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from aiohttp import web

from cachesrv.server.connections import Connection, HttpServer
from cachesrv.web.bodies import ClientGone, RequestBody
from cachesrv.web.bodytap import MOST_BYTES, RECEIVE_BYTES, BodyTap

CONTENT = os.urandom(5_000_003)


class Reader:
    """A handler that reads bodies as it is told, and keeps what came of it."""

    def __init__(self) -> None:
        self.idle = 30.0
        self.go = asyncio.Event()
        self.go.set()
        self.refuse = False
        self.tapped = 0
        self.outcomes: asyncio.Queue[bytes | Exception] = asyncio.Queue()
        self.connection: Connection | None = None

    async def handle(self, request: web.BaseRequest) -> web.StreamResponse:
        assert isinstance(request.protocol, Connection)
        self.connection = request.protocol
        got = []
        try:
            async for chunk in RequestBody(request, idle=self.idle):
                self.tapped += self.connection.tap is not None
                got.append(chunk)
                if self.refuse and sum(map(len, got)) > 1_000_000:
                    return web.Response(status=503)
                if sum(map(len, got)) > 1_000_000:
                    await self.go.wait()
        except ClientGone as error:
            self.outcomes.put_nowait(error)
            return web.Response(status=400)
        self.outcomes.put_nowait(b"".join(got))
        return web.Response(status=201, text=str(sum(map(len, got))))

    async def outcome(self) -> bytes | Exception:
        return await asyncio.wait_for(self.outcomes.get(), 20)


@asynccontextmanager
async def connected(reader: Reader) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    runner = web.ServerRunner(HttpServer(reader.handle, access=False), shutdown_timeout=1.0)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    incoming, outgoing = await asyncio.open_connection("127.0.0.1", runner.addresses[0][1])
    try:
        yield incoming, outgoing
    finally:
        outgoing.close()
        await runner.cleanup()


def put(content: bytes) -> bytes:
    return b"PUT / HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(content) + content


async def status(incoming: asyncio.StreamReader) -> int:
    head = await asyncio.wait_for(incoming.readuntil(b"\r\n\r\n"), 20)
    length = next((line for line in head.split(b"\r\n") if line.lower().startswith(b"content-length")), b": 0")
    await incoming.readexactly(int(length.split(b":")[1]))
    return int(head.split()[1])


async def test_what_follows_a_large_body_is_the_next_request() -> None:
    reader = Reader()
    async with connected(reader) as (incoming, outgoing):
        outgoing.write(put(CONTENT) + put(b"small") + put(CONTENT[::-1]) + b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        assert [await status(incoming) for _ in range(4)] == [201] * 4
        assert [await reader.outcome() for _ in range(4)] == [CONTENT, b"small", CONTENT[::-1], b""]
    assert reader.tapped > 0


async def test_after_a_refusal_in_the_middle_the_connection_goes_on() -> None:
    reader = Reader()
    reader.refuse = True
    async with connected(reader) as (incoming, outgoing):
        outgoing.write(put(CONTENT))
        assert await status(incoming) == 503
        reader.refuse = False
        outgoing.write(put(CONTENT))
        assert await status(incoming) == 201
        assert await reader.outcome() == CONTENT


@pytest.mark.parametrize("how", ["close", "reset", "stall", "half-close"])
async def test_half_a_large_body_is_never_taken_for_a_whole(how: str) -> None:
    reader = Reader()
    reader.idle = 0.2 if how == "stall" else 30.0
    async with connected(reader) as (_, outgoing):
        outgoing.write(put(CONTENT)[:-1])
        await outgoing.drain()
        if how == "close":
            outgoing.close()
        elif how == "reset":
            outgoing.transport.abort()
        elif how == "half-close":
            outgoing.write_eof()
        assert isinstance(await reader.outcome(), ClientGone)
    assert BodyTap.active == 0


async def test_a_slow_sender_is_not_a_stalled_one() -> None:
    reader = Reader()
    reader.idle = 0.3
    text = put(CONTENT)
    async with connected(reader) as (incoming, outgoing):
        outgoing.write(text[:-10])
        for byte in range(10):
            await asyncio.sleep(0.1)  # the client's own pace, a third of what is allowed
            outgoing.write(text[len(text) - 10 + byte : len(text) - 9 + byte])
        assert await status(incoming) == 201
        assert await reader.outcome() == CONTENT


async def test_a_slow_consumer_stops_the_sender() -> None:
    reader = Reader()
    reader.go.clear()
    async with connected(reader) as (incoming, outgoing):
        big = CONTENT * 8
        outgoing.write(put(big))
        while reader.connection is None or reader.connection.tap is None or not reader.connection.tap._paused:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        # What one receive may add comes on top.
        assert reader.connection.tap._queued <= MOST_BYTES + RECEIVE_BYTES
        reader.go.set()
        assert await status(incoming) == 201
        assert await reader.outcome() == big
    assert BodyTap.active == 0
