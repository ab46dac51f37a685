"""How a protocol room plugs into the server: it says which requests are its own, and answers them.

The server asks each room in turn; the first that matches answers. A room owns its dialect: whatever it matched, hits
and errors alike, it answers in that dialect and records.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Protocol

from aiohttp import web

Handler = Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]


class Room(Protocol):
    """One protocol. Built once a worker, after the fork, on its event loop."""

    name: str

    def match(self, method: str, path: str) -> Handler | None:
        """The handler of this request, or None when it is not ours. ``path`` is the raw (still percent-encoded) path
        with repeated slashes folded into one. Must be cheap: it runs for every request."""
        ...

    async def start(self) -> None:
        """Open sessions, start background tasks."""
        ...

    async def stop(self) -> None:
        """Close them. Requests have drained before this is called."""
        ...
