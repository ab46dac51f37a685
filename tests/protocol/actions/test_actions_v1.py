"""v1 REST: reserve, chunked parts, commit, look up, list."""

from __future__ import annotations

import random
from typing import Any

import pytest

from cachesrv.config import Settings
from cachesrv.store.api import CacheStore
from tests.protocol.actions.actions_server import VERSION, ActionsServer, Clock, actions_server


async def test_t01_v1_save_restore_and_miss(cache: ActionsServer) -> None:
    miss = await cache.v1_find("nope", "k-")
    assert (miss.status, miss.body) == (204, b"")
    await cache.v1_save("k-1", b"content")
    answer = await cache.v1_find("nope", "k-")
    assert answer.status == 200
    found = answer.json()
    assert found["cacheKey"] == "k-1"
    assert found["scope"] == "refs/heads/main"
    assert found["cacheVersion"] == VERSION
    assert found["creationTime"].endswith("0000Z")
    assert (await cache.get(found["archiveLocation"])).body == b"content"


async def test_t01_v1_duplicates_carry_the_type_key(cache: ActionsServer) -> None:
    upload = await cache.v1_reserve("k", cacheSize=7)
    for _ in range(2):
        answer = await cache.v1("POST", "caches", {"key": "k", "version": VERSION})
        assert answer.status == 409
        reply = answer.json()
        assert reply["typeKey"] == "ArtifactCacheItemAlreadyExistsException"
        assert reply["message"] == f"Cache already exists. Scope: refs/heads/main, Key: k, Version: {VERSION}"
        await cache.v1_patch(upload, 0, b"content")
        await cache.v1_commit(upload, 7)


async def test_t14_parts_out_of_order_and_sent_again(cache: ActionsServer) -> None:
    content = random.Random(5).randbytes(1000)
    upload = await cache.v1_reserve("k")
    for start in (500, 0, 250, 750, 250):
        part = content[start : start + 250]
        assert (await cache.v1_patch(upload, start, part, total="1000" if start else "*")).status == 204
    assert (await cache.v1_commit(upload, 1000)).status == 204
    assert await cache.load("k") == content


async def test_t14_the_same_range_again_replaces(cache: ActionsServer) -> None:
    upload = await cache.v1_reserve("k")
    await cache.v1_patch(upload, 0, b"old old")
    await cache.v1_patch(upload, 0, b"content")
    assert (await cache.v1_commit(upload, 7)).status == 204
    assert await cache.load("k") == b"content"


async def test_t14_parts_with_a_length(cache: ActionsServer) -> None:
    upload = await cache.v1_reserve("k")
    headers = {"Content-Range": "bytes 0-6/*"}
    assert (await cache.v1("PATCH", f"caches/{upload}", b"content", headers=headers)).status == 204
    assert (await cache.v1_commit(upload, 7)).status == 204


@pytest.mark.parametrize("parts", [[(0, b"abc"), (4, b"efg")], [(0, b"abcd"), (2, b"cdefg")], [(1, b"bcdefg")], []])
async def test_t14_holes_and_overlaps_cannot_be_committed(cache: ActionsServer, parts: list[tuple[int, bytes]]) -> None:
    upload = await cache.v1_reserve("k")
    for start, part in parts:
        assert (await cache.v1_patch(upload, start, part)).status == 204
    answer = await cache.v1_commit(upload, 7)
    assert answer.status == 400
    assert answer.json()["message"]
    assert await cache.matched("k") is None


async def test_t14_a_wrong_size_can_be_mended(cache: ActionsServer) -> None:
    upload = await cache.v1_reserve("k")
    await cache.v1_patch(upload, 0, b"content")
    assert (await cache.v1_commit(upload, 8)).status == 400
    assert await cache.matched("k") is None
    assert (await cache.v1_commit(upload, 7)).status == 204


@pytest.mark.parametrize(("length", "end"), [(7, 5), (7, 7)])
async def test_t14_a_body_of_another_length_leaves_nothing(cache: ActionsServer, length: int, end: int) -> None:
    upload = await cache.v1_reserve("k")
    answer = await cache.v1_patch(upload, 0, b"c" * length, end=end)
    assert answer.status == 400
    assert answer.json()["message"]
    answer = await cache.v1("PATCH", f"caches/{upload}", b"c" * length, headers={"Content-Range": f"bytes 0-{end}/*"})
    assert answer.status == 400
    assert (await cache.v1_commit(upload, length)).status == 400


@pytest.mark.parametrize(
    "value", ["", "bytes */7", "bytes 6-0/*", "bytes 0-6/5", "chars 0-6/*", "bytes 0-6", "bytes -1-6/*"]
)
async def test_t14_bad_content_ranges(cache: ActionsServer, value: str) -> None:
    upload = await cache.v1_reserve("k")
    answer = await cache.v1("PATCH", f"caches/{upload}", b"content", headers={"Content-Range": value})
    assert answer.status == 400
    assert "Content-Range" in answer.json()["message"]


