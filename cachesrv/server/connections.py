"""aiohttp's low-level server, set up for us: limits, JSON for every error, a request id on every answer, a kind drain.

Uses three seams of aiohttp that are not documented (pinned below 4): ``RequestHandler.handle_error``,
``BaseRequest._prepare_hook`` and ``RequestHandler._waiter``. aiohttp's own shutdown is not used for draining: it stops
reading from busy connections at once, which would break off uploads.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Any, Final

import msgspec
from aiohttp import hdrs, web
from aiohttp.abc import AbstractStreamWriter
from aiohttp.http import SERVER_SOFTWARE
from aiohttp.http_exceptions import LineTooLong
from aiohttp.http_parser import HttpRequestParser, RawRequestMessage
from aiohttp.streams import StreamReader
from aiohttp.web_protocol import RequestHandler

from cachesrv.server.logs import ACCESS, REQUEST_ID, AccessLog
from cachesrv.web.bodytap import Tapped
from cachesrv.web.requests import new_request_id

READ_BUFFER: Final = 64 * 1024
"""Bytes of a body that the parser may hold for a consumer, and as many again, before the socket is not read. Large
bodies pass the parser by (``web.bodytap``): with 256 KiB here 45 uploads at once began with 45 times 512 KiB."""
KEEP_ALIVE_SECONDS: Final = 75.0
"""An idle connection, or one whose request head does not come, is closed after this; longer than what reverse proxies
keep theirs."""
LINE_BYTES: Final = 64 * 1024
"""Longest request line: a v1 lookup names ten keys of 512 characters, at most 9 bytes each when percent-encoded."""
FIELD_BYTES: Final = 32 * 1024
"""Longest header: job tokens carry many scopes."""
MAX_HEADERS: Final = 128
"""Header fields of one request."""
LINGER_SECONDS: Final = 5.0
"""How long the rest of a refused body is read and dropped, so that the client sees the answer and no reset."""
FRESH_GRACE_SECONDS: Final = 1.0
"""While draining, a connection that has not sent its first request yet gets this long."""
DRAIN_POLL_SECONDS: Final = 0.02
CUT_SECONDS: Final = 0.2
"""How long requests that are cut off at the end of a drain get to notice."""

_log = logging.getLogger("cachesrv.server")


def json_error(status: int, error: str, message: str, **headers: str) -> web.Response:
    """An answer in no protocol's dialect; ``error`` is a word for programs, ``message`` for people."""
    request_id = new_request_id()
    body = msgspec.json.encode({"error": error, "message": message, "request_id": request_id})
    return web.Response(
        status=status, body=body, content_type="application/json", headers={REQUEST_ID: request_id, **headers}
    )


class Request(web.BaseRequest):
    """A request whose answer always carries a request id, and ``Connection: close`` while the server drains."""

    async def _prepare_hook(self, response: web.StreamResponse) -> None:
        if REQUEST_ID not in response.headers:
            response.headers[REQUEST_ID] = new_request_id()
        if response.headers.get(hdrs.SERVER) == SERVER_SOFTWARE:
            response.headers[hdrs.SERVER] = "cachesrv"
        protocol = self._protocol
        if isinstance(protocol, Connection) and protocol.server.draining:
            response.force_close()
            response.headers[hdrs.CONNECTION] = "close"


class Connection(Tapped):
    """One client connection."""

    __slots__ = ("opened", "server")

    def __init__(self, server: HttpServer, **limits: Any) -> None:
        super().__init__(server, loop=asyncio.get_running_loop(), **limits)
        self.server = server
        self.opened = self._loop.time()
        self.tap = None

    def fresh_parser(self) -> None:
        self._parser = HttpRequestParser(
            self,
            self._loop,
            READ_BUFFER,
            max_line_size=LINE_BYTES,
            max_field_size=FIELD_BYTES,
            max_headers=MAX_HEADERS,
            payload_exception=web.RequestPayloadError,
            auto_decompress=False,
            max_msg_queue_size=self._max_msg_queue_size,
        )

    async def finish_response(
        self, request: web.BaseRequest, resp: web.StreamResponse, start_time: float | None
    ) -> tuple[web.StreamResponse, bool]:
        if self.tap is not None:
            self.tap.discard()
        return await super().finish_response(request, resp, start_time)

    def idle(self, now: float) -> bool:
        """Waiting for a request that may never come; a fresh connection counts as busy for its grace."""
        if self._waiter is None or self._messages or self._request_in_progress:
            return False
        return self._request_count > 0 or now - self.opened > FRESH_GRACE_SECONDS

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """Malformed requests (4xx) and what escaped everything else (5xx), as JSON; closes the connection."""
        if isinstance(exc, ConnectionError):
            raise exc
        if status < 500:
            _log.debug("malformed request: %s", type(exc).__name__)
        else:
            _log.error("request failed", exc_info=exc)
        if request.writer.output_size > 0:
            raise ConnectionError("the answer had begun")
        if isinstance(exc, LineTooLong):
            status, error, text = 431, "headers-too-large", "the request line or a header is too long"
        elif status < 500:
            error, text = "bad-request", "this is not a well-formed HTTP request"
        else:
            error, text = "internal", "the server failed on this request"
        response = json_error(status, error, text)
        response.force_close()
        return response


class HttpServer(web.Server):
    """The protocol factory of every listener of a worker. ``access``: one log line for every answered request."""

    def __init__(self, handler: Any, *, access: bool = True) -> None:
        super().__init__(
            handler,
            request_factory=self._request,
            keepalive_timeout=KEEP_ALIVE_SECONDS,
            read_bufsize=READ_BUFFER,
            max_line_size=LINE_BYTES,
            max_field_size=FIELD_BYTES,
            max_headers=MAX_HEADERS,
            lingering_time=LINGER_SECONDS,
            auto_decompress=False,
            access_log=logging.getLogger(ACCESS) if access else None,
            access_log_class=AccessLog,
        )
        self.draining = False

    def __call__(self) -> Connection:
        return Connection(self, **self._kwargs)

    def _request(
        self,
        message: RawRequestMessage,
        payload: StreamReader,
        protocol: RequestHandler,
        writer: AbstractStreamWriter,
        task: asyncio.Task[None],
    ) -> web.BaseRequest:
        return Request(message, payload, protocol, writer, task, self._loop)

    async def drain(self, seconds: float, hurry: asyncio.Event) -> int:
        """Let requests in progress finish, close what is idle, then cut off what is left after ``seconds`` or when
        ``hurry`` is set. Returns how many were cut off. The listening sockets must be closed before."""
        self.draining = True
        deadline = self._loop.time() + seconds
        while self._connections and self._loop.time() < deadline and not hurry.is_set():
            now = self._loop.time()
            for connection in self.connections:
                if isinstance(connection, Connection) and connection.idle(now):
                    connection.force_close()
            await asyncio.sleep(DRAIN_POLL_SECONDS)
        cut = sum(connection._request_in_progress for connection in self.connections)
        await self.shutdown(CUT_SECONDS)
        return cut
