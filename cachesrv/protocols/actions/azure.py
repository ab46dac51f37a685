"""The subset of Azure Blob storage behind signed URLs: Put Blob, Put Block, Put Block List, GET and HEAD.

    PUT      <any prefix>/cachesrv/actions-cache/{opaque}?se&sig&sp=cw                             Put Blob
    PUT      ...&comp=block&blockid={base64, opaque}                                               Put Block
    PUT      ...&comp=blocklist                                                                    Put Block List
    GET|HEAD ...?se&sig&sp=r                                       Range, x-ms-range (wins), If-Match, If-None-Match

The URL is the only credential. Nothing staged here is visible before it is finalized.

================= ================================== =================================================================
what happens      PUT                                GET, HEAD
================= ================================== =================================================================
works             201, no body, x-ms-request-id      200; one range 206; several ranges 200; not modified 304
bad signature     403 AuthenticationFailed           403 AuthenticationFailed
expired, other    403 AuthenticationFailed           403 AuthenticationFailed
direction
unknown           404 BlobNotFound (committed, or    404 BlobNotFound (evicted, damaged): no URL was handed out for it
                  taken over)                        that was not good then
bad input         400 InvalidInput, InvalidBlockList 416 InvalidRange with Content-Range: bytes */size; 412
                  InvalidXmlDocument, Md5Mismatch;   ConditionNotMet
                  411; 413
full disk         503 ServerBusy: npm waits 4 s and  -
                  tries again, room may be made then
sick store        503; read-only 403                 503 ServerBusy
                  AccountIsDisabled
other method      405 UnsupportedHttpVerb
================= ================================== =================================================================

Errors are Azure's XML with x-ms-error-code. BuildKit crashes on a PUT answer without x-ms-request-id; npm and Go take
any success but 201 for an error; npm takes the body of a 403 or 404 GET for the archive, so the lookup proves what it
promises.
"""

from __future__ import annotations

import asyncio
from email.utils import formatdate
from typing import Final

from aiohttp import hdrs, web

from cachesrv.protocols.actions.blocklist import BlockListParser, block_name
from cachesrv.protocols.actions.calls import REQUEST_ID, Call, respond
from cachesrv.protocols.actions.errors import Reason, Refusal, blob_body
from cachesrv.protocols.actions.links import query_fields, verify_download, verify_upload
from cachesrv.protocols.actions.staging import StagedBody, check_length, content_md5
from cachesrv.store.errors import BlobMissing
from cachesrv.store.model import BlobId, UploadId
from cachesrv.web.blobs import send_blob
from cachesrv.web.bodies import RequestBody
from cachesrv.web.ranges import plan_blob
from cachesrv.web.requests import header_text
from cachesrv.web.signing import DownloadGrant

XML: Final = "application/xml"
API_VERSION: Final = "2022-11-02"
"""x-ms-version of an answer whose request names none."""
_PARSE_BYTES: Final = 64 * 1024
"""Of a block list, between two turns of the event loop."""


def refuse(call: Call, refusal: Refusal) -> web.Response:
    status, code = refusal.row.blob
    response = respond(status, blob_body(code, refusal.text), XML)
    response.headers.update(_headers(call))
    response.headers["x-ms-error-code"] = code
    response.headers.update(refusal.headers)
    return response


async def handle(call: Call, opaque: str) -> web.StreamResponse:
    """One request to a signed URL; ``opaque`` is its last path segment, decoded."""
    fields = query_fields(call.request, plus_is_space=False)
    match call.request.method:
        case hdrs.METH_PUT:
            call.operation = "upload"
            return await _put(call, opaque, fields)
        case hdrs.METH_GET | hdrs.METH_HEAD:
            call.operation = "download"
            return await _get(call, opaque, fields)
    raise Refusal(Reason.BAD_METHOD, "only PUT, GET and HEAD are understood here")


def _headers(call: Call) -> dict[str, str]:
    """What every answer carries."""
    asked = call.request.headers
    headers = {REQUEST_ID: call.id, "x-ms-version": header_text(asked.get("x-ms-version", API_VERSION), 64)}
    if client_id := asked.get("x-ms-client-request-id"):
        headers["x-ms-client-request-id"] = header_text(client_id)
    return headers


# -- uploads -----------------------------------------------------------------------------------------------------------


