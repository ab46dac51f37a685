"""Signed URLs: the URL is the credential. Nobody can bend one into another object, direction, repository or time.

Form, version 1::

    {base}{path}/{opaque}?se={expiry}&sig={signature}&sp={r|cw}

* ``path``: fixed for each signer, e.g. ``/cachesrv/actions-cache``: with ``opaque`` at least three segments, which
  clients of Azure insist on (as on a query and on the name ``sig``, which the npm client masks in logs).
* ``opaque``: ``r-{entry}-{blob}-{repository}`` or ``w-{upload}-{repository}``; ids in lower-case hexadecimal,
  repository base64url without padding.
* ``se``: Unix seconds, decimal; the URL is good before that second.
* ``sp``: ``r`` to download, ``cw`` to upload.
* ``signature``: base64url without padding of HMAC-SHA256 over these fields, each as a 4-byte big-endian length and
  its UTF-8 bytes: ``cachesrv-url-1``, path, sp, opaque, se.

Clients re-order, re-encode and add query parameters, so the signature covers decoded named values, never the raw query.
"""

from __future__ import annotations

import base64
import binascii
import hmac
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from cachesrv.store.model import BlobId, EntryId, UploadId
from cachesrv.web.keys import UrlKeys

_VERSION: Final = "cachesrv-url-1"
_DOWNLOAD = re.compile(r"r-([0-9a-f]{1,16})-([0-9a-f]{1,16})-([A-Za-z0-9_-]*)", re.ASCII)
_UPLOAD = re.compile(r"w-([0-9a-f]{1,16})-([A-Za-z0-9_-]*)", re.ASCII)
_EXPIRY = re.compile(r"[0-9]{1,12}", re.ASCII)


class SignatureInvalid(Exception):
    """Not a URL of ours, or one that was changed, or one of the other direction. Answer 403."""


class SignatureExpired(SignatureInvalid):
    """Ours, but its time has passed."""


@dataclass(frozen=True, slots=True)
class DownloadGrant:
    """What a download URL allows: this blob, found as this entry of this repository."""

    entry: EntryId
    blob: BlobId
    repository: str
    expires: int


@dataclass(frozen=True, slots=True)
class UploadGrant:
    """What an upload URL allows: staging blocks of this upload of this repository."""

    upload: UploadId
    repository: str
    expires: int


class UrlSigner:
    """Signs and verifies. Costs a few microseconds; holds no state but its keys."""

    def __init__(self, keys: UrlKeys, path: str) -> None:
        self._keys = keys
        self._path = path

    def sign_download(self, base_url: str, entry: EntryId, blob: BlobId, repository: str, expires: float) -> str:
        """A URL below ``base_url`` (no trailing slash) for GET and HEAD, good before ``expires`` (Unix seconds)."""
        return self._sign(base_url, f"r-{entry:x}-{blob:x}-{_encode(repository.encode())}", "r", expires)

    def sign_upload(self, base_url: str, upload: UploadId, repository: str, expires: float) -> str:
        """A URL for Put Blob, Put Block and Put Block List."""
        return self._sign(base_url, f"w-{upload:x}-{_encode(repository.encode())}", "cw", expires)

    def verify_download(self, opaque: str, query: Mapping[str, str], now: float) -> DownloadGrant:
        """``opaque``: the last path segment, decoded. ``query``: decoded, others than ours are ignored.

        Raises SignatureInvalid, SignatureExpired.
        """
        found = _DOWNLOAD.fullmatch(opaque)
        if found is None:
            raise SignatureInvalid("not a download URL")
        expires = self._verify(opaque, "r", query, now)
        return DownloadGrant(EntryId(int(found[1], 16)), BlobId(int(found[2], 16)), _decode(found[3]), expires)

    def verify_upload(self, opaque: str, query: Mapping[str, str], now: float) -> UploadGrant:
        """As ``verify_download``, for the other direction."""
        found = _UPLOAD.fullmatch(opaque)
        if found is None:
            raise SignatureInvalid("not an upload URL")
        expires = self._verify(opaque, "cw", query, now)
        return UploadGrant(UploadId(int(found[1], 16)), _decode(found[2]), expires)

    def _sign(self, base_url: str, opaque: str, permission: str, expires: float) -> str:
        expiry = str(int(expires))
        message = _message((_VERSION, self._path, permission, opaque, expiry))
        signature = _encode(hmac.digest(self._keys.signing, message, "sha256"))
        return f"{base_url}{self._path}/{opaque}?se={expiry}&sig={signature}&sp={permission}"

    def _verify(self, opaque: str, permission: str, query: Mapping[str, str], now: float) -> int:
        expiry, claimed = query.get("se", ""), query.get("sig", "")
        if query.get("sp") != permission or _EXPIRY.fullmatch(expiry) is None:
            raise SignatureInvalid("the URL's signature does not match")
        message = _message((_VERSION, self._path, permission, opaque, expiry))
        signature = claimed.encode("utf-8", "surrogatepass")
        matched = False
        for key in self._keys.verifying:
            matched |= hmac.compare_digest(_encode(hmac.digest(key, message, "sha256")).encode(), signature)
        if not matched:
            raise SignatureInvalid("the URL's signature does not match")
        if now >= int(expiry):
            raise SignatureExpired("the URL has expired")
        return int(expiry)


def _message(fields: Sequence[str]) -> bytes:
    encoded = [field.encode() for field in fields]
    return b"".join([len(field).to_bytes(4, "big") + field for field in encoded])


def _encode(value: bytes) -> str:
    return base64.urlsafe_b64encode(value).rstrip(b"=").decode()


def _decode(value: str) -> str:
    try:
        return base64.urlsafe_b64decode(value + "=" * (-len(value) % 4)).decode()
    except (binascii.Error, UnicodeDecodeError) as error:
        raise SignatureInvalid("not a URL of ours") from error
