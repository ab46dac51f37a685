"""Cache service v2: Twirp, in JSON and in protobuf, answered in the type of the request. Errors are always Twirp JSON.

    POST <any prefix>/twirp/github.actions.results.api.v1.CacheService/<method>       Authorization: Bearer <token>

================= ============================== ============================== ========================================
what happens      CreateCacheEntry               FinalizeCacheEntryUpload       GetCacheEntryDownloadURL
================= ============================== ============================== ========================================
works, hit        200 ok, signed_upload_url      200 ok, entry_id (text)        200 ok, signed_download_url, matched_key
miss              -                              404 not_found: no such upload  200 {"ok":false}
duplicate         409 already_exists             200 as before (same size)      -
bad input         400 invalid_argument/malformed 400; wrong size 200 ok:false   400 invalid_argument/malformed
no token          401 unauthenticated            401                            401
no permission     200 ok:false "cache write      as Create                      403 permission_denied
                  denied: ..."                                                  "cache read denied: ..."
full disk, sick   200 ok:false with the reason   200 ok:false                   200 {"ok":false}: a miss
store, or a bug
other method      404 bad_route; not POST: 405 bad_route
================= ============================== ============================== ========================================

npm shows the message of ok:false as a warning and goes on; a 5xx would cost it 27 s a call (see ``errors``). Field
names are snake_case and 64-bit integers text in JSON: Go reads nothing else. False and empty fields are left out,
except ``ok``.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from typing import Final, TypeVar

from aiohttp import web
from google.protobuf.json_format import MessageToDict, Parse, ParseError
from google.protobuf.message import DecodeError, Message

from cachesrv.protocols.actions.calls import Call, respond
from cachesrv.protocols.actions.errors import SICK, Reason, Refusal, twirp_body
from cachesrv.protocols.actions.links import base_url, download_url, upload_url
from cachesrv.protocols.actions.lookups import check_name, find, search_keys
from cachesrv.protocols.actions.proto import cache_pb2 as pb
from cachesrv.protocols.actions.saves import finalize, reserve
from cachesrv.web.bodies import ClientGone, read_document

SERVICE: Final = "github.actions.results.api.v1.CacheService"
JSON: Final = "application/json"
PROTOBUF: Final = "application/protobuf"

_DENIED: Final = SICK | {Reason.WRITE_DENIED, Reason.INCOMPLETE}
"""Refusals of a save that are told as ok:false with a message."""

M = TypeVar("M", bound=Message)


def refuse(_call: Call, refusal: Refusal) -> web.Response:
    status, code = refusal.row.twirp
    return respond(status, twirp_body(code, refusal.text), JSON)


async def handle(call: Call, method: str) -> web.StreamResponse:
    """One call of the cache service; ``method`` is the last path segment."""
    if call.request.method != "POST":
        raise Refusal(Reason.BAD_METHOD, f"unsupported method {call.request.method!r} (only POST is allowed)")
    if method not in METHODS:
        raise Refusal(Reason.BAD_ROUTE, f"{SERVICE} has no such method")
    call.operation, run = METHODS[method]
    kind = call.request.content_type if "Content-Type" in call.request.headers else JSON
    if kind not in (JSON, PROTOBUF):
        raise Refusal(Reason.BAD_ROUTE, f"unexpected Content-Type: {kind!r}")
    answer = await run(call)
    if kind == PROTOBUF:
        return respond(200, answer.SerializeToString(), PROTOBUF)
    fields = MessageToDict(answer, preserving_proto_field_name=True)
    fields.setdefault("ok", False)
    return respond(200, json.dumps(fields).encode(), JSON)


async def _read(call: Call, message: M) -> M:
    """The request message. Raises Refusal(INVALID), BodyTooLarge."""
    limits = call.context.settings.limits
    body = await read_document(call.request, limits.max_json, idle=limits.idle_receive)
    try:
        if call.request.content_type == PROTOBUF:
            message.ParseFromString(body)
        else:
            Parse(body, message, ignore_unknown_fields=True)
    except (DecodeError, ParseError, ValueError, RecursionError) as error:
        raise Refusal(Reason.MALFORMED, f"the request is not a {message.DESCRIPTOR.name}") from error
    return message


async def _create(call: Call) -> Message:
    try:
        principal = await call.authenticate()
        asked = await _read(call, pb.CreateCacheEntryRequest())
        check_name(asked.key, asked.version)
        base = base_url(call)
        upload = await reserve(call.context.store, principal, asked.key, asked.version, size=None)
        return pb.CreateCacheEntryResponse(ok=True, signed_upload_url=upload_url(call, base, upload))
    except ClientGone:
        raise
    except Exception as error:
        return pb.CreateCacheEntryResponse(ok=False, message=_not_saved(call, error))


async def _finalize(call: Call) -> Message:
    try:
        principal = await call.authenticate()
        asked = await _read(call, pb.FinalizeCacheEntryUploadRequest())
        check_name(asked.key, asked.version)
        entry = await finalize(call.context.store, principal, asked.key, asked.version, asked.size_bytes)
        return pb.FinalizeCacheEntryUploadResponse(ok=True, entry_id=entry.id)
    except ClientGone:
        raise
    except Exception as error:
        return pb.FinalizeCacheEntryUploadResponse(ok=False, message=_not_saved(call, error))


def _not_saved(call: Call, error: Exception) -> str:
    """The message of an ok:false. Raises the refusals that have a status of their own."""
    refusal = call.failed(error)
    if refusal.reason not in _DENIED:
        raise refusal from error
    call.outcome = refusal.row.outcome
    return refusal.text


async def _lookup(call: Call) -> Message:
    principal = await call.authenticate()
    if not principal.readable:
        raise Refusal(Reason.READ_DENIED, "cache read denied: the token has no scope to read from")
    asked = await _read(call, pb.GetCacheEntryDownloadURLRequest())
    check_name(asked.key, asked.version)
    keys = search_keys(asked.key, asked.restore_keys)
    try:
        entry = await find(call.context.store, principal.repository, principal.readable, keys, asked.version)
    except Exception as error:
        call.outcome = call.failed(error).row.outcome
        return pb.GetCacheEntryDownloadURLResponse(ok=False)
    call.hit(entry is not None)
    if entry is None:
        return pb.GetCacheEntryDownloadURLResponse(ok=False)
    return pb.GetCacheEntryDownloadURLResponse(
        ok=True, signed_download_url=download_url(call, entry), matched_key=entry.key
    )


METHODS: Final[dict[str, tuple[str, Callable[[Call], Awaitable[Message]]]]] = {
    "CreateCacheEntry": ("reserve", _create),
    "FinalizeCacheEntryUpload": ("finalize", _finalize),
    "GetCacheEntryDownloadURL": ("lookup", _lookup),
}
