"""Mixed saves and restores that survive a server dying under them, with a ledger of what was acknowledged.

An operation that fails because the server is away proves nothing and is forgotten; what was acknowledged must be there,
byte for byte, for ever; what was not acknowledged may be there whole, or not at all.
"""

from __future__ import annotations

import asyncio
import base64
import io
import json
import random
from collections.abc import Callable
from dataclasses import dataclass, field

import aiohttp

from tests.job_token import job_token

SERVICE = "/twirp/github.actions.results.api.v1.CacheService/"
SIZES = (0, 100, 1_024, 5_000, 70_000, 262_144, 400_000, 3_000_000)
AWAY = (aiohttp.ClientError, ConnectionError, asyncio.TimeoutError)


def content(key: str, size: int) -> bytes:
    """The bytes of a key: made from it, so that the ledger stays small. Half of the keys compress well."""
    block = random.Random(key).randbytes(997 if key.endswith("z") else max(997, size))
    return (block * (size // len(block) + 1))[:size]


@dataclass
class Ledger:
    """What happened; ``wrong`` must stay empty."""

    acknowledged: dict[str, int] = field(default_factory=dict)
    unsure: dict[str, int] = field(default_factory=dict)
    restored: int = 0
    unanswered: int = 0
    wrong: list[str] = field(default_factory=list)


class Load:
    """``url`` is asked for before each operation: the server may have moved to another port."""

    def __init__(self, url: Callable[[], str], ledger: Ledger, seed: int) -> None:
        self.url = url
        self.ledger = ledger
        self.random = random.Random(seed)
        self.number = 0
        self.name = f"load{seed}"
        self.headers = {"Authorization": f"Bearer {job_token('77')}", "Content-Type": "application/json"}

    async def run(self, stop: asyncio.Event) -> None:
        timeout = aiohttp.ClientTimeout(total=30, connect=5)
        async with aiohttp.ClientSession(timeout=timeout) as session:
            while not stop.is_set():
                try:
                    if self.ledger.acknowledged and self.random.random() < 0.4:
                        key = self.random.choice(list(self.ledger.acknowledged))
                        await self.restore(session, key, self.ledger.acknowledged[key])
                        self.ledger.restored += 1
                    else:
                        await self.save(session)
                except AWAY:
                    self.ledger.unanswered += 1
                    await asyncio.sleep(0.01)

    async def _call(self, session: aiohttp.ClientSession, method: str, body: dict[str, object]) -> dict[str, str]:
        body = {**body, "version": "v"}
        async with session.post(self.url() + SERVICE + method, data=json.dumps(body), headers=self.headers) as answer:
            text = await answer.read()
            parsed: dict[str, str] = json.loads(text)
            if answer.status >= 500:
                raise ConnectionError(f"{method}: {answer.status} {text!r}")
            if answer.status != 200:
                self.ledger.wrong.append(f"{method}: {answer.status} {text!r}")
                raise ConnectionError
            return parsed

    async def save(self, session: aiohttp.ClientSession) -> None:
        self.number += 1
        size = self.random.choice(SIZES)
        key = f"{self.name}-{self.number}-{self.random.choice('az')}"
        data = content(key, size)
        reserved = await self._call(session, "CreateCacheEntry", {"key": key})
        if not reserved.get("ok"):
            return
        url = reserved["signed_upload_url"]
        if size > 300_000 and self.random.random() < 0.7:
            await self._blocks(session, url, data)
        else:
            await self._put(session, url, data, {"x-ms-blob-type": "BlockBlob"})
        # From here on the server may have it without our hearing of it.
        self.ledger.unsure[key] = size
        answer = await self._call(session, "FinalizeCacheEntryUpload", {"key": key, "size_bytes": str(size)})
        if answer.get("ok"):
            del self.ledger.unsure[key]
            self.ledger.acknowledged[key] = size

    async def _blocks(self, session: aiohttp.ClientSession, url: str, data: bytes) -> None:
        length = len(data) // 3 + 1
        names = [base64.b64encode(f"{number:048d}".encode()).decode() for number in range(3)]
        order = list(enumerate(names))
        self.random.shuffle(order)
        jobs = [
            self._put(
                session, f"{url}&comp=block&blockid={name.replace('=', '%3D')}", data[n * length : (n + 1) * length], {}
            )
            for n, name in order
        ]
        await asyncio.gather(*jobs)
        listed = "".join(f"<Latest>{name}</Latest>" for name in names)
        await self._put(session, f"{url}&comp=blocklist", f"<BlockList>{listed}</BlockList>".encode(), {})

    async def _put(self, session: aiohttp.ClientSession, url: str, data: bytes, headers: dict[str, str]) -> None:
        async with session.put(url, data=io.BytesIO(data), headers=headers) as answer:
            text = await answer.text()
            if answer.status != 201:
                raise ConnectionError(f"{answer.status} {text}")

    async def restore(self, session: aiohttp.ClientSession, key: str, size: int, *, must: bool = True) -> bool:
        """Fetch a key and compare. ``must``: it was acknowledged, so a miss is a loss."""
        answer = await self._call(session, "GetCacheEntryDownloadURL", {"key": key})
        if not answer.get("ok"):
            if must:
                self.ledger.wrong.append(f"{key} ({size} bytes) was acknowledged and is a miss")
            return False
        if answer["matched_key"] != key:
            if must:
                self.ledger.wrong.append(f"{key} became {answer['matched_key']}")
            return False
        async with session.get(answer["signed_download_url"]) as got:
            if got.status >= 500:
                raise ConnectionError
            data = await got.read()
            if got.status != 200 or data != content(key, size):
                self.ledger.wrong.append(f"{key}: {got.status}, {len(data)} bytes for {size}")
        return True

    async def check_all(self) -> None:
        """Afterwards, the server standing: all that was acknowledged is there, and nothing is there in part."""
        async with aiohttp.ClientSession() as session:
            for key, size in self.ledger.acknowledged.items():
                await self.restore(session, key, size)
            for key, size in self.ledger.unsure.items():
                await self.restore(session, key, size, must=False)
