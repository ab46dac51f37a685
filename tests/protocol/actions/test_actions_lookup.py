"""Which entry answers: order of scopes and keys, prefixes, trust, and what must never be promised."""

from __future__ import annotations

import unicodedata

import pytest

from cachesrv.store.api import EntryFilter
from cachesrv.store.model import EntryFlag, RemovalReason
from tests.doubles.memory_store import SickStore
from tests.protocol.actions.actions_server import VERSION, ActionsServer

FEATURE = [("refs/heads/feature", 3), ("refs/heads/main", 1)]
PULL = [("refs/pull/7/merge", 3), ("refs/heads/feature", 1), ("refs/heads/main", 1)]


async def test_t10_a_restore_key_on_the_own_branch_beats_an_exact_key_on_main(cache: ActionsServer) -> None:
    await cache.save("k-exact")
    feature = cache.as_job(scopes=FEATURE)
    await feature.save("other-1")
    assert await feature.matched("k-exact", "other-") == "other-1"
    assert await feature.matched("k-exact") == "k-exact"


async def test_t10_exact_beats_a_newer_prefix_and_newest_wins_among_prefixes(cache: ActionsServer) -> None:
    await cache.save("k")
    await cache.save("k-2")
    await cache.save("k-10")
    assert await cache.matched("k") == "k"
    assert await cache.matched("k-") == "k-10"
    assert await cache.matched("k-1") == "k-10"
    assert await cache.matched("x", "k-2", "k-") == "k-2"


async def test_t10_newest_is_by_creation_not_by_use(cache: ActionsServer) -> None:
    await cache.save("k-1", b"1")
    await cache.save("k-2", b"2")
    for _ in range(3):
        await cache.load("k-1")
    assert await cache.matched("k-") == "k-2"


async def test_t10_a_prefix_of_the_primary_key_comes_before_restore_keys(cache: ActionsServer) -> None:
    await cache.save("primary-old")
    await cache.save("restore-new")
    assert await cache.matched("primary-", "restore-") == "primary-old"


@pytest.mark.parametrize("sign", ["%", "_", ".", "*", "?", "[a-z]", "\\", "$", "+", "'", '"', "#", "/", " "])
async def test_t10_signs_are_literal(cache: ActionsServer, sign: str) -> None:
    await cache.save("kxyz")
    assert await cache.matched(f"k{sign}") is None
    await cache.save(f"k{sign}y")
    assert await cache.matched(f"k{sign}") == f"k{sign}y"
    assert (await cache.v1_find(f"k{sign}")).json()["cacheKey"] == f"k{sign}y"


async def test_t10_case_and_unicode_forms_are_distinct(cache: ActionsServer) -> None:
    nfc, nfd = unicodedata.normalize("NFC", "clé-ü"), unicodedata.normalize("NFD", "clé-ü")
    await cache.save(nfc)
    await cache.save("Key")
    assert await cache.matched("key") is None
    assert await cache.matched(nfd) is None
    assert await cache.matched(nfc) == nfc
    assert (await cache.v1_find(nfc)).json()["cacheKey"] == nfc


async def test_t10_empty_restore_keys_match_nothing(cache: ActionsServer) -> None:
    await cache.save("k")
    assert await cache.matched("x", "", "") is None
    assert (await cache.v1_find("x", "", "")).status == 204


async def test_t10_spaces_are_kept(cache: ActionsServer) -> None:
    await cache.save(" k ")
    assert await cache.matched("k") is None
    assert await cache.matched(" k ") == " k "


