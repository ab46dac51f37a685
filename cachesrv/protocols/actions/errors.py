"""Why a request is refused, and how each dialect of this room says so. The only place where store errors get a status.

A ``Refusal`` is raised anywhere below a handler; the handler's dialect renders it. Twirp bodies are
``{"code", "msg"}``, v1 bodies ``{"message"}``, blob bodies Azure's XML: a client that gets anything else (HTML,
nothing) takes it for a broken proxy and retries for half a minute.

What the statuses cost a client, and so why they are these:

=============== ================== ===== ================================ ==============================================
reason          Twirp              v1    blob                             what the client does
=============== ================== ===== ================================ ==============================================
UNAUTHENTICATED 401                401   -                                final; a warning; the job goes on
NOT_ALLOWED     403                403   -                                final; a warning; the job goes on
READ_DENIED     403 (prefix text)  403   403 AuthorizationFailure         final; npm tells "cache read denied"
WRITE_DENIED    200 ok:false       403   403 AuthorizationFailure         final; npm tells "cache write denied"
INVALID         400                400   400 InvalidInput                 final
EXISTS          409 already_exists 409   409 BlobAlreadyExists            final; "another job may be creating it"
UNKNOWN,DAMAGED 404 not_found      404   404 BlobNotFound                 final
INCOMPLETE      200 ok:false       400   400 InvalidBlockList             final; a warning with our text
BAD_ROUTE       404 bad_route      404   404 ResourceNotFound             final
BAD_METHOD      405 bad_route      405   405 UnsupportedHttpVerb          final
TOO_LARGE       413                413   413 RequestBodyTooLarge          final
OVER_LIMIT      400                400   413 RequestBodyTooLarge          final; v1 shows the text as a warning
FULL, BUSY      200 ok:false       503   503 ServerBusy                   saves: Twirp final, v1 again after 5 s, blob
                                                                          PUTs again after 4 s and more: eviction makes
                                                                          room within seconds, so the retry is worth it
UNWRITABLE      200 ok:false       500   403 AccountIsDisabled            final: no retry helps before an operator came
INTERNAL        200 ok:false       500   500 InternalError                a bug; logged with the request id
UPSTREAM        503 unavailable    -     -                                artifacts: tries again
=============== ================== ===== ================================ ==============================================

A Twirp 5xx costs npm 27 s of retries a call, a 429 the same before 5.0.3 (and BuildKit its whole timeout): a save that
the store cannot take is told ``200 {"ok":false,"message":...}``. A *lookup* never gets FULL, BUSY,
UNWRITABLE or INTERNAL: whatever ails the store is a miss there. BuildKit fails its export on ok:false unless it has
``ignore-error=true``; a lie (409) would be worse: its index would then name layers that are not here.
"""

from __future__ import annotations

import enum
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final
from xml.sax.saxutils import escape

from cachesrv.store import errors as store


class Reason(enum.Enum):
    """Why, with no word about HTTP."""

    UNAUTHENTICATED = "unauthenticated"
    NOT_ALLOWED = "not-allowed"
    READ_DENIED = "read-denied"
    WRITE_DENIED = "write-denied"
    BAD_LINK = "bad-link"
    MALFORMED = "malformed"
    INVALID = "invalid"
    BAD_BLOCK = "bad-block"
    BAD_XML = "bad-xml"
    BAD_RANGE = "bad-range"
    BAD_CONDITION = "bad-condition"
    EXISTS = "exists"
    UNKNOWN = "unknown"
    DAMAGED = "damaged"
    INCOMPLETE = "incomplete"
    BAD_ROUTE = "bad-route"
    BAD_METHOD = "bad-method"
    LENGTH_REQUIRED = "length-required"
    TOO_LARGE = "too-large"
    OVER_LIMIT = "over-limit"
    BAD_DIGEST = "bad-digest"
    FULL = "full"
    BUSY = "busy"
    UNWRITABLE = "unwritable"
    INTERNAL = "internal"
    UPSTREAM = "upstream"


@dataclass(frozen=True, slots=True)
class Dialects:
    """One row: Twirp status and code, v1 status, blob status and x-ms-error-code, and the recorder's outcome."""

    twirp: tuple[int, str]
    v1: int
    blob: tuple[int, str]
    outcome: str


