"""Reserving and finishing an entry: the rules that v1 and v2 share.

An entry is saved into the one scope that the token may write. Entries are immutable and expire when unused; what a
pull request wrote is marked, so that it goes first. Finishing is idempotent: a client that lost our answer (npm gives
up after 3 minutes and asks again) gets the same entry.
"""

from __future__ import annotations

from cachesrv.protocols.actions.errors import Reason, Refusal
from cachesrv.protocols.actions.lookups import namespace
from cachesrv.store.api import CacheStore
from cachesrv.store.errors import EntryExists, SizeMismatch, UploadUnknown
from cachesrv.store.model import Entry, EntryFlag, UploadId
from cachesrv.web.principals import Principal


def write_scope(principal: Principal) -> str:
    """The scope that this token saves into. Raises Refusal(WRITE_DENIED)."""
    if principal.writable is None:
        raise Refusal(Reason.WRITE_DENIED, "cache write denied: the token has no scope to write to")
    return principal.writable


async def reserve(store: CacheStore, principal: Principal, key: str, version: str, *, size: int | None) -> UploadId:
    """Reserve a name. Raises Refusal(WRITE_DENIED) and what the store raises."""
    place = namespace(principal.repository, write_scope(principal), version)
    flags = EntryFlag.IMMUTABLE | EntryFlag.EXPIRES
    if principal.low_trust:
        flags |= EntryFlag.LOW_TRUST
    return await store.reserve(place, key, flags=flags, writer=principal.writer, size=size)


async def finalize(store: CacheStore, principal: Principal, key: str, version: str, size: int) -> Entry:
    """Make the upload of this name visible; again after success: the same entry.

    Raises Refusal: UNKNOWN (neither an upload nor an entry), INCOMPLETE (not the announced bytes).
    """
    place = namespace(principal.repository, write_scope(principal), version)
    if size < 0:
        raise Refusal(Reason.INVALID, "size_bytes is negative")
    upload = store.find_upload(place, key)
    if upload:
        try:
            return await store.commit(upload.id, size)
        except SizeMismatch as error:
            raise Refusal(Reason.INCOMPLETE, str(error)) from error
        except (UploadUnknown, EntryExists):
            pass  # another attempt of the same call was faster
    entry = store.lookup(place, key)
    if entry is None:
        raise Refusal(Reason.UNKNOWN, "no upload with this key and version")
    if entry.size != size:
        raise Refusal(Reason.INCOMPLETE, str(SizeMismatch(size, entry.size)))
    return entry
