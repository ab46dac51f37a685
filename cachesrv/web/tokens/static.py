"""Mode ``static-key``: tokens signed by one pinned public key (RSA: RS256, P-256: ES256)."""

from __future__ import annotations

from pathlib import Path

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, EllipticCurvePublicKey
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey
from cryptography.hazmat.primitives.serialization import load_pem_public_key

from cachesrv.web.principals import AuthSettingsError, Unauthenticated
from cachesrv.web.tokens.allowlist import AllowList
from cachesrv.web.tokens.claims import facts_of, principal, scopes_of, writer_of
from cachesrv.web.tokens.keyset import MIN_KEY_BITS
from cachesrv.web.tokens.verifier import Verdict, Verifier, expiry, verified_claims


class StaticKeyVerifier(Verifier):
    """Reads the key file when built (blocks). Raises AuthSettingsError."""

    def __init__(self, key_file: str, allowed: AllowList, fallback_repository: str) -> None:
        if not key_file:
            raise AuthSettingsError("auth.static_key: mode static-key needs the file of a PEM public key")
        try:
            key = load_pem_public_key(Path(key_file).read_bytes())
        except OSError as error:
            raise AuthSettingsError(f"auth.static_key: {key_file}: {error.strerror}") from error
        except (ValueError, UnsupportedAlgorithm) as error:
            raise AuthSettingsError(f"auth.static_key: {key_file}: not a PEM public key") from error
        if isinstance(key, RSAPublicKey) and key.key_size >= MIN_KEY_BITS:
            self._algorithm = "RS256"
        elif isinstance(key, EllipticCurvePublicKey) and isinstance(key.curve, SECP256R1):
            self._algorithm = "ES256"
        else:
            raise AuthSettingsError(f"auth.static_key: {key_file}: neither RSA of 2048 bits or more nor P-256")
        self._key = key
        self._allowed = allowed
        self._fallback = fallback_repository

    async def verify(self, token: str | None, segments: tuple[str, ...]) -> Verdict:
        """See ``Verifier``. The path proves nothing here."""
        if token is None:
            raise Unauthenticated("no bearer token")
        claims = verified_claims(token, self._key, self._algorithm)
        scopes, facts = scopes_of(claims), facts_of(claims)
        self._allowed.check(facts)
        repository = facts.repository_id or self._fallback
        if not repository:
            raise Unauthenticated("the token names no repository, and auth.fallback_repository is not set")
        return Verdict(principal(repository, scopes, writer_of(claims)), expiry(claims))
