"""The Azure subset: uploads whole and in blocks, block lists, downloads and ranges, signed URLs."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import random
from collections.abc import AsyncIterator
from typing import Any
from urllib.parse import parse_qsl, quote, urlsplit

import aiohttp
import pytest
from yarl import URL

from cachesrv.config import Settings
from cachesrv.store.api import CacheStore, EntryFilter
from cachesrv.store.model import RemovalReason
from tests.doubles.memory_store import SickStore
from tests.protocol.actions.actions_server import ActionsServer, Clock, actions_server, block_list


def block_id(raw_bytes: int, nth: int) -> str:
    """Base64 whose text holds + and /."""
    return base64.b64encode(b"\xfb\xff\xbe" + nth.to_bytes(raw_bytes - 3, "big")).decode()


@pytest.mark.parametrize("size", [0, 1, 240, 1024 * 1024 + 1])
async def test_t02_put_blob(cache: ActionsServer, size: int) -> None:
    content = random.Random(size).randbytes(size)
    await cache.save("k", content)
    assert await cache.load("k") == content


@pytest.mark.parametrize("raw_bytes", [16, 48, 64])
async def test_t02_t04_blocks_in_parallel_and_out_of_order(cache: ActionsServer, raw_bytes: int) -> None:
    blocks = [(block_id(raw_bytes, n), random.Random(n).randbytes(100_000 + n)) for n in range(9)]
    url = await cache.create("k")
    shuffled = random.Random(1).sample(blocks, len(blocks))
    answers = await asyncio.gather(*(cache.put_block(url, name, data) for name, data in shuffled))
    assert {answer.status for answer in answers} == {201}
    assert (await cache.put_list(url, *(name for name, _ in blocks))).status == 201
    whole = b"".join(data for _, data in blocks)
    assert (await cache.finalize("k", str(len(whole)))).json()["ok"] is True
    assert await cache.load("k") == whole


async def test_t04_order_is_the_list_and_blocks_may_repeat_or_be_dropped(cache: ActionsServer) -> None:
    url = await cache.create("k")
    for name in ("AAAA", "BBBB", "CCCC"):
        await cache.put_block(url, name, name.lower().encode())
    assert (await cache.put_list(url, "CCCC", "AAAA", "CCCC")).status == 201
    assert (await cache.finalize("k", 12)).json()["ok"] is True
    assert await cache.load("k") == b"ccccaaaacccc"


async def test_t04_put_again_replaces_and_a_repeated_list_is_fine(cache: ActionsServer) -> None:
    url = await cache.create("k")
    await cache.put_block(url, "AAAA", b"old")
    await cache.put_block(url, "AAAA", b"newer")
    assert (await cache.put_list(url, "AAAA")).status == 201
    assert (await cache.put_list(url, "AAAA")).status == 201
    await cache.finalize("k", 5)
    assert await cache.load("k") == b"newer"


async def test_t04_put_blob_replaces_what_was_staged(cache: ActionsServer) -> None:
    url = await cache.create("k")
    await cache.put_block(url, "AAAA", b"old")
    await cache.put_list(url, "AAAA")
    await cache.put(url, b"whole")
    await cache.finalize("k", 5)
    assert await cache.load("k") == b"whole"


async def test_t04_a_plus_sign_in_an_id_is_never_a_space(cache: ActionsServer) -> None:
    url = await cache.create("k")
    for name, target in (("a+b/", "a%2Bb%2F"), ("c+d/", "c+d/")):
        answer = await cache.ask("PUT", f"{url}&comp=block&blockid={target}", data=name.encode(), auth=False)
        assert answer.status == 201
    assert (await cache.put_list(url, "a+b/", "c+d/")).status == 201
    await cache.finalize("k", 8)
    assert await cache.load("k") == b"a+b/c+d/"


@pytest.mark.parametrize(
    "document",
    [
        "<BlockList><Latest>AAAA</Latest></BlockList>",
        '<?xml version="1.0" encoding="UTF-8"?>\n<BlockList><Latest>AAAA</Latest></BlockList>',
        '<?xml version="1.0" encoding="utf-8"?><BlockList>\n  <Uncommitted>AAAA</Uncommitted>\n</BlockList>\n',
        "<BlockList><Committed> AAAA </Committed></BlockList>",
        '<BlockList xmlns="urn:x"><Latest>AAAA</Latest></BlockList>',
    ],
)
async def test_t04_forms_of_the_document(cache: ActionsServer, document: str) -> None:
    url = await cache.create("k")
    await cache.put_block(url, "AAAA", b"content")
    assert (await cache.put_list(url, document=document)).status == 201
    assert (await cache.finalize("k", 7)).json()["ok"] is True


async def test_t04_an_unknown_id_is_an_invalid_list(cache: ActionsServer) -> None:
    url = await cache.create("k")
    await cache.put_block(url, "AAAA", b"content")
    answer = await cache.put_list(url, "AAAA", "BBBB")
    assert (answer.status, answer.xml_code) == (400, "InvalidBlockList")


@pytest.mark.parametrize(
    "document",
    [
        '<!DOCTYPE x [<!ENTITY a "aaaa"><!ENTITY b "&a;&a;&a;">]><BlockList><Latest>&b;</Latest></BlockList>',
        '<!DOCTYPE BlockList SYSTEM "file:///etc/passwd"><BlockList/>',
        "<BlockList><Latest>AAAA</Latest>",
        "<Other/>",
        "<BlockList><Older>AAAA</Older></BlockList>",
        "<BlockList><Latest><Latest>AAAA</Latest></Latest></BlockList>",
        "not xml",
        "",
    ],
)
async def test_t04_hostile_documents_are_refused(cache: ActionsServer, document: str) -> None:
    url = await cache.create("k")
    await cache.put_block(url, "AAAA", b"content")
    answer = await cache.ask("PUT", f"{url}&comp=blocklist", data=document.encode(), auth=False)
    assert (answer.status, answer.xml_code) == (400, "InvalidXmlDocument")
    assert b"root:" not in answer.body


async def test_t04_limits_of_the_list(store: CacheStore, clock: Clock, tmp_path: Any) -> None:
    settings = Settings.model_validate({"limits": {"max_blocks": 10, "max_block_list": 1000}})
    async with actions_server(store, clock, tmp_path / "small", settings) as cache:
        url = await cache.create("k")
        await cache.put_block(url, "AAAA", b"x")
        assert (await cache.put_list(url, *["AAAA"] * 10)).status == 201
        answer = await cache.put_list(url, *["AAAA"] * 11)
        assert (answer.status, answer.xml_code) == (413, "RequestBodyTooLarge")
        answer = await cache.put_list(url, document="<BlockList>" + " " * 1000 + "</BlockList>")
        assert (answer.status, answer.xml_code) == (413, "RequestBodyTooLarge")
        assert (await cache.put_block(url, "", b"x")).status == 400
        assert (await cache.put_block(url, "A" * 257, b"x")).status == 400


async def test_t05_every_put_carries_what_the_clients_need(cache: ActionsServer) -> None:
    url = await cache.create("k")
    answers = [
        await cache.put(url, b"content", **{"x-ms-client-request-id": "mine"}),
        await cache.put_block(url, "AAAA", b"content", **{"x-ms-version": "2026-02-06"}),
        await cache.put_list(url, "AAAA"),
    ]
    for answer in answers:
        assert answer.status == 201
        assert answer.headers["x-ms-request-server-encrypted"] == "true"
        assert answer.headers["Content-Length"] == "0"
        for name in ("x-ms-request-id", "x-ms-version", "ETag", "Last-Modified", "Date"):
            assert answer.headers[name]
    assert answers[0].headers["x-ms-client-request-id"] == "mine"
    assert answers[0].headers["x-ms-version"] == "2026-02-06"
    assert len({answer.headers["x-ms-request-id"] for answer in answers}) == 3


async def test_t05_ranges(cache: ActionsServer) -> None:
    content = bytes(range(256)) * 40
    size = len(content)
    await cache.save("k", content)
    url = (await cache.find("k"))["signed_download_url"]
    whole = await cache.get(url)
    assert whole.headers["Accept-Ranges"] == "bytes"
    assert whole.headers["x-ms-blob-type"] == "BlockBlob"
    assert whole.headers["Content-Type"] == "application/octet-stream"
    for name in ("Range", "x-ms-range"):
        for asked, start, stop in (
            ("bytes=5-9", 5, 10),
            ("bytes=5-", 5, size),
            ("bytes=-7", size - 7, size),
            (f"bytes=9-{size * 2}", 9, size),
            ("bytes=0-0", 0, 1),
        ):
            answer = await cache.ask("GET", url, headers={name: asked}, auth=False)
            assert answer.status == 206
            assert answer.body == content[start:stop]
            assert answer.headers["Content-Range"] == f"bytes {start}-{stop - 1}/{size}"
            assert answer.headers["ETag"] == whole.headers["ETag"]
    both = await cache.ask("GET", url, headers={"Range": "bytes=0-0", "x-ms-range": "bytes=5-9"}, auth=False)
    assert both.body == content[5:10]
    several = await cache.get(url, Range="bytes=0-1,4-5")
    assert (several.status, several.body) == (200, content)
    past = await cache.get(url, Range=f"bytes={size}-")
    assert (past.status, past.xml_code, past.headers["Content-Range"]) == (416, "InvalidRange", f"bytes */{size}")


async def test_t05_head_and_conditions(cache: ActionsServer) -> None:
    await cache.save("k", b"content")
    url = (await cache.find("k"))["signed_download_url"]
    head = await cache.ask("HEAD", url, auth=False)
    assert (head.status, head.body, head.headers["Content-Length"]) == (200, b"", "7")
    etag = head.headers["ETag"]
    assert (await cache.get(url, If_Match=etag)).body == b"content"
    assert (await cache.get((await cache.find("k"))["signed_download_url"])).headers["ETag"] == etag
    failed = await cache.get(url, If_Match='"other"')
    assert (failed.status, failed.xml_code) == (412, "ConditionNotMet")
    assert (await cache.get(url, If_None_Match=etag)).status == 304


async def test_t05_content_md5_is_checked(cache: ActionsServer) -> None:
    url = await cache.create("k")
    md5 = base64.b64encode(hashlib.md5(b"content").digest()).decode()
    for put in (
        cache.put(url, b"CONTENT", **{"Content-MD5": md5}),
        cache.put_block(url, "A", b"x", **{"Content-MD5": md5}),
    ):
        answer = await put
        assert (answer.status, answer.xml_code) == (400, "Md5Mismatch")
    assert (await cache.finalize("k", 7)).json()["ok"] is False
    assert (await cache.put(url, b"content", **{"Content-MD5": "short"})).status == 400
    assert (await cache.put(url, b"content", **{"Content-MD5": "\u00e9\u00e9"})).status == 400
    answer = await cache.put(url, b"content", **{"Content-MD5": md5, "x-ms-content-crc64": "AAAAAAAAAAA="})
    assert (answer.status, answer.headers["Content-MD5"]) == (201, md5)


async def test_t06_clients_may_bend_the_form_of_a_query(cache: ActionsServer) -> None:
    await cache.save("k", b"content")
    url = (await cache.find("k"))["signed_download_url"]
    base, query = url.split("?")
    fields = dict(parse_qsl(query, strict_parsing=True))
    hexed = "&".join(f"{n}={''.join(f'%{b:02x}' for b in v.encode())}" for n, v in sorted(fields.items(), reverse=True))
    for form in ("&".join(reversed(query.split("&"))), hexed, f"timeout=30&{query}&x=+%2B", f"{query}&"):
        assert (await cache.get(f"{base}?{form}")).body == b"content"


async def test_t06_a_url_opens_nothing_else(cache: ActionsServer) -> None:
    await cache.save("a", b"secret a")
    await cache.save("b", b"secret b")
    upload = await cache.create("c")
    a, b = [(await cache.find(key))["signed_download_url"] for key in ("a", "b")]

    def opaque(url: str) -> str:
        return urlsplit(url).path.rsplit("/", 1)[1]

    forged = [
        a.replace(opaque(a), opaque(b)),
        a.replace("sp=r", "sp=cw"),
        a.replace("se=", "se=9"),
        a[:-1] if a[-1] != "r" else a + "w",
        a.replace("sig=", "sig=A"),
        a.split("?")[0],
        a.split("?")[0] + "?sig=&se=&sp=",
        upload,
        upload.replace(opaque(upload), opaque(a)),
    ]
    for url in forged:
        answer = await cache.get(url)
        assert (answer.status, answer.xml_code) == (403, "AuthenticationFailed")
    for url in (a, a.replace(opaque(a), opaque(upload)), upload.replace("se=", "se=9"), upload.split("?")[0]):
        answer = await cache.put(url, b"poison")
        assert (answer.status, answer.xml_code) == (403, "AuthenticationFailed")
    assert await cache.load("a") == b"secret a"


async def test_t06_urls_expire_after_the_job(cache: ActionsServer) -> None:
    await cache.save("k", b"content")
    url = (await cache.find("k"))["signed_download_url"]
    cache.clock.advance(3600 * 6 - 1)
    assert (await cache.get(url)).status == 200
    cache.clock.advance(2)
    answer = await cache.get(url)
    assert (answer.status, answer.xml_code) == (403, "AuthenticationFailed")


async def test_t06_form_of_the_url(cache: ActionsServer) -> None:
    parts = urlsplit(await cache.create("k"))
    assert len([segment for segment in parts.path.split("/") if segment]) >= 3
    assert dict(parse_qsl(parts.query)).keys() == {"sig", "se", "sp"}


async def test_t11_an_open_download_outlives_its_entry(cache: ActionsServer) -> None:
    content = random.Random(3).randbytes(12 * 1024 * 1024)
    await cache.save("k", content)
    url = (await cache.find("k"))["signed_download_url"]
    async with cache.session.get(URL(url, encoded=True)) as answer:
        first = await answer.content.readexactly(1000)
        entries = cache.store.entries(EntryFilter(), limit=9).entries
        assert await cache.store.delete([entry.id for entry in entries], RemovalReason.BUDGET) == 1
        assert first + await answer.read() == content
    assert await cache.matched("k") is None


async def test_t11_a_blob_that_is_gone_is_404_in_xml(sick: ActionsServer) -> None:
    await sick.save("k", b"content")
    url = (await sick.find("k"))["signed_download_url"]
    await sick.store.delete([sick.store.entries(EntryFilter(), limit=1).entries[0].id], RemovalReason.BUDGET)
    answer = await sick.get(url)
    assert (answer.status, answer.xml_code) == (404, "BlobNotFound")


async def test_t11_damage_never_passes_for_content(sick: ActionsServer, sick_store: SickStore) -> None:
    await sick.save("first", b"content")
    await sick.save("late", bytes(4 * 1024 * 1024))
    for entry in sick_store.entries(EntryFilter(), limit=9).entries:
        sick_store.damaged[entry.blob] = 0 if entry.key == "first" else 3 * 1024 * 1024
    answer = await sick.get((await sick.find("first"))["signed_download_url"])
    assert (answer.status, answer.xml_code) == (404, "BlobNotFound")
    url = (await sick.find("late"))["signed_download_url"]
    with pytest.raises(aiohttp.ClientError):
        await sick.get(url)
    assert [seen[1] for seen in sick.recorded.seen if seen[0] == "download"] == ["damaged", "damaged"]


async def test_t15_never_encoded_and_exact_also_for_a_slow_reader(cache: ActionsServer) -> None:
    content = bytes(6 * 1024 * 1024)
    await cache.save("k", content)
    url = (await cache.find("k"))["signed_download_url"]
    async with cache.session.get(URL(url, encoded=True), headers={"Accept-Encoding": "gzip, zstd"}) as answer:
        assert "Content-Encoding" not in answer.headers
        assert answer.headers["Content-Length"] == str(len(content))
        read = 0
        while chunk := await answer.content.read(64 * 1024):
            read += len(chunk)
            await asyncio.sleep(0)
        assert read == len(content)


async def test_t16_another_process_carries_an_upload_on(store: CacheStore, clock: Clock, tmp_path: Any) -> None:
    async with actions_server(store, clock, tmp_path / "room") as before:
        url = await before.create("k")
        await before.put_block(url, "AAAA", b"first ")
    async with actions_server(store, clock, tmp_path / "room") as after:
        moved = url.replace(before.url, after.url)
        assert await after.matched("k") is None
        assert (await after.put_block(moved, "BBBB", b"second")).status == 201
        assert (await after.put_list(moved, "AAAA", "BBBB")).status == 201
        assert (await after.finalize("k", 12)).json()["ok"] is True
        assert await after.load("k") == b"first second"


async def test_t17_lengths_verbs_and_kinds(cache: ActionsServer) -> None:
    url = await cache.create("k")

    async def chunked() -> AsyncIterator[bytes]:
        yield b"content"

    answer = await cache.ask("PUT", url, data=chunked(), auth=False)
    assert (answer.status, answer.xml_code) == (411, "MissingContentLengthHeader")
    for method in ("POST", "DELETE", "PATCH", "OPTIONS"):
        answer = await cache.ask(method, url, auth=False)
        assert (answer.status, answer.xml_code) == (405, "UnsupportedHttpVerb")
    answer = await cache.put(url, b"x", **{"x-ms-blob-type": "PageBlob"})
    assert (answer.status, answer.xml_code) == (400, "InvalidInput")
    answer = await cache.ask("PUT", url + "&comp=metadata", data=b"", auth=False)
    assert (answer.status, answer.xml_code) == (400, "InvalidInput")


async def test_t17_what_is_too_large_is_refused_unread(store: CacheStore, clock: Clock, tmp_path: Any) -> None:
    settings = Settings.model_validate({"limits": {"max_entry": 1000}})
    async with actions_server(store, clock, tmp_path / "small", settings) as cache:
        url = await cache.create("k")
        answer = await cache.put(url, bytes(1001))
        assert (answer.status, answer.xml_code) == (413, "RequestBodyTooLarge")
        assert (await cache.put(url, bytes(1000))).status == 201


async def test_t18_an_aborted_put_leaves_no_block(cache: ActionsServer) -> None:
    url = await cache.create("k")
    await cache.put_block(url, "AAAA", b"whole")
    parts = urlsplit(url)
    target = f"{parts.path}?{parts.query}&comp=block&blockid="
    for name in ("AAAA", "BBBB"):
        _, writer = await asyncio.open_connection(parts.hostname, parts.port)
        head = f"PUT {target}{quote(name)} HTTP/1.1\r\nHost: {parts.netloc}\r\nContent-Length: 100\r\n\r\nhalf"
        writer.write(head.encode())
        await writer.drain()
        writer.transport.abort()
    await cache.recorded.until("aborted", 2)
    assert (await cache.put_list(url, "AAAA", "BBBB")).xml_code == "InvalidBlockList"
    assert (await cache.put_list(url, "AAAA")).status == 201
    await cache.finalize("k", 5)
    assert await cache.load("k") == b"whole"


async def test_an_upload_url_is_dead_after_finalize(cache: ActionsServer) -> None:
    url = await cache.create("k")
    await cache.put(url, b"content")
    await cache.finalize("k", 7)
    for put in (cache.put(url, b"poison!"), cache.put_block(url, "A", b"x"), cache.put_list(url, "A")):
        answer = await put
        assert (answer.status, answer.xml_code) == (404, "BlobNotFound")
    assert await cache.load("k") == b"content"


async def test_a_url_signed_for_one_repository_says_so(cache: ActionsServer) -> None:
    await cache.save("k", b"content")
    found = json.dumps(await cache.find("k"))
    assert cache.token not in found
    assert block_list("A") == block_list("A")
