"""Mode ``none``: nothing is verified. Claims of a JWT are read all the same, so that scopes and repositories work."""

from __future__ import annotations

from typing import Final

from cachesrv.web.principals import Unauthenticated
from cachesrv.web.tokens.claims import EVERYTHING, facts_of, principal, scopes_of, writer_of
from cachesrv.web.tokens.secret import path_repository
from cachesrv.web.tokens.verifier import Verdict, Verifier, unverified

DEFAULT_REPOSITORY: Final = "default"
"""Repository of those who name none when ``auth.fallback_repository`` is not set either."""


class TrustingVerifier(Verifier):
    """For listeners that only this machine reaches, or where somebody chose it by name."""

    def __init__(self, fallback_repository: str) -> None:
        self._fallback = fallback_repository

    async def verify(self, token: str | None, segments: tuple[str, ...]) -> Verdict:
        """Refuses only a JWT whose ``ac`` is there but malformed: its job would otherwise get a scope it has not."""
        try:
            _, claims = unverified(token or "")
        except Unauthenticated:
            return Verdict(principal(self._repository(segments), EVERYTHING, ""), None)
        scopes = scopes_of(claims) if "ac" in claims else EVERYTHING
        repository = facts_of(claims).repository_id or self._repository(segments)
        return Verdict(principal(repository, scopes, writer_of(claims)), None)

    def _repository(self, segments: tuple[str, ...]) -> str:
        if self._fallback:
            return self._fallback
        return path_repository(segments[0]) if segments else DEFAULT_REPOSITORY
