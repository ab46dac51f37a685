"""The Actions room: which paths are the cache service's, and what becomes of everything else under the results URL.

=================================================== =================================================================
path (any prefix before it)                         answered by
=================================================== =================================================================
/cachesrv/actions-cache/{opaque}                    ``azure``; the signed URL is the only credential
/twirp/github.actions.results.api.v1.CacheService/  ``twirp``; unknown methods 404 bad_route, never forwarded
/_apis/artifactcache/                               ``rest``; never forwarded: there is no upstream v1 any more
/twirp/, /_apis/ otherwise (artifacts)              the upstream, byte for byte; without one 404 Twirp JSON, at once
anything else                                       the upstream; without one not ours
=================================================== =================================================================

What holds the shared secret (as its token, or at the start of its path) is not forwarded: the upstream may know the
jobs' tokens, not ours.

Since an upstream takes whatever nobody else wants, the server asks this room last. The prefix may hold a shared secret
or a repository (see ``cachesrv.web.authenticator``).
"""

from __future__ import annotations

from functools import partial
from typing import Final
from urllib.parse import unquote

from aiohttp import hdrs, web

from cachesrv.protocols.actions import azure, rest, twirp
from cachesrv.protocols.actions.calls import Call, guarded
from cachesrv.protocols.actions.errors import Reason, Refusal
from cachesrv.protocols.actions.links import BLOB_PATH
from cachesrv.protocols.actions.lookups import PROTOCOL
from cachesrv.web.context import Context
from cachesrv.web.room import Handler

_BLOBS: Final = BLOB_PATH + "/"
_TWIRP: Final = "/twirp/"
_CACHE_SERVICE: Final = f"{_TWIRP}{twirp.SERVICE}/"
_APIS: Final = "/_apis/"
_V1: Final = f"{_APIS}artifactcache"


class ActionsRoom:
    """See ``cachesrv.web.room.Room``."""

    name: str = PROTOCOL

    def __init__(self, context: Context) -> None:
        self._context = context
        self._forward = guarded(context, _forward, twirp.refuse)

    def match(self, _method: str, path: str) -> Handler | None:
        context = self._context
        prefix, found, rest_of_path = path.partition(_BLOBS)
        if found:
            return guarded(context, partial(azure.handle, opaque=unquote(rest_of_path)), azure.refuse)
        prefix, found, rest_of_path = path.partition(_CACHE_SERVICE)
        if found:
            return guarded(context, partial(twirp.handle, method=rest_of_path), twirp.refuse, prefix)
        prefix, found, rest_of_path = path.partition(_V1)
        if found and rest_of_path[:1] in ("", "/"):
            return guarded(context, partial(rest.handle, resource=rest_of_path[1:].rstrip("/")), rest.refuse, prefix)
        if context.upstream is not None or _TWIRP in path or _APIS in path:
            return self._forward
        return None

    async def start(self) -> None:
        return

    async def stop(self) -> None:
        return


async def _forward(call: Call) -> web.StreamResponse:
    call.operation = "proxy"
    if call.context.upstream is None:
        raise Refusal(Reason.BAD_ROUTE, "this server is a cache; actions.upstream names no server for the rest")
    authorization = call.request.headers.get(hdrs.AUTHORIZATION)
    if call.context.authenticator.holds_secret(authorization, call.path):
        raise Refusal(Reason.BAD_ROUTE, "this request holds the secret of this server, so it is not forwarded")
    return await call.context.upstream.forward(call.request, idle_receive=call.context.settings.limits.idle_receive)
