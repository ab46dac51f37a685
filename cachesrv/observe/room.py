"""The room of the operator: ``GET /metrics`` (Prometheus) and ``GET /api/v1/stats`` (JSON, docs/stats.md).

Who may ask: whoever sends ``Authorization: Bearer <auth.admin_token>``. When no such token is configured: everybody
while every listener is local (loopback or a unix socket), nobody otherwise.

============================  ======  ====================================================
request                       answer  and the client
============================  ======  ====================================================
allowed                       200     reads it
no or malformed Bearer token  401     shows "send Authorization: Bearer ..."
wrong token                   403     shows "not the admin token"
no token configured, open     403     shows which setting to make
another method                405     is a mistake of the caller
the store cannot be read      503     tries again later (Prometheus marks the target as down)
============================  ======  ====================================================

Both answers read files and the index: they are made in a thread, one at a time.
"""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Final

import msgspec
import structlog
from aiohttp import hdrs, web

from cachesrv.observe.counters import SharedRecorder
from cachesrv.observe.metrics import CONTENT_TYPE, exposition
from cachesrv.observe.report import StoreView, collect
from cachesrv.store.errors import StoreError
from cachesrv.web.requests import request_path
from cachesrv.web.room import Handler

LAG_EVERY_SECONDS: Final = 0.5
"""How often the event loop's lag is measured; a stall shorter than this may go unseen."""
REALM: Final = 'Bearer realm="cachesrv"'

_log = structlog.get_logger("cachesrv.observe")


class ObserveRoom:
    """``local``: every listener is on loopback or a unix socket. ``budget``: ``store.max_size``. ``recorder``: when
    given, the lag of this process's event loop is measured into it."""

    name = "observe"

    def __init__(
        self,
        root: Path,
        view: StoreView,
        *,
        budget: int,
        local: bool,
        admin_token: str = "",
        recorder: SharedRecorder | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._root = root
        self._view = view
        self._budget = budget
        self._local = local
        self._token = admin_token.encode()
        self._recorder = recorder
        self._clock = clock
        self._one_at_a_time = asyncio.Lock()
        self._meter: asyncio.Task[None] | None = None
        self._answers: dict[str, Callable[[], Awaitable[web.Response]]] = {
            "/metrics": self._metrics,
            "/api/v1/stats": self._stats,
        }

    def match(self, method: str, path: str) -> Handler | None:
        return self._answer if path in self._answers else None

    async def start(self) -> None:
        if self._recorder is not None:
            self._meter = asyncio.create_task(self._measure_lag(self._recorder), name="loop-lag")

    async def stop(self) -> None:
        if self._meter is not None:
            self._meter.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._meter
            self._meter = None

    async def _measure_lag(self, recorder: SharedRecorder) -> None:
        loop = asyncio.get_running_loop()
        while True:
            due = loop.time() + LAG_EVERY_SECONDS
            await asyncio.sleep(LAG_EVERY_SECONDS)
            recorder.lagged(max(loop.time() - due, 0.0), self._clock())

    async def _answer(self, request: web.BaseRequest) -> web.StreamResponse:
        refusal = self._refusal(request)
        if refusal is not None:
            return refusal
        if request.method not in (hdrs.METH_GET, hdrs.METH_HEAD):
            return _error(405, "method-not-allowed", "only GET is answered here", {hdrs.ALLOW: "GET, HEAD"})
        try:
            async with self._one_at_a_time:
                return await self._answers[request_path(request.raw_path)]()
        except (StoreError, OSError) as error:
            _log.warning("stats_unavailable", error=str(error))
            return _error(503, "unavailable", "the statistics cannot be read now")

    def _refusal(self, request: web.BaseRequest) -> web.Response | None:
        if not self._token:
            if self._local:
                return None
            return _error(
                403,
                "no-admin-token",
                "closed: this server listens beyond loopback and auth.admin_token is not set",
            )
        scheme, _, token = request.headers.get(hdrs.AUTHORIZATION, "").partition(" ")
        if scheme.lower() != "bearer" or not token.strip():
            return _error(
                401,
                "token-needed",
                "send Authorization: Bearer <auth.admin_token>",
                {hdrs.WWW_AUTHENTICATE: REALM},
            )
        if not hmac.compare_digest(token.strip().encode("utf-8", "surrogateescape"), self._token):
            return _error(403, "token-wrong", "this is not the admin token")
        return None

    async def _metrics(self) -> web.Response:
        body = await asyncio.to_thread(exposition, self._root, self._view, budget=self._budget, now=self._clock())
        return web.Response(body=body, headers={hdrs.CONTENT_TYPE: CONTENT_TYPE, hdrs.CACHE_CONTROL: "no-store"})

    async def _stats(self) -> web.Response:
        def made() -> bytes:
            return msgspec.json.encode(collect(self._root, self._view, budget=self._budget, now=self._clock()))

        return web.Response(
            body=await asyncio.to_thread(made),
            headers={hdrs.CONTENT_TYPE: "application/json", hdrs.CACHE_CONTROL: "no-store"},
        )


def _error(status: int, code: str, message: str, headers: dict[str, str] | None = None) -> web.Response:
    return web.Response(
        status=status,
        body=msgspec.json.encode({"error": code, "message": message}),
        headers={hdrs.CONTENT_TYPE: "application/json", **(headers or {})},
    )
