"""Which bytes of a blob a request wants: Range, x-ms-range and the conditional headers (RFC 9110, sections 13 and 14).

Pure functions over headers and a size. One range only: several at once, or anything malformed, get the whole blob,
which every client must accept.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from aiohttp import hdrs
from multidict import CIMultiDict

from cachesrv.store.model import ByteRange

_RANGE = re.compile(r"bytes[ \t]*=[ \t]*([0-9]*)-([0-9]*)[ \t]*", re.IGNORECASE | re.ASCII)
_TAG = re.compile(r'(W/)?"([^"]*)"')
MS_RANGE = "x-ms-range"


class RangeNotSatisfiable(ValueError):
    """The range starts at or after the end. Answer 416 with ``Content-Range: bytes */size``."""


def parse_range(value: str, size: int) -> ByteRange | None:
    """``bytes=a-b``, ``bytes=a-`` or ``bytes=-n`` against a blob of ``size`` bytes; an end past it is clamped.

    None when there is no (single, well-formed) range in it: send everything. Raises RangeNotSatisfiable.
    """
    found = _RANGE.fullmatch(value.strip())
    if found is None or (not found[1] and not found[2]):
        return None
    if not found[1]:
        start, stop = max(0, size - _number(found[2], size)), size
    else:
        start = _number(found[1], size)
        last = _number(found[2], size) if found[2] else size
        if found[2] and _less(found[2], found[1]):
            return None
        stop = min(last + 1, size)
    if start >= size:
        raise RangeNotSatisfiable(f"the range starts at or after the end, {size}")
    return ByteRange(start, stop)


@dataclass(frozen=True, slots=True)
class BlobAnswer:
    """What to answer: 200 (all), 206, 304, 412 or 416. ``wanted`` is the bytes of a 200 or 206, else empty."""

    status: int
    wanted: ByteRange
    headers: Mapping[str, str]
    """Content-Range (206, 416), Content-Length (200, 206; 0 for 412, 416), Accept-Ranges, ETag."""


def plan_blob(headers: Mapping[str, str], size: int, etag: str) -> BlobAnswer:
    """Judge a GET or HEAD of a blob of ``size`` bytes whose strong tag is ``etag`` (without its quotes).

    ``headers`` must be case-insensitive. x-ms-range wins over Range: Go's azblob sends only the former, and ignoring it
    corrupts data silently. Dates are not looked at: blobs never change under their tag.
    """
    answer = CIMultiDict({"ETag": f'"{etag}"', hdrs.ACCEPT_RANGES: "bytes"})
    nothing = ByteRange(0, 0)
    if (match := headers.get(hdrs.IF_MATCH)) is not None and not _matches(match, etag, weak=False):
        answer[hdrs.CONTENT_LENGTH] = "0"
        return BlobAnswer(412, nothing, answer)
    if (match := headers.get(hdrs.IF_NONE_MATCH)) is not None and _matches(match, etag, weak=True):
        return BlobAnswer(304, nothing, answer)
    wanted = None
    asked = headers.get(MS_RANGE) or headers.get(hdrs.RANGE)
    if asked and ((tag := headers.get(hdrs.IF_RANGE)) is None or _matches(tag, etag, weak=False)):
        try:
            wanted = parse_range(asked, size)
        except RangeNotSatisfiable:
            answer[hdrs.CONTENT_RANGE] = f"bytes */{size}"
            answer[hdrs.CONTENT_LENGTH] = "0"
            return BlobAnswer(416, nothing, answer)
    if wanted is None:
        answer[hdrs.CONTENT_LENGTH] = str(size)
        return BlobAnswer(200, ByteRange(0, size), answer)
    answer[hdrs.CONTENT_RANGE] = f"bytes {wanted.start}-{wanted.stop - 1}/{size}"
    answer[hdrs.CONTENT_LENGTH] = str(wanted.length)
    return BlobAnswer(206, wanted, answer)


def _matches(value: str, etag: str, *, weak: bool) -> bool:
    value = value.strip()
    if value in ("*", etag):
        return True
    return any(tag == etag and (weak or not is_weak) for is_weak, tag in _TAG.findall(value))


def _number(digits: str, size: int) -> int:
    """The number, or ``size`` when it is larger: thousands of digits must cost nothing."""
    digits = digits.lstrip("0") or "0"
    return size if len(digits) > 19 else min(int(digits), size)


def _less(left: str, right: str) -> bool:
    left, right = left.lstrip("0"), right.lstrip("0")
    return (len(left), left) < (len(right), right)
