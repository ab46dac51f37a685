"""Cache service v1: REST in JSON. Old npm clients, and every client that takes its forge for an enterprise server.

    <any prefix>/_apis/artifactcache/                                  Authorization: Bearer <token>, where there is one

================= ================= ================== ==================== ===================== ====================
what happens      GET cache?keys=   GET caches?key=    POST caches          PATCH caches/{id}     POST caches/{id}
                  &version=         (a listing)        (reserve)            (bytes)               (commit)
================= ================= ================== ==================== ===================== ====================
works, hit        200 with          200 (at most       201 {"cacheId": n}   204                   204
                  archiveLocation   LISTED entries)
miss              204, empty        200, none          -                    404                   404
duplicate         -                 -                  409, typeKey ...     204: the same range   204: the same size
                                                       AlreadyExists...     again replaces it     again
already complete  -                 -                  -                    400 already complete  400: another size
bad input         400               400                400, too big: text   400                   400: hole, overlap,
                                                                                                  other size
no token          401               401                401                  401                   401
no permission     403 "cache read   403                403 "cache write     403; another's id:    as PATCH
                  denied: ..."                         denied: ..."         404
full disk         204               200, none          400 with the reason  503                   503
sick store        204               200, none          400 with the reason  503 or 500            503 or 500
================= ================= ================== ==================== ===================== ====================

Unknown routes 404, other methods 405, ``POST clean`` 200 (a no-op that act knows). Errors are ``{"message": ...}``: npm
shows the text of a 400 verbatim, retries 502, 503 and 504 once after 5 s and takes 500 as final. PATCH bodies come
chunked, in parallel and out of order; their length is what Content-Range says. The id is the upload's, below 2^53.
"""

from __future__ import annotations

import json
import re
from datetime import UTC, datetime
from typing import Final, TypeVar

import msgspec
from aiohttp import hdrs, web

from cachesrv.protocols.actions.calls import Call, respond
from cachesrv.protocols.actions.errors import SICK, Reason, Refusal, v1_body
from cachesrv.protocols.actions.links import download_url, query_fields
from cachesrv.protocols.actions.lookups import PROTOCOL, check_name, check_text, find, namespace, search_keys
from cachesrv.protocols.actions.saves import reserve, write_scope
from cachesrv.protocols.actions.staging import StagedBody, check_length
from cachesrv.store.api import EntryFilter
from cachesrv.store.errors import EntryExists, SizeMismatch, StoreError, UploadUnknown
from cachesrv.store.model import Entry, UploadId
from cachesrv.web.bodies import ClientGone, read_document
from cachesrv.web.principals import Principal

JSON: Final = "application/json; charset=utf-8"
LISTED: Final = 100
"""Entries that the diagnostic listing shows."""
_RANGE: Final = re.compile(r"bytes[ \t]+([0-9]{1,16})-([0-9]{1,16})/(?:\*|([0-9]{1,16}))", re.ASCII | re.IGNORECASE)
_UPLOAD: Final = re.compile(r"caches/([0-9]{1,16})", re.ASCII)

S = TypeVar("S")


class ReserveRequest(msgspec.Struct):
    """``cacheSize`` comes from npm only."""

    key: str
    version: str
    cacheSize: int | None = None


class CommitRequest(msgspec.Struct):
    size: int


def refuse(_call: Call, refusal: Refusal) -> web.Response:
    return respond(refusal.row.v1, v1_body(refusal), JSON)


async def handle(call: Call, resource: str) -> web.StreamResponse:
    """One call; ``resource`` is the raw path behind ``/_apis/artifactcache/``."""
    method = call.request.method
    match resource, method:
        case "cache", hdrs.METH_GET:
            return await _lookup(call)
        case "caches", hdrs.METH_GET:
            return await _list(call)
        case "caches", hdrs.METH_POST:
            return await _reserve(call)
        case "clean", hdrs.METH_POST:
            return _json(200, {})
    upload = _UPLOAD.fullmatch(resource)
    if upload and method == hdrs.METH_PATCH:
        return await _upload(call, UploadId(int(upload[1])))
    if upload and method == hdrs.METH_POST:
        return await _commit(call, UploadId(int(upload[1])))
    if upload or resource in ("cache", "caches", "clean"):
        raise Refusal(Reason.BAD_METHOD, f"{method} is not understood here")
    raise Refusal(Reason.BAD_ROUTE, "no such resource")


def _json(status: int, value: object) -> web.Response:
    return respond(status, json.dumps(value).encode(), JSON)


async def _read(call: Call, kind: type[S]) -> S:
    limits = call.context.settings.limits
    body = await read_document(call.request, limits.max_json, idle=limits.idle_receive)
    try:
        return msgspec.json.decode(body, type=kind)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise Refusal(Reason.INVALID, f"the request cannot be read: {error}") from error


def _created(entry: Entry) -> str:
    """ISO 8601 with seven decimals, as .NET writes it."""
    seconds, millis = divmod(entry.created_ms, 1000)
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%dT%H:%M:%S}.{millis:03}0000Z"


# -- reading -----------------------------------------------------------------------------------------------------------


async def _reader(call: Call) -> Principal:
    principal = await call.authenticate()
    if not principal.readable:
        raise Refusal(Reason.READ_DENIED, "cache read denied: the token has no scope to read from")
    return principal


