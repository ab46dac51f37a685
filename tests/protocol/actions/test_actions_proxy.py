"""Everything else under the results URL: to the upstream byte for byte, or refused at once."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from aiohttp import web

from cachesrv.config import AuthSettings, Settings
from cachesrv.store.api import CacheStore
from cachesrv.web.upstream import Upstream
from tests.protocol.actions.actions_server import VERSION, ActionsServer, Clock, actions_server, fresh_secret

ARTIFACTS = "twirp/github.actions.results.api.v1.ArtifactService"


@pytest.fixture
async def upstream() -> AsyncIterator[tuple[Upstream, list[tuple[str, str, dict[str, str], bytes]]]]:
    """An upstream that tells what it was asked: (method, path and query, headers, body)."""
    asked: list[tuple[str, str, dict[str, str], bytes]] = []

    async def answer(request: web.BaseRequest) -> web.Response:
        asked.append((request.method, request.raw_path, dict(request.headers), await request.read()))
        return web.Response(
            status=418, body=b'{"ok": true,  "odd":1}', headers={"Content-Type": "application/json", "X-Up": "1"}
        )

    server = web.Server(answer)
    listener = await asyncio.get_running_loop().create_server(server, "127.0.0.1", 0)
    port = listener.sockets[0].getsockname()[1]
    forwarder = Upstream(f"http://127.0.0.1:{port}", ["127.0.0.1"])
    await forwarder.start()
    yield forwarder, asked
    await forwarder.stop()
    listener.close()
    await server.shutdown(0.2)
    await listener.wait_closed()


async def test_t19_artifacts_pass_byte_for_byte(
    store: CacheStore,
    clock: Clock,
    tmp_path: Path,
    upstream: tuple[Upstream, list[tuple[str, str, dict[str, str], bytes]]],
) -> None:
    forwarder, asked = upstream
    async with actions_server(store, clock, tmp_path / "room", upstream=forwarder) as cache:
        for path in (f"{ARTIFACTS}/CreateArtifact?x=%2Fy&a=b+c", "_apis/pipelines/workflows/1/artifacts", "elsewhere"):
            answer = await cache.ask("POST", path, data=b'{"name": "a"}', headers={"Content-Type": "application/json"})
            assert (answer.status, answer.body) == (418, b'{"ok": true,  "odd":1}')
            assert answer.headers["X-Up"] == "1"
            method, raw_path, headers, body = asked.pop()
            assert (method, raw_path, body) == ("POST", f"/{path}", b'{"name": "a"}')
            assert headers["Authorization"] == f"Bearer {cache.token}"
            assert headers["Host"] != cache.url.partition("//")[2]
        assert {seen[0] for seen in cache.recorded.seen} == {"proxy"}
        # The cache's own paths never go up, whatever becomes of them.
        await cache.save("k")
        await cache.twirp("DeleteCacheEntry", {"key": "k"})
        await cache.twirp("GetCacheEntryDownloadURL", {"key": "nope", "version": VERSION})
        await cache.v1("GET", "nothing")
        await cache.ask("GET", "_apis/artifactcache")
        await cache.get(f"{cache.url}/cachesrv/actions-cache/x")
        assert asked == []


async def test_the_shared_secret_never_goes_up(
    store: CacheStore,
    clock: Clock,
    tmp_path: Path,
    upstream: tuple[Upstream, list[tuple[str, str, dict[str, str], bytes]]],
) -> None:
    forwarder, asked = upstream
    secret = fresh_secret()
    settings = Settings(auth=AuthSettings(mode="shared-secret", shared_secret=secret, fallback_repository="r"))
    async with actions_server(store, clock, tmp_path / "room", settings, forwarder) as cache:
        escaped = f"%{ord(secret[0]):02x}{secret[1:]}"
        for path in (f"{secret}/{ARTIFACTS}/CreateArtifact", f"/{escaped}/elsewhere"):
            answer = await cache.ask("POST", path, data=b"{}")
            assert (answer.status, answer.json()["code"]) == (404, "bad_route")
        answer = await cache.with_token(secret).ask("POST", f"{ARTIFACTS}/CreateArtifact", data=b"{}")
        assert (answer.status, answer.json()["code"]) == (404, "bad_route")
        assert asked == []
        await cache.ask(
            "POST", f"{ARTIFACTS}/CreateArtifact", data=b"{}"
        )  # a job's own token is the upstream's business
        assert len(asked) == 1


async def test_t19_without_an_upstream_the_answer_is_quick_and_json(cache: ActionsServer) -> None:
    before = time.monotonic()
    for path in (f"{ARTIFACTS}/CreateArtifact", "_apis/pipelines/1", "twirp/x/y"):
        answer = await cache.ask("POST", path, data=b"{}")
        assert (answer.status, answer.json()["code"]) == (404, "bad_route")
    assert time.monotonic() - before < 5
    answer = await cache.ask("GET", "elsewhere")
    assert answer.status == 404
    assert answer.json()


async def test_t19_an_upstream_that_is_down(store: CacheStore, clock: Clock, tmp_path: Path) -> None:
    forwarder = Upstream("http://127.0.0.1:1", ["127.0.0.1"])
    await forwarder.start()
    async with actions_server(store, clock, tmp_path / "room", upstream=forwarder) as cache:
        answer = await cache.ask("POST", f"{ARTIFACTS}/CreateArtifact", data=b"{}")
        assert (answer.status, answer.json()["code"]) == (503, "unavailable")
        await cache.save("k", b"content")
        assert await cache.load("k") == b"content"
    await forwarder.stop()
