"""Bytes on their way into an upload: exactly as many as announced, with the MD5 that was announced, or none at all."""

from __future__ import annotations

import base64
from collections.abc import AsyncIterator
from hashlib import md5

from aiohttp import hdrs

from cachesrv.protocols.actions.calls import Call
from cachesrv.protocols.actions.errors import Reason, Refusal
from cachesrv.store.errors import DigestMismatch, SizeMismatch
from cachesrv.web.bodies import RequestBody


def content_md5(call: Call) -> bytes | None:
    """The Content-MD5 header. Raises Refusal(INVALID)."""
    value = call.request.headers.get(hdrs.CONTENT_MD5)
    if value is None:
        return None
    try:
        digest = base64.b64decode(value, validate=True)
    except ValueError:
        digest = b""
    if len(digest) != 16:
        raise Refusal(Reason.INVALID, "Content-MD5 is not the base64 of 16 bytes")
    return digest


class StagedBody(AsyncIterator[bytes]):
    """The body of ``call``, checked as it passes. Raises, so that the store keeps nothing: SizeMismatch,
    DigestMismatch, ClientGone. Counts into ``call.bytes_in``."""

    def __init__(self, call: Call, length: int, digest: bytes | None = None) -> None:
        self._body = RequestBody(call.request, idle=call.context.settings.limits.idle_receive)
        self._call = call
        self._length = length
        self._digest = digest
        self._hash = md5(usedforsecurity=False) if digest is not None else None

    async def __anext__(self) -> bytes:
        try:
            chunk = await anext(self._body)
        except StopAsyncIteration:
            if self._body.received != self._length:
                raise SizeMismatch(self._length, self._body.received) from None
            if self._hash and self._hash.digest() != self._digest:
                raise DigestMismatch("the bytes do not have the announced Content-MD5") from None
            raise
        self._call.bytes_in = self._body.received
        if self._body.received > self._length:
            raise SizeMismatch(self._length, self._body.received)
        if self._hash:
            self._hash.update(chunk)
        return chunk


def check_length(call: Call, length: int) -> None:
    """Refuse what could never be an entry before a byte is read. Raises Refusal(OVER_LIMIT)."""
    limit = call.context.settings.limits.max_entry or call.context.settings.store.max_size
    if length > limit:
        raise Refusal(Reason.OVER_LIMIT, f"{length} bytes are more than an entry may have ({limit})")
