"""Request bodies over real sockets: whole, chunked, too large, stalled, broken off."""

from __future__ import annotations

import asyncio
import io
import os
from collections.abc import AsyncIterator

import aiohttp
import pytest
from aiohttp import web

from cachesrv.web.bodies import BodyTooLarge, ClientGone, RequestBody, read_document
from tests.protocol.web.loopback import Site, serving

CONTENT = os.urandom(3_000_001)


class Room:
    """Reads each body and keeps what came of it."""

    def __init__(self) -> None:
        self.idle = 30.0
        self.limit: int | None = None
        self.started = asyncio.Event()
        self.outcomes: asyncio.Queue[bytes | Exception] = asyncio.Queue()

    async def handle(self, request: web.BaseRequest) -> web.StreamResponse:
        self.started.set()
        try:
            body = RequestBody(request, idle=self.idle, limit=self.limit)
            got = b"".join([chunk async for chunk in body])
            assert body.received == len(got)
            self.outcomes.put_nowait(got)
        except (BodyTooLarge, ClientGone) as error:
            self.outcomes.put_nowait(error)
            return web.Response(status=413)
        return web.Response(status=201)

    async def outcome(self) -> bytes | Exception:
        return await asyncio.wait_for(self.outcomes.get(), 20)


@pytest.fixture
def room() -> Room:
    return Room()


@pytest.fixture
async def site(room: Room) -> AsyncIterator[Site]:
    async with serving(room.handle) as site:
        yield site


@pytest.fixture
async def client() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession() as session:
        yield session


async def pieces() -> AsyncIterator[bytes]:
    for start in range(0, len(CONTENT), 100_000):
        yield CONTENT[start : start + 100_000]


async def talk(site: Site, text: bytes) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    reader, writer = await asyncio.open_connection("127.0.0.1", site.port)
    writer.write(text)
    await writer.drain()
    return reader, writer


async def test_a_body_with_a_length(room: Room, site: Site, client: aiohttp.ClientSession) -> None:
    async with client.put(site.url(), data=io.BytesIO(CONTENT)) as response:
        assert response.status == 201
    assert await room.outcome() == CONTENT


async def test_a_chunked_body(room: Room, site: Site, client: aiohttp.ClientSession) -> None:
    async with client.put(site.url(), data=pieces()) as response:
        assert response.status == 201
    assert await room.outcome() == CONTENT


async def test_no_body(room: Room, site: Site, client: aiohttp.ClientSession) -> None:
    async with client.get(site.url()) as response:
        assert response.status == 201
    async with client.put(site.url(), data=b"") as response:
        assert response.status == 201
    assert (await room.outcome(), await room.outcome()) == (b"", b"")


async def test_expect_continue_is_answered_when_the_body_is_wanted(room: Room, site: Site) -> None:
    reader, writer = await talk(site, b"PUT / HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\nExpect: 100-continue\r\n\r\n")
    assert await reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
    writer.write(b"abc")
    assert (await reader.readline()).startswith(b"HTTP/1.1 201")
    assert await room.outcome() == b"abc"
    writer.close()


async def test_a_refused_body_is_never_asked_for(room: Room, site: Site) -> None:
    room.limit = 2
    reader, writer = await talk(site, b"PUT / HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\nExpect: 100-continue\r\n\r\n")
    assert (await reader.readline()).startswith(b"HTTP/1.1 413")
    assert isinstance(await room.outcome(), BodyTooLarge)
    writer.close()


async def test_a_chunked_body_over_the_limit(room: Room, site: Site) -> None:
    room.limit = 4
    _, writer = await talk(site, b"PUT / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nabcde\r\n")
    refused = await room.outcome()
    assert isinstance(refused, BodyTooLarge)
    assert refused.limit == 4
    writer.close()


@pytest.mark.parametrize(
    "text",
    [
        b"PUT / HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\nabc",
        b"PUT / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n",
        b"PUT / HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\n",
    ],
)
@pytest.mark.parametrize("how", ["close", "reset", "stall", "half-close"])
async def test_half_a_body_is_never_taken_for_a_whole(room: Room, site: Site, text: bytes, how: str) -> None:
    room.idle = 0.2 if how == "stall" else 30.0
    _, writer = await talk(site, text)
    if how == "close":
        writer.close()
    elif how == "reset":
        writer.transport.abort()
    elif how == "half-close":
        writer.write_eof()
    outcome = await room.outcome()
    assert isinstance(outcome, ClientGone)
    writer.close()


async def test_a_malformed_chunk_is_a_broken_body(room: Room, site: Site) -> None:
    room.idle = 0.2
    _, writer = await talk(site, b"PUT / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n")
    await room.started.wait()
    writer.write(b"zz\r\n")
    assert isinstance(await room.outcome(), ClientGone)
    writer.close()


async def test_documents(client: aiohttp.ClientSession) -> None:
    async def handle(request: web.BaseRequest) -> web.StreamResponse:
        try:
            return web.Response(body=await read_document(request, 10))
        except BodyTooLarge as error:
            return web.Response(status=413, text=str(error))

    async with serving(handle) as site:
        async with client.post(site.url(), data=b"0123456789") as response:
            assert await response.read() == b"0123456789"
        async with client.post(site.url(), data=b"0123456789a") as response:
            assert (response.status, await response.text()) == (413, "the request body is larger than 10 bytes")
