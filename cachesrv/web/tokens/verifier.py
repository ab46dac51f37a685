"""What every token mode offers to the authenticator."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Protocol

import jwt
from jwt.types import Options

from cachesrv.web.principals import Principal, Unauthenticated

LEEWAY_SECONDS: Final = 60
"""How far the clocks of issuer and server may be apart."""
_CHECKS: Final[Options] = {"verify_aud": False, "verify_sub": False, "verify_jti": False, "require": ["exp"]}
_BROKEN: Final = (jwt.PyJWTError, ValueError, OverflowError, RecursionError)
"""What hostile tokens make of the parsers below."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """An accepted token: ``expires`` in Unix seconds, leeway included; None when it never does."""

    principal: Principal
    expires: float | None


class Verifier(Protocol):
    """One token mode. ``verify`` may wait only for keys that are not here yet.

    The modes inherit what most of them share: nothing to start or stop, and no secret of our own.
    """

    async def verify(self, token: str | None, segments: tuple[str, ...]) -> Verdict:
        """``token``: what stands behind Bearer. ``segments``: decoded path segments before the API's own path.

        Raises Unauthenticated.
        """
        ...

    def is_secret(self, token: str | None, segments: tuple[str, ...]) -> bool:
        """Whether one of these is a secret of this server's own."""
        return False

    async def start(self) -> None:
        return

    async def stop(self) -> None:
        return


def verified_claims(token: str, key: Any, algorithm: str, issuer: str | None = None) -> Mapping[str, Any]:
    """The claims of a JWT that carries a signature by ``key`` in exactly this algorithm and is in its time.

    ``exp`` is required; audience, subject and token id are not looked at. Raises Unauthenticated.
    """
    try:
        claims = jwt.decode(token, key, algorithms=[algorithm], issuer=issuer, leeway=LEEWAY_SECONDS, options=_CHECKS)
        float(claims["exp"])
        return claims
    except _BROKEN as error:
        raise Unauthenticated(_reason(error)) from None


def unverified(token: str) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
    """Header and claims of a JWT, as anybody could have written them. Raises Unauthenticated."""
    try:
        parts = jwt.decode_complete(token, options={"verify_signature": False})
    except _BROKEN as error:
        raise Unauthenticated(_reason(error)) from None
    return parts["header"], parts["payload"]


def expiry(claims: Mapping[str, Any]) -> float:
    """Until when verified claims are good."""
    return float(claims["exp"]) + LEEWAY_SECONDS


def _reason(error: Exception) -> str:
    """Why a token was refused, in our words: the library's may quote it."""
    reasons: tuple[tuple[type[Exception], str], ...] = (
        (jwt.ExpiredSignatureError, "the token has expired"),
        (jwt.ImmatureSignatureError, "the token is not valid yet"),
        (jwt.InvalidIssuerError, "the token is from another issuer"),
        (jwt.MissingRequiredClaimError, "the token lacks a required claim (exp)"),
        (jwt.InvalidAlgorithmError, "the token is signed with an algorithm that is not accepted"),
        (jwt.InvalidSignatureError, "the token's signature does not match"),
    )
    return next((text for kind, text in reasons if isinstance(error, kind)), "the token is not a valid JWT")