TABLE: Final[dict[Reason, Dialects]] = {
    Reason.UNAUTHENTICATED: Dialects((401, "unauthenticated"), 401, (403, "AuthenticationFailed"), "denied"),
    Reason.NOT_ALLOWED: Dialects((403, "permission_denied"), 403, (403, "AuthorizationFailure"), "denied"),
    Reason.READ_DENIED: Dialects((403, "permission_denied"), 403, (403, "AuthorizationFailure"), "denied"),
    Reason.WRITE_DENIED: Dialects((403, "permission_denied"), 403, (403, "AuthorizationFailure"), "denied"),
    Reason.BAD_LINK: Dialects((403, "permission_denied"), 403, (403, "AuthenticationFailed"), "denied"),
    Reason.MALFORMED: Dialects((400, "malformed"), 400, (400, "InvalidInput"), "invalid"),
    Reason.INVALID: Dialects((400, "invalid_argument"), 400, (400, "InvalidInput"), "invalid"),
    Reason.BAD_BLOCK: Dialects((400, "invalid_argument"), 400, (400, "InvalidBlockList"), "invalid"),
    Reason.BAD_XML: Dialects((400, "malformed"), 400, (400, "InvalidXmlDocument"), "invalid"),
    Reason.BAD_RANGE: Dialects((400, "invalid_argument"), 400, (416, "InvalidRange"), "invalid"),
    Reason.BAD_CONDITION: Dialects((412, "failed_precondition"), 412, (412, "ConditionNotMet"), "invalid"),
    Reason.EXISTS: Dialects((409, "already_exists"), 409, (409, "BlobAlreadyExists"), "exists"),
    Reason.UNKNOWN: Dialects((404, "not_found"), 404, (404, "BlobNotFound"), "invalid"),
    Reason.DAMAGED: Dialects((404, "not_found"), 404, (404, "BlobNotFound"), "damaged"),
    Reason.INCOMPLETE: Dialects((400, "invalid_argument"), 400, (400, "InvalidBlockList"), "invalid"),
    Reason.BAD_ROUTE: Dialects((404, "bad_route"), 404, (404, "ResourceNotFound"), "invalid"),
    Reason.BAD_METHOD: Dialects((405, "bad_route"), 405, (405, "UnsupportedHttpVerb"), "invalid"),
    Reason.LENGTH_REQUIRED: Dialects((411, "malformed"), 411, (411, "MissingContentLengthHeader"), "invalid"),
    Reason.TOO_LARGE: Dialects((413, "malformed"), 413, (413, "RequestBodyTooLarge"), "invalid"),
    Reason.OVER_LIMIT: Dialects((400, "invalid_argument"), 400, (413, "RequestBodyTooLarge"), "invalid"),
    Reason.BAD_DIGEST: Dialects((400, "invalid_argument"), 400, (400, "Md5Mismatch"), "invalid"),
    Reason.FULL: Dialects((503, "unavailable"), 503, (503, "ServerBusy"), "full"),
    Reason.BUSY: Dialects((503, "unavailable"), 503, (503, "ServerBusy"), "error"),
    Reason.UNWRITABLE: Dialects((503, "unavailable"), 500, (403, "AccountIsDisabled"), "error"),
    Reason.UPSTREAM: Dialects((503, "unavailable"), 503, (503, "ServerBusy"), "error"),
    Reason.INTERNAL: Dialects((500, "internal"), 500, (500, "InternalError"), "error"),
}

SICK: Final = frozenset({Reason.FULL, Reason.BUSY, Reason.UNWRITABLE, Reason.INTERNAL})
"""Not the client's fault and not its business: a lookup calls these a miss, a save ``ok:false``."""

EXISTS_TEXT: Final = "cache entry with the same key, version, and scope already exists"
INTERNAL_TEXT: Final = "internal error"
_TEXTS: Final = {
    Reason.EXISTS: EXISTS_TEXT,
    # The store's own words hold the id as it keeps it, which may be a hash.
    Reason.BAD_BLOCK: "the block list names a block that was never staged",
}


class Refusal(Exception):
    """The request ends here. ``text`` is fit for the client."""

    def __init__(self, reason: Reason, text: str) -> None:
        super().__init__(text)
        self.reason = reason
        self.text = text
        self.headers: Mapping[str, str] = {}

    def with_headers(self, headers: Mapping[str, str]) -> Refusal:
        """The same, with headers of its own on a blob answer."""
        self.headers = headers
        return self

    @property
    def row(self) -> Dialects:
        return TABLE[self.reason]


_STORE: Final[tuple[tuple[type[store.StoreError], Reason], ...]] = (
    (store.EntryExists, Reason.EXISTS),
    (store.UploadInFlight, Reason.EXISTS),
    (store.UploadUnknown, Reason.UNKNOWN),
    (store.UploadIncomplete, Reason.INCOMPLETE),
    (store.SizeMismatch, Reason.INVALID),
    (store.UnknownBlock, Reason.BAD_BLOCK),
    (store.DigestMismatch, Reason.BAD_DIGEST),
    (store.BlobMissing, Reason.UNKNOWN),
    (store.BlobDamaged, Reason.DAMAGED),
    (store.LimitExceeded, Reason.OVER_LIMIT),
    (store.StoreFull, Reason.FULL),
    (store.StoreBusy, Reason.BUSY),
    (store.StoreUnavailable, Reason.UNWRITABLE),
)


def from_store(error: store.StoreError) -> Refusal:
    """The refusal that a store error means here."""
    for kind, reason in _STORE:
        if isinstance(error, kind):
            text = _TEXTS.get(reason) or str(error) or kind.__name__
            return Refusal(reason, text)
    return Refusal(Reason.INTERNAL, INTERNAL_TEXT)


def twirp_body(code: str, text: str) -> bytes:
    return json.dumps({"code": code, "msg": text}, ensure_ascii=True).encode()


def v1_body(refusal: Refusal) -> bytes:
    """v1 JSON. A duplicate carries the type names that clients test."""
    if refusal.reason is Reason.EXISTS:
        kind = "ArtifactCacheItemAlreadyExistsException"
        body = {
            "$id": "1",
            "innerException": None,
            "message": refusal.text,
            "typeName": f"Microsoft.Azure.DevOps.ArtifactCache.WebApi.{kind}, "
            "Microsoft.Azure.DevOps.ArtifactCache.WebApi",
            "typeKey": kind,
            "errorCode": 0,
            "eventId": 3000,
        }
        return json.dumps(body).encode()
    return json.dumps({"message": refusal.text}).encode()


def blob_body(code: str, text: str) -> bytes:
    """Azure's error document. Control characters, which XML cannot hold, become spaces."""
    clean = "".join(c if c >= " " and not "\ud800" <= c <= "\udfff" and c not in "\ufffe\uffff" else " " for c in text)
    return (
        f'<?xml version="1.0" encoding="utf-8"?><Error><Code>{code}</Code><Message>{escape(clean)}</Message></Error>'
    ).encode()
