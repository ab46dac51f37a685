"""Lookup order against a model that says it in other words, and the limits of names."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cachesrv.protocols.actions.errors import Reason, Refusal
from cachesrv.protocols.actions.lookups import MAX_KEY, MAX_RESTORE_KEYS, check_text, find, namespace, search_keys
from cachesrv.store.errors import EntryExists
from cachesrv.store.model import EntryFlag
from tests.doubles.memory_store import MemoryStore

KEY = st.text("aA%_é-", min_size=1, max_size=4)
SCOPE = st.sampled_from(["feature", "main", "other"])
REPOSITORY = st.sampled_from(["1", "2"])
VERSION = st.sampled_from(["v", "v2"])
Saved = tuple[str, str, str, str]


async def filled(saved: list[Saved]) -> MemoryStore:
    store = MemoryStore()

    async def body() -> AsyncIterator[bytes]:
        yield b"x"

    for nth, (repository, scope, version, key) in enumerate(saved):
        try:
            await store.put(
                namespace(repository, scope, version), key, body(), flags=EntryFlag.IMMUTABLE, writer=str(nth)
            )
        except EntryExists:
            continue
    return store


def expected(saved: list[Saved], repository: str, scopes: list[str], keys: list[str], version: str) -> str | None:
    """Rank every entry that could answer; the best rank wins."""
    ranked = []
    for nth, (its_repository, its_scope, its_version, its_key) in enumerate(saved):
        if (its_repository, its_version) != (repository, version) or its_scope not in scopes:
            continue
        if saved.index(saved[nth]) != nth:
            continue
        for rank, key in enumerate(keys):
            if its_key.startswith(key):
                ranked.append((scopes.index(its_scope), rank, its_key != key, -nth, its_key))
    return min(ranked)[-1] if ranked else None


@settings(deadline=None)
@given(
    st.lists(st.tuples(REPOSITORY, SCOPE, VERSION, KEY), max_size=25),
    st.lists(SCOPE, min_size=1, max_size=3, unique=True),
    KEY,
    st.lists(KEY | st.just(""), max_size=4),
    VERSION,
)
def test_t10_order(saved: list[Saved], scopes: list[str], key: str, restore_keys: list[str], version: str) -> None:
    async def run() -> str | None:
        store = await filled(saved)
        entry = await find(store, "1", scopes, search_keys(key, restore_keys), version)
        return entry.key if entry else None

    wanted = expected(saved, "1", scopes, [key, *filter(None, restore_keys)], version)
    assert asyncio.run(run()) == wanted


async def test_a_hit_is_touched_before_it_is_promised() -> None:
    store = await filled([("1", "main", "v", "k")])
    entry = await find(store, "1", ["main"], ["k"], "v")
    assert entry
    again = store.lookup(entry.namespace, "k")
    assert again
    assert again.last_used_ms is not None


@given(st.text(max_size=MAX_KEY + 10))
def test_t10_length_is_counted_in_utf16(text: str) -> None:
    units = len(text.encode("utf-16-le")) // 2
    if 1 <= units <= MAX_KEY:
        assert check_text("key", text, MAX_KEY) == text
    else:
        with pytest.raises(Refusal) as refused:
            check_text("key", text, MAX_KEY)
        assert refused.value.reason is Reason.INVALID


def test_lone_surrogates_are_no_text() -> None:
    with pytest.raises(Refusal):
        check_text("key", "a\ud800", MAX_KEY)


def test_restore_keys() -> None:
    assert search_keys("k", ["k", "", "a", "a", "b"]) == ["k", "a", "b"]
    assert len(search_keys("k", [str(n) for n in range(MAX_RESTORE_KEYS)])) == MAX_RESTORE_KEYS + 1
    with pytest.raises(Refusal):
        search_keys("k", [str(n) for n in range(MAX_RESTORE_KEYS + 1)])