async def test_t14_ids_belong_to_repository_and_scope(cache: ActionsServer) -> None:
    upload = await cache.v1_reserve("k")
    others = [
        cache.as_job("1002"),
        cache.as_job(scopes=[("refs/heads/feature", 3), ("refs/heads/main", 1)]),
        cache.as_job(scopes=[("refs/heads/main", 1)]),
    ]
    for other in others:
        assert (await other.v1_patch(upload, 0, b"content")).status in (403, 404)
        assert (await other.v1_commit(upload, 7)).status in (403, 404)
    await cache.v1_patch(upload, 0, b"content")
    assert (await cache.v1_commit(upload, 7)).status == 204
    for other in others:
        assert (await other.v1_commit(upload, 7)).status in (403, 404)


async def test_t14_after_the_commit(cache: ActionsServer) -> None:
    upload = await cache.v1_save("k", b"content")
    assert (await cache.v1_commit(upload, 7)).status == 204
    answer = await cache.v1_commit(upload, 8)
    assert answer.status == 400
    assert "already complete" in answer.json()["message"]
    answer = await cache.v1_patch(upload, 0, b"CONTENT")
    assert answer.status == 400
    assert "already complete" in answer.json()["message"]
    assert await cache.load("k") == b"content"


async def test_t14_unknown_ids(cache: ActionsServer) -> None:
    assert (await cache.v1_patch(999_999, 0, b"content")).status == 404
    assert (await cache.v1_commit(999_999, 7)).status == 404


async def test_t14_an_announced_size_over_the_limit_is_told_in_words(
    store: CacheStore, clock: Clock, tmp_path: Any
) -> None:
    settings = Settings.model_validate({"limits": {"max_entry": 1000}})
    async with actions_server(store, clock, tmp_path / "small", settings) as cache:
        answer = await cache.v1("POST", "caches", {"key": "k", "version": VERSION, "cacheSize": 1001})
        assert answer.status == 400
        assert "1001 bytes are more than" in answer.json()["message"]
        upload = await cache.v1_reserve("k", cacheSize=1000)
        assert (await cache.v1_patch(upload, 900, bytes(101))).status == 400
    # An unlimited server takes the byte budget for the limit.
    async with actions_server(store, clock, tmp_path / "room") as cache:
        answer = await cache.v1("POST", "caches", {"key": "k2", "version": VERSION, "cacheSize": 10**15})
        assert answer.status == 400


@pytest.mark.parametrize(
    "message",
    [
        b"",
        b"{",
        b"[]",
        b'"k"',
        b"[" * 100_000,
        b'{"key":1,"version":"v"}',
        b'{"key":"k"}',
        b'{"key":"\\ud800","version":"v"}',
        b'{"key":"","version":"v"}',
        b'{"key":"a,b","version":"v"}',
        b'{"key":"k","version":"v","cacheSize":-1}',
        b"\xff",
    ],
)
async def test_t17_bad_reservations(cache: ActionsServer, message: bytes) -> None:
    answer = await cache.v1("POST", "caches", message)
    assert answer.status == 400
    assert answer.json()["message"]


async def test_t01_listing_after_a_miss(cache: ActionsServer) -> None:
    none = await cache.v1("GET", "caches?key=k")
    assert none.json() == {"totalCount": 0, "artifactCaches": []}
    await cache.save("k-1", version="one")
    await cache.save("k-2", version="two")
    await cache.save("other")
    await cache.as_job("1002").save("k-3")
    listed = (await cache.v1("GET", "caches?key=k-")).json()
    assert listed["totalCount"] == 2
    assert {(one["cacheKey"], one["cacheVersion"]) for one in listed["artifactCaches"]} == {
        ("k-1", "one"),
        ("k-2", "two"),
    }
    assert (await cache.v1("GET", "caches")).json()["totalCount"] == 3


async def test_t17_routes_and_verbs(cache: ActionsServer) -> None:
    assert (await cache.v1("POST", "clean")).status == 200
    for method, resource, status in (
        ("GET", "nothing", 404),
        ("GET", "", 404),
        ("GET", "caches/abc", 404),
        ("GET", "caches/1", 405),
        ("DELETE", "caches", 405),
        ("PUT", "cache", 405),
    ):
        answer = await cache.v1(method, resource)
        assert answer.status == status
        assert answer.json()["message"]
    assert (await cache.ask("GET", "_apis/artifactcache")).status == 404


async def test_keys_are_decoded_once(cache: ActionsServer) -> None:
    for key in ("a b+c/d", "100%25", "é%2C"):
        await cache.save(key)
        assert (await cache.v1_find(key)).json()["cacheKey"] == key
    raw = await cache.v1("GET", f"cache?keys=a+b%2Bc/d&version={VERSION}")
    assert raw.json()["cacheKey"] == "a b+c/d"
    assert (await cache.v1("GET", f"cache?keys=%ff&version={VERSION}")).status == 400
    assert (await cache.v1("GET", "cache?keys=k")).status == 400
    assert (await cache.v1("GET", f"cache?version={VERSION}")).status == 400


async def test_a_lookup_may_name_ten_keys_of_512_characters_of_any_script(cache: ActionsServer) -> None:
    keys = [str(number) + "\u6f22" * 511 for number in range(10)]
    await cache.save(keys[9])
    answer = await cache.v1_find(*keys)
    assert answer.json()["cacheKey"] == keys[9]
