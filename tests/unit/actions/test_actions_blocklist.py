"""The block list parser: every well-formed list, in any slices; no hostile document hurts."""

from __future__ import annotations

import base64
import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cachesrv.protocols.actions.blocklist import MAX_ID_CHARS, BlockListParser, block_name
from cachesrv.protocols.actions.errors import Reason, Refusal

IDS = st.binary(min_size=1, max_size=64).map(lambda raw: base64.b64encode(raw).decode())
TAGS = st.sampled_from(["Latest", "Uncommitted", "Committed"])
PROLOGS = st.sampled_from(
    ["", '<?xml version="1.0" encoding="UTF-8"?>', '<?xml version="1.0" encoding="utf-8"?>\n', "\n"]
)


def parse(document: bytes, slices: int = 1 << 20, max_blocks: int = 1000) -> list[bytes]:
    parser = BlockListParser(max_blocks)
    for start in range(0, len(document), slices):
        parser.feed(document[start : start + slices])
    return parser.close()


@given(PROLOGS, st.lists(st.tuples(TAGS, IDS), max_size=30), st.integers(1, 200), st.sampled_from(["", "\n  "]))
def test_every_list_in_any_slices(prolog: str, blocks: list[tuple[str, str]], slices: int, gap: str) -> None:
    inner = "".join(f"{gap}<{tag}>{name}</{tag}>" for tag, name in blocks)
    document = f"{prolog if prolog.strip() else ''}<BlockList>{inner}{gap}</BlockList>".encode()
    assert parse(document, slices) == [block_name(name) for _, name in blocks]


@given(st.binary(max_size=300) | st.text("<>/BlockLatestUncommitedAA&;! \n\"'?=xml", max_size=300).map(str.encode))
def test_anything_else_is_a_refusal(document: bytes) -> None:
    try:
        names = parse(document, 7)
    except Refusal as refusal:
        refused, names = refusal.reason, []
    else:
        refused = Reason.BAD_XML
    assert refused in (Reason.BAD_XML, Reason.BAD_BLOCK, Reason.OVER_LIMIT)
    assert all(1 <= len(name) <= 64 for name in names)


@pytest.mark.parametrize(
    "document",
    [
        '<!DOCTYPE b [<!ENTITY a "aa">]><BlockList><Latest>&a;</Latest></BlockList>',
        '<!DOCTYPE b [<!ENTITY % p SYSTEM "file:///etc/passwd">%p;]><BlockList/>',
        "<BlockList><Latest>&a;</Latest></BlockList>",
        '<?xml version="1.0" encoding="utf-7"?><BlockList/>' + "<x>",
        "<BlockList>text</BlockList>",
        "<BlockList/><BlockList/>",
    ],
)
def test_documents_that_no_client_writes(document: str) -> None:
    with pytest.raises(Refusal) as refused:
        parse(document.encode())
    assert refused.value.reason is Reason.BAD_XML


def test_limits() -> None:
    many = "<BlockList>" + "<Latest>AAAA</Latest>" * 11 + "</BlockList>"
    with pytest.raises(Refusal) as refused:
        parse(many.encode(), max_blocks=10)
    assert refused.value.reason is Reason.OVER_LIMIT
    assert len(parse(many.encode(), max_blocks=11)) == 11
    for name in ("", "A" * (MAX_ID_CHARS + 1)):
        with pytest.raises(Refusal):
            parse(f"<BlockList><Latest>{name}</Latest></BlockList>".encode())


def test_a_huge_text_is_not_collected() -> None:
    document = b"<BlockList><Latest>" + b"A" * 8_000_000
    tracemalloc.start()
    with pytest.raises(Refusal):
        parse(document, 65536)
    assert tracemalloc.get_traced_memory()[1] < 1024 * 1024
    tracemalloc.stop()


@given(st.lists(st.text(min_size=1, max_size=MAX_ID_CHARS), unique=True, max_size=20))
def test_ids_stay_distinct_and_short(names: list[str]) -> None:
    stored = [block_name(name) for name in names]
    assert len(set(stored)) == len(names)
    assert all(1 <= len(name) <= 64 for name in stored)


def test_real_ids_of_up_to_48_bytes_are_kept_as_they_are() -> None:
    text = base64.b64encode(b"41dff6bc-a6fe-4a9b-bc9f-678431f842e2000000000002").decode()
    assert block_name(text) == text.encode()
