"""Key sets over HTTP: fetched once, refreshed on an unknown key but not at a stranger's bidding, kept while down."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator
from typing import Any

import jwt
import pytest
from aiohttp import web
from cryptography.hazmat.primitives.asymmetric import rsa

from cachesrv.config import AuthSettings, JwksIssuer
from cachesrv.web.authenticator import Authenticator
from cachesrv.web.principals import KeysUnavailable, Unauthenticated
from cachesrv.web.tokens.keyset import MIN_INTERVAL_SECONDS, KeySet, KeySetError, read_keys
from tests.protocol.web.loopback import serving

KEYS = {name: rsa.generate_private_key(public_exponent=65537, key_size=2048) for name in ("k1", "k2")}


def public(name: str, **changes: Any) -> dict[str, Any]:
    return {**jwt.algorithms.RSAAlgorithm.to_jwk(KEYS[name].public_key(), as_dict=True), "kid": name, **changes}


class Issuer:
    """Publishes some of KEYS, counts who asks, and can be out of order."""

    def __init__(self) -> None:
        self.base = ""
        self.published = ["k1"]
        self.status = 200
        self.asked = 0
        self.called = asyncio.Event()
        self.gate = asyncio.Event()
        self.gate.set()

    async def handle(self, request: web.BaseRequest) -> web.StreamResponse:
        self.asked += 1
        self.called.set()
        assert request.path == "/.well-known/jwks"
        await self.gate.wait()
        if self.status == 302:
            return web.Response(status=302, headers={"Location": "/.well-known/jwks"})
        return web.json_response({"keys": [public(name) for name in self.published]}, status=self.status)

    def token(self, key: str, kid: str | None = None) -> str:
        claims = {
            "iss": self.base,
            "exp": int(time.time()) + 600,
            "ac": '[{"Scope":"refs/heads/main","Permission":3}]',
            "repository_id": "1",
        }
        return "Bearer " + jwt.encode(claims, KEYS[key], "RS256", {"kid": kid or key})


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
async def issuer() -> AsyncIterator[Issuer]:
    issuer = Issuer()
    async with serving(issuer.handle) as site:
        issuer.base = site.base
        yield issuer


@pytest.fixture
async def authenticator(issuer: Issuer) -> AsyncIterator[Authenticator]:
    settings = AuthSettings(mode="jwks", issuers=[JwksIssuer(issuer=issuer.base)], fallback_repository="1")
    authenticator = Authenticator(settings, loopback_only=True)
    yield authenticator
    await authenticator.stop()


@pytest.fixture
def clock(authenticator: Authenticator) -> Clock:
    clock = Clock()
    key_set(authenticator)._clock = clock
    return clock


def key_set(authenticator: Authenticator) -> KeySet:
    found: KeySet = next(iter(authenticator._verifier._sets.values()))  # type: ignore[attr-defined]
    return found


async def test_keys_are_fetched_once_for_many_requests(issuer: Issuer, authenticator: Authenticator) -> None:
    await authenticator.start()
    principals = await asyncio.gather(*(authenticator.authenticate(issuer.token("k1")) for _ in range(20)))
    assert {principal.readable for principal in principals} == {("refs/heads/main",)}
    assert principals[0].repository.endswith(":1")
    assert issuer.asked == 1


async def test_starting_does_not_wait_for_the_issuer(issuer: Issuer, authenticator: Authenticator) -> None:
    issuer.gate.clear()
    await asyncio.wait_for(authenticator.start(), 5)
    waiting = asyncio.create_task(authenticator.authenticate(issuer.token("k1")))
    await asyncio.wait_for(issuer.called.wait(), 20)
    issuer.gate.set()
    assert (await waiting).writable == "refs/heads/main"


async def test_a_new_key_is_found_at_once_but_strangers_cannot_make_us_ask(
    issuer: Issuer, authenticator: Authenticator, clock: Clock
) -> None:
    await authenticator.start()
    await authenticator.authenticate(issuer.token("k1"))
    issuer.published = ["k1", "k2"]
    clock.now += MIN_INTERVAL_SECONDS
    assert (await authenticator.authenticate(issuer.token("k2"))).writable == "refs/heads/main"
    assert issuer.asked == 2
    for number in range(50):
        with pytest.raises(Unauthenticated, match="does not publish"):
            await authenticator.authenticate(issuer.token("k1", kid=f"made-up-{number}"))
    assert issuer.asked == 2
    clock.now += MIN_INTERVAL_SECONDS
    with pytest.raises(Unauthenticated, match="does not publish"):
        await authenticator.authenticate(issuer.token("k1", kid="made-up"))
    assert issuer.asked == 3


@pytest.mark.parametrize("status", [302, 404, 500])
async def test_keys_are_kept_while_the_issuer_is_down(
    issuer: Issuer, authenticator: Authenticator, clock: Clock, status: int
) -> None:
    await authenticator.start()
    await authenticator.authenticate(issuer.token("k1"))
    issuer.status = status
    assert not await key_set(authenticator).refresh()
    clock.now += MIN_INTERVAL_SECONDS
    with pytest.raises(Unauthenticated, match="does not publish"):
        await authenticator.authenticate(issuer.token("k2"))
    fresh = issuer.token("k1").replace("Bearer", "bearer")
    assert (await authenticator.authenticate(fresh)).writable == "refs/heads/main"


async def test_an_empty_answer_does_not_lock_everybody_out(issuer: Issuer, authenticator: Authenticator) -> None:
    await authenticator.start()
    await authenticator.authenticate(issuer.token("k1"))
    issuer.published = []
    assert not await key_set(authenticator).refresh()
    assert key_set(authenticator).loaded


async def test_an_issuer_that_was_never_up_is_told_apart(
    issuer: Issuer, authenticator: Authenticator, clock: Clock
) -> None:
    issuer.status = 503
    await authenticator.start()
    for _ in range(5):
        with pytest.raises(KeysUnavailable):
            await authenticator.authenticate(issuer.token("k1"))
    assert issuer.asked == 1
    issuer.status = 200
    clock.now += MIN_INTERVAL_SECONDS
    assert (await authenticator.authenticate(issuer.token("k1"))).writable == "refs/heads/main"


def test_only_rsa_signature_keys_of_good_size_count() -> None:
    weak = rsa.generate_private_key(public_exponent=65537, key_size=1024).public_key()
    entries = [
        public("k1"),
        public("k2", use="enc"),
        public("k2", alg="RS512"),
        {"kty": "oct", "kid": "k3", "k": "c2VjcmV0", "alg": "HS256"},
        {"kty": "RSA", "kid": "k4", "n": "!", "e": "AQAB"},
        {"kty": "RSA", "kid": "k5"},
        {**jwt.algorithms.RSAAlgorithm.to_jwk(weak, as_dict=True), "kid": "k6"},
        {**jwt.algorithms.RSAAlgorithm.to_jwk(KEYS["k2"], as_dict=True), "kid": "k7"},
        5,
    ]
    assert list(read_keys(json.dumps({"keys": entries}).encode())) == ["k1"]


@pytest.mark.parametrize(
    "document", [b"", b"[]", b"{}", b'{"keys": {}}', b'{"keys": []}', b'{"keys": [{}]}', b"<html>"]
)
def test_documents_that_hold_no_keys(document: bytes) -> None:
    with pytest.raises(KeySetError):
        read_keys(document)
