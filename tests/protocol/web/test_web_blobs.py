"""Blob responses over real sockets: exact bytes, ranges, slow and vanished clients, damage (T5, T15)."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import ssl
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Literal

import aiohttp
import pytest
from aiohttp import web

from cachesrv.store.api import BlobReader, FileWindow, Window
from cachesrv.store.errors import BlobDamaged
from cachesrv.store.model import BlobId, ByteRange
from cachesrv.web.blobs import BlobResponse, send_blob
from tests.protocol.web.loopback import Site, serving

WINDOW = 700_001
CONTENT = os.urandom(5_000_003)
Form = Literal["file", "memory", "mixed"]


class Blob:
    """A reader over a file: windows raw, in memory, or in turns; may be damaged from an offset on."""

    def __init__(self, path: Path, form: Form = "file", damaged_at: int | None = None) -> None:
        self.blob = BlobId(1)
        self.size = path.stat().st_size
        self.closed = False
        self._form = form
        self._damaged_at = damaged_at
        self._fd = os.open(path, os.O_RDONLY)

    async def windows(self, wanted: ByteRange | None = None) -> AsyncGenerator[Window, None]:
        wanted = wanted or ByteRange(0, self.size)
        try:
            for number, start in enumerate(range(wanted.start, wanted.stop, WINDOW)):
                length = min(WINDOW, wanted.stop - start)
                if self._damaged_at is not None and start + length > self._damaged_at:
                    raise BlobDamaged("a piece failed its checksum")
                if self._form == "file" or (self._form == "mixed" and number % 2):
                    yield FileWindow(self._fd, start, length)
                else:
                    yield os.pread(self._fd, length, start)
        finally:
            self.closed = True

    async def __aenter__(self) -> BlobReader:
        return self

    async def __aexit__(self, *exc: object) -> None:
        os.close(self._fd)


class Room:
    """A handler that answers every request with one blob and keeps what ``send_blob`` returned."""

    def __init__(self) -> None:
        self.blob: Blob
        self.idle = 30.0
        self.answers: asyncio.Queue[BlobResponse | BlobDamaged] = asyncio.Queue()

    async def handle(self, request: web.BaseRequest) -> web.StreamResponse:
        try:
            answer = await send_blob(
                request, self.blob, etag="tag-1", headers={"x-ms-blob-type": "BlockBlob"}, idle_send=self.idle
            )
        except BlobDamaged as damage:
            self.answers.put_nowait(damage)
            return web.Response(status=404)
        self.answers.put_nowait(answer)
        return answer

    async def answered(self) -> BlobResponse:
        answer = await asyncio.wait_for(self.answers.get(), 20)
        assert isinstance(answer, BlobResponse)
        return answer


Serve = Callable[..., Awaitable[Site]]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "blob"
    path.write_bytes(CONTENT)
    return path


@pytest.fixture
def room() -> Room:
    return Room()


@pytest.fixture
async def serve(room: Room) -> AsyncIterator[Serve]:
    async with contextlib.AsyncExitStack() as stack:

        async def start(blob: Blob, tls: ssl.SSLContext | None = None) -> Site:
            room.blob = blob
            site = await stack.enter_async_context(serving(room.handle, tls))
            stack.push_async_exit(blob)
            return site

        yield start


@pytest.fixture
async def client() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession(auto_decompress=False) as session:
        yield session


@pytest.fixture(params=["file", "memory", "mixed"])
def form(request: pytest.FixtureRequest) -> Form:
    chosen: Form = request.param
    return chosen


async def test_the_whole_blob_in_every_form(
    serve: Serve, room: Room, client: aiohttp.ClientSession, path: Path, form: Form
) -> None:
    server = await serve(Blob(path, form))
    for _ in range(2):  # twice over one connection: framing holds
        async with client.get(server.url(), headers={"Accept-Encoding": "gzip, zstd"}) as response:
            assert response.status == 200
            assert await response.read() == CONTENT
            assert response.headers["Content-Length"] == str(len(CONTENT))
            assert response.headers["Content-Type"] == "application/octet-stream"
            assert response.headers["Accept-Ranges"] == "bytes"
            assert response.headers["ETag"] == '"tag-1"'
            assert response.headers["x-ms-blob-type"] == "BlockBlob"
            assert "Content-Encoding" not in response.headers
            assert "Transfer-Encoding" not in response.headers
        answer = await room.answered()
        assert (answer.outcome, answer.bytes_out, answer.body_length > 0) == ("ok", len(CONTENT), True)
    assert room.blob.closed


@pytest.mark.parametrize(
    ("headers", "start", "stop"),
    [
        ({"Range": "bytes=0-0"}, 0, 1),
        ({"Range": f"bytes={WINDOW - 1}-{WINDOW}"}, WINDOW - 1, WINDOW + 1),
        ({"x-ms-range": "bytes=1000000-"}, 1_000_000, len(CONTENT)),
        ({"Range": "bytes=0-1", "x-ms-range": "bytes=2000000-2999999"}, 2_000_000, 3_000_000),
        ({"Range": "bytes=-5"}, len(CONTENT) - 5, len(CONTENT)),
        ({"Range": f"bytes=4000000-{10**12}"}, 4_000_000, len(CONTENT)),
    ],
)
async def test_ranges(
    serve: Serve, client: aiohttp.ClientSession, path: Path, form: Form, headers: dict[str, str], start: int, stop: int
) -> None:
    server = await serve(Blob(path, form))
    async with client.get(server.url(), headers=headers) as response:
        assert response.status == 206
        assert await response.read() == CONTENT[start:stop]
        assert response.headers["Content-Range"] == f"bytes {start}-{stop - 1}/{len(CONTENT)}"
        assert response.headers["Content-Length"] == str(stop - start)


@pytest.mark.parametrize(
    ("headers", "status", "outcome"),
    [
        ({"x-ms-range": f"bytes={len(CONTENT)}-"}, 416, "invalid"),
        ({"If-Match": '"other"'}, 412, "invalid"),
        ({"If-None-Match": '"tag-1"'}, 304, "ok"),
    ],
)
async def test_answers_without_a_body(
    serve: Serve,
    room: Room,
    client: aiohttp.ClientSession,
    path: Path,
    headers: dict[str, str],
    status: int,
    outcome: str,
) -> None:
    server = await serve(Blob(path))
    async with client.get(server.url(), headers=headers) as response:
        assert response.status == status
        assert await response.read() == b""
        if status == 416:
            assert response.headers["Content-Range"] == f"bytes */{len(CONTENT)}"
    answer = await room.answered()
    assert (answer.outcome, answer.bytes_out) == (outcome, 0)


async def test_head_has_the_headers_and_no_body(
    serve: Serve, room: Room, client: aiohttp.ClientSession, path: Path
) -> None:
    server = await serve(Blob(path))
    async with client.head(server.url()) as response:
        assert (response.status, response.headers["Content-Length"]) == (200, str(len(CONTENT)))
    async with client.get(server.url(), headers={"Range": "bytes=1-2"}) as response:
        assert await response.read() == CONTENT[1:3], "the connection is still in step"
    assert (await room.answered()).bytes_out == 0


async def test_an_empty_blob(serve: Serve, client: aiohttp.ClientSession, tmp_path: Path) -> None:
    (empty := tmp_path / "empty").touch()
    server = await serve(Blob(empty))
    async with client.get(server.url()) as response:
        assert (response.status, response.headers["Content-Length"], await response.read()) == (200, "0", b"")
    async with client.get(server.url(), headers={"Range": "bytes=0-0"}) as response:
        assert (response.status, response.headers["Content-Range"]) == (416, "bytes */0")


async def test_damage_before_the_first_byte_is_the_rooms_to_answer(
    serve: Serve, client: aiohttp.ClientSession, path: Path, form: Form
) -> None:
    server = await serve(Blob(path, form, damaged_at=10))
    async with client.get(server.url()) as response:
        assert response.status == 404


async def test_damage_in_the_middle_breaks_the_connection(
    serve: Serve, room: Room, client: aiohttp.ClientSession, path: Path, form: Form
) -> None:
    server = await serve(Blob(path, form, damaged_at=3_000_000))
    got = bytearray()
    with pytest.raises(aiohttp.ClientError):
        await _collect(client, server, got)
    assert len(got) < len(CONTENT)
    assert CONTENT.startswith(got)
    answer = await room.answered()
    assert (answer.outcome, answer.bytes_out) == ("damaged", 3_000_000 // WINDOW * WINDOW)


async def test_a_file_that_got_shorter_breaks_the_connection(
    serve: Serve, room: Room, client: aiohttp.ClientSession, path: Path, form: Form
) -> None:
    server = await serve(Blob(path, form))
    os.truncate(path, 2_000_000)
    with pytest.raises(aiohttp.ClientError):
        async with client.get(server.url()) as response:
            await response.read()
    assert (await room.answered()).outcome == "damaged"


async def _collect(client: aiohttp.ClientSession, server: Site, into: bytearray) -> None:
    async with client.get(server.url()) as response:
        async for chunk in response.content.iter_any():
            into += chunk


async def _ask(server: Site, buffer: int = 4096) -> socket.socket:
    """A request over a socket that takes little until it is read."""
    raw = socket.socket()
    raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer)
    raw.setblocking(False)
    loop = asyncio.get_running_loop()
    await loop.sock_connect(raw, ("127.0.0.1", server.port))
    await loop.sock_sendall(raw, b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
    return raw


@pytest.fixture
def big(tmp_path: Path) -> Path:
    """More than loopback socket buffers swallow."""
    path = tmp_path / "big"
    with path.open("wb") as file:
        file.truncate(64 * 1024 * 1024)
    return path


async def test_a_client_that_takes_nothing_is_dropped(serve: Serve, room: Room, big: Path, form: Form) -> None:
    room.idle = 0.2
    server = await serve(Blob(big, form))
    raw = await _ask(server)
    answer = await room.answered()
    assert answer.outcome == "aborted"
    assert answer.bytes_out < 64 * 1024 * 1024
    raw.close()


async def test_a_client_that_leaves_is_noticed(serve: Serve, room: Room, big: Path, form: Form) -> None:
    server = await serve(Blob(big, form))
    raw = await _ask(server)
    await asyncio.get_running_loop().sock_recv(raw, 100)
    raw.close()
    assert (await room.answered()).outcome == "aborted"


async def test_a_client_that_reads_slowly_gets_everything(serve: Serve, room: Room, path: Path, form: Form) -> None:
    room.idle = 5.0
    server = await serve(Blob(path, form))
    raw = await _ask(server)
    loop = asyncio.get_running_loop()
    got = bytearray()
    while len(got) < len(CONTENT):
        chunk = await loop.sock_recv(raw, 16_384)
        assert chunk, "closed early"
        got += chunk
        await asyncio.sleep(0)
    raw.close()
    assert (await room.answered()).outcome == "ok"


async def test_over_tls_the_bytes_are_the_same(
    serve: Serve, room: Room, path: Path, form: Form, tls: tuple[ssl.SSLContext, ssl.SSLContext]
) -> None:
    server_side, client_side = tls
    server = await serve(Blob(path, form), server_side)
    connector = aiohttp.TCPConnector(ssl=client_side)
    async with (
        aiohttp.ClientSession(connector=connector) as session,
        session.get(server.url(), headers={"Range": "bytes=5-"}) as response,
    ):
        assert await response.read() == CONTENT[5:]
    assert (await room.answered()).bytes_out == len(CONTENT) - 5
