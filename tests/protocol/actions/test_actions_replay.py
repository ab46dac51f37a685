"""What real clients sent, sent again: ``captures/*.jsonl``, one request a line in the order seen.

``m`` method, ``p`` path and query as sent (its signature, ids and hosts are those of the recording server and are
replaced by ours, in the same order), ``h`` headers that matter, ``s`` the status that the client must get. The body is
``b`` (text), ``x`` (base64) or ``n`` (a number of bytes that only had to be counted; sizes of the 140 MB capture are
divided by 64).
"""

from __future__ import annotations

import base64
import json
import random
import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, quote, urlsplit

import pytest

from cachesrv.protocols.actions.proto import cache_pb2 as pb
from tests.protocol.actions.actions_server import ActionsServer, Answer

CAPTURES = {
    path.stem: [json.loads(text) for text in path.read_text().splitlines()]
    for path in sorted((Path(__file__).parent / "captures").glob("*.jsonl"))
}


class Replay:
    def __init__(self, cache: ActionsServer) -> None:
        self.cache = cache
        self.upload_url = ""
        self.download_url = ""
        self.cache_id = 0
        self.sent: dict[str, bytes] = {}
        self.contents: dict[str, bytes] = {}
        self.parts: dict[int, bytes] = {}
        self.key = self.found_key = ""

    async def step(self, line: dict[str, Any], nth: int) -> Answer:
        body = self.body(line, nth)
        headers = dict(line["h"])
        path, _, query = line["p"].lstrip("/").partition("?")
        method = line["m"]
        chunked = headers.pop("transfer-encoding", None)
        if "_apis/" in path or "twirp/" in path:
            path = re.sub(r"caches/\d+$", f"caches/{self.cache_id}", path)
            data: Any = _chunks(body) if chunked else body
            answer = await self.cache.ask(method, f"{path}?{query}" if query else path, data=data, headers=headers)
        else:
            url = self.bent(self.upload_url if method == "PUT" else self.download_url, query)
            answer = await self.cache.ask(method, url, data=body, headers=headers, auth=False)
        self.learn(method, path, query, headers, body, answer)
        return answer

    @staticmethod
    def body(line: dict[str, Any], nth: int) -> bytes | None:
        if "n" in line:
            return random.Random(nth).randbytes(line["n"])
        if "x" in line:
            return base64.b64decode(line["x"])
        return line["b"].encode() if line.get("b") else None

    @staticmethod
    def bent(url: str, query: str) -> str:
        """Our URL, its query in the order and with the additions of the recorded one."""
        base, _, ours = url.partition("?")
        values = dict(parse_qsl(ours, keep_blank_values=True))
        fields = []
        for pair in query.split("&"):
            name, _, value = pair.partition("=")
            fields.append(f"{name}={quote(values.pop(name), safe='')}" if name in values else f"{name}={value}")
        fields += [f"{name}={quote(value, safe='')}" for name, value in values.items()]
        return f"{base}?{'&'.join(fields)}"

    def learn(
        self, method: str, path: str, query: str, headers: dict[str, str], body: bytes | None, answer: Answer
    ) -> None:
        verb = path.rpartition("/")[2]
        binary = headers.get("content-type") == "application/protobuf"
        if verb == "CreateCacheEntry" and answer.status == 200:
            assert body
            if binary:
                self.upload_url = pb.CreateCacheEntryResponse.FromString(answer.body).signed_upload_url
                self.key = pb.CreateCacheEntryRequest.FromString(body).key
            else:
                self.upload_url, self.key = answer.json()["signed_upload_url"], json.loads(body)["key"]
            self.sent = {}
        elif verb == "GetCacheEntryDownloadURL":
            if binary:
                found = pb.GetCacheEntryDownloadURLResponse.FromString(answer.body)
                self.download_url, self.found_key = found.signed_download_url, found.matched_key
            else:
                self.download_url = answer.json().get("signed_download_url", "")
                self.found_key = answer.json().get("matched_key", "")
        elif verb == "FinalizeCacheEntryUpload":
            ok = pb.FinalizeCacheEntryUploadResponse.FromString(answer.body).ok if binary else answer.json()["ok"]
            assert ok is True
        elif verb == "caches" and answer.status == 201:
            assert body
            self.cache_id, self.key, self.parts = answer.json()["cacheId"], json.loads(body)["key"], {}
        elif method == "PATCH":
            assert body
            self.parts[int(headers["content-range"].split()[1].partition("-")[0])] = body
            self.contents[self.key] = b"".join(part for _, part in sorted(self.parts.items()))
        elif verb == "cache" and answer.status == 200:
            self.download_url, self.found_key = answer.json()["archiveLocation"], answer.json()["cacheKey"]
        elif method == "PUT":
            fields = {name: value for name, _, value in (pair.partition("=") for pair in query.split("&"))}
            if fields.get("comp") == "block":
                self.sent[_unquoted(fields["blockid"])] = body or b""
            elif fields.get("comp") == "blocklist":
                names = re.findall(r"<Latest>([^<]*)</Latest>", (body or b"").decode())
                self.contents[self.key] = b"".join(self.sent[name] for name in names)
            else:
                self.contents[self.key] = body or b""
        elif method == "GET" and urlsplit(answer.headers.get("ETag", "")).path:
            content = self.contents[self.found_key]
            asked = headers.get("x-ms-range") or headers.get("range")
            if asked:
                first, _, last = asked.removeprefix("bytes=").partition("-")
                content = content[int(first) : int(last) + 1 if last else None]
            assert answer.body == content


def _unquoted(text: str) -> str:
    return text.replace("%2B", "+").replace("%2F", "/").replace("%3D", "=")


async def _chunks(body: bytes | None) -> AsyncIterator[bytes]:
    for start in range(0, len(body or b""), 100_000):
        yield (body or b"")[start : start + 100_000]


@pytest.mark.parametrize("capture", CAPTURES)
async def test_t01_recorded_clients_get_what_they_need(cache: ActionsServer, capture: str) -> None:
    replay = Replay(cache)
    for nth, line in enumerate(CAPTURES[capture]):
        answer = await replay.step(line, nth)
        assert answer.status == line["s"], (nth, line["m"], line["p"], answer)
    assert replay.contents
