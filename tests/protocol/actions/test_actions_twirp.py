"""v2: reserve, upload, finalize, look up, in JSON and in protobuf."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from cachesrv.protocols.actions.proto import cache_pb2 as pb
from tests.protocol.actions.actions_server import VERSION, ActionsServer


async def test_t01_a_saved_entry_is_restored_and_looked_up(cache: ActionsServer) -> None:
    entry_id = await cache.save("k-1", b"one")
    assert entry_id.isdigit()
    found = await cache.find("k-1")
    assert found["ok"] is True
    assert found["matched_key"] == "k-1"
    assert await cache.load("k-1") == b"one"
    assert await cache.load("nope", "k-") == b"one"


async def test_t01_a_miss_is_ok_false_and_nothing_else(cache: ActionsServer) -> None:
    answer = await cache.twirp("GetCacheEntryDownloadURL", {"key": "nope", "version": VERSION})
    assert (answer.status, answer.body) == (200, b'{"ok": false}')


async def test_t01_both_protocols_see_the_same_entries(cache: ActionsServer) -> None:
    await cache.save("from-v2", b"two")
    await cache.v1_save("from-v1", b"one")
    assert await cache.load("from-v1") == b"one"
    found = (await cache.v1_find("from-v2")).json()
    assert (await cache.get(found["archiveLocation"])).body == b"two"
    assert (await cache.v1("POST", "caches", {"key": "from-v2", "version": VERSION})).status == 409
    assert (await cache.twirp("CreateCacheEntry", {"key": "from-v1", "version": VERSION})).status == 409


async def test_t01_unknown_and_camel_case_fields_are_read(cache: ActionsServer) -> None:
    await cache.save("k-1")
    message = {"key": "x", "restoreKeys": ["k-"], "version": VERSION, "metadata": {"repository_id": "7"}, "new": [1]}
    assert (await cache.twirp("GetCacheEntryDownloadURL", message)).json()["matched_key"] == "k-1"


async def test_t03_protobuf_save_and_restore(cache: ActionsServer) -> None:
    asked = pb.CreateCacheEntryRequest(key="k/1", version="v")
    answer = await cache.protobuf("CreateCacheEntry", asked)
    assert answer.headers["Content-Type"] == "application/protobuf"
    created = pb.CreateCacheEntryResponse.FromString(answer.body)
    assert created.ok
    assert (await cache.put(created.signed_upload_url, b"abc")).status == 201
    finish = pb.FinalizeCacheEntryUploadRequest(key="k/1", version="v", size_bytes=3)
    finished = pb.FinalizeCacheEntryUploadResponse.FromString(
        (await cache.protobuf("FinalizeCacheEntryUpload", finish)).body
    )
    assert finished.ok
    assert finished.entry_id > 0
    # Field 15, unknown to us, and no restore_keys at all.
    raw = pb.GetCacheEntryDownloadURLRequest(key="k/1", version="v").SerializeToString() + b"\x7a\x03new"
    found = pb.GetCacheEntryDownloadURLResponse.FromString((await cache.protobuf("GetCacheEntryDownloadURL", raw)).body)
    assert found.matched_key == "k/1"
    assert (await cache.get(found.signed_download_url)).body == b"abc"


async def test_t03_a_protobuf_miss_is_zero_bytes(cache: ActionsServer) -> None:
    answer = await cache.protobuf("GetCacheEntryDownloadURL", pb.GetCacheEntryDownloadURLRequest(key="k", version="v"))
    assert (answer.status, answer.body, answer.headers["Content-Length"]) == (200, b"", "0")
    assert answer.headers["Content-Type"] == "application/protobuf"


async def test_t03_protobuf_errors_are_json(cache: ActionsServer) -> None:
    answer = await cache.protobuf("CreateCacheEntry", b"\xff\xff\xff")
    assert answer.status == 400
    assert answer.json()["code"] == "malformed"
    await cache.save("k", b"x", "v")
    answer = await cache.protobuf("CreateCacheEntry", pb.CreateCacheEntryRequest(key="k", version="v"))
    assert (answer.status, answer.json()["code"]) == (409, "already_exists")


@pytest.mark.parametrize("size", ["7", 7, 7.0])
async def test_t08_size_as_text_or_number(cache: ActionsServer, size: object) -> None:
    url = await cache.create("k")
    await cache.put(url, b"content")
    reply = (await cache.finalize("k", size)).json()
    assert reply["ok"] is True
    assert isinstance(reply["entry_id"], str)


@pytest.mark.parametrize("size", ["8", "6", 0])
async def test_t08_a_wrong_size_is_told_and_can_be_mended(cache: ActionsServer, size: object) -> None:
    url = await cache.create("k")
    await cache.put(url, b"content")
    answer = await cache.finalize("k", size)
    assert answer.status == 200
    assert answer.json()["ok"] is False
    assert "bytes" in answer.json()["message"]
    assert await cache.load("k") is None
    assert (await cache.finalize("k", "7")).json()["ok"] is True


@pytest.mark.parametrize("size", ["seven", "-1", [7], "9" * 30, None])
async def test_t08_a_size_that_is_none_is_refused(cache: ActionsServer, size: object) -> None:
    await cache.put(await cache.create("k"), b"content")
    answer = await cache.finalize("k", size)
    assert answer.json().get("ok") is not True
    assert answer.status in (200, 400)


async def test_t08_finalize_twice_answers_the_same(cache: ActionsServer) -> None:
    entry_id = await cache.save("k", b"content")
    again = await cache.finalize("k", 7)
    assert (again.status, again.json()) == (200, {"ok": True, "entry_id": entry_id})
    other = await cache.finalize("k", 8)
    assert (other.status, other.json()["ok"]) == (200, False)


async def test_t08_two_finalizes_at_once_agree(cache: ActionsServer) -> None:
    await cache.put(await cache.create("k"), b"content")
    first, second = await asyncio.gather(cache.finalize("k", 7), cache.finalize("k", 7))
    assert first.json() == second.json()
    assert first.json()["ok"] is True


async def test_t08_finalize_without_an_upload_is_not_found(cache: ActionsServer) -> None:
    answer = await cache.finalize("k", 7)
    assert (answer.status, answer.json()["code"]) == (404, "not_found")


async def test_t08_finalize_before_any_bytes_or_before_the_list(cache: ActionsServer) -> None:
    url = await cache.create("k")
    answer = await cache.finalize("k", 7)
    assert (answer.status, answer.json()["ok"]) == (200, False)
    await cache.put_block(url, "AAAA", b"content")
    answer = await cache.finalize("k", 7)
    assert (answer.status, answer.json()["ok"]) == (200, False)
    assert await cache.load("k") is None
    assert (await cache.put_list(url, "AAAA")).status == 201
    assert (await cache.finalize("k", 7)).json()["ok"] is True


async def test_t08_finalize_while_a_block_is_on_its_way(cache: ActionsServer) -> None:
    url = await cache.create("k")
    await cache.put(url, b"content")
    begun, go_on = asyncio.Event(), asyncio.Event()

    async def slow() -> AsyncIterator[bytes]:
        yield b"slow"
        begun.set()
        await go_on.wait()
        yield b"ness"

    headers = {"Content-Length": "8"}
    late = asyncio.create_task(cache.ask("PUT", url + "&comp=block&blockid=AAAA", data=slow(), headers=headers))
    await begun.wait()
    assert (await cache.finalize("k", 7)).json()["ok"] is True
    go_on.set()
    assert (await late).status in (201, 404)
    assert await cache.load("k") == b"content"


async def test_t09_committed_and_in_flight_are_both_duplicates(cache: ActionsServer) -> None:
    url = await cache.create("k")
    answer = await cache.twirp("CreateCacheEntry", {"key": "k", "version": VERSION})
    assert answer.status == 409
    assert answer.json()["code"] == "already_exists"
    assert "already exists" in answer.json()["msg"]
    await cache.put(url, b"content")
    await cache.finalize("k", 7)
    answer = await cache.twirp("CreateCacheEntry", {"key": "k", "version": VERSION})
    assert (answer.status, answer.json()["code"]) == (409, "already_exists")


async def test_t09_a_stale_reservation_is_taken_over(cache: ActionsServer) -> None:
    old = await cache.create("k")
    cache.clock.advance(890)
    assert (await cache.twirp("CreateCacheEntry", {"key": "k", "version": VERSION})).status == 409
    cache.clock.advance(20)
    new = await cache.create("k")
    assert (await cache.put(old, b"old")).xml_code == "BlobNotFound"
    await cache.put(new, b"new")
    assert (await cache.finalize("k", 3)).json()["ok"] is True
    assert await cache.load("k") == b"new"


async def test_t09_a_reservation_that_gets_bytes_is_not_stale(sick: ActionsServer) -> None:
    url = await sick.create("k")
    for nth in range(3):
        sick.clock.advance(600)
        assert (await sick.put_block(url, f"AAA{nth}", b"x")).status == 201
        assert (await sick.twirp("CreateCacheEntry", {"key": "k", "version": VERSION})).status == 409


async def test_t09_of_twenty_savers_one_wins(cache: ActionsServer) -> None:
    answers = await asyncio.gather(
        *(cache.twirp("CreateCacheEntry", {"key": "k", "version": VERSION}) for _ in range(20))
    )
    assert sorted(answer.status for answer in answers) == [200] + [409] * 19


async def test_t09_other_scopes_versions_and_repositories_are_no_duplicates(cache: ActionsServer) -> None:
    await cache.save("k")
    await cache.save("k", version="other")
    await cache.as_job("1002").save("k")
    await cache.as_job(scopes=[("refs/heads/feature", 3), ("refs/heads/main", 1)]).save("k")


async def test_t20_sccache_check_file_on_a_second_start(cache: ActionsServer) -> None:
    key = "sccache/.sccache_check"
    asked = pb.GetCacheEntryDownloadURLRequest(key=key, version="v")
    assert (await cache.protobuf("GetCacheEntryDownloadURL", asked)).body == b""
    await cache.save(key, b"Hello, World!", "v")
    assert await cache.load(key, version="v") == b"Hello, World!"
    again = await cache.protobuf("CreateCacheEntry", pb.CreateCacheEntryRequest(key=key, version="v"))
    assert again.status == 409


async def test_the_recorder_hears_of_every_call_once(cache: ActionsServer) -> None:
    await cache.find("k")
    await cache.save("k", b"content")
    await cache.load("k")
    seen = [(operation, outcome, tenant) for operation, outcome, tenant, _, _ in cache.recorded.seen]
    assert seen == [
        ("lookup", "miss", "1001"),
        ("reserve", "ok", "1001"),
        ("upload", "ok", "1001"),
        ("finalize", "ok", "1001"),
        ("lookup", "hit", "1001"),
        ("download", "ok", "1001"),
    ]
    assert [bytes_in for *_, bytes_in, _ in cache.recorded.seen] == [
        0,
        0,
        7,
        0,
        0,
        0,
    ]  # content only, as docs/stats.md says
    assert [bytes_out for *_, bytes_out in cache.recorded.seen] == [0, 0, 0, 0, 0, 7]


async def test_a_request_whose_answer_could_name_no_host_reserves_nothing(cache: ActionsServer) -> None:
    message = {"key": "k", "version": VERSION}
    answer = await cache.twirp("CreateCacheEntry", message, headers={"Host": "no host"})
    assert (answer.status, answer.json()["code"]) == (400, "invalid_argument")
    await cache.save("k")
