"""The Actions room behind the real HTTP floor, on a free loopback port, and a small client that speaks its dialects."""

from __future__ import annotations

import asyncio
import contextlib
import io
import json
import secrets
import time
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote
from xml.etree import ElementTree

import aiohttp
from google.protobuf.message import Message
from yarl import URL

from cachesrv.config import Settings
from cachesrv.protocols.actions.links import BLOB_PATH
from cachesrv.protocols.actions.room import ActionsRoom
from cachesrv.server.application import Application
from cachesrv.server.connections import HttpServer
from cachesrv.store.api import CacheStore
from cachesrv.store.model import RemovalReason
from cachesrv.web.authenticator import Authenticator
from cachesrv.web.context import Context
from cachesrv.web.keys import UrlKeys
from cachesrv.web.requests import BaseUrl
from cachesrv.web.signing import UrlSigner
from cachesrv.web.upstream import Upstream
from tests.job_token import job_token

SERVICE = "twirp/github.actions.results.api.v1.CacheService"
VERSION = "3ad75f27293d65a135214b8c82b296080f911dc107e52f1e7ec871a2eda46e69"
V1 = "_apis/artifactcache"


class Clock:
    """Unix seconds that move when the test says so."""

    def __init__(self) -> None:
        self.now = float(int(time.time()))

    def __call__(self) -> float:
        return self.now

    def advance(self, seconds: float) -> None:
        self.now += seconds


class Recorded:
    """A Recorder: ``seen`` is what the room reported: (operation, outcome, tenant, bytes in, bytes out)."""

    def __init__(self) -> None:
        self.seen: list[tuple[str, str, str, int, int]] = []
        self._changed = asyncio.Event()

    async def until(self, outcome: str, times: int) -> None:
        """Wait for that many requests to end so."""
        while [seen[1] for seen in self.seen].count(outcome) < times:
            self._changed.clear()
            await self._changed.wait()

    def request(
        self,
        protocol: str,
        operation: str,
        outcome: str,
        *,
        tenant: str = "",
        seconds: float = 0.0,
        bytes_in: int = 0,
        bytes_out: int = 0,
    ) -> None:
        assert protocol == "actions"
        assert seconds >= 0
        self.seen.append((operation, outcome, tenant, bytes_in, bytes_out))
        self._changed.set()

    def removed(self, reason: RemovalReason, tenant: str, entries: int, size: int) -> None:
        return

    def saved(self, how: str, size: int) -> None:
        return


@dataclass
class Answer:
    status: int
    headers: Mapping[str, str]
    body: bytes

    def json(self) -> Any:
        assert self.headers["Content-Type"].startswith("application/json"), self
        return json.loads(self.body)

    @property
    def xml_code(self) -> str:
        assert self.headers["Content-Type"] == "application/xml", self
        code = ElementTree.fromstring(self.body).findtext("Code")
        assert code
        assert self.headers["x-ms-error-code"] == code
        return code


