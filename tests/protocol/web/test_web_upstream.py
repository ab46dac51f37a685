"""The forwarding proxy: byte for byte, both ways, and only there (T19)."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import io
import os
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from cachesrv.web.bodies import ClientGone
from cachesrv.web.upstream import Upstream, UpstreamFailed
from tests.protocol.web.loopback import Handler, Site, serving

BIG = os.urandom(4_000_000)


@contextlib.asynccontextmanager
async def forwarding(url: str, failures: list[Exception] | None = None) -> AsyncIterator[Site]:
    """A server of ours in front of ``url``."""
    upstream = Upstream(url, ["127.0.0.1"])
    await upstream.start()

    async def handle(request: web.BaseRequest) -> web.StreamResponse:
        try:
            return await upstream.forward(request, idle_receive=20, headers={"x-ms-request-id": "ours"})
        except (UpstreamFailed, ClientGone) as error:
            if failures is not None:
                failures.append(error)
            return web.json_response({"code": "unavailable", "msg": str(error)}, status=502)

    async with serving(handle) as site:
        yield site
    await upstream.stop()


@contextlib.asynccontextmanager
async def in_front_of(handler: Handler) -> AsyncIterator[Site]:
    async with serving(handler) as behind, forwarding(behind.base) as site:
        yield site


@pytest.fixture
async def client() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession(auto_decompress=False, cookie_jar=aiohttp.DummyCookieJar()) as session:
        yield session


async def test_the_upstream_sees_what_the_client_sent(client: aiohttp.ClientSession) -> None:
    seen: dict[str, Any] = {}

    async def handle(request: web.BaseRequest) -> web.StreamResponse:
        seen.update(method=request.method, path=request.raw_path, headers=request.headers.copy())
        seen["body"] = await request.read()
        return web.json_response({"ok": True}, status=201, headers={"X-More": "1"})

    async with serving(handle) as behind, forwarding(behind.base) as site:
        path = "//twirp/a%2Fb/%7e/Create?x=a%2Bb&x=+&y=%20"
        sent = {
            "Authorization": "Bearer abc",
            "Content-Type": "application/json",
            "User-Agent": "@actions/artifact",
            "Accept-Encoding": "br",
            "Connection": "keep-alive, X-Hop",
            "X-Hop": "1",
            "Proxy-Authorization": "Basic secret",
        }
        async with asyncio.timeout(20):
            reader, writer = await asyncio.open_connection("127.0.0.1", site.port)
            lines = "".join(f"{name}: {value}\r\n" for name, value in sent.items())
            writer.write(f"POST {path} HTTP/1.1\r\nHost: cache\r\nContent-Length: 2\r\n{lines}\r\n{{}}".encode())
            head = (await reader.readuntil(b"\r\n\r\n")).decode()
            writer.close()
        assert head.startswith("HTTP/1.1 201 Created\r\n")
        assert "X-More: 1\r\n" in head
        assert "x-ms-request-id: ours\r\n" in head
        assert (seen["method"], seen["path"], seen["body"]) == ("POST", path, b"{}")
        headers = seen["headers"]
        assert headers["Host"] == f"127.0.0.1:{behind.port}"
        for name in ("Authorization", "Content-Type", "User-Agent", "Accept-Encoding"):
            assert headers[name] == sent[name]
        assert headers["Content-Length"] == "2"
        assert not {"X-Hop", "Proxy-Authorization", "Accept", "Transfer-Encoding"} & headers.keys()


@pytest.mark.parametrize("status", [200, 204, 302, 304, 401, 404, 409, 429, 500, 503])
async def test_status_and_body_pass_back(client: aiohttp.ClientSession, status: int) -> None:
    async def handle(request: web.BaseRequest) -> web.StreamResponse:
        body = None if status in (204, 304) else b'{"code":"x"}'
        return web.Response(status=status, body=body, headers={"Location": "http://127.0.0.1:1/", "Retry-After": "7"})

    async with in_front_of(handle) as site, client.get(site.url("/x"), allow_redirects=False) as response:
        assert response.status == status
        assert response.headers["Location"] == "http://127.0.0.1:1/"
        assert response.headers["Retry-After"] == "7"
        assert await response.read() == (b"" if status in (204, 304) else b'{"code":"x"}')


async def test_compressed_answers_stay_compressed(client: aiohttp.ClientSession) -> None:
    packed = gzip.compress(b"artifact" * 1000)

    async def handle(request: web.BaseRequest) -> web.StreamResponse:
        return web.Response(body=packed, headers={"Content-Encoding": "gzip"})

    async with in_front_of(handle) as site, client.get(site.url()) as response:
        assert (response.headers["Content-Encoding"], await response.read()) == ("gzip", packed)
        assert response.headers["Content-Length"] == str(len(packed))


@pytest.mark.parametrize("chunked", [False, True])
async def test_large_bodies_stream_both_ways(client: aiohttp.ClientSession, chunked: bool) -> None:
    async def handle(request: web.BaseRequest) -> web.StreamResponse:
        assert ("Content-Length" in request.headers) is not chunked
        response = web.StreamResponse()
        if not chunked:
            response.content_length = len(BIG)
        await response.prepare(request)
        async for chunk in request.content.iter_any():
            await response.write(chunk)
        return response

    async def pieces() -> AsyncIterator[bytes]:
        yield BIG[:1_000_000]
        yield BIG[1_000_000:]

    async with (
        in_front_of(handle) as site,
        client.put(site.url("/up"), data=pieces() if chunked else io.BytesIO(BIG)) as response,
    ):
        assert await response.read() == BIG
        assert ("Content-Length" in response.headers) is not chunked


async def test_head_and_repeated_headers(client: aiohttp.ClientSession) -> None:
    async def handle(request: web.BaseRequest) -> web.StreamResponse:
        response = web.Response(body=b"12345")
        response.headers.add("Set-Cookie", "a=1")
        response.headers.add("Set-Cookie", "b=2")
        return response

    async with in_front_of(handle) as site:
        async with client.head(site.url()) as response:
            assert response.headers["Content-Length"] == "5"
            assert response.headers.getall("Set-Cookie") == ["a=1", "b=2"]
        async with client.get(site.url()) as response:
            assert await response.read() == b"12345"


async def test_an_upstream_that_is_down_is_a_quick_clear_error(
    client: aiohttp.ClientSession, unused_tcp_port: int
) -> None:
    async with (
        forwarding(f"http://127.0.0.1:{unused_tcp_port}") as site,
        client.post(site.url(), data=b"{}", headers={"Authorization": "Bearer tokentext"}) as response,
    ):
        answer = await response.json()
    assert response.status == 502
    assert answer["code"] == "unavailable"
    assert "upstream" in answer["msg"]
    assert "tokentext" not in answer["msg"]


async def test_an_upstream_that_dies_in_the_middle_breaks_the_answer(client: aiohttp.ClientSession) -> None:
    async def handle(request: web.BaseRequest) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Length": "1000"})
        await response.prepare(request)
        await response.write(b"x" * 100)
        assert request.transport is not None
        request.transport.close()
        return response

    async with in_front_of(handle) as site:
        with pytest.raises(aiohttp.ClientError):
            await (await client.get(site.url())).read()


async def test_a_client_that_breaks_off_leaves_no_whole_request_behind() -> None:
    arrived: asyncio.Queue[object] = asyncio.Queue()
    started = asyncio.Event()

    async def handle(request: web.BaseRequest) -> web.StreamResponse:
        started.set()
        try:
            arrived.put_nowait(await request.read())
        except OSError as error:
            arrived.put_nowait(error)
        return web.Response()

    failures: list[Exception] = []
    async with serving(handle) as behind, forwarding(behind.base, failures) as site:
        _, writer = await asyncio.open_connection("127.0.0.1", site.port)
        writer.write(b"PUT / HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\nabc")
        await asyncio.wait_for(started.wait(), 20)
        writer.close()
        assert isinstance(await asyncio.wait_for(arrived.get(), 20), OSError)
    assert [type(failure) for failure in failures] == [ClientGone]


@pytest.mark.parametrize(
    ("url", "hosts"),
    [
        ("https://evil.example", ["good.example"]),
        ("https://good.example.evil.example", ["good.example", ".good.example"]),
        ("https://evilgood.example", [".good.example"]),
        ("https://good.example", []),
        ("https://good.example", [".good.example"]),
        ("https://user:secret@good.example", ["good.example"]),
        ("ftp://good.example", ["good.example"]),
        ("good.example", ["good.example"]),
        ("https://good.example?x", ["good.example"]),
    ],
)
def test_only_listed_hosts_may_be_upstream(url: str, hosts: list[str]) -> None:
    with pytest.raises(ValueError, match=r"^actions\.upstream: ") as refused:
        Upstream(url, hosts)
    assert "secret" not in str(refused.value)


@pytest.mark.parametrize(
    ("url", "hosts"),
    [
        ("https://good.example/", ["good.example"]),
        ("https://GOOD.example:8443/prefix", ["Good.Example"]),
        ("https://a.b.good.example", [".good.example"]),
    ],
)
def test_listed_hosts(url: str, hosts: list[str]) -> None:
    Upstream(url, hosts)
