"""/metrics and /api/v1/stats over HTTP: who may ask, what they get, and that the event loop never waits for it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import aiohttp
import msgspec
import pytest
from aiohttp import web
from aiohttp.test_utils import BaseTestServer, RawTestServer
from blockbuster import BlockBuster
from prometheus_client.parser import text_string_to_metric_families

from cachesrv.observe import layout
from cachesrv.observe.counters import SharedRecorder, counters_path, open_counters, read_lag
from cachesrv.observe.report import Report, Sums
from cachesrv.observe.room import ObserveRoom
from cachesrv.store.errors import StoreUnavailable
from cachesrv.web.requests import request_path
from tests.unit.observe.fake_view import FakeView

PATHS = ("/metrics", "/api/v1/stats")


@dataclass
class Reply:
    status: int
    body: bytes
    headers: Mapping[str, str]

    @property
    def error(self) -> str:
        assert self.headers["Content-Type"] == "application/json"
        found = msgspec.json.decode(self.body)
        assert found["message"]
        return str(found["error"])


class Asker:
    def __init__(self, session: aiohttp.ClientSession, server: BaseTestServer) -> None:
        self._session, self._server = session, server

    async def __call__(self, path: str, authorization: str | None = None, method: str = "GET") -> Reply:
        headers = {} if authorization is None else {"Authorization": authorization}
        async with self._session.request(method, self._server.make_url(path), headers=headers) as response:
            return Reply(response.status, await response.read(), response.headers)


@asynccontextmanager
async def serving(room: ObserveRoom) -> AsyncIterator[Asker]:
    async def answer(request: web.BaseRequest) -> web.StreamResponse:
        handler = room.match(request.method, request_path(request.raw_path))
        return await handler(request) if handler else web.Response(status=418)

    await room.start()
    async with RawTestServer(answer) as server, aiohttp.ClientSession() as session:
        yield Asker(session, server)
    await room.stop()


@pytest.fixture
def recorder(tmp_path: Path) -> SharedRecorder:
    open_counters(counters_path(tmp_path), layout.slots_for(1))
    recorder = SharedRecorder(counters_path(tmp_path), layout.worker_slot(0))
    recorder.request("actions", "lookup", "hit", tenant="a/b", seconds=0.001)
    return recorder


async def test_open_on_loopback_without_a_token(
    tmp_path: Path, recorder: SharedRecorder, loop_guard: BlockBuster
) -> None:
    room = ObserveRoom(tmp_path, FakeView(sums=Sums(1, 2, 3, 4, 5, 6)), budget=7, local=True, recorder=recorder)
    async with serving(room) as ask:
        metrics = await ask("/metrics?x=1")
        assert metrics.status == 200
        assert metrics.headers["Content-Type"].startswith("text/plain; version=0.0.4")
        names = {family.name for family in text_string_to_metric_families(metrics.body.decode())}
        assert {"cachesrv_requests", "cachesrv_lookup_duration_seconds", "cachesrv_uploads_in_flight"} <= names
        report = msgspec.json.decode((await ask("/api/v1/stats")).body, type=Report)
        assert report.store.uploads_in_flight == 6
        assert report.windows["all"].total.hits == 1
        head = await ask("/metrics", method="HEAD")
        assert (head.status, head.body) == (200, b"")


@pytest.mark.parametrize("path", PATHS)
async def test_never_open_by_accident(tmp_path: Path, recorder: SharedRecorder, path: str) -> None:
    async with serving(ObserveRoom(tmp_path, FakeView(), budget=0, local=False)) as ask:
        for authorization in (None, "Bearer", "Bearer ", "Bearer x", "Basic Og=="):
            reply = await ask(path, authorization)
            assert (reply.status, reply.error) == (403, "no-admin-token")
            assert b"auth.admin_token" in reply.body


@pytest.mark.parametrize("local", [True, False])
@pytest.mark.parametrize("path", PATHS)
async def test_a_configured_token_is_asked_for(
    tmp_path: Path, recorder: SharedRecorder, path: str, local: bool
) -> None:
    room = ObserveRoom(tmp_path, FakeView(), budget=0, local=local, admin_token="sésame")
    async with serving(room) as ask:
        for authorization in (None, "", "Bearer", "Bearer  ", "Basic sésame", "sésame"):
            reply = await ask(path, authorization)
            assert (reply.status, reply.error) == (401, "token-needed")
            assert reply.headers["WWW-Authenticate"].startswith("Bearer")
        for authorization in ("Bearer s", "Bearer sésame2", "Bearer SÉSAME", "Bearer sésame sésame"):
            reply = await ask(path, authorization)
            assert (reply.status, reply.error) == (403, "token-wrong")
        assert (await ask(path, "Bearer sésame")).status == 200
        assert (await ask(path, "bearer  sésame ")).status == 200


async def test_only_get_and_only_our_paths(tmp_path: Path, recorder: SharedRecorder) -> None:
    async with serving(ObserveRoom(tmp_path, FakeView(), budget=0, local=True)) as ask:
        reply = await ask("/metrics", method="POST")
        assert (reply.status, reply.error, reply.headers["Allow"]) == (405, "method-not-allowed", "GET, HEAD")
        for path in ("/", "/metrics/", "/metricsx", "/api/v1/", "/api/v1/stats/x"):
            assert (await ask(path)).status == 418


async def test_a_sick_store_is_a_503_in_json(tmp_path: Path, recorder: SharedRecorder) -> None:
    class Sick(FakeView):
        def sums(self) -> Sums:
            raise StoreUnavailable("the index cannot be used")

    async with serving(ObserveRoom(tmp_path, Sick(), budget=0, local=True)) as ask:
        for path in PATHS:
            reply = await ask(path)
            assert (reply.status, reply.error) == (503, "unavailable")


async def test_a_loop_that_stands_still_shows(
    tmp_path: Path, recorder: SharedRecorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cachesrv.observe.room.LAG_EVERY_SECONDS", 0.0)
    now = 600.0
    room = ObserveRoom(tmp_path, FakeView(), budget=0, local=True, recorder=recorder, clock=lambda: now)
    async with serving(room) as ask:
        while not read_lag(counters_path(tmp_path), now):
            await ask("/nothing")
