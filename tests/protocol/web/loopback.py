"""A bare aiohttp server on a free loopback port, as the workers run it: no application, no handler cancellation."""

from __future__ import annotations

import contextlib
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass

from aiohttp import web

Handler = Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]


@dataclass(frozen=True)
class Site:
    """Where it listens."""

    base: str
    port: int

    def url(self, path: str = "/") -> str:
        return self.base + path


@contextlib.asynccontextmanager
async def serving(handler: Handler, tls: ssl.SSLContext | None = None) -> AsyncIterator[Site]:
    runner = web.ServerRunner(web.Server(handler), shutdown_timeout=1.0)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0, ssl_context=tls)
    await site.start()
    port = runner.addresses[0][1]
    try:
        yield Site(f"{'https' if tls else 'http'}://127.0.0.1:{port}", port)
    finally:
        await runner.cleanup()
