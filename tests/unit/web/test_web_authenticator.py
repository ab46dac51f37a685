"""Who gets in, and what for: every token mode, against genuine, forged and malformed tokens (T12, T13)."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import logging
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from hypothesis import given
from hypothesis import strategies as st

from cachesrv.config import AuthSettings, JwksIssuer
from cachesrv.web.authenticator import Authenticator
from cachesrv.web.principals import AuthSettingsError, NotAllowed, Principal, Unauthenticated
from cachesrv.web.tokens.claims import scopes_of

ISSUER = "https://token.actions.githubusercontent.com"
OTHER_ISSUER = "https://token.actions.acme.ghe.com"
SECRET = "0123456789abcdef0123456789abcdef"
KEY = rsa.generate_private_key(public_exponent=65537, key_size=2048)
STRANGER = rsa.generate_private_key(public_exponent=65537, key_size=2048)
MAIN_AND_PR = [{"Scope": "refs/pull/7/merge", "Permission": 3}, {"Scope": "refs/heads/main", "Permission": 1}]

Make = Callable[..., Authenticator]


def claims(**changes: Any) -> dict[str, Any]:
    now = int(time.time())
    made = {
        "iss": ISSUER,
        "nbf": now - 10,
        "exp": now + 3600,
        "repository_id": "123",
        "ac": json.dumps(MAIN_AND_PR),
        "oidc_extra": json.dumps({"repository": "Octo/Cat", "repository_owner": "Octo"}),
        "orch_id": "run.job",
    }
    made.update(changes)
    return {name: value for name, value in made.items() if value is not None}


def bearer(payload: dict[str, Any], key: Any = KEY, algorithm: str = "RS256", kid: str | None = "k1") -> str:
    return "Bearer " + jwt.encode(payload, key, algorithm, headers={"kid": kid} if kid else None)


def public_pem(key: Any) -> bytes:
    pem: bytes = key.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    return pem


def key_set(**keys: rsa.RSAPrivateKey) -> bytes:
    return json.dumps(
        {
            "keys": [
                {**jwt.algorithms.RSAAlgorithm.to_jwk(key.public_key(), as_dict=True), "kid": kid}
                for kid, key in keys.items()
            ]
        }
    ).encode()


def compact(header: dict[str, Any], payload: Any, signature: Callable[[bytes], bytes]) -> str:
    """A JWT that no library would make."""

    def part(value: Any) -> bytes:
        raw = value if isinstance(value, bytes) else json.dumps(value).encode()
        return base64.urlsafe_b64encode(raw).rstrip(b"=")

    signed = part(header) + b"." + part(payload)
    return (signed + b"." + base64.urlsafe_b64encode(signature(signed)).rstrip(b"=")).decode()


@pytest.fixture
def jwks_file(tmp_path: Path) -> Path:
    path = tmp_path / "jwks.json"
    path.write_bytes(key_set(k1=KEY))
    return path


@pytest.fixture
async def jwks(jwks_file: Path) -> AsyncIterator[Make]:
    """Makes started authenticators in mode jwks whose issuers read their keys from a file."""
    made: list[Authenticator] = []

    async def make(**changes: Any) -> Authenticator:
        issuers = [JwksIssuer(issuer=name, jwks=str(jwks_file)) for name in (ISSUER, OTHER_ISSUER)]
        settings: dict[str, Any] = {"mode": "jwks", "issuers": issuers, "allow_owners": ["octo"], **changes}
        made.append(Authenticator(AuthSettings(**settings), loopback_only=False))
        await made[-1].start()
        return made[-1]

    yield make  # type: ignore[misc]
    for one in made:
        await one.stop()


# -- jwks -------------------------------------------------------------------------------------------------------------


async def test_a_genuine_token_brings_repository_scopes_and_trust(jwks: Any) -> None:
    principal = await (await jwks()).authenticate(bearer(claims()))
    assert principal == Principal(
        "123", ("refs/pull/7/merge", "refs/heads/main"), "refs/pull/7/merge", True, "orch_id=run.job"
    )


async def test_ids_of_another_issuer_are_kept_apart(jwks: Any) -> None:
    principal = await (await jwks()).authenticate(bearer(claims(iss=OTHER_ISSUER)))
    assert principal.repository == "token.actions.acme.ghe.com:123"


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"exp": 1000}, "expired"),
        ({"exp": None}, "lacks a required claim"),
        ({"nbf": 99999999999}, "not valid yet"),
        ({"iss": "https://evil.example"}, "another issuer"),
        ({"iss": ISSUER + "/"}, "another issuer"),
        ({"iss": None}, "another issuer"),
        ({"ac": None}, "'ac'"),
        ({"ac": MAIN_AND_PR}, "'ac'"),
        ({"ac": "not json"}, "'ac'"),
        ({"ac": "{}"}, "'ac'"),
        ({"ac": "[]"}, "'ac'"),
        ({"ac": '[{"Scope": "refs/heads/main"}]'}, "'ac'"),
        ({"ac": '[{"Scope": 5, "Permission": 3}]'}, "'ac'"),
        ({"ac": '[{"Scope": "x", "Permission": "3"}]'}, "'ac'"),
        ({"ac": '[{"Scope": "x", "Permission": true}]'}, "'ac'"),
        ({"ac": '[{"Scope": "x", "Permission": -1}]'}, "'ac'"),
        ({"ac": '[{"Scope": "a\\u0000b", "Permission": 3}]'}, "'ac'"),
        ({"ac": json.dumps([{"Scope": "x", "Permission": 1}] * 33)}, "'ac'"),
        ({"repository_id": None}, "names no repository"),
        ({"repository_id": ""}, "names no repository"),
        ({"oidc_extra": None}, "allow-list"),
        ({"oidc_extra": "{"}, "allow-list"),
        ({"oidc_extra": json.dumps({"repository": "stranger/cat", "repository_owner": "stranger"})}, "allow-list"),
        ({"repository_owner": "stranger"}, "allow-list"),
    ],
)
async def test_claims_that_are_refused(jwks: Any, changes: dict[str, Any], why: str) -> None:
    with pytest.raises(Unauthenticated, match=why):
        await (await jwks()).authenticate(bearer(claims(**changes)))


async def test_forged_tokens_are_refused(jwks: Any) -> None:
    authenticator = await jwks()
    genuine = bearer(claims()).removeprefix("Bearer ")
    head, body, signature = genuine.split(".")
    other = base64.urlsafe_b64encode(json.dumps(claims(repository_id="666")).encode()).rstrip(b"=").decode()
    pem = public_pem(KEY)
    nested = b"[" * 6000 + b"]" * 6000
    forged = {
        "another's key under the known kid": bearer(claims(), STRANGER)[7:],
        "an unknown kid": bearer(claims(), STRANGER, kid="k2")[7:],
        "another payload": f"{head}.{other}.{signature}",
        "no signature": f"{head}.{body}.",
        "alg none": compact({"alg": "none", "kid": "k1"}, claims(), lambda _: b""),
        "alg None": compact({"alg": "None", "kid": "k1"}, claims(), lambda _: b""),
        "HS256 with the public key": compact(
            {"alg": "HS256", "kid": "k1", "typ": "JWT"}, claims(), lambda text: hmac.digest(pem, text, "sha256")
        ),
        "HS256 with nothing": compact({"alg": "HS256", "kid": "k1"}, claims(), lambda t: hmac.digest(b"", t, "sha256")),
        "RS384": bearer(claims(), algorithm="RS384")[7:],
        "PS256": bearer(claims(), algorithm="PS256")[7:],
        "no alg": compact({"kid": "k1"}, claims(), lambda _: b"x"),
        "alg a list": compact({"alg": ["RS256"], "kid": "k1"}, claims(), lambda _: b"x"),
        "kid a number": compact({"alg": "RS256", "kid": 1}, claims(), lambda _: b"x"),
        "own key in the header": compact(
            {"alg": "RS256", "jwk": jwt.algorithms.RSAAlgorithm.to_jwk(STRANGER.public_key(), as_dict=True)},
            claims(),
            lambda _: b"x",
        ),
        "issuer a list": compact({"alg": "RS256", "kid": "k1"}, claims(iss=[ISSUER]), lambda _: b"x"),
        "claims a list": compact({"alg": "RS256", "kid": "k1"}, [1], lambda _: b"x"),
        "claims too deep": compact({"alg": "RS256", "kid": "k1"}, nested, lambda _: b"x"),
        "no JWT": "token",
        "not ASCII": "tokén",
        "too long": "x" * 100_000,
        "four parts": genuine + ".x",
    }
    assert (await authenticator.authenticate("Bearer " + genuine)).repository == "123"
    for what, token in forged.items():
        with pytest.raises(Unauthenticated):
            print(what, await authenticator.authenticate("Bearer " + token))


@pytest.mark.parametrize("header", [None, "", "Bearer", "Bearer ", "Basic dTpw", "token abc"])
async def test_no_bearer_token_no_principal(jwks: Any, header: str | None) -> None:
    with pytest.raises(Unauthenticated, match="no bearer token"):
        await (await jwks()).authenticate(header, "some/path")


async def test_a_token_without_kid_needs_a_lone_key(jwks: Any, jwks_file: Path) -> None:
    token = bearer(claims(), kid=None)
    assert (await (await jwks()).authenticate(token)).repository == "123"
    jwks_file.write_bytes(key_set(k1=KEY, k2=STRANGER))  # noqa: ASYNC240
    with pytest.raises(Unauthenticated, match="does not publish"):
        await (await jwks()).authenticate(token)


async def test_clocks_may_differ_a_little(jwks: Any) -> None:
    now = int(time.time())
    await (await jwks()).authenticate(bearer(claims(nbf=now + 20, exp=now + 100)))
    await (await jwks()).authenticate(bearer(claims(exp=now - 20)))


@pytest.mark.parametrize(
    ("owners", "repositories", "welcome"),
    [
        (["OCTO"], [], True),
        ([], ["octo/CAT"], True),
        ([], ["123"], True),
        (["stranger"], ["stranger/cat", "124"], False),
        (["123"], [], False),
        ([], ["octo"], False),
        ([], ["Octo/Cat2"], False),
    ],
)
async def test_the_allow_list(jwks: Any, owners: list[str], repositories: list[str], welcome: bool) -> None:
    authenticator = await jwks(allow_owners=owners, allow_repositories=repositories)
    if welcome:
        assert (await authenticator.authenticate(bearer(claims()))).repository == "123"
    else:
        with pytest.raises(NotAllowed):
            await authenticator.authenticate(bearer(claims()))


async def test_the_customisable_subject_proves_no_owner(jwks: Any) -> None:
    with pytest.raises(NotAllowed):
        await (await jwks()).authenticate(bearer(claims(oidc_extra=None, oidc_sub="repo:octo/cat:ref:x", sub="octo")))


async def test_fallback_repository_serves_tokens_that_name_none(jwks: Any) -> None:
    principal = await (await jwks(fallback_repository="shared")).authenticate(bearer(claims(repository_id=None)))
    assert principal.repository == "shared"


async def test_a_withdrawn_key_is_refused_at_once_also_for_remembered_tokens(jwks: Any, jwks_file: Path) -> None:
    authenticator = await jwks()
    await authenticator.authenticate(bearer(claims()))
    jwks_file.write_bytes(key_set(k2=STRANGER))  # noqa: ASYNC240
    keys = authenticator._verifier._sets[ISSUER]
    assert await keys.refresh()
    with pytest.raises(Unauthenticated, match="does not publish"):
        await authenticator.authenticate(bearer(claims()))


async def test_a_token_costs_one_verification(jwks: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    authenticator, token = await jwks(), bearer(claims())
    first = await authenticator.authenticate(token)
    monkeypatch.setattr(jwt, "decode", None)
    monkeypatch.setattr(jwt, "decode_complete", None)
    assert await authenticator.authenticate(token) is first


async def test_a_remembered_token_still_expires(jwks_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = time.time()
    settings = AuthSettings(mode="static-key", static_key=str(jwks_file.with_name("key.pem")))
    jwks_file.with_name("key.pem").write_bytes(public_pem(KEY))
    at = [now]
    authenticator = Authenticator(settings, loopback_only=False, clock=lambda: at[0])
    token = bearer(claims(exp=int(now) - 50))
    await authenticator.authenticate(token)
    verdict = next(iter(authenticator._verdicts.values()))
    assert verdict.expires == int(now) + 10
    at[0] = now + 11
    monkeypatch.setattr(jwt, "decode", None)
    with pytest.raises(TypeError):  # verified anew, not remembered
        await authenticator.authenticate(token)


async def test_memory_of_tokens_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cachesrv.web.authenticator.REMEMBERED", 3)
    authenticator = Authenticator(AuthSettings(), loopback_only=True)
    for number in range(10):
        await authenticator.authenticate(f"Bearer {number}")
    assert len(authenticator._verdicts) == 3


async def test_tokens_are_never_logged_or_quoted(jwks: Any, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    token = bearer(claims(), STRANGER)
    with pytest.raises(Unauthenticated) as refused:
        await (await jwks()).authenticate(token)
    assert token[7:20] not in caplog.text + str(refused.value)


# -- scopes -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("accesses", "readable", "writable"),
    [
        ([("a", 3), ("b", 1)], ("a", "b"), "a"),
        ([("a", 1)], ("a",), None),
        ([("a", 2)], (), "a"),
        ([("a", 1), ("b", 2), ("c", 3)], ("a", "c"), "b"),
        ([("a", 0)], (), None),
        ([("a", 4)], (), None),
        ([("a", 7), ("b", 5)], ("a", "b"), "a"),
        ([("", 3)], ("",), ""),
        ([("a", 1), ("a", 2)], ("a",), "a"),
    ],
)
def test_permission_bits(accesses: list[tuple[str, int]], readable: tuple[str, ...], writable: str | None) -> None:
    text = json.dumps([{"Scope": scope, "Permission": permission} for scope, permission in accesses])
    scopes = scopes_of({"iss": ISSUER, "ac": text})
    assert (scopes.readable, scopes.writable) == (readable, writable)


def test_write_means_read_in_tokens_without_issuer() -> None:
    scopes = scopes_of({"ac": '[{"Scope": "", "Permission": 2}]'})
    assert (scopes.readable, scopes.writable) == (("",), "")


@given(st.one_of(st.text(), st.integers(), st.none(), st.lists(st.text())))
def test_hostile_ac_is_refused_not_a_crash(value: object) -> None:
    with pytest.raises(Unauthenticated):
        scopes_of({"ac": value})


# -- static key -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["rsa", "ec"])
async def test_static_key(tmp_path: Path, kind: str) -> None:
    key: Any = KEY if kind == "rsa" else ec.generate_private_key(ec.SECP256R1())
    algorithm = "RS256" if kind == "rsa" else "ES256"
    (tmp_path / "key.pem").write_bytes(public_pem(key))
    settings = AuthSettings(mode="static-key", static_key=str(tmp_path / "key.pem"))
    authenticator = Authenticator(settings, loopback_only=False)
    assert (await authenticator.authenticate(bearer(claims(iss=None), key, algorithm))).repository == "123"
    with pytest.raises(Unauthenticated, match=r"signature|algorithm"):
        await authenticator.authenticate(bearer(claims(), STRANGER))
    confused = compact({"alg": "HS256"}, claims(), lambda text: hmac.digest(public_pem(key), text, "sha256"))
    with pytest.raises(Unauthenticated, match="algorithm"):
        await authenticator.authenticate("Bearer " + confused)
    with pytest.raises(Unauthenticated, match="'ac'"):
        await authenticator.authenticate(bearer(claims(ac=None), key, algorithm))


def test_bad_static_keys_are_named(tmp_path: Path) -> None:
    weak = tmp_path / "weak.pem"
    weak.write_bytes(public_pem(ec.generate_private_key(ec.SECP384R1())))
    (tmp_path / "junk.pem").write_bytes(b"junk")
    for path in ("", str(tmp_path / "absent.pem"), str(tmp_path / "junk.pem"), str(weak)):
        with pytest.raises(AuthSettingsError, match=r"^auth\.static_key: "):
            Authenticator(AuthSettings(mode="static-key", static_key=path), loopback_only=True)


# -- shared secret ----------------------------------------------------------------------------------------------------


def secret_mode(secret: str = SECRET, **changes: Any) -> Authenticator:
    return Authenticator(AuthSettings(mode="shared-secret", shared_secret=secret, **changes), loopback_only=False)


@pytest.mark.parametrize(
    ("authorization", "path"),
    [
        (f"Bearer {SECRET}", None),
        (f"bearer  {SECRET} ", ""),
        (None, SECRET),
        ("Bearer token", SECRET),
        (None, f"/{SECRET}/"),
    ],
)
async def test_the_secret_itself_lets_in(authorization: str | None, path: str | None) -> None:
    principal = await secret_mode(fallback_repository="forge").authenticate(authorization, path)
    assert (principal.repository, principal.readable, principal.writable) == ("forge", ("",), "")


@pytest.mark.parametrize(
    ("authorization", "path"),
    [
        (None, None),
        ("Bearer wrong", None),
        (None, "wrong"),
        (None, SECRET[:-1]),
        (None, f"x/{SECRET}"),
        ("Bearer ", ""),
    ],
)
async def test_without_the_secret_nobody_gets_in(authorization: str | None, path: str | None) -> None:
    with pytest.raises(Unauthenticated):
        await secret_mode(fallback_repository="forge").authenticate(authorization, path)


async def test_gitea_tokens() -> None:
    now = int(time.time())
    payload = {"exp": now + 60, "nbf": now, "RunID": 5, "JobID": 6, "ac": '[{"Scope":"","Permission":2}]'}
    raw = hashlib.sha256(b"instance").digest()
    setting = base64.urlsafe_b64encode(raw).rstrip(b"=").decode()
    authenticator = secret_mode(setting, fallback_repository="forge")
    for key in (raw, setting.encode()):
        principal = await authenticator.authenticate(bearer(payload, key, "HS256", None))
        assert principal == Principal("forge", ("",), "", False, "RunID=5 JobID=6")
    with pytest.raises(Unauthenticated, match="signature"):
        await authenticator.authenticate(bearer(payload, b"x" * 32, "HS256", None))
    with pytest.raises(Unauthenticated, match="expired"):
        await authenticator.authenticate(bearer({**payload, "exp": 5, "nbf": 1}, raw, "HS256", None))
    with pytest.raises(Unauthenticated, match="algorithm"):
        await authenticator.authenticate(bearer(payload, KEY))


async def test_a_path_may_name_the_repository_where_no_token_does() -> None:
    authenticator = secret_mode()
    assert (await authenticator.authenticate(None, f"{SECRET}/team%20a")).repository == "path:team a"
    assert (await authenticator.authenticate(f"Bearer {SECRET}", "123")).repository == "path:123"
    signed = bearer(claims(), SECRET.encode(), "HS256")
    assert (await authenticator.authenticate(signed, "other")).repository == "123"
    with pytest.raises(Unauthenticated, match="fallback_repository"):
        await authenticator.authenticate(f"Bearer {SECRET}")
    with pytest.raises(Unauthenticated, match="path"):
        await authenticator.authenticate(f"Bearer {SECRET}", "a%00b")


# -- none -------------------------------------------------------------------------------------------------------------


async def test_none_reads_claims_without_verifying() -> None:
    authenticator = Authenticator(AuthSettings(), loopback_only=True)
    assert authenticator.mode == "none"
    expired = bearer(claims(exp=5), STRANGER)
    principal = await authenticator.authenticate(expired, "ignored")
    assert (principal.repository, principal.writable) == ("123", "refs/pull/7/merge")


@pytest.mark.parametrize("authorization", [None, "", "Bearer token", "Bearer a.b.c", "Basic eDp5"])
async def test_none_lets_opaque_tokens_in(authorization: str | None) -> None:
    authenticator = Authenticator(AuthSettings(), loopback_only=True)
    assert await authenticator.authenticate(authorization) == Principal("default", ("",), "", False, "")
    assert (await authenticator.authenticate(authorization, "team")).repository == "path:team"
    fallback = Authenticator(AuthSettings(fallback_repository="forge"), loopback_only=True)
    assert (await fallback.authenticate(authorization, "team")).repository == "forge"


async def test_none_does_not_widen_a_malformed_ac() -> None:
    with pytest.raises(Unauthenticated, match="'ac'"):
        await Authenticator(AuthSettings(), loopback_only=True).authenticate(bearer(claims(ac="[]")))


# -- settings ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "loopback", "names"),
    [
        ({}, False, "auth.mode"),
        ({"mode": "jwks"}, False, "auth.allow_owners"),
        ({"mode": "jwks", "issuers": []}, True, "auth.issuers"),
        ({"mode": "jwks", "issuers": [{"issuer": "http://plain.example"}]}, True, "auth.issuers"),
        ({"mode": "jwks", "issuers": [{"issuer": "x", "jwks": "ftp://x/y"}]}, True, "auth.issuers"),
        ({"mode": "shared-secret"}, True, "auth.shared_secret"),
        ({"mode": "shared-secret", "shared_secret": "short"}, True, "auth.shared_secret"),
        ({"mode": "none", "allow_owners": ["octo"]}, True, "auth.allow_owners"),
        ({"allow_repositories": ["1"]}, True, "auth.allow_repositories"),
    ],
)
def test_unsafe_settings_are_refused_by_name(settings: dict[str, Any], loopback: bool, names: str) -> None:
    with pytest.raises(AuthSettingsError, match=f"^{names}: "):
        Authenticator(AuthSettings(**settings), loopback_only=loopback)


@pytest.mark.parametrize(
    ("settings", "loopback", "mode"),
    [
        ({}, True, "none"),
        ({"mode": "none"}, False, "none"),
        ({"mode": "jwks"}, True, "jwks"),
        ({"mode": "jwks", "allow_repositories": ["1"]}, False, "jwks"),
        ({"mode": "jwks", "issuers": [{"issuer": "http://127.0.0.1:1"}]}, True, "jwks"),
    ],
)
def test_safe_settings(settings: dict[str, Any], loopback: bool, mode: str) -> None:
    assert Authenticator(AuthSettings(**settings), loopback_only=loopback).mode == mode
