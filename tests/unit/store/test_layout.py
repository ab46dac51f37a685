"""The piece table: whatever is built comes back, whatever is damaged is refused."""

from __future__ import annotations

import struct
import tracemalloc

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from xxhash import xxh3_64_intdigest

from cachesrv.store.constants import PIECE_BYTES
from cachesrv.store.data.layout import FOOTER_BYTES, HEADER_BYTES, Layout, LayoutDamaged, Piece, trailer_length
from cachesrv.store.model import ByteRange

RAW_PIECES = st.builds(
    lambda part, offset, raw, xxh3: Piece(part, offset, raw, raw, xxh3),
    st.integers(0, 9),
    st.integers(0, 1 << 40),
    st.integers(1, PIECE_BYTES),
    st.integers(0, (1 << 64) - 1),
)
FRAMES = st.builds(
    lambda piece, part: Piece(piece.part, piece.offset, max(1, int(piece.raw * part)), piece.raw, piece.xxh3),
    RAW_PIECES,
    st.floats(0, 1),
)


@st.composite
def layouts(draw: st.DrawFn) -> Layout:
    zstd = draw(st.booleans())
    return Layout.build(
        draw(st.integers(1, (1 << 63) - 1)),
        draw(st.lists(FRAMES if zstd else RAW_PIECES, max_size=12)),
        zstd=zstd,
        sha256=draw(st.one_of(st.just(b""), st.binary(min_size=32, max_size=32))),
        note=draw(st.binary(max_size=40)),
    )


@settings(deadline=None)
@given(layouts())
def test_what_was_built_is_read_back(layout: Layout) -> None:
    trailer = layout.encode()
    again = Layout.decode(trailer)
    assert list(again) == list(layout)
    assert (again.blob_id, again.size, again.zstd, again.sha256, again.note, again.part_ends) == (
        layout.blob_id,
        layout.size,
        layout.zstd,
        layout.sha256,
        layout.note,
        layout.part_ends,
    )
    assert again.encode() == trailer
    assert trailer_length((b"content" + trailer)[-FOOTER_BYTES:]) == len(trailer)


@settings(deadline=None)
@given(layouts(), st.data())
def test_every_flipped_bit_is_noticed(layout: Layout, data: st.DataObject) -> None:
    trailer = bytearray(layout.encode())
    bit = data.draw(st.integers(0, len(trailer) * 8 - 1))
    trailer[bit // 8] ^= 1 << bit % 8
    with pytest.raises(LayoutDamaged):
        Layout.decode(bytes(trailer))


@settings(deadline=None)
@given(layouts(), st.data())
def test_every_cut_is_noticed(layout: Layout, data: st.DataObject) -> None:
    trailer = layout.encode()
    cut = data.draw(st.integers(0, len(trailer) - 1))
    with pytest.raises(LayoutDamaged):
        Layout.decode(trailer[:cut])
    with pytest.raises(LayoutDamaged):
        Layout.decode(trailer[len(trailer) - cut :])


@settings(deadline=None)
@given(st.binary(max_size=300))
def test_junk_is_refused(junk: bytes) -> None:
    with pytest.raises(LayoutDamaged):
        Layout.decode(junk)


@settings(deadline=None)
@given(layouts(), st.integers(0, 1 << 25), st.integers(0, 1 << 25))
def test_covering_is_the_pieces_that_hold_bytes_of_the_range(layout: Layout, start: int, length: int) -> None:
    wanted = ByteRange(start, start + length)
    expected, at = [], 0
    for index, piece in enumerate(layout):
        if max(at, wanted.start) < min(at + piece.raw, wanted.stop):
            expected.append(index)
        assert layout.start(index) == at
        assert layout[index] == piece
        at += piece.raw
    assert list(layout.covering(wanted)) == expected
    assert layout.size == at


@pytest.mark.parametrize("field", [(12, ">I"), (24, ">Q"), (64, ">I")])
def test_lengths_from_a_liar_allocate_nothing(field: tuple[int, str]) -> None:
    trailer = bytearray(Layout.build(1, [Piece(0, 0, 5, 5, 7)]).encode())
    at, form = field
    struct.pack_into(form, trailer, at, 0xFFFF_FFF0)
    struct.pack_into(">Q", trailer, len(trailer) - FOOTER_BYTES, xxh3_64_intdigest(bytes(trailer[:-FOOTER_BYTES])))
    tracemalloc.start()
    with pytest.raises(LayoutDamaged):
        Layout.decode(bytes(trailer))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 100_000


@pytest.mark.parametrize(
    ("piece", "zstd"),
    [
        (Piece(0, 0, 0, 0, 0), False),
        (Piece(0, 0, PIECE_BYTES + 1, PIECE_BYTES + 1, 0), False),
        (Piece(0, 0, 5, 6, 0), False),
        (Piece(0, 0, 7, 6, 0), True),
        (Piece(0, 0, 0, 6, 0), True),
        (Piece(1 << 16, 0, 6, 6, 0), False),
        (Piece(0, 1 << 48, 6, 6, 0), False),
        (Piece(0, -1, 6, 6, 0), False),
    ],
)
def test_pieces_that_break_the_rules_are_not_written(piece: Piece, zstd: bool) -> None:
    with pytest.raises(ValueError):
        Layout.build(1, [piece], zstd=zstd)


def test_a_later_version_is_refused() -> None:
    trailer = bytearray(Layout.build(1, []).encode())
    trailer[9] = 2
    struct.pack_into(">Q", trailer, HEADER_BYTES, xxh3_64_intdigest(bytes(trailer[:HEADER_BYTES])))
    with pytest.raises(LayoutDamaged, match="unknown kind"):
        Layout.decode(bytes(trailer))


def test_ten_gigabytes_are_a_small_table() -> None:
    pieces = [Piece(i // 256, i % 256 * PIECE_BYTES, PIECE_BYTES, PIECE_BYTES, i) for i in range(10_000)]
    layout = Layout.decode(Layout.build(1, pieces).encode())
    assert layout.size == 10_000 * PIECE_BYTES
    assert layout.memory < 500_000
    assert layout.covering(ByteRange(PIECE_BYTES * 777 - 1, PIECE_BYTES * 777 + 1)) == range(776, 778)
    assert layout.part_ends == tuple([256 * PIECE_BYTES] * 39 + [16 * PIECE_BYTES])
