"""Mode ``jwks``: RS256 tokens of configured issuers, of repositories on the allow-list.

The issuer signs for everybody, so a good signature alone proves only "some job somewhere"; the allow-list says whose.
"""

from __future__ import annotations

import asyncio
import ipaddress
from collections.abc import Callable
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

import aiohttp

from cachesrv.config import JwksIssuer
from cachesrv.web.principals import AuthSettingsError, KeysUnavailable, Unauthenticated
from cachesrv.web.tokens.allowlist import AllowList
from cachesrv.web.tokens.claims import facts_of, issuer_prefix, principal, scopes_of, writer_of
from cachesrv.web.tokens.keyset import Fetch, KeySet, KeySetError
from cachesrv.web.tokens.verifier import Verdict, Verifier, expiry, unverified, verified_claims

ALGORITHM: Final = "RS256"
FETCH_SECONDS: Final = 10.0
DOCUMENT_BYTES: Final = 1024 * 1024
"""Largest key set document."""


class JwksVerifier(Verifier):
    """``changed`` is called when any issuer's keys changed, for whoever caches verdicts.

    Raises AuthSettingsError.
    """

    def __init__(
        self, issuers: list[JwksIssuer], allowed: AllowList, fallback_repository: str, changed: Callable[[], None]
    ) -> None:
        if not issuers:
            raise AuthSettingsError("auth.issuers: mode jwks needs at least one issuer")
        self._allowed = allowed
        self._fallback = fallback_repository
        self._session: aiohttp.ClientSession | None = None
        self._sets = {
            one.issuer: KeySet(one.issuer, self._fetcher(one.jwks or _well_known(one.issuer)), changed=changed)
            for one in issuers
        }

    async def start(self) -> None:
        """Begin to fetch the keys; returns at once."""
        timeout = aiohttp.ClientTimeout(total=FETCH_SECONDS)
        self._session = aiohttp.ClientSession(timeout=timeout, cookie_jar=aiohttp.DummyCookieJar(), trust_env=True)
        for keys in self._sets.values():
            keys.start()

    async def stop(self) -> None:
        await asyncio.gather(*(keys.stop() for keys in self._sets.values()))
        if self._session is not None:
            await self._session.close()

    async def verify(self, token: str | None, segments: tuple[str, ...]) -> Verdict:
        """See ``Verifier``. The path proves nothing here."""
        if token is None:
            raise Unauthenticated("no bearer token")
        header, claimed = unverified(token)
        if header.get("alg") != ALGORITHM:
            raise Unauthenticated("the token is signed with an algorithm that is not accepted")
        issuer = claimed.get("iss")
        keys = self._sets.get(issuer) if isinstance(issuer, str) else None
        if keys is None:
            raise Unauthenticated("the token is from another issuer")
        key = await keys.key(header.get("kid"))
        if key is None and not keys.loaded:
            raise KeysUnavailable("the issuer's keys are not available yet")
        if key is None:
            raise Unauthenticated("the token is signed with a key that its issuer does not publish")
        claims = verified_claims(token, key, ALGORITHM, keys.issuer)
        scopes, facts = scopes_of(claims), facts_of(claims)
        self._allowed.check(facts)
        repository = f"{issuer_prefix(keys.issuer)}{facts.repository_id}" if facts.repository_id else self._fallback
        if not repository:
            raise Unauthenticated("the token names no repository, and auth.fallback_repository is not set")
        return Verdict(principal(repository, scopes, writer_of(claims)), expiry(claims))

    def _fetcher(self, source: str) -> Fetch:
        if "://" not in source:
            return lambda: asyncio.to_thread(_read, Path(source))
        url = urlsplit(source)
        if url.scheme not in ("http", "https") or not url.hostname:
            raise AuthSettingsError(f"auth.issuers: neither a URL nor a file: {source!r}")
        if url.scheme == "http" and not is_loopback(url.hostname):
            raise AuthSettingsError(f"auth.issuers: keys over plain http could be anybody's: {source!r}")

        async def fetch() -> bytes:
            if self._session is None:
                raise KeySetError("not started")
            try:
                async with self._session.get(source, allow_redirects=False) as response:
                    if response.status != 200:
                        raise KeySetError(f"{source} answered {response.status}")
                    document = b""
                    async for chunk in response.content.iter_any():
                        document += chunk
                        if len(document) > DOCUMENT_BYTES:
                            raise KeySetError(f"{source} is larger than {DOCUMENT_BYTES} bytes")
                    return document
            except (aiohttp.ClientError, TimeoutError) as error:
                raise KeySetError(f"{source}: {type(error).__name__}") from error

        return fetch


def is_loopback(host: str) -> bool:
    """A host name or address that never leaves this machine."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def _well_known(issuer: str) -> str:
    return issuer.rstrip("/") + "/.well-known/jwks"


def _read(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(DOCUMENT_BYTES)