async def _put(call: Call, opaque: str, fields: dict[str, str]) -> web.Response:
    grant = verify_upload(call, opaque, fields)
    call.tenant = grant.repository
    info = call.context.store.upload(grant.upload)
    if info is None or info.namespace.tenant != grant.repository:
        raise Refusal(Reason.UNKNOWN, "no such upload: it was finished, or given up")
    length = call.request.content_length
    if length is None:
        raise Refusal(Reason.LENGTH_REQUIRED, "Content-Length is required")
    match fields.get("comp"):
        case None:
            await _put_blob(call, grant.upload, length)
        case "block":
            await _put_block(call, grant.upload, length, fields.get("blockid", ""))
        case "blocklist":
            await _put_block_list(call, grant.upload)
        case _:
            raise Refusal(Reason.INVALID, "comp is neither block nor blocklist")
    response = web.Response(status=201, headers=_headers(call))
    response.headers[hdrs.ETAG] = f'"0x{grant.upload:X}"'
    response.headers[hdrs.LAST_MODIFIED] = formatdate(call.context.clock(), usegmt=True)
    response.headers["x-ms-request-server-encrypted"] = "true"
    if md5 := call.request.headers.get(hdrs.CONTENT_MD5):
        response.headers[hdrs.CONTENT_MD5] = header_text(md5, 64)
    return response


async def _put_blob(call: Call, upload: UploadId, length: int) -> None:
    kind = call.request.headers.get("x-ms-blob-type", "BlockBlob")
    if kind.lower() != "blockblob":
        raise Refusal(Reason.INVALID, "x-ms-blob-type: only BlockBlob is understood here")
    check_length(call, length)
    await call.context.store.stage_whole(upload, StagedBody(call, length, content_md5(call)), length)


async def _put_block(call: Call, upload: UploadId, length: int, block: str) -> None:
    name = block_name(block)
    check_length(call, length)
    await call.context.store.stage_block(upload, name, StagedBody(call, length, content_md5(call)), length)


async def _put_block_list(call: Call, upload: UploadId) -> None:
    limits = call.context.settings.limits
    parser = BlockListParser(limits.max_blocks)
    body = RequestBody(call.request, idle=limits.idle_receive, limit=limits.max_block_list)
    async for chunk in body:
        for start in range(0, len(chunk), _PARSE_BYTES):
            parser.feed(chunk[start : start + _PARSE_BYTES])
            await asyncio.sleep(0)
    size = await call.context.store.choose_blocks(upload, parser.close())
    check_length(call, size)


# -- downloads ---------------------------------------------------------------------------------------------------------


async def _get(call: Call, opaque: str, fields: dict[str, str]) -> web.StreamResponse:
    grant = verify_download(call, opaque, fields)
    call.tenant = grant.repository
    blob, created = await _current(call, grant)
    store = call.context.store
    try:
        opened = await store.open(blob)
    except BlobMissing:
        # Equal content was just stored once: the entry points at the other copy now.
        blob, created = await _current(call, grant)
        opened = await store.open(blob)
    async with opened as reader:
        etag = f"0x{grant.entry:X}"
        answer = plan_blob(call.request.headers, reader.size, etag)
        if answer.status == 416:
            refusal = Refusal(Reason.BAD_RANGE, "the range starts at or after the end")
            raise refusal.with_headers({hdrs.CONTENT_RANGE: answer.headers[hdrs.CONTENT_RANGE]})
        if answer.status == 412:
            raise Refusal(Reason.BAD_CONDITION, "If-Match does not match")
        headers = _headers(call)
        headers[hdrs.CONTENT_TYPE] = "application/octet-stream"
        headers[hdrs.LAST_MODIFIED] = formatdate(created, usegmt=True)
        headers["x-ms-blob-type"] = "BlockBlob"
        response = await send_blob(
            call.request,
            reader,
            etag=etag,
            headers=headers,
            idle_send=call.context.settings.limits.idle_send,
            answer=answer,
        )
    call.outcome = response.outcome
    call.bytes_out = response.bytes_out
    return response


async def _current(call: Call, grant: DownloadGrant) -> tuple[BlobId, float]:
    """The blob to send and when it was made (Unix seconds). An entry that just left may still be read by its blob."""
    store = call.context.store
    entry = store.entry(grant.entry)
    if entry is None or entry.namespace.tenant != grant.repository:
        return grant.blob, call.context.clock()
    store.touch(entry)
    if not await store.prove(entry):
        raise Refusal(Reason.DAMAGED, "the content is damaged or gone")
    return entry.blob, entry.created_ms / 1000