async def _lookup(call: Call) -> web.Response:
    call.operation = "lookup"
    principal = await _reader(call)
    fields = query_fields(call.request, plus_is_space=True)
    key, *restore_keys = fields.get("keys", "").split(",")
    version = fields.get("version", "")
    check_name(key, version)
    keys = search_keys(key, restore_keys)
    try:
        entry = await find(call.context.store, principal.repository, principal.readable, keys, version)
    except Exception as error:
        call.outcome = call.failed(error).row.outcome
        return web.Response(status=204)
    call.hit(entry is not None)
    if entry is None:
        return web.Response(status=204)
    found = {
        "cacheKey": entry.key,
        "scope": entry.namespace.scope,
        "cacheVersion": entry.namespace.version,
        "creationTime": _created(entry),
        "archiveLocation": download_url(call, entry),
    }
    return _json(200, found)


async def _list(call: Call) -> web.Response:
    principal = await _reader(call)
    prefix = query_fields(call.request, plus_is_space=True).get("key", "")
    if prefix:
        check_text("key", prefix, 512)
    found: list[Entry] = []
    try:
        for scope in principal.readable:
            wanted = EntryFilter(PROTOCOL, principal.repository, scope, key_prefix=prefix)
            found += call.context.store.entries(wanted, limit=LISTED - len(found)).entries
            if len(found) >= LISTED:
                break
    except StoreError as error:
        call.outcome = call.failed(error).row.outcome
    listed = [
        {
            "cacheKey": entry.key,
            "cacheVersion": entry.namespace.version,
            "scope": entry.namespace.scope,
            "creationTime": _created(entry),
        }
        for entry in found
    ]
    return _json(200, {"totalCount": len(listed), "artifactCaches": listed})


# -- writing -----------------------------------------------------------------------------------------------------------


async def _reserve(call: Call) -> web.Response:
    call.operation = "reserve"
    principal = await call.authenticate()
    write_scope(principal)
    asked = await _read(call, ReserveRequest)
    check_name(asked.key, asked.version)
    if "," in asked.key:
        raise Refusal(Reason.INVALID, "a key cannot contain commas")
    if asked.cacheSize is not None:
        if asked.cacheSize < 0:
            raise Refusal(Reason.INVALID, "cacheSize is negative")
        check_length(call, asked.cacheSize)
    try:
        upload = await reserve(call.context.store, principal, asked.key, asked.version, size=asked.cacheSize)
    except EntryExists as error:
        raise _taken(principal, asked) from error
    except ClientGone:
        raise
    except Exception as error:
        refusal = call.failed(error)
        if refusal.reason is Reason.EXISTS:
            raise _taken(principal, asked) from error
        if refusal.reason not in SICK:
            raise refusal from error
        call.outcome = refusal.row.outcome
        return respond(400, v1_body(refusal), JSON)
    return _json(201, {"cacheId": upload})


def _taken(principal: Principal, asked: ReserveRequest) -> Refusal:
    text = f"Cache already exists. Scope: {principal.writable}, Key: {asked.key}, Version: {asked.version}"
    return Refusal(Reason.EXISTS, text)


def _owned(call: Call, principal: Principal, upload: UploadId) -> Entry | None:
    """None: an upload in progress of this token's. The entry: what it became. Raises Refusal(UNKNOWN) for all others,
    another token's among them."""
    scope = write_scope(principal)
    info = call.context.store.upload(upload)
    entry = None if info else call.context.store.committed(upload)
    found = info or entry
    if found is None or found.namespace != namespace(principal.repository, scope, found.namespace.version):
        raise Refusal(Reason.UNKNOWN, "no such upload")
    return entry


async def _upload(call: Call, upload: UploadId) -> web.Response:
    call.operation = "upload"
    principal = await call.authenticate()
    if _owned(call, principal, upload):
        raise Refusal(Reason.INVALID, "the upload is already complete")
    found = _RANGE.fullmatch(call.request.headers.get(hdrs.CONTENT_RANGE, "").strip())
    if found is None:
        raise Refusal(Reason.INVALID, "Content-Range is not 'bytes start-end/*'")
    start, stop = int(found[1]), int(found[2]) + 1
    length = stop - start
    if length < 1 or (found[3] and stop > int(found[3])):
        raise Refusal(Reason.INVALID, "Content-Range ends before its start, or after its total")
    check_length(call, stop)
    if call.request.content_length not in (None, length):
        raise Refusal(Reason.INVALID, f"Content-Range announces {length} bytes, Content-Length does not")
    await call.context.store.stage_range(upload, start, StagedBody(call, length), length)
    return web.Response(status=204)


async def _commit(call: Call, upload: UploadId) -> web.Response:
    call.operation = "finalize"
    principal = await call.authenticate()
    write_scope(principal)
    asked = await _read(call, CommitRequest)
    if asked.size < 0:
        raise Refusal(Reason.INVALID, "size is negative")
    entry = _owned(call, principal, upload)
    if entry is None:
        try:
            entry = await call.context.store.commit(upload, asked.size)
        except UploadUnknown:
            entry = _owned(call, principal, upload)
            if entry is None:
                raise
    if entry.size != asked.size:
        raise Refusal(Reason.INVALID, f"the upload is already complete: {SizeMismatch(asked.size, entry.size)}")
    return web.Response(status=204)
