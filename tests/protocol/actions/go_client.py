"""BuildKit's cache client as strict as the real one (go-actions-cache with azblob), for both protocol versions.

What it insists on, and the real one breaks over: snake_case fields only; ``entry_id`` a JSON string; 409 with code
``already_exists``; every blob PUT answers exactly 201 with ``x-ms-request-id``; ranges by ``x-ms-range`` (v2) and
``Range`` with a right Content-Range (v1). What it does: sorts query parameters, sends 1 MiB blocks under ids of 64 raw
bytes, ``size_bytes`` as a number, ``restore_keys`` equal to ``[key]``.
"""

from __future__ import annotations

import base64
import json
import secrets
from collections.abc import Mapping
from typing import Any
from urllib.parse import parse_qsl, quote, urlencode, urlsplit, urlunsplit

from tests.protocol.actions.actions_server import SERVICE, V1, ActionsServer, Answer

MIB = 1024 * 1024
GO_VERSION = "693bb7016429d80366022f036f84856888c9f13e00145f5f6f4dce303a38d6f2"


class GoExists(Exception):
    """os.ErrExist."""


class GoError(Exception):
    """Any other failure: BuildKit fails the export over it."""


class GoClient:
    def __init__(self, cache: ActionsServer, *, v2: bool = True) -> None:
        self.cache = cache
        self.v2 = v2
        self._resume_at = 0

    # -- both versions ------------------------------------------------------------------------------------------------

    async def load(self, key: str) -> tuple[str, str] | None:
        """Matched key and URL of the archive."""
        if self.v2:
            reply = await self._twirp(
                "GetCacheEntryDownloadURL", {"key": key, "restore_keys": [key], "version": GO_VERSION}
            )
            if not reply.get("ok"):
                return None
            return reply["matched_key"], reply["signed_download_url"]
        answer = await self.cache.ask("GET", f"{V1}/cache?" + urlencode({"keys": key, "version": GO_VERSION}))
        if answer.status == 204:
            return None
        self._check(answer)
        return answer.json()["cacheKey"], answer.json()["archiveLocation"]

    async def save(self, key: str, content: bytes) -> None:
        """Raises GoExists, GoError."""
        if self.v2:
            url = await self.reserve(key)
            await self.upload(url, content)
            await self.finalize(key, len(content))
            return
        reply = await self._v1("caches", {"key": key, "version": GO_VERSION})
        if not reply["cacheId"]:
            raise GoError("invalid response")
        for start in range(0, len(content), 32 * MIB):
            answer = await self.cache.v1_patch(reply["cacheId"], start, content[start : start + 32 * MIB])
            self._check(answer)
        self._check(await self.cache.v1_commit(reply["cacheId"], len(content)))

    async def read(self, url: str, offset: int = 0) -> bytes:
        """The archive from ``offset`` on, as BuildKit resumes a broken layer."""
        if not offset:
            answer = await self.cache.ask("GET", _sorted(url), auth=False, headers=_azblob() if self.v2 else {})
        elif self.v2:
            headers = {**_azblob(), "x-ms-range": f"bytes={offset}-"}
            answer = await self.cache.ask("GET", _sorted(url), auth=False, headers=headers)
        else:
            answer = await self.cache.ask("GET", url, auth=False, headers={"Range": f"bytes={offset}-"})
            if not answer.headers.get("Content-Range", "").startswith(f"bytes {offset}-"):
                raise GoError("unexpected content range")
        if answer.status not in (200, 206):
            raise GoError(f"{answer.status}")
        return answer.body

    # -- v2 -----------------------------------------------------------------------------------------------------------

    async def reserve(self, key: str) -> str:
        reply = await self._twirp("CreateCacheEntry", {"key": key, "version": GO_VERSION})
        if not reply.get("ok"):
            raise GoError("failed to reserve cache")
        url = reply["signed_upload_url"]
        assert isinstance(url, str)
        return url

    async def upload(self, url: str, content: bytes) -> None:
        if len(content) < MIB:
            await self._put(url, content, {}, {"x-ms-blob-type": "BlockBlob"})
            return
        names = []
        for start in range(0, len(content), MIB):
            name = base64.b64encode(secrets.token_bytes(64)).decode()
            await self._put(url, content[start : start + MIB], {"comp": "block", "blockid": name}, {})
            names.append(name)
        inner = "".join(f"<Latest>{name}</Latest>" for name in names)
        document = f'<?xml version="1.0" encoding="UTF-8"?>\n<BlockList>{inner}</BlockList>'
        await self._put(url, document.encode(), {"comp": "blocklist"}, {"Content-Type": "application/xml"})

    async def finalize(self, key: str, size: int) -> str:
        reply = await self._twirp("FinalizeCacheEntryUpload", {"key": key, "size_bytes": size, "version": GO_VERSION})
        if not reply.get("ok"):
            raise GoError("failed to finalize cache")
        entry_id = reply["entry_id"]
        if not isinstance(entry_id, str):
            raise GoError("json: cannot unmarshal number into Go struct field .entry_id of type string")
        return entry_id

    async def save_mutable(self, name: str, content: bytes) -> str:
        """The next number of an index: Load(name#), reserve name#n+1, again while somebody else is faster."""
        found = await self.load(f"{name}#")
        number = int(found[0].rpartition("#")[2]) if found else 0
        while True:
            number += 1
            try:
                await self.save(f"{name}#{number}", content)
            except GoExists:
                continue
            return f"{name}#{number}"

    # -- how it speaks ------------------------------------------------------------------------------------------------

    async def _twirp(self, method: str, message: Mapping[str, object]) -> dict[str, Any]:
        data = json.dumps(message, separators=(",", ":")).encode()
        headers = {"Content-Type": "application/json", "User-Agent": "go-actions-cache/1.0", "Accept-Encoding": "gzip"}
        answer = await self.cache.ask("POST", f"{SERVICE}/{method}", data=data, headers=headers)
        self._check(answer)
        reply = answer.json()
        assert isinstance(reply, dict)
        return reply

    async def _v1(self, resource: str, message: object) -> dict[str, Any]:
        answer = await self.cache.v1("POST", resource, message)
        self._check(answer)
        reply = answer.json()
        assert isinstance(reply, dict)
        return reply

    @staticmethod
    def _check(answer: Answer) -> None:
        if 200 <= answer.status < 300:
            return
        reply = answer.json()
        exists = reply.get("code") == "already_exists" or "already exists" in reply.get("message", "")
        raise GoExists(answer.body) if exists else GoError(f"{answer.status}: {answer.body!r}")

    async def _put(self, url: str, content: bytes, extra: dict[str, str], headers: dict[str, str]) -> None:
        answer = await self.cache.ask(
            "PUT", _sorted(url, extra), data=content, headers={**_azblob(), **headers}, auth=False
        )
        if answer.status != 201:
            raise GoError(f"{answer.status}: {answer.body!r}")
        if "x-ms-request-id" not in answer.headers:
            raise GoError("panic: runtime error: invalid memory address or nil pointer dereference")


def _azblob() -> dict[str, str]:
    return {
        "Accept": "application/xml",
        "Accept-Encoding": "gzip",
        "User-Agent": "azsdk-go-azblob/v1.5.0 (go1.27.3; linux)",
        "x-ms-version": "2024-11-04",
    }


def _sorted(url: str, extra: Mapping[str, str] | None = None) -> str:
    """url.Values.Encode: by name, everything unusual escaped."""
    parts = urlsplit(url)
    fields = sorted([*parse_qsl(parts.query, keep_blank_values=True), *(extra or {}).items()])
    query = "&".join(f"{quote(name, safe='')}={quote(value, safe='')}" for name, value in fields)
    return urlunsplit(parts._replace(query=query))
