"""Mode ``shared-secret``: whoever knows the secret, or carries a JWT signed with it (HS256), is let in.

* A JWT (Gitea signs so) brings its scopes, and its repository if it names one.
* The secret itself, as the bearer token or as the first path segment (``/<secret>/_apis/...``, as act and the Forgejo
  runner do it), brings none: the holder reads and writes the unnamed scope of the fallback repository.
* Where nothing signed names the repository, it is ``auth.fallback_repository``, else ``path:`` and the path segment
  (after the secret, if that stands there). The prefix keeps a client from naming a repository that others have signed.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
from typing import Final

from cachesrv.web.principals import AuthSettingsError, Unauthenticated
from cachesrv.web.tokens.claims import EVERYTHING, facts_of, principal, scopes_of, writer_of
from cachesrv.web.tokens.verifier import Verdict, Verifier, expiry, verified_claims

MIN_SECRET_CHARACTERS: Final = 32
"""A shorter one could be guessed from a single HS256 token."""
ALGORITHM: Final = "HS256"
PATH_PREFIX: Final = "path:"


class SharedSecretVerifier(Verifier):
    """Raises AuthSettingsError."""

    def __init__(self, secret: str, fallback_repository: str) -> None:
        if len(secret) < MIN_SECRET_CHARACTERS:
            raise AuthSettingsError(
                f"auth.shared_secret: mode shared-secret needs one of {MIN_SECRET_CHARACTERS} characters or more"
            )
        self._digest = _digest(secret)
        self._keys = [secret.encode(), *_decoded(secret)]
        self._fallback = fallback_repository

    async def verify(self, token: str | None, segments: tuple[str, ...]) -> Verdict:
        """See ``Verifier``."""
        if segments and self._matches(segments[0]):
            return self._opaque(segments[1:])
        if token is None:
            raise Unauthenticated("no bearer token")
        if self._matches(token):
            return self._opaque(segments)
        refused = Unauthenticated("the token is not a valid JWT")
        for key in self._keys:
            try:
                claims = verified_claims(token, key, ALGORITHM)
            except Unauthenticated as error:
                refused = error
                continue
            repository = facts_of(claims).repository_id or self._repository(segments)
            return Verdict(principal(repository, scopes_of(claims), writer_of(claims)), expiry(claims))
        raise refused

    def _opaque(self, segments: tuple[str, ...]) -> Verdict:
        return Verdict(principal(self._repository(segments), EVERYTHING, "holder of the shared secret"), None)

    def _repository(self, segments: tuple[str, ...]) -> str:
        if self._fallback:
            return self._fallback
        if segments:
            return path_repository(segments[0])
        raise Unauthenticated("the token names no repository, and auth.fallback_repository is not set")

    def is_secret(self, token: str | None, segments: tuple[str, ...]) -> bool:
        return (token is not None and self._matches(token)) or any(map(self._matches, segments[:1]))

    def _matches(self, text: str) -> bool:
        return hmac.compare_digest(_digest(text), self._digest)


def path_repository(segment: str) -> str:
    """The repository that a path segment names. Raises Unauthenticated when it is too long or unprintable."""
    if len(segment) > 128 or not segment.isprintable():
        raise Unauthenticated("the path names no usable repository")
    return PATH_PREFIX + segment


def _digest(text: str) -> bytes:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()


def _decoded(secret: str) -> list[bytes]:
    """Gitea writes its secret in base64url and signs with the 32 bytes behind it."""
    try:
        key = base64.b64decode(secret + "=" * (-len(secret) % 4), altchars=b"-_", validate=True)
    except (binascii.Error, ValueError):
        return []
    return [key] if len(key) >= 32 else []
