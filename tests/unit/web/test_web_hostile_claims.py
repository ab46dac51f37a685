"""What a stranger may write into a token's claims: refused, or read as nothing, and never a crash later (T13)."""

from __future__ import annotations

import json
import time
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import rsa
from hypothesis import given
from hypothesis import strategies as st

from cachesrv.config import AuthSettings
from cachesrv.web.authenticator import Authenticator
from cachesrv.web.principals import Principal, Unauthenticated
from cachesrv.web.tokens.claims import Facts, facts_of, scopes_of, writer_of
from cachesrv.web.tokens.keyset import KeySetError, read_keys

SECRET = "0123456789abcdef0123456789abcdef"
MAIN = '[{"Scope": "refs/heads/main", "Permission": 3}]'
DEEP = '[{"x": ' + "[" * 5000


@pytest.mark.parametrize(
    "ac", ['[{"Scope": "\ud800", "Permission": 3}]', '[{"Scope": "\\ud800", "Permission": 3}]', DEEP]
)
def test_scopes_that_no_index_could_hold_are_refused(ac: str) -> None:
    with pytest.raises(Unauthenticated, match="'ac'"):
        scopes_of({"ac": ac})


@pytest.mark.parametrize("extra", ['{"repository_id": "\ud800"}', '{"a": "\ud800"}', '{"x": ' + "[" * 5000, "[]"])
def test_hostile_extra_claims_show_nothing(extra: str) -> None:
    assert facts_of({"oidc_extra": extra}) == Facts("", "", "")


@pytest.mark.parametrize("value", ["\ud800", "a\nb", "9" * 300, 2**63, 10**300, True, 1.5, ["1"]])
def test_values_that_name_no_repository(value: object) -> None:
    assert facts_of({"repository_id": value}).repository_id == ""
    assert writer_of({"run_id": value}) == ""


async def test_unsigned_tokens_with_surrogates_serve_the_fallback() -> None:
    authenticator = Authenticator(AuthSettings(), loopback_only=True)
    token = jwt.encode({"repository_id": "\ud800", "run_id": "\udfff", "ac": MAIN}, "", algorithm="none")
    principal = await authenticator.authenticate(f"Bearer {token}")
    main = ("refs/heads/main",)
    assert principal == Principal("default", main, main[0], False, "")


@pytest.mark.parametrize("exp", [10**400, float("inf"), "soon", None, [1]])
async def test_an_expiry_that_is_no_time_is_refused_though_signed(exp: Any) -> None:
    authenticator = Authenticator(AuthSettings(mode="shared-secret", shared_secret=SECRET), loopback_only=False)
    signer = jwt.PyJWS()
    claims = {"repository_id": "1", "ac": MAIN, "exp": exp, "nbf": int(time.time()) - 5}
    token = signer.encode(json.dumps(claims).encode(), SECRET, algorithm="HS256")
    with pytest.raises(Unauthenticated):
        await authenticator.authenticate(f"Bearer {token}")


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
        lambda inner: st.lists(inner) | st.dictionaries(st.sampled_from(["Scope", "Permission", "x"]), inner),
    )
)
def test_any_json_as_ac_gives_scopes_that_can_be_stored_or_is_refused(value: object) -> None:
    try:
        scopes = scopes_of({"iss": "https://issuer.example", "ac": json.dumps(value)})
    except Unauthenticated:
        return
    for scope in (*scopes.readable, scopes.writable or ""):
        assert scope.encode().decode() == scope


@pytest.mark.parametrize(
    "document", [b'{"keys": ["\xff"]}', b'{"keys": ' + b"[" * 100_000, b'{"keys": [{"kty": "RSA"}]}']
)
def test_key_sets_that_nobody_meant(document: bytes) -> None:
    with pytest.raises(KeySetError):
        read_keys(document)


@pytest.mark.parametrize("broken", [{"n": 5}, {"n": None}, {"e": []}, {"n": "\u00e9"}, {}])
def test_a_broken_key_does_not_hide_the_others(broken: dict[str, object]) -> None:
    good = jwt.algorithms.RSAAlgorithm.to_jwk(rsa.generate_private_key(65537, 2048).public_key(), as_dict=True)
    keys = [{"kty": "RSA", "kid": "bad", **broken}, {**good, "kid": "good"}]
    assert list(read_keys(json.dumps({"keys": keys}).encode())) == ["good"]
