"""The status tables: tokens, routes, hostile input, full disks, sick stores and bugs, in the dialect of each path."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import TypeVar
from urllib.parse import urlsplit

import jwt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cachesrv.config import Settings
from cachesrv.protocols.actions.lookups import MAX_KEY
from cachesrv.store.api import CacheStore, EntryFilter
from cachesrv.store.errors import (
    IndexFull,
    LimitExceeded,
    StoreBusy,
    StoreError,
    StoreFull,
    StoreReadOnly,
    StoreUnavailable,
)
from cachesrv.store.model import RemovalReason
from tests.doubles.memory_store import SickStore
from tests.job_token import job_token
from tests.protocol.actions.actions_server import (
    SERVICE,
    V1,
    VERSION,
    ActionsServer,
    Clock,
    actions_server,
    fresh_secret,
)

METHODS = ("CreateCacheEntry", "FinalizeCacheEntryUpload", "GetCacheEntryDownloadURL")
UNAVAILABLE = [StoreFull, StoreBusy, StoreReadOnly, IndexFull, StoreUnavailable]


# -- who asks ----------------------------------------------------------------------------------------------------------


async def test_t13_bad_tokens_are_told_in_the_dialect_of_the_path(
    store: CacheStore, clock: Clock, tmp_path: Path
) -> None:
    secret = fresh_secret()
    chosen = Settings.model_validate({"auth": {"mode": "shared-secret", "shared_secret": secret}})
    main = [("refs/heads/main", 3)]
    unscoped = jwt.encode({"exp": 4e9, "nbf": 0, "repository_id": "1"}, secret, algorithm="HS256")
    bad = [
        "",
        "junk",
        job_token(),
        job_token(secret="x" * 64),
        job_token("1", main, secret=secret, lifetime=-900),
        unscoped,
    ]
    async with actions_server(store, clock, tmp_path / "secret", chosen) as cache:
        for token in bad:
            stranger = cache.with_token(token)
            for method in METHODS:
                answer = await stranger.twirp(method, {"key": "k", "version": VERSION})
                assert (answer.status, answer.json()["code"]) == (401, "unauthenticated")
            for answer in (
                await stranger.v1_find("k"),
                await stranger.v1("POST", "caches", {"key": "k", "version": VERSION}),
                await stranger.v1_patch(1, 0, b"x"),
                await stranger.v1_commit(1, 1),
                await stranger.v1("GET", "caches?key=k"),
            ):
                assert answer.status == 401
                assert answer.json()["message"]
                assert token == "" or token.encode() not in answer.body
        good = cache.with_token(job_token("1", main, secret=secret))
        await good.save("k", b"content")
        assert await good.load("k") == b"content"


async def test_t13_a_secret_in_the_path(store: CacheStore, clock: Clock, tmp_path: Path) -> None:
    secret = fresh_secret()
    chosen = Settings.model_validate({"auth": {"mode": "shared-secret", "shared_secret": secret}})
    async with actions_server(store, clock, tmp_path / "secret", chosen) as cache:
        forge = cache.with_token("")
        forge.prefix = f"/{secret}/repo-a"
        await forge.v1_save("k", b"content")
        assert (await forge.v1_find("k")).status == 200
        assert await forge.load("k") == b"content"
        forge.prefix = f"/{secret}/repo-b"
        assert (await forge.v1_find("k")).status == 204
        forge.prefix = "/wrong/repo-a"
        assert (await forge.v1_find("k")).status == 401


# -- where -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("prefix", ["", "/", "//", "/pfx", "/a/b/c/", "/tok//abc"])
async def test_t07_prefixes_and_double_slashes(cache: ActionsServer, prefix: str) -> None:
    cache.prefix = prefix
    await cache.save("k2", b"two")
    await cache.v1_save("k1", b"one")
    cache.prefix = ""
    for key, content in (("k1", b"one"), ("k2", b"two")):
        repositories = {entry.namespace.tenant for entry in cache.store.entries(EntryFilter(), limit=9).entries}
        assert repositories == {"1001"}
        assert await cache.load(key) == content
        url = (await cache.find(key))["signed_download_url"]
        moved = url.replace("/cachesrv/", f"{prefix}//cachesrv//")
        assert (await cache.get(moved)).body == content


async def test_t07_urls_are_made_for_the_host_the_client_knows(store: CacheStore, clock: Clock, tmp_path: Path) -> None:
    async def url(cache: ActionsServer, key: str, **headers: str) -> str:
        sent = {name.replace("_", "-"): value for name, value in headers.items()}
        answer = await cache.twirp("CreateCacheEntry", {"key": key, "version": VERSION}, headers=sent)
        return str(answer.json()["signed_upload_url"])

    forwarded = {"X_Forwarded_Proto": "https", "X_Forwarded_Host": "cache.example:8443"}
    async with actions_server(store, clock, tmp_path / "a") as cache:
        assert (await url(cache, "a", Host="[::1]:8700")).startswith("http://[::1]:8700/cachesrv/")
        assert (await url(cache, "b", Host="runner.local")).startswith("http://runner.local/cachesrv/")
        assert (await url(cache, "c", **forwarded)).startswith(cache.url)
        answer = await cache.twirp("CreateCacheEntry", {"key": "d", "version": VERSION}, headers={"Host": "a b<>"})
        assert (answer.status, answer.json()["code"]) == (400, "invalid_argument")
    trusting = Settings.model_validate({"server": {"trusted_proxies": ["127.0.0.0/8"]}})
    async with actions_server(store, clock, tmp_path / "b", trusting) as cache:
        assert (await url(cache, "e", **forwarded)).startswith("https://cache.example:8443/cachesrv/")
    fixed = Settings.model_validate({"server": {"base_url": "https://cache.example/below"}})
    async with actions_server(store, clock, tmp_path / "c", fixed) as cache:
        assert (await url(cache, "f", Host="other")).startswith("https://cache.example/below/cachesrv/")


async def test_t17_twirp_routes_verbs_and_kinds(cache: ActionsServer) -> None:
    for method in ("Nothing", "", "CreateCacheEntry/x", "DeleteCacheEntry", "createcacheentry"):
        answer = await cache.twirp(method, {})
        assert (answer.status, answer.json()["code"]) == (404, "bad_route")
    for verb in ("GET", "PUT", "DELETE", "HEAD"):
        answer = await cache.ask(verb, f"{SERVICE}/CreateCacheEntry")
        assert answer.status == 405
        assert verb == "HEAD" or answer.json()["code"] == "bad_route"
    answer = await cache.twirp("CreateCacheEntry", {}, headers={"Content-Type": "text/html"})
    assert (answer.status, answer.json()["code"]) == (404, "bad_route")
    answer = await cache.twirp("CreateCacheEntry", b"x" * (1024 * 1024 + 1))
    assert answer.status == 413
    assert answer.json()["msg"]
    answer = await cache.v1("POST", "caches", b"x" * (1024 * 1024 + 1))
    assert answer.status == 413
    assert answer.json()["message"]


async def test_t17_oversized_headers_are_refused_in_json(cache: ActionsServer) -> None:
    parts = urlsplit(cache.url)
    reader, writer = await asyncio.open_connection(parts.hostname, parts.port)
    writer.write(f"POST /{SERVICE}/CreateCacheEntry HTTP/1.1\r\nHost: x\r\nX: {'x' * 100_000}\r\n\r\n".encode())
    head, _, body = (await reader.read()).partition(b"\r\n\r\n")
    assert head.split()[1].startswith(b"4")
    assert b"application/json" in head
    assert body.startswith(b"{")
    writer.close()
    await writer.wait_closed()


@pytest.mark.parametrize(
    "body", [b"", b"null", b"[]", b"{", b"\xff\xfe", b"[" * 500_000, b'{"key":{}}', b'{"key":"\\ud800","version":"v"}']
)
@pytest.mark.parametrize("method", METHODS)
async def test_t17_bad_json(cache: ActionsServer, method: str, body: bytes) -> None:
    answer = await cache.twirp(method, body)
    assert answer.status == 400
    assert answer.json()["code"] in ("malformed", "invalid_argument")
    assert answer.json()["msg"]


# -- a sick store ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("error", [*UNAVAILABLE, StoreError, RuntimeError])
async def test_t18_lookups_in_a_sick_store_are_misses(
    sick: ActionsServer, sick_store: SickStore, error: type[Exception]
) -> None:
    await sick.save("k")
    for operation in ("lookup", "prove", "touch"):
        sick_store.sick = {operation: error("sick")}
        answer = await sick.twirp("GetCacheEntryDownloadURL", {"key": "k", "version": VERSION})
        assert (answer.status, answer.json()) == (200, {"ok": False})
        answer = await sick.v1_find("k")
        assert (answer.status, answer.body) == (204, b"")
    sick_store.sick = {"entries": StoreBusy("sick")}
    assert (await sick.v1("GET", "caches?key=k")).json()["totalCount"] == 0
    sick_store.sick = {}
    assert await sick.matched("k") == "k"
    assert [outcome for operation, outcome, *_ in sick.recorded.seen if operation == "lookup"][-1] == "hit"


@pytest.mark.parametrize("error", UNAVAILABLE)
async def test_t18_a_save_that_cannot_be_taken_is_told_at_once(
    sick: ActionsServer, sick_store: SickStore, error: type[StoreError]
) -> None:
    sick_store.sick = {"reserve": error("no room on the data disk")}
    answer = await sick.twirp("CreateCacheEntry", {"key": "k", "version": VERSION})
    assert (answer.status, answer.json()) == (200, {"ok": False, "message": "no room on the data disk"})
    answer = await sick.v1("POST", "caches", {"key": "k", "version": VERSION})
    assert (answer.status, answer.json()) == (400, {"message": "no room on the data disk"})
    assert {seen[1] for seen in sick.recorded.seen} == {"full" if error is StoreFull else "error"}
    sick_store.sick = {}
    assert await sick.save("k")


@pytest.mark.parametrize("error", UNAVAILABLE)
async def test_t18_a_disk_that_fills_up_during_an_upload(
    sick: ActionsServer, sick_store: SickStore, error: type[StoreError]
) -> None:
    final = error not in (StoreFull, StoreBusy)
    url = await sick.create("k")
    upload = await sick.v1_reserve("k1")
    sick_store.sick = dict.fromkeys(
        ("stage_whole", "stage_block", "stage_range", "choose_blocks", "commit"), error("full")
    )
    for put in (sick.put(url, b"content"), sick.put_block(url, "A", b"content"), sick.put_list(url, "A")):
        answer = await put
        expected = (403, "AccountIsDisabled") if final else (503, "ServerBusy")
        assert (answer.status, answer.xml_code) == expected
    for answer in (await sick.v1_patch(upload, 0, b"content"), await sick.v1_commit(upload, 7)):
        assert answer.status == (500 if final else 503)
        assert answer.json() == {"message": "full"}
    answer = await sick.finalize("k", 7)
    assert (answer.status, answer.json()) == (200, {"ok": False, "message": "full"})
    sick_store.sick = {}
    assert (await sick.put(url, b"content")).status == 201
    assert (await sick.finalize("k", 7)).json()["ok"] is True
    assert await sick.load("k") == b"content"


async def test_t18_limits_of_the_store(sick: ActionsServer, sick_store: SickStore) -> None:
    url = await sick.create("k")
    sick_store.sick = dict.fromkeys(("reserve", "stage_whole"), LimitExceeded("over the quota"))
    answer = await sick.twirp("CreateCacheEntry", {"key": "x", "version": VERSION})
    assert (answer.status, answer.json()) == (400, {"code": "invalid_argument", "msg": "over the quota"})
    answer = await sick.v1("POST", "caches", {"key": "x", "version": VERSION})
    assert (answer.status, answer.json()) == (400, {"message": "over the quota"})
    assert (await sick.put(url, b"x")).xml_code == "RequestBodyTooLarge"


async def test_t17_a_bug_is_told_without_a_trace(sick: ActionsServer, sick_store: SickStore) -> None:
    await sick.save("k")
    download = (await sick.find("k"))["signed_download_url"]
    url = await sick.create("k2")
    sick_store.sick = dict.fromkeys(
        ("reserve", "commit", "stage_whole", "open", "upload"), RuntimeError("/secret/path")
    )
    answers = [
        await sick.twirp("CreateCacheEntry", {"key": "x", "version": VERSION}),
        await sick.finalize("k2", 7),
        await sick.v1("POST", "caches", {"key": "x", "version": VERSION}),
        await sick.v1_commit(1, 7),
        await sick.put(url, b"x"),
        await sick.get(download),
    ]
    assert [answer.status for answer in answers] == [200, 200, 400, 500, 500, 500]
    assert answers[0].json() == answers[1].json() == {"ok": False, "message": "internal error"}
    assert answers[2].json() == answers[3].json() == {"message": "internal error"}
    assert answers[4].xml_code == answers[5].xml_code == "InternalError"
    assert not any(b"secret" in answer.body or b"Traceback" in answer.body for answer in answers)


async def test_t18_finalize_against_eviction(sick: ActionsServer) -> None:
    await sick.put(await sick.create("k"), b"content")

    async def evict() -> None:
        page = sick.store.entries(EntryFilter(), limit=9)
        await sick.store.delete([entry.id for entry in page.entries], RemovalReason.BUDGET)

    answers = await asyncio.gather(sick.finalize("k", 7), evict(), sick.finalize("k", 7))
    assert answers[0].json()["ok"] is True
    assert answers[2].status in (200, 404)
    await evict()
    assert await sick.matched("k") is None


# -- hostile input -----------------------------------------------------------------------------------------------------

T = TypeVar("T")


def check_quiet(status: int, body: bytes) -> None:
    assert status < 500
    assert b"Traceback" not in body
    assert b"<html" not in body.lower()


class TestHostile:
    """Never a 5xx, never anything but the dialect of the path; many requests on one server."""

    @pytest.mark.parametrize("kind", ["application/json", "application/protobuf"])
    async def test_t17_any_bytes_to_twirp(self, cache: ActionsServer, kind: str) -> None:
        for method in METHODS:
            for body in examples(st.binary(max_size=200) | json_like()):
                answer = await cache.twirp(method, body, headers={"Content-Type": kind})
                check_quiet(answer.status, answer.body)
                if answer.status != 200:
                    assert set(answer.json()) == {"code", "msg"}

    async def test_t17_any_path_below_the_room(self, cache: ActionsServer) -> None:
        segment = st.text(st.sampled_from("abz09%/.?&=+-_~\\'<>é\x7f"), max_size=30)
        for path in examples(segment):
            quoted = path.encode("ascii", "ignore").decode().replace("\x7f", "").replace("\\", "%5C")
            for base in (SERVICE, V1, "cachesrv/actions-cache", "twirp", "_apis"):
                answer = await cache.ask("GET", f"{base}/{quoted}")
                check_quiet(answer.status, answer.body)
                assert answer.status >= 400 or answer.status in (200, 204)

    async def test_t17_any_key_is_a_key(self, cache: ActionsServer) -> None:
        for key in examples(st.text(min_size=1, max_size=80), 40):
            valid = len(key.encode("utf-16-le", "surrogatepass")) // 2 <= MAX_KEY
            answer = await cache.twirp("CreateCacheEntry", {"key": key, "version": "v"})
            check_quiet(answer.status, answer.body)
            assert answer.status in ((200, 409) if valid else (400,))


def examples(strategy: st.SearchStrategy[T], count: int = 60) -> list[T]:
    """Examples drawn up front: hypothesis's engine does not run coroutines."""
    found: list[T] = []

    @settings(max_examples=count, deadline=None, database=None, derandomize=True)
    @given(strategy)
    def draw(value: T) -> None:
        found.append(value)

    draw()
    return found


def json_like() -> st.SearchStrategy[bytes]:
    leaf = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8)
    names = st.sampled_from(["key", "version", "restore_keys", "size_bytes", "sizeBytes", "metadata", "x"])
    value = st.recursive(leaf, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(names, inner, max_size=3))
    return st.dictionaries(names, value, max_size=5).map(lambda message: json.dumps(message).encode())
