"""Pages of entries: order, filters, cursors."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from cachesrv.store.api import EntryFilter
from cachesrv.store.commands import Delete, Inline, Space
from cachesrv.store.errors import StoreError
from cachesrv.store.index import listing
from cachesrv.store.model import Entry, Namespace
from tests.unit.store.index_store import NOW, IndexStore

TENANTS = ("a", "a\0b", "ab", "b", "ü" * 300, "ü" * 299 + "v")
Keys = dict[Namespace, list[str]]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[IndexStore]:
    made = IndexStore(tmp_path_factory.mktemp("listing"))
    for tenant in TENANTS:
        for scope in ("main", "pr/1"):
            for key in ("k2", "k1", "K", "k1" + "x" * 500):
                made.save(key, 1, space=Space("actions", tenant, scope, "v"), form=Inline(b"x"))
    gone = made.save("gone", 1, space=Space("actions", "aa", "main", "v"), form=Inline(b"x"))
    made(Delete([gone.id], NOW))
    yield made
    made.close()


def walk(store: IndexStore, wanted: EntryFilter, limit: int) -> list[Entry]:
    found: list[Entry] = []
    cursor = None
    while True:
        page = store.index.entries(wanted, limit=limit, cursor=cursor)
        assert len(page.entries) <= limit
        found += page.entries
        cursor = page.cursor
        if cursor is None:
            return found


@pytest.mark.parametrize("limit", [1, 3, 1000])
def test_index_pages_hold_everything_once_in_order(store: IndexStore, limit: int) -> None:
    found = walk(store, EntryFilter(), limit)
    assert len(found) == len({entry.id for entry in found}) == len(TENANTS) * 2 * 4
    short = [(e.namespace.tenant, e.namespace.scope, e.key) for e in found if len(e.namespace.tenant) < 9]
    assert short == sorted(short)


@pytest.mark.parametrize(
    ("wanted", "count"),
    [
        (EntryFilter(protocol="actions"), 48),
        (EntryFilter(protocol="oci"), 0),
        (EntryFilter(protocol="actions", tenant="a"), 8),
        (EntryFilter(protocol="actions", tenant="aa"), 0),
        (EntryFilter(tenant="ab"), 8),
        (EntryFilter(protocol="actions", tenant="ü" * 300), 8),
        (EntryFilter(scope="pr/1"), 24),
        (EntryFilter(protocol="actions", tenant="a", scope="main", version="v"), 4),
        (EntryFilter(protocol="actions", tenant="a", key_prefix="k1"), 4),
        (EntryFilter(protocol="actions", tenant="a", key_prefix="k1" + "x" * 460), 2),
        (EntryFilter(key_prefix="K"), 12),
    ],
)
@pytest.mark.parametrize("limit", [2, 100])
def test_index_filters(store: IndexStore, wanted: EntryFilter, count: int, limit: int) -> None:
    found = walk(store, wanted, limit)
    assert len(found) == count
    for entry in found:
        assert entry.key.startswith(wanted.key_prefix)
        assert wanted.tenant in (None, entry.namespace.tenant)
        assert wanted.scope in (None, entry.namespace.scope)


def test_index_a_page_looks_at_so_many_rows(store: IndexStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listing, "LOOK_LIMIT", 5)
    page = store.index.entries(EntryFilter(key_prefix="none"), limit=10)
    assert not page.entries
    assert page.cursor is not None
    assert len(walk(store, EntryFilter(scope="pr/1"), 10)) == 24


@pytest.mark.parametrize("cursor", [b"", b"\0", b"\0\0", b"\xff\xff", b"\0\5ab", b"\0\1a" + b"x" * 999])
def test_index_a_cursor_of_somebody_else_is_refused(store: IndexStore, cursor: bytes) -> None:
    with pytest.raises(StoreError, match="cursor"):
        store.index.entries(EntryFilter(), limit=1, cursor=cursor)
