"""One worker's HTTP front, over a loopback socket: dispatch, errors, ids, limits, and what a drain does to clients."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass

import pytest
from aiohttp import web
from blockbuster import BlockBuster

from cachesrv.server.application import Application
from cachesrv.server.connections import FIELD_BYTES, HttpServer
from cachesrv.server.health import HealthRoom
from cachesrv.web.bodies import RequestBody
from cachesrv.web.room import Handler

UUID = r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}"


class Room:
    """Answers one path with one handler; ``seen`` are the paths it was asked for."""

    name = "test"

    def __init__(self, handler: Handler, path: str = "/it") -> None:
        self.seen: list[str] = []
        self._handler = handler
        self._path = path

    def match(self, method: str, path: str) -> Handler | None:
        self.seen.append(path)
        return self._handler if path == self._path else None

    async def start(self) -> None:
        return

    async def stop(self) -> None:
        return


@dataclass
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes

    def json(self) -> dict[str, str]:
        assert self.headers["content-type"] == "application/json"
        found = json.loads(self.body)
        assert isinstance(found, dict)
        return found


@dataclass
class Client:
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    async def ask(self, raw: bytes) -> Answer:
        self.writer.write(raw)
        return await self.answer()

    async def answer(self) -> Answer:
        head = (await self.reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
        headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in head[1:] if line)}
        body = await self.reader.readexactly(int(headers.get("content-length", 0)))
        return Answer(int(head[0].split()[1]), headers, body)


Connect = Callable[[], Awaitable[Client]]


@asynccontextmanager
async def serving(*rooms: Room | HealthRoom) -> AsyncIterator[tuple[HttpServer, Connect, Callable[[], None]]]:
    http = HttpServer(Application(rooms), access=False)
    listening = await asyncio.get_running_loop().create_server(http, "127.0.0.1", 0)
    port = listening.sockets[0].getsockname()[1]
    clients: list[Client] = []

    async def connect() -> Client:
        clients.append(Client(*await asyncio.open_connection("127.0.0.1", port)))
        return clients[-1]

    try:
        yield http, connect, listening.close
    finally:
        for client in clients:
            client.writer.close()
        listening.close()
        await http.drain(0, asyncio.Event())


def get(path: str = "/it", *headers: str) -> bytes:
    return "\r\n".join([f"GET {path} HTTP/1.1", "Host: x", *headers, "", ""]).encode()


async def fine(request: web.BaseRequest) -> web.StreamResponse:
    return web.Response(text="fine")


async def test_slashes_are_folded_and_the_first_room_that_matches_answers(loop_guard: BlockBuster) -> None:
    async def other(request: web.BaseRequest) -> web.StreamResponse:
        return web.Response(text="other")

    first, second = Room(fine, "/a/%2Fb"), Room(other, "/a/%2Fb")
    async with serving(first, second) as (_, connect, _close):
        client = await connect()
        answer = await client.ask(get("//a///%2Fb?x=//y"))
        absolute = await client.ask(get("http://host//a/%2Fb"))
    assert (answer.status, answer.body, absolute.body) == (200, b"fine", b"fine")
    assert first.seen == ["/a/%2Fb", "/a/%2Fb"]
    assert second.seen == []


async def test_what_nobody_knows_is_404_in_json_with_an_id() -> None:
    async with serving(Room(fine)) as (_, connect, _close):
        answer = await (await connect()).ask(get("/nobody"))
    assert answer.status == 404
    assert answer.json()["error"] == "not-found"
    assert re.fullmatch(UUID, answer.headers["x-ms-request-id"])
    assert answer.json()["request_id"] == answer.headers["x-ms-request-id"]


async def test_every_answer_has_an_id_and_a_rooms_own_id_stays() -> None:
    async def own(request: web.BaseRequest) -> web.StreamResponse:
        return web.Response(headers={"x-ms-request-id": "mine"})

    async with serving(Room(fine, "/fine"), Room(own, "/own")) as (_, connect, _close):
        client = await connect()
        one, two = await client.ask(get("/fine")), await client.ask(get("/fine"))
        mine = await client.ask(get("/own"))
    assert one.headers["x-ms-request-id"] != two.headers["x-ms-request-id"]
    assert mine.headers["x-ms-request-id"] == "mine"
    assert "aiohttp" not in str(one.headers)


@pytest.mark.parametrize("accept", ["text/html", "*/*"])
async def test_a_failing_room_is_500_in_json_without_html_or_traceback(accept: str) -> None:
    async def boom(request: web.BaseRequest) -> web.StreamResponse:
        raise RuntimeError("/etc/hidden")

    async with serving(Room(boom)) as (_, connect, _close):
        answer = await (await connect()).ask(get("/it", f"Accept: {accept}"))
    assert answer.status == 500
    assert answer.json()["error"] == "internal"
    assert b"hidden" not in answer.body
    assert b"<" not in answer.body


async def test_a_failure_after_the_first_bytes_breaks_the_connection_off() -> None:
    async def half(request: web.BaseRequest) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Length": "100"})
        await response.prepare(request)
        await response.write(b"12345")
        raise RuntimeError("half")

    async with serving(Room(half)) as (_, connect, _close):
        client = await connect()
        client.writer.write(get())
        received = await client.reader.read()
    assert received.endswith(b"\r\n\r\n12345")


@pytest.mark.parametrize(
    ("raw", "status", "error"),
    [
        (b"GARBAGE\r\n\r\n", 400, "bad-request"),
        (b"GET /it HTTP/1.1\r\nHost: x\r\nContent-Length: -5\r\n\r\n", 400, "bad-request"),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n", 400, "bad-request"),
        (b"GET /it HTTP/1.1\r\nHost: x\r\nX: " + b"a" * (FIELD_BYTES + 1000) + b"\r\n\r\n", 431, "headers-too-large"),
    ],
)
async def test_malformed_requests_get_json(raw: bytes, status: int, error: str) -> None:
    async with serving(Room(fine)) as (_, connect, _close):
        client = await connect()
        answer = await client.ask(raw)
        rest = await client.reader.read()
    assert (answer.status, answer.json()["error"], rest) == (status, error, b"")


async def test_a_job_token_of_many_scopes_fits() -> None:
    async with serving(Room(fine)) as (_, connect, _close):
        answer = await (await connect()).ask(get("/it", "Authorization: Bearer " + "t" * 16_000))
    assert answer.status == 200


async def test_expect_is_answered_before_the_body_only_where_the_body_is_wanted() -> None:
    async def take(request: web.BaseRequest) -> web.StreamResponse:
        body = RequestBody(request, idle=5.0)
        async for _ in body:
            pass
        return web.Response(text=str(body.received))

    head = b"PUT %s HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\nExpect: 100-continue\r\n\r\n"
    async with serving(Room(take)) as (_, connect, _close):
        client = await connect()
        client.writer.write(head % b"/it")
        assert await client.reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
        assert (await client.ask(b"1234")).body == b"4"
        refused = await (await connect()).ask(head % b"/nobody")
    assert refused.status == 404


async def test_bodies_are_passed_on_as_they_are() -> None:
    async def take(request: web.BaseRequest) -> web.StreamResponse:
        return web.Response(body=await request.content.read())

    body = b"not gzip at all"
    async with serving(Room(take)) as (_, connect, _close):
        raw = b"PUT /it HTTP/1.1\r\nHost: x\r\nContent-Encoding: gzip\r\nContent-Length: %d\r\n\r\n" % len(body)
        answer = await (await connect()).ask(raw + body)
    assert answer.body == body


async def test_a_drain_finishes_uploads_closes_idle_clients_and_serves_fresh_ones() -> None:
    uploading = asyncio.Event()

    async def take(request: web.BaseRequest) -> web.StreamResponse:
        uploading.set()
        body = RequestBody(request, idle=5.0)
        async for _ in body:
            pass
        return web.Response(text=str(body.received))

    async with serving(Room(take, "/take"), Room(fine)) as (http, connect, stop_accepting):
        idle, upload, fresh = await connect(), await connect(), await connect()
        await idle.ask(get())
        upload.writer.write(b"PUT /take HTTP/1.1\r\nHost: x\r\nContent-Length: 300000\r\n\r\n" + b"x" * 100_000)
        await uploading.wait()
        stop_accepting()
        draining = asyncio.create_task(http.drain(10.0, asyncio.Event()))

        assert await idle.reader.read() == b""
        late = await fresh.ask(get())
        upload.writer.write(b"x" * 200_000)
        done = await upload.answer()

        assert await draining == 0
        assert (late.body, late.headers["connection"]) == (b"fine", "close")
        assert (done.body, done.headers["connection"]) == (b"300000", "close")


async def test_a_drain_that_is_hurried_counts_what_it_cut() -> None:
    started = asyncio.Event()

    async def hang(request: web.BaseRequest) -> web.StreamResponse:
        started.set()
        await asyncio.Event().wait()
        raise AssertionError

    async with serving(Room(hang)) as (http, connect, stop_accepting):
        client = await connect()
        client.writer.write(get())
        await started.wait()
        stop_accepting()
        hurry = asyncio.Event()
        draining = asyncio.create_task(http.drain(60.0, hurry))
        hurry.set()
        assert await draining == 1
        assert await client.reader.read() == b""


async def healthy() -> None:
    return


async def sick() -> None:
    raise RuntimeError("/secret/path")


@pytest.mark.parametrize(
    ("path", "check", "draining", "status"),
    [
        ("/", sick, False, 200),
        ("/healthz", sick, True, 200),
        ("/readyz", healthy, False, 200),
        ("/readyz", sick, False, 503),
        ("/readyz", healthy, True, 503),
    ],
)
async def test_health(path: str, check: Callable[[], Awaitable[None]], draining: bool, status: int) -> None:
    async with serving(HealthRoom(check, lambda: draining)) as (_, connect, _close):
        client = await connect()
        answer = await client.ask(get(path))
        refused = await client.ask(f"DELETE {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
    assert answer.status == status
    assert answer.json()
    assert b"secret" not in answer.body
    assert (refused.status, refused.headers["allow"]) == (405, "GET, HEAD")
