"""Range arithmetic against a simple oracle, and the conditional headers."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from multidict import CIMultiDict

from cachesrv.store.model import ByteRange
from cachesrv.web.ranges import RangeNotSatisfiable, parse_range, plan_blob

SIZES = st.integers(0, 40)
NUMBERS = st.integers(0, 60)


def wanted_bytes(value: str, size: int) -> list[int] | None:
    """The indices that a range selects, or None for 416."""
    try:
        found = parse_range(value, size)
    except RangeNotSatisfiable:
        return None
    return list(range(size)) if found is None else list(range(found.start, found.stop))


@given(NUMBERS, NUMBERS, SIZES)
def test_closed_range_selects_what_lies_between(first: int, last: int, size: int) -> None:
    selected = wanted_bytes(f"bytes={first}-{last}", size)
    if last < first:
        assert selected == list(range(size))
    else:
        assert (selected or None) == ([index for index in range(size) if first <= index <= last] or None)


@given(NUMBERS, SIZES)
def test_open_range_selects_the_rest(first: int, size: int) -> None:
    assert wanted_bytes(f"bytes={first}-", size) == (list(range(size))[first:] or None)


@given(NUMBERS, SIZES)
def test_suffix_range_selects_the_end(count: int, size: int) -> None:
    assert wanted_bytes(f"bytes=-{count}", size) == (list(range(size))[max(0, size - count) :] or None)


@given(st.text("bytes=-, 0123456789", max_size=20), SIZES)
def test_whatever_comes_the_answer_lies_inside(value: str, size: int) -> None:
    try:
        found = parse_range(value, size)
    except RangeNotSatisfiable:
        return
    assert found is None or 0 <= found.start < found.stop <= size


@pytest.mark.parametrize(
    "value",
    [
        "",
        "bytes",
        "bytes=",
        "bytes=-",
        "bytes=0-1,3-4",
        "bytes=a-b",
        "items=0-1",
        "bytes=5-2",
        "bytes=0--1",
        "bytes=٣-٤",
    ],
)
def test_several_or_malformed_ranges_get_everything(value: str) -> None:
    assert parse_range(value, 10) is None


def test_numbers_of_any_length() -> None:
    nines = "9" * 8000
    assert parse_range(f"bytes=3-{nines}", 10) == ByteRange(3, 10)
    assert parse_range(f"bytes=-{nines}", 10) == ByteRange(0, 10)
    assert parse_range(f"bytes={'0' * 5000}2-{'0' * 5000}4", 10) == ByteRange(2, 5)
    with pytest.raises(RangeNotSatisfiable):
        parse_range(f"bytes={nines}-", 10)


def test_x_ms_range_wins_over_range() -> None:
    answer = plan_blob(CIMultiDict({"Range": "bytes=0-1", "X-MS-Range": "bytes=4-"}), 10, "tag")
    assert (answer.status, answer.wanted) == (206, ByteRange(4, 10))
    assert answer.headers["Content-Range"] == "bytes 4-9/10"
    assert answer.headers["Content-Length"] == "6"


def test_unsatisfiable_says_the_size() -> None:
    answer = plan_blob(CIMultiDict({"x-ms-range": "bytes=10-"}), 10, "tag")
    assert (answer.status, answer.headers["Content-Range"]) == (416, "bytes */10")


@pytest.mark.parametrize(
    ("header", "value", "status"),
    [
        ("If-Match", '"tag"', 200),
        ("If-Match", "*", 200),
        ("If-Match", '"other", "tag"', 200),
        ("If-Match", "tag", 200),
        ("If-Match", '"other"', 412),
        ("If-Match", 'W/"tag"', 412),
        ("If-None-Match", '"tag"', 304),
        ("If-None-Match", 'W/"tag"', 304),
        ("If-None-Match", "*", 304),
        ("If-None-Match", '"other"', 200),
    ],
)
def test_conditions(header: str, value: str, status: int) -> None:
    answer = plan_blob(CIMultiDict({header: value}), 10, "tag")
    assert answer.status == status
    assert answer.headers["ETag"] == '"tag"'


@pytest.mark.parametrize(("tag", "status"), [('"tag"', 206), ('"other"', 200), ("Tue, 01 Jan 2030 00:00:00 GMT", 200)])
def test_if_range_needs_the_same_tag(tag: str, status: int) -> None:
    assert plan_blob(CIMultiDict({"Range": "bytes=0-1", "If-Range": tag}), 10, "tag").status == status