@dataclass
class ActionsServer:
    """``as_job`` gives a client with another token."""

    url: str
    store: CacheStore
    clock: Clock
    recorded: Recorded
    context: Context
    session: aiohttp.ClientSession
    token: str = ""
    prefix: str = ""

    def as_job(self, repository: str = "1001", scopes: Any = (("refs/heads/main", 3),)) -> ActionsServer:
        return self.with_token(job_token(repository, scopes))

    def with_token(self, token: str) -> ActionsServer:
        return ActionsServer(
            self.url, self.store, self.clock, self.recorded, self.context, self.session, token, self.prefix
        )

    async def ask(
        self, method: str, url: str, *, data: Any = None, headers: Mapping[str, str] | None = None, auth: bool = True
    ) -> Answer:
        sent = {"Authorization": f"Bearer {self.token}"} if auth and self.token else {}
        if isinstance(data, bytes) and len(data) > 65536:
            data = io.BytesIO(data)
        target = URL(url if "://" in url else f"{self.url}{self.prefix}/{url}", encoded=True)
        async with self.session.request(method, target, data=data, headers={**sent, **(headers or {})}) as answer:
            body = await answer.read()
            assert "Content-Encoding" not in answer.headers
            assert answer.headers["x-ms-request-id"]
            return Answer(answer.status, answer.headers, body)

    # -- v2 -----------------------------------------------------------------------------------------------------------

    async def twirp(self, method: str, message: object, **options: Any) -> Answer:
        data = message if isinstance(message, bytes) else json.dumps(message).encode()
        headers = {"Content-Type": "application/json", **options.pop("headers", {})}
        return await self.ask("POST", f"{SERVICE}/{method}", data=data, headers=headers, **options)

    async def protobuf(self, method: str, message: Message | bytes) -> Answer:
        data = message if isinstance(message, bytes) else message.SerializeToString()
        headers = {"Content-Type": "application/protobuf"}
        return await self.ask("POST", f"{SERVICE}/{method}", data=data, headers=headers)

    async def create(self, key: str, version: str = VERSION) -> str:
        answer = await self.twirp("CreateCacheEntry", {"key": key, "version": version})
        assert answer.status == 200, answer
        reply = answer.json()
        assert reply["ok"], reply
        return str(reply["signed_upload_url"])

    async def finalize(self, key: str, size: object, version: str = VERSION) -> Answer:
        return await self.twirp("FinalizeCacheEntryUpload", {"key": key, "size_bytes": size, "version": version})

    async def save(self, key: str, content: bytes = b"content", version: str = VERSION) -> str:
        """The whole of a save; returns the entry id."""
        url = await self.create(key, version)
        assert (await self.put(url, content)).status == 201
        answer = await self.finalize(key, str(len(content)), version)
        assert answer.status == 200, answer
        reply = answer.json()
        assert reply["ok"] is True, reply
        assert isinstance(reply["entry_id"], str)
        return reply["entry_id"]

    async def find(self, key: str, *restore_keys: str, version: str = VERSION) -> dict[str, Any]:
        message: dict[str, object] = {"key": key, "version": version}
        if restore_keys:
            message["restore_keys"] = list(restore_keys)
        answer = await self.twirp("GetCacheEntryDownloadURL", message)
        assert answer.status == 200, answer
        return dict(answer.json())

    async def matched(self, key: str, *restore_keys: str, version: str = VERSION) -> str | None:
        return (await self.find(key, *restore_keys, version=version)).get("matched_key")

    async def load(self, key: str, *restore_keys: str, version: str = VERSION) -> bytes | None:
        found = await self.find(key, *restore_keys, version=version)
        if not found["ok"]:
            return None
        answer = await self.ask("GET", found["signed_download_url"], auth=False)
        assert answer.status == 200
        assert int(answer.headers["Content-Length"]) == len(answer.body)
        return answer.body

    # -- blobs --------------------------------------------------------------------------------------------------------

    async def put(self, url: str, content: bytes, **headers: str) -> Answer:
        sent = {"x-ms-blob-type": "BlockBlob", "x-ms-version": "2026-02-06", **headers}
        return await self.ask("PUT", url, data=content, headers=sent, auth=False)

    async def put_block(self, url: str, block: str, content: bytes, **headers: str) -> Answer:
        target = f"{url}&comp=block&blockid={quote(block, safe='')}"
        return await self.ask("PUT", target, data=content, headers=headers, auth=False)

    async def put_list(self, url: str, *blocks: str, document: str | None = None) -> Answer:
        text = document or block_list(*blocks)
        return await self.ask("PUT", f"{url}&comp=blocklist", data=text.encode(), auth=False)

    async def get(self, url: str, **headers: str) -> Answer:
        return await self.ask("GET", url, headers={k.replace("_", "-"): v for k, v in headers.items()}, auth=False)

    # -- v1 -----------------------------------------------------------------------------------------------------------

    async def v1(self, method: str, resource: str, message: object = None, **options: Any) -> Answer:
        data = None if message is None else message if isinstance(message, bytes) else json.dumps(message).encode()
        return await self.ask(method, f"{V1}/{resource}", data=data, **options)

    async def v1_reserve(self, key: str, version: str = VERSION, **extra: object) -> int:
        answer = await self.v1("POST", "caches", {"key": key, "version": version, **extra})
        assert answer.status == 201, answer
        return int(answer.json()["cacheId"])

    async def v1_patch(
        self, upload: int, start: int, content: bytes, *, total: str = "*", end: int | None = None
    ) -> Answer:
        async def chunked() -> AsyncIterator[bytes]:
            for at in range(0, len(content), 7):
                yield content[at : at + 7]

        stop = start + len(content) - 1 if end is None else end
        headers = {"Content-Range": f"bytes {start}-{stop}/{total}", "Content-Type": "application/octet-stream"}
        return await self.ask("PATCH", f"{V1}/caches/{upload}", data=chunked(), headers=headers)

    async def v1_commit(self, upload: int, size: int) -> Answer:
        return await self.v1("POST", f"caches/{upload}", {"size": size})

    async def v1_save(self, key: str, content: bytes = b"content", version: str = VERSION) -> int:
        upload = await self.v1_reserve(key, version)
        assert (await self.v1_patch(upload, 0, content)).status == 204
        assert (await self.v1_commit(upload, len(content))).status == 204
        return upload

    async def v1_find(self, *keys: str, version: str = VERSION) -> Answer:
        return await self.v1("GET", f"cache?keys={quote(','.join(keys), safe='')}&version={quote(version, safe='')}")


def block_list(*blocks: str, tag: str = "Latest") -> str:
    inner = "".join(f"<{tag}>{block}</{tag}>" for block in blocks)
    return f'<?xml version="1.0" encoding="UTF-8" standalone="yes"?><BlockList>{inner}</BlockList>'


@contextlib.asynccontextmanager
async def actions_server(
    store: CacheStore,
    clock: Clock,
    keys: Path,
    settings: Settings | None = None,
    upstream: Upstream | None = None,
) -> AsyncIterator[ActionsServer]:
    """The room over ``store``; a second one with the same ``keys`` (a name in an existing folder) knows the URLs of the
    first."""
    settings = settings or Settings()
    url_keys = UrlKeys.open(keys, settings.actions.url_ttl, clock)
    recorded = Recorded()
    authenticator = Authenticator(settings.auth, loopback_only=True)
    context = Context(
        settings=settings,
        store=store,
        recorder=recorded,
        authenticator=authenticator,
        signer=UrlSigner(url_keys, BLOB_PATH),
        base_url=BaseUrl(settings.server.base_url, settings.server.trusted_proxies),
        upstream=upstream,
        clock=clock,
    )
    room = ActionsRoom(context)
    await authenticator.start()
    await room.start()
    http = HttpServer(Application([room]), access=False)
    listener = await asyncio.get_running_loop().create_server(http, "127.0.0.1", 0)
    port = listener.sockets[0].getsockname()[1]
    connector = aiohttp.TCPConnector(force_close=True)
    try:
        async with aiohttp.ClientSession(connector=connector, auto_decompress=False) as session:
            url = f"http://127.0.0.1:{port}"
            yield ActionsServer(url, store, clock, recorded, context, session).as_job()
    finally:
        listener.close()
        await http.shutdown(0.2)
        await listener.wait_closed()
        await room.stop()
        await authenticator.stop()


def fresh_secret() -> str:
    return secrets.token_hex(32)
