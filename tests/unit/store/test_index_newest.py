"""Newest-by-prefix against a dictionary, through splits, merges, replacements and clocks out of order."""

from __future__ import annotations

import struct
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cachesrv.store.commands import Delete, Inline
from cachesrv.store.constants import KEY_INDEX_BYTES
from cachesrv.store.index import newest
from cachesrv.store.index.codec import cut
from cachesrv.store.index.environment import Environment, Rows
from cachesrv.store.index.rows import RecRow, pack_rec
from tests.unit.store.index_store import NOW, IndexStore, namespace

SPACES = (1, 2, 0xFFFFFFFF)
U64 = struct.Struct(">Q")


@contextmanager
def writing(path: Path) -> Iterator[Rows]:
    environment = Environment.open(path, readonly=False, map_bytes=1 << 28, sync=False)
    txn = environment.env.begin(write=True)
    yield Rows(txn, environment.tables)
    txn.abort()
    environment.close()


def put(rows: Rows, model: dict[tuple[int, str], int], space: int, key: str, clock: int) -> None:
    drop(rows, model, space, key)
    row_key = struct.pack(">I", space) + cut(key.encode())
    rows.put("entry", row_key, U64.pack(clock))
    rows.put("rec", U64.pack(clock), pack_rec(RecRow(1, 1, space, 1, 0, 0, 0, 1, 0, "", key)))
    newest.insert(rows, row_key, clock)
    model[space, key] = clock


def drop(rows: Rows, model: dict[tuple[int, str], int], space: int, key: str) -> None:
    clock = model.pop((space, key), None)
    if clock is not None:
        row_key = struct.pack(">I", space) + cut(key.encode())
        rows.delete("entry", row_key)
        rows.delete("rec", U64.pack(clock))
        newest.remove(rows, row_key, clock)


def expected(model: dict[tuple[int, str], int], space: int, prefix: str) -> int | None:
    return max((clock for (at, key), clock in model.items() if at == space and key.startswith(prefix)), default=None)


def found(rows: Rows, space: int, prefix: str) -> int | None:
    match = newest.find(rows, struct.pack(">I", space), prefix.encode())
    return match[0] if match else None


def check_blocks(rows: Rows, model: dict[tuple[int, str], int]) -> None:
    """The rows of ``newest`` say of each block exactly what its entries do."""
    bounds = [key for key, _ in rows.scan("newest", b"\0")]
    entries = [(key, U64.unpack(value[1:9])[0]) for key, value in rows.scan("entry", b"\0")]
    assert len(entries) == len(model)
    for at, bound in enumerate(bounds):
        stop = bounds[at + 1] if at + 1 < len(bounds) else None
        inside = [clock for key, clock in entries if bound <= key and (stop is None or key < stop)]
        inside = [c for (k, c) in entries if c in inside and k[:4] == bound[:4]]
        payload = rows.get("newest", bound)
        assert payload is not None
        greatest, count = struct.unpack(">QH", payload)
        assert count == len(inside) <= 8
        assert greatest == max(inside)
    assert bool(bounds) == bool(entries)


LONG = "k" * KEY_INDEX_BYTES
keys = st.one_of(
    st.text(alphabet="ab", max_size=6),
    st.text(alphabet="a\0é\U0010ffff-", max_size=4),
    st.text(alphabet="ab", max_size=3).map(lambda tail: LONG + tail),
    st.text(alphabet="ab", max_size=2).map(lambda tail: "k" * (KEY_INDEX_BYTES - 1) + "é" + tail),
)
steps = st.lists(
    st.tuples(st.sampled_from(SPACES), keys, st.integers(1, (1 << 53) - 1), st.booleans()),
    max_size=120,
    unique_by=lambda step: step[2],
)


@settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(steps=steps, prefixes=st.lists(keys, max_size=8))
def test_index_newest_is_that_of_a_dictionary(steps: list[tuple[int, str, int, bool]], prefixes: list[str]) -> None:
    with pytest.MonkeyPatch.context() as patch, tempfile.TemporaryDirectory() as folder:
        patch.setattr(newest, "NEWEST_BLOCK", 8)
        patch.setattr(newest, "MERGE_BELOW", 3)
        with writing(Path(folder)) as rows:
            model: dict[tuple[int, str], int] = {}
            for space, key, clock, keep in steps:
                if keep:
                    put(rows, model, space, key, clock)
                else:
                    drop(rows, model, space, key)
            check_blocks(rows, model)
            for prefix in ["", "a", *prefixes, *(key[: len(key) // 2] for _, key, _, _ in steps)]:
                for space in SPACES:
                    assert found(rows, space, prefix) == expected(model, space, prefix)
            for space, key in list(model):
                drop(rows, model, space, key)
            check_blocks(rows, model)


def test_index_newest_over_many_blocks(tmp_path: Path) -> None:
    with writing(tmp_path) as rows:
        model: dict[tuple[int, str], int] = {}
        for number in range(3000):
            put(rows, model, 1, f"{number * 7919 % 3000:04d}", number + 1)
        assert rows.count("newest") > 5
        for prefix in ("", "0", "1", "12", "299", "2999", "3"):
            assert found(rows, 1, prefix) == expected(model, 1, prefix)
        for number in range(2990):
            drop(rows, model, 1, f"{number:04d}")
        assert rows.count("newest") == 1
        assert found(rows, 1, "") == expected(model, 1, "")


def test_index_newest_survives_damage(tmp_path: Path) -> None:
    """A rotten maximum, a rotten entry and a rotten rec: the newest that can be read answers, never another key's."""
    with writing(tmp_path) as rows:
        model: dict[tuple[int, str], int] = {}
        for number in range(1, 1200):
            put(rows, model, 1, f"k{number:04d}", number)
        for table, key in (("newest", next(rows.scan("newest", b"\0"))[0]), ("entry", b"\0\0\0\1k0700")):
            value = rows.txn.get(key, db=rows._tables[table])
            rows.txn.put(key, value[:1] + b"\x0f" * 8 + value[9:], db=rows._tables[table])
        assert found(rows, 1, "k") == 1199
        assert found(rows, 1, "k0") == 999
        assert found(rows, 1, "k0700") is None
        rows.txn.put(U64.pack(1199), b"rotten", db=rows._tables["rec"])
        assert found(rows, 1, "k") == 1198
        # Writing through the damaged block counts it again.
        put(rows, model, 1, "k0001x", 5000)
        assert found(rows, 1, "k000") == 5000
        drop(rows, model, 1, "k0001x")
        assert found(rows, 1, "k000") == 9


def test_index_long_and_odd_keys_through_the_store(tmp_path: Path) -> None:
    store = IndexStore(tmp_path)
    odd = ["x" * 513, "x" * 512 + "y", "x" * 440, "x" * 441, "é" * 300, "", "a\0b", "a", "🙂" * 128, "A"]
    entries = {key: store.save(key, 1, form=Inline(key[:1].encode()), now_ms=NOW + at) for at, key in enumerate(odd)}
    for key, entry in entries.items():
        assert store.index.get(namespace(), key) == entry
        for prefix in {key, key[: len(key) // 2], key[:450]}:
            best = max((e for k, e in entries.items() if k.startswith(prefix)), key=lambda e: e.id)
            assert store.index.newest(namespace(), prefix) == best
    assert store.index.get(namespace(), "x" * 514) is None
    assert store.index.newest(namespace(), "x" * 513 + "y") is None
    store(Delete([entries["x" * 513].id], NOW))
    assert store.index.get(namespace(), "x" * 513) is None
    assert store.index.get(namespace(), "x" * 512 + "y") == entries["x" * 512 + "y"]
    store.close()
