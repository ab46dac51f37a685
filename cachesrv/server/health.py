"""The room of the server itself.

==========  ===================================================================================================
``/``       200 JSON: what this is
``/healthz``  200 JSON while the process answers at all
``/readyz``   200 JSON when the store works; 503 JSON with ``reason`` when not, or while the worker drains
==========  ===================================================================================================

GET and HEAD only; other methods get 405. None of them needs a token, none tells a secret.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import msgspec
from aiohttp import web

import cachesrv
from cachesrv.server.connections import json_error
from cachesrv.web.room import Handler

READY_SECONDS = 3.0
"""A store that does not answer for this long is not ready."""

Check = Callable[[], Awaitable[None]]
"""Returns when the store is open and its committer answers, raises otherwise."""


class HealthRoom:
    """See the module's docstring. ``draining`` is asked at each ``/readyz``."""

    name = "health"

    def __init__(self, check: Check, draining: Callable[[], bool]) -> None:
        self._check = check
        self._draining = draining
        self._handlers: dict[str, Handler] = {"/": self._root, "/healthz": self._alive, "/readyz": self._ready}

    def match(self, method: str, path: str) -> Handler | None:
        handler = self._handlers.get(path)
        if handler is None or method in ("GET", "HEAD"):
            return handler
        return self._refuse

    async def start(self) -> None:
        return

    async def stop(self) -> None:
        return

    async def _root(self, request: web.BaseRequest) -> web.StreamResponse:
        return _json(200, {"service": "cachesrv", "version": cachesrv.__version__, "ready": "/readyz"})

    async def _alive(self, request: web.BaseRequest) -> web.StreamResponse:
        return _json(200, {"status": "alive"})

    async def _ready(self, request: web.BaseRequest) -> web.StreamResponse:
        reason = "draining" if self._draining() else await self._trouble()
        if reason:
            return _json(503, {"status": "unavailable", "reason": reason})
        return _json(200, {"status": "ready"})

    async def _trouble(self) -> str:
        try:
            async with asyncio.timeout(READY_SECONDS):
                await self._check()
        except TimeoutError:
            return "the committer does not answer"
        except Exception as error:
            return f"the store is unavailable ({type(error).__name__})"
        return ""

    async def _refuse(self, request: web.BaseRequest) -> web.StreamResponse:
        return json_error(405, "method-not-allowed", "only GET and HEAD", Allow="GET, HEAD")


def _json(status: int, value: dict[str, str]) -> web.Response:
    return web.Response(
        status=status,
        body=msgspec.json.encode(value),
        content_type="application/json",
        headers={"Cache-Control": "no-store"},
    )
