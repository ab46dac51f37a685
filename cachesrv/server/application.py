"""Every request comes in here: find the room whose it is, let it answer, and catch what no room should let out.

Own answers: 404 in JSON when no room knows the path, 500 in JSON with a request id when a handler raised. No HTML and
no traceback ever leaves; the traceback is logged under the same request id.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import structlog
from aiohttp import web

from cachesrv.server.connections import json_error
from cachesrv.server.logs import PATH_CHARACTERS, REQUEST_ID, printable
from cachesrv.web.bodies import ClientGone
from cachesrv.web.requests import request_path
from cachesrv.web.room import Room

_log = structlog.stdlib.get_logger("cachesrv.server")


class Application:
    """The handler of :class:`cachesrv.server.connections.HttpServer`. Asks the rooms in order."""

    def __init__(self, rooms: Sequence[Room]) -> None:
        self._matches = [room.match for room in rooms]

    async def __call__(self, request: web.BaseRequest) -> web.StreamResponse:
        path = request_path(request.rel_url.raw_path)
        try:
            for match in self._matches:
                handler = match(request.method, path)
                if handler is not None:
                    return await handler(request)
        except web.HTTPException as error:
            return json_error(error.status, "refused", error.reason)
        except (asyncio.CancelledError, ConnectionError):
            raise
        except ClientGone as error:
            raise ConnectionResetError("the client left") from error
        except Exception as error:
            return self._failed(request, path, error)
        return json_error(404, "not-found", "nothing is served at this path")

    def _failed(self, request: web.BaseRequest, path: str, error: Exception) -> web.StreamResponse:
        response = json_error(500, "internal", "the server failed on this request")
        _log.error(
            "request failed",
            method=printable(request.method, 20),
            path=printable(path, PATH_CHARACTERS),
            request_id=response.headers[REQUEST_ID],
            exc_info=error,
        )
        if request.writer.output_size > 0:
            raise ConnectionResetError("the answer had begun") from error
        response.force_close()
        return response
