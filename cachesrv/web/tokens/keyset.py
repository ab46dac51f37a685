"""The public keys of one issuer, by key id: fetched in the background, kept while the issuer is down.

* Fetched at start, when older than MAX_AGE_SECONDS, and when a token names an unknown key, though then at most
  once in MIN_INTERVAL_SECONDS: strangers must not make us hammer the issuer. Never for a known key.
* A failed or empty answer leaves the keys as they were; a good one replaces them all, so a withdrawn key goes.
* Only RSA signature keys of 2048 bits and more count.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final

import jwt
import msgspec
import structlog
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey

MAX_AGE_SECONDS: Final = 3600.0
MIN_INTERVAL_SECONDS: Final = 30.0
RETRY_SECONDS: Final = 5.0
"""First pause after a failed fetch in the background; it doubles up to RETRY_MOST_SECONDS."""
RETRY_MOST_SECONDS: Final = 300.0
MIN_KEY_BITS: Final = 2048

Fetch = Callable[[], Awaitable[bytes]]
"""Gets the key set document. Raises KeySetError or OSError."""


class KeySetError(Exception):
    """The key set could not be fetched or holds no usable key."""


class KeySet:
    """Keys of one issuer. ``changed`` is called when a fetch brought other keys than before."""

    def __init__(
        self,
        issuer: str,
        fetch: Fetch,
        *,
        changed: Callable[[], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.issuer = issuer
        self._fetch = fetch
        self._changed = changed
        self._clock = clock
        self._keys: Mapping[str, RSAPublicKey] = {}
        self._tried: float | None = None
        self._refreshing: asyncio.Task[bool] | None = None
        self._keeping: asyncio.Task[None] | None = None
        self._log = structlog.get_logger("cachesrv.web.keyset")

    @property
    def loaded(self) -> bool:
        return bool(self._keys)

    def start(self) -> None:
        """Begin fetching; returns at once."""
        self._keeping = asyncio.create_task(self._keep())

    async def stop(self) -> None:
        tasks = [task for task in (self._keeping, self._refreshing) if task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._keeping = self._refreshing = None

    async def key(self, kid: str | None) -> RSAPublicKey | None:
        """The key with this id; without an id, the only key there is. Waits for a fetch only when it is unknown."""
        found = self._find(kid)
        if found is None and (self._refreshing is not None or self._may_try()):
            await asyncio.shield(self._refresh())
            found = self._find(kid)
        return found

    async def refresh(self) -> bool:
        """Fetch now, together with whoever else is waiting. False when it failed and the keys stay as they were."""
        return await asyncio.shield(self._refresh())

    def _find(self, kid: str | None) -> RSAPublicKey | None:
        if kid is not None:
            return self._keys.get(kid)
        return next(iter(self._keys.values())) if len(self._keys) == 1 else None

    def _may_try(self) -> bool:
        return self._tried is None or self._clock() - self._tried >= MIN_INTERVAL_SECONDS

    def _refresh(self) -> asyncio.Task[bool]:
        if self._refreshing is None:
            self._refreshing = asyncio.create_task(self._load())
        return self._refreshing

    async def _load(self) -> bool:
        self._tried = self._clock()
        try:
            keys = read_keys(await self._fetch())
        except (KeySetError, OSError) as error:
            self._log.warning("keys not fetched", issuer=self.issuer, error=str(error), kept=len(self._keys))
            return False
        finally:
            self._refreshing = None
        before = {kid: key.public_numbers() for kid, key in self._keys.items()}
        self._keys = keys
        if before != {kid: key.public_numbers() for kid, key in keys.items()}:
            self._changed()
        return True

    async def _keep(self) -> None:
        pause = RETRY_SECONDS
        while True:
            if await self.refresh():
                pause = RETRY_SECONDS
                await asyncio.sleep(MAX_AGE_SECONDS)
            else:
                await asyncio.sleep(pause)
                pause = min(2 * pause, RETRY_MOST_SECONDS)


def read_keys(document: bytes) -> Mapping[str, RSAPublicKey]:
    """The usable keys of a JWK set by id (a key without one is ""). Raises KeySetError when there is none."""
    try:
        entries = msgspec.json.decode(document, type=dict[str, Any]).get("keys")
    except (msgspec.MsgspecError, UnicodeError, RecursionError):
        raise KeySetError("the key set is not a JSON object") from None
    keys: dict[str, RSAPublicKey] = {}
    for entry in entries if isinstance(entries, list) else []:
        if not isinstance(entry, dict) or not _wanted(entry):
            continue
        try:
            key = jwt.PyJWK.from_dict(entry, algorithm="RS256").key
        except (jwt.PyJWTError, ValueError, TypeError, AttributeError, KeyError):
            continue
        if isinstance(key, RSAPublicKey) and key.key_size >= MIN_KEY_BITS:
            keys[str(entry.get("kid", ""))] = key
    if not keys:
        raise KeySetError("the key set holds no RSA signature key of 2048 bits or more")
    return keys


def _wanted(entry: Mapping[str, Any]) -> bool:
    return entry.get("kty") == "RSA" and entry.get("use", "sig") == "sig" and entry.get("alg", "RS256") == "RS256"