@pytest.mark.parametrize("letter", ["k", "é", "漢", "😀"])
async def test_t10_key_length_is_counted_as_javascript_does(cache: ActionsServer, letter: str) -> None:
    units = len(letter.encode("utf-16-le")) // 2
    key = letter * (512 // units)
    await cache.save(key)
    assert await cache.matched(key) == key
    assert (await cache.v1_find(key)).json()["cacheKey"] == key
    for method in ("CreateCacheEntry", "GetCacheEntryDownloadURL", "FinalizeCacheEntryUpload"):
        answer = await cache.twirp(method, {"key": key + "k", "version": VERSION})
        assert (answer.status, answer.json()["code"]) == (400, "invalid_argument")
    assert (await cache.v1_find(key + "k")).status == 400


async def test_t10_versions_are_exact_and_opaque(cache: ActionsServer) -> None:
    await cache.save("k", version="sccache-v0.16.0-x")
    assert await cache.matched("k", version="sccache-v0.16.0") is None
    assert await cache.matched("k", version="sccache-v0.16.0-x") == "k"
    assert (await cache.v1_find("k", version="sccache-v0.16.0-x")).status == 200


@pytest.mark.parametrize("message", [{"key": "", "version": "v"}, {"key": "k", "version": ""}, {}, {"key": "k"}])
async def test_t10_key_and_version_are_required(cache: ActionsServer, message: dict[str, str]) -> None:
    for method in ("CreateCacheEntry", "GetCacheEntryDownloadURL", "FinalizeCacheEntryUpload"):
        answer = await cache.twirp(method, message)
        assert (answer.status, answer.json()["code"]) == (400, "invalid_argument")


async def test_t10_ten_restore_keys_and_far_too_many(cache: ActionsServer) -> None:
    await cache.save("last-1")
    assert await cache.matched("x", *(f"no-{n}-" for n in range(9)), "last-") == "last-1"
    many = {"key": "x", "restore_keys": [f"k{n}" for n in range(1000)], "version": VERSION}
    assert (await cache.twirp("GetCacheEntryDownloadURL", many)).status == 400
    same = {"key": "x", "restore_keys": ["last-"] * 1000, "version": VERSION}
    assert (await cache.twirp("GetCacheEntryDownloadURL", same)).json()["matched_key"] == "last-1"


async def test_t10_control_signs_in_keys_are_kept_and_never_split_a_header(cache: ActionsServer) -> None:
    key = "k\r\nSet-Cookie: x\x00"
    await cache.save(key, b"content")
    assert await cache.load(key) == b"content"
    assert await cache.matched("k\r\n") == key


async def test_t11_unfinished_entries_are_invisible(cache: ActionsServer) -> None:
    url = await cache.create("k")
    assert await cache.matched("k") is None
    await cache.put(url, b"content")
    assert await cache.matched("k") is None
    assert (await cache.v1_find("k")).status == 204


async def test_t11_a_removed_entry_is_a_miss_and_frees_its_key(cache: ActionsServer) -> None:
    entry_id = await cache.save("k", b"old")
    await cache.store.delete([cache.store.entries(EntryFilter(), limit=1).entries[0].id], RemovalReason.DELETED)
    assert await cache.matched("k") is None
    assert await cache.save("k", b"new") > entry_id
    assert await cache.load("k") == b"new"


async def test_t11_an_entry_that_is_not_whole_is_passed_over(sick: ActionsServer, sick_store: SickStore) -> None:
    await sick.save("old-1", b"old")
    await sick.save("k", b"bad")
    for entry in sick_store.entries(EntryFilter(key_prefix="k"), limit=9).entries:
        sick_store.unproven.add(entry.blob)
    assert await sick.matched("k", "old-") == "old-1"
    assert await sick.matched("k") is None
    assert (await sick.v1_find("k")).status == 204


async def test_t12_main_cannot_see_pull_requests_and_they_cannot_write_main(cache: ActionsServer) -> None:
    pull = cache.as_job(scopes=PULL)
    await cache.save("k", b"main")
    assert await pull.load("k") == b"main"
    await pull.save("k", b"poison")
    assert await pull.load("k") == b"poison"
    assert await cache.load("k") == b"main"
    assert await cache.as_job(scopes=FEATURE).load("k") == b"main"
    flags = {e.namespace.scope: e.flags for e in cache.store.entries(EntryFilter(), limit=9).entries}
    assert EntryFlag.LOW_TRUST in flags["refs/pull/7/merge"]
    assert EntryFlag.LOW_TRUST not in flags["refs/heads/main"]
    assert EntryFlag.IMMUTABLE | EntryFlag.EXPIRES in flags["refs/heads/main"]


async def test_t12_sibling_branches_tags_and_repositories_are_apart(cache: ActionsServer) -> None:
    await cache.as_job(scopes=[("refs/heads/a", 3), ("refs/heads/main", 1)]).save("k")
    await cache.as_job(scopes=[("refs/tags/v1", 3), ("refs/heads/main", 1)]).save("k-tag")
    assert await cache.as_job(scopes=[("refs/heads/b", 3), ("refs/heads/main", 1)]).matched("k") is None
    assert await cache.matched("k") is None
    assert await cache.as_job("1002", [("refs/heads/a", 3)]).matched("k") is None


async def test_t12_a_read_only_token_is_told_in_the_words_npm_looks_for(cache: ActionsServer) -> None:
    await cache.save("k", b"content")
    reader = cache.as_job(scopes=[("refs/heads/main", 1)])
    assert await reader.load("k") == b"content"
    for method in ("CreateCacheEntry", "FinalizeCacheEntryUpload"):
        answer = await reader.twirp(method, {"key": "new", "version": VERSION})
        assert answer.status == 200
        assert answer.json()["message"].startswith("cache write denied:")
        assert answer.json()["ok"] is False
    answer = await reader.v1("POST", "caches", {"key": "new", "version": VERSION})
    assert answer.status == 403
    assert answer.json()["message"].startswith("cache write denied:")


async def test_t12_a_write_only_token_cannot_read(cache: ActionsServer) -> None:
    writer = cache.as_job(scopes=[("refs/heads/main", 2)])
    await writer.save("k")
    answer = await writer.twirp("GetCacheEntryDownloadURL", {"key": "k", "version": VERSION})
    assert (answer.status, answer.json()["code"]) == (403, "permission_denied")
    assert "cache read denied:" in answer.json()["msg"]
    answer = await writer.v1_find("k")
    assert answer.status == 403
    assert answer.json()["message"].startswith("cache read denied:")
    assert (await writer.v1("GET", "caches?key=k")).status == 403
    assert await cache.matched("k") == "k"


async def test_t12_the_empty_scope_is_a_scope(cache: ActionsServer) -> None:
    forge = cache.as_job(scopes=[("", 3)])
    await forge.save("k", b"content")
    assert await forge.load("k") == b"content"
    assert await cache.matched("k") is None
    opaque = cache.with_token("token")
    await opaque.save("k", b"act")
    assert await opaque.load("k") == b"act"
    assert await forge.load("k") == b"content"
