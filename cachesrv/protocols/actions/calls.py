"""One request on its way through this room: its id, its facts for the recorder, and the guard round its handler.

Whatever a handler does, the client gets an answer in the dialect of the path, with ``x-ms-request-id`` on it
(BuildKit's client crashes without that header on uploads), and the recorder hears of it once.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import structlog
from aiohttp import hdrs, web

from cachesrv.protocols.actions.errors import INTERNAL_TEXT, Reason, Refusal, from_store
from cachesrv.protocols.actions.lookups import PROTOCOL
from cachesrv.store.errors import StoreError
from cachesrv.web.bodies import BodyTooLarge, ClientGone
from cachesrv.web.context import Context
from cachesrv.web.principals import NotAllowed, Principal, Unauthenticated
from cachesrv.web.requests import InvalidHost, new_request_id, request_path
from cachesrv.web.room import Handler
from cachesrv.web.upstream import UpstreamFailed

_log = structlog.get_logger("cachesrv.actions")

REQUEST_ID = "x-ms-request-id"


@dataclass(slots=True)
class Call:
    """``outcome`` is what the recorder will hear; a handler sets it with the operation, a refusal replaces it."""

    context: Context
    request: web.BaseRequest
    id: str
    path: str
    operation: str = "other"
    outcome: str = "ok"
    tenant: str = ""
    bytes_in: int = 0
    """Of content: documents do not count."""
    bytes_out: int = 0
    prefix: str = ""
    """The path before this room's own: it may hold a secret or a repository."""

    async def authenticate(self) -> Principal:
        """Who asks. Raises Unauthenticated."""
        principal = await self.context.authenticator.authenticate(
            self.request.headers.get(hdrs.AUTHORIZATION), self.prefix or None
        )
        self.tenant = principal.repository
        return principal

    def hit(self, found: bool) -> None:
        self.outcome = "hit" if found else "miss"

    def failed(self, error: Exception) -> Refusal:
        """What an exception means to the client; those nobody foresaw are logged with the id of the request."""
        match error:
            case Refusal():
                return error
            case StoreError():
                return from_store(error)
            case NotAllowed():
                return Refusal(Reason.NOT_ALLOWED, str(error))
            case Unauthenticated():
                return Refusal(Reason.UNAUTHENTICATED, str(error))
            case BodyTooLarge():
                return Refusal(Reason.TOO_LARGE, str(error))
            case InvalidHost():
                return Refusal(Reason.INVALID, str(error))
            case UpstreamFailed():
                return Refusal(Reason.UPSTREAM, str(error))
        _log.error("request failed", request_id=self.id, method=self.request.method, path=self.path, exc_info=error)
        return Refusal(Reason.INTERNAL, INTERNAL_TEXT)


Handle = Callable[[Call], Awaitable[web.StreamResponse]]
Refuse = Callable[[Call, Refusal], web.Response]


def guarded(context: Context, handle: Handle, refuse: Refuse, prefix: str = "") -> Handler:
    """``handle`` as the server calls it. ``refuse`` renders refusals in the dialect of the path."""

    async def answer(request: web.BaseRequest) -> web.StreamResponse:
        call = Call(context, request, new_request_id(), request_path(request.raw_path), prefix=prefix)
        started = time.perf_counter()
        try:
            response = await handle(call)
        except ClientGone as gone:
            refusal = Refusal(Reason.INVALID, str(gone))
            response = refuse(call, refusal)
            response.force_close()
            call.outcome = "aborted"
        except Exception as error:
            refusal = call.failed(error)
            response = refuse(call, refusal)
            call.outcome = refusal.row.outcome
        except BaseException:
            call.outcome = "aborted"
            raise
        finally:
            context.recorder.request(
                PROTOCOL,
                call.operation,
                call.outcome,
                tenant=call.tenant,
                seconds=time.perf_counter() - started,
                bytes_in=call.bytes_in,
                bytes_out=call.bytes_out,
            )
        if not response.prepared:
            response.headers[REQUEST_ID] = call.id
        return response

    return answer


def respond(status: int, body: bytes, content_type: str) -> web.Response:
    """A whole answer with its exact length."""
    return web.Response(status=status, body=body, headers={hdrs.CONTENT_TYPE: content_type})
