"""The signed URLs of this room, and how requests to them are read.

    {base}/cachesrv/actions-cache/{opaque}?se=...&sig=...&sp=r|cw      (see ``cachesrv.web.signing``)

Clients add, re-order and re-encode query parameters, so they are read by name. In a blob request ``+`` is a plus sign
(it stands in block ids), in a v1 request it is a space, as Go's and every form encoder write it.
"""

from __future__ import annotations

from typing import Final
from urllib.parse import unquote

from aiohttp import web

from cachesrv.protocols.actions.calls import Call
from cachesrv.protocols.actions.errors import Reason, Refusal
from cachesrv.store.model import Entry, UploadId
from cachesrv.web.signing import DownloadGrant, SignatureInvalid, UploadGrant

BLOB_PATH: Final = "/cachesrv/actions-cache"
"""Where signed URLs point: two segments and the opaque one, which Azure's clients need."""
_MAX_FIELDS: Final = 64


def _expires(call: Call) -> float:
    return call.context.clock() + call.context.settings.actions.url_ttl


def base_url(call: Call) -> str:
    """Where the client reaches us. Raises InvalidHost."""
    return call.context.base_url.of(call.request)


def upload_url(call: Call, base: str, upload: UploadId) -> str:
    """Where the client puts the bytes. ``base``: of :func:`base_url`, asked before anything is reserved."""
    return call.context.signer.sign_upload(base, upload, call.tenant, _expires(call))


def download_url(call: Call, entry: Entry) -> str:
    """Where the client gets the bytes: signed afresh for each answer. Raises InvalidHost."""
    return call.context.signer.sign_download(base_url(call), entry.id, entry.blob, call.tenant, _expires(call))


def query_fields(request: web.BaseRequest, *, plus_is_space: bool) -> dict[str, str]:
    """The query, decoded once; of a repeated name the first counts. Raises Refusal(INVALID)."""
    _, _, query = request.raw_path.partition("?")
    query = query.partition("#")[0]
    pairs = query.split("&", _MAX_FIELDS)
    if len(pairs) > _MAX_FIELDS:
        raise Refusal(Reason.INVALID, f"more than {_MAX_FIELDS} query parameters")
    fields: dict[str, str] = {}
    for pair in pairs:
        name, _, value = pair.partition("=")
        if plus_is_space:
            value = value.replace("+", " ")
        try:
            fields.setdefault(unquote(name, errors="strict"), unquote(value, errors="strict"))
        except UnicodeDecodeError:
            raise Refusal(Reason.INVALID, "the query is not UTF-8") from None
    return fields


def verify_upload(call: Call, opaque: str, fields: dict[str, str]) -> UploadGrant:
    """What an upload URL allows. Raises Refusal(BAD_LINK)."""
    try:
        return call.context.signer.verify_upload(opaque, fields, call.context.clock())
    except SignatureInvalid as error:
        raise Refusal(Reason.BAD_LINK, str(error)) from error


def verify_download(call: Call, opaque: str, fields: dict[str, str]) -> DownloadGrant:
    """What a download URL allows. Raises Refusal(BAD_LINK)."""
    try:
        return call.context.signer.verify_download(opaque, fields, call.context.clock())
    except SignatureInvalid as error:
        raise Refusal(Reason.BAD_LINK, str(error)) from error
