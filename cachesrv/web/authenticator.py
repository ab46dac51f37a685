"""From a token (and the path it came by) to a principal, in the configured mode.

A verdict is remembered by the hash of token and path, until the token expires or the issuer's keys change, so a job's
second request costs one hash. Tokens are never logged and never kept in clear.
"""

from __future__ import annotations

import hashlib
import time
from collections import OrderedDict
from collections.abc import Callable
from typing import Final
from urllib.parse import unquote

from cachesrv.config import AuthSettings
from cachesrv.web.principals import AuthSettingsError, Principal, Unauthenticated
from cachesrv.web.tokens.allowlist import AllowList
from cachesrv.web.tokens.jwks import JwksVerifier
from cachesrv.web.tokens.secret import SharedSecretVerifier
from cachesrv.web.tokens.static import StaticKeyVerifier
from cachesrv.web.tokens.trusting import TrustingVerifier
from cachesrv.web.tokens.verifier import Verdict, Verifier

REMEMBERED: Final = 4096
"""Verdicts one worker keeps."""
TOKEN_CHARACTERS: Final = 16 * 1024
"""Longer ones are refused unread."""


class Authenticator:
    """Built once a worker. ``loopback_only``: every listener is on loopback (or a Unix socket).

    ``mode`` is the one in force (an empty setting has been resolved). Raises AuthSettingsError, naming the setting,
    rather than serve with a setting that would let in everybody or that would silently not be looked at.
    """

    def __init__(self, settings: AuthSettings, *, loopback_only: bool, clock: Callable[[], float] = time.time) -> None:
        self.mode = settings.mode or ("none" if loopback_only else "")
        if not self.mode:
            raise AuthSettingsError(
                "auth.mode: a listener off loopback needs a choice of jwks, static-key, shared-secret or none"
            )
        self._clock = clock
        self._verdicts: OrderedDict[bytes, Verdict] = OrderedDict()
        self._verifier = self._build(settings, loopback_only)

    async def start(self) -> None:
        """Begin to fetch keys where the mode has any; returns at once."""
        await self._verifier.start()

    async def stop(self) -> None:
        await self._verifier.stop()

    async def authenticate(self, authorization: str | None, path_segment: str | None = None) -> Principal:
        """``authorization``: the header's value. ``path_segment``: what stands in the raw path before the API's own
        (``/<this>/_apis/...``, possibly several segments), for the modes that look there.

        Raises Unauthenticated, NotAllowed, KeysUnavailable. Waits only for keys that are not here yet.
        """
        remembered = hashlib.sha256(f"{authorization}\n{path_segment}".encode("utf-8", "surrogatepass")).digest()
        verdict = self._verdicts.get(remembered)
        if verdict is not None and (verdict.expires is None or self._clock() < verdict.expires):
            self._verdicts.move_to_end(remembered)
            return verdict.principal
        verdict = await self._verifier.verify(_bearer(authorization), _segments(path_segment))
        self._verdicts[remembered] = verdict
        if len(self._verdicts) > REMEMBERED:
            self._verdicts.popitem(last=False)
        return verdict.principal

    def holds_secret(self, authorization: str | None, path: str) -> bool:
        """Whether the raw path or the token is the shared secret itself, which nobody else may see."""
        try:
            return self._verifier.is_secret(_bearer(authorization), _segments(path))
        except Unauthenticated:
            return False

    def _build(self, settings: AuthSettings, loopback_only: bool) -> Verifier:
        allowed = AllowList(settings.allow_owners, settings.allow_repositories)
        if not allowed.empty and self.mode not in ("jwks", "static-key"):
            name = "auth.allow_owners" if settings.allow_owners else "auth.allow_repositories"
            raise AuthSettingsError(f"{name}: only looked at in the modes jwks and static-key, not in {self.mode}")
        if self.mode == "jwks":
            if allowed.empty and not loopback_only:
                raise AuthSettingsError(
                    "auth.allow_owners: mode jwks off loopback needs this or auth.allow_repositories: "
                    "the issuer signs for everybody"
                )
            return JwksVerifier(settings.issuers, allowed, settings.fallback_repository, self._verdicts.clear)
        if self.mode == "static-key":
            return StaticKeyVerifier(settings.static_key, allowed, settings.fallback_repository)
        if self.mode == "shared-secret":
            return SharedSecretVerifier(settings.shared_secret, settings.fallback_repository)
        return TrustingVerifier(settings.fallback_repository)


def _segments(path: str | None) -> tuple[str, ...]:
    return tuple(unquote(part) for part in (path or "").split("/") if part)


def _bearer(authorization: str | None) -> str | None:
    """The token behind ``Bearer``; None when there is none."""
    scheme, _, token = (authorization or "").strip().partition(" ")
    token = token.strip()
    if scheme.lower() != "bearer" or not token:
        return None
    if len(token) > TOKEN_CHARACTERS or not token.isascii():
        raise Unauthenticated("the token is too long, or not ASCII")
    return token
