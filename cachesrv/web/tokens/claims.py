"""What a job token says, whichever way it was verified: scopes, repository, and who is at work.

The claims that count (GitHub's ACTIONS_RUNTIME_TOKEN; Gitea's has the same ``ac``):

* ``ac``: a JSON *string* holding ``[{"Scope": "refs/heads/main", "Permission": 3}, ...]``; bit 1 reads, bit 2 writes.
* ``repository_id``; ``repository`` ("owner/name"), ``repository_owner``: on top, or inside ``oidc_extra``, which is a
  JSON string too. ``oidc_sub`` is not looked at: its form is the repository's own choice.
* ``iss``: absent in Gitea's tokens, whose only permission is 2 and means both.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Final

import msgspec

from cachesrv.web.principals import Principal, Unauthenticated

READ: Final = 1
WRITE: Final = 2
MAX_SCOPES: Final = 32
"""GitHub sends at most three."""
GITHUB_ISSUERS: Final = ("https://token.actions.githubusercontent.com", "https://vstoken.actions.githubusercontent.com")
"""Issuers whose repository ids stand alone; those of any other issuer are prefixed with its name."""
LOW_TRUST_PREFIX: Final = "refs/pull/"
_UNPRINTABLE = re.compile(r"[\x00-\x1f\x7f\ud800-\udfff]")
"""What no name may hold: control characters, and surrogates, which have no UTF-8 form."""
_BROKEN: Final = (msgspec.MsgspecError, UnicodeError, RecursionError)
"""What hostile JSON inside a claim makes of the decoder."""
_SHOWN: Final = ("repository", "ref", "run_id", "job_id", "orch_id", "actor", "RunID", "JobID", "TaskID", "sub")
_WRITER_CHARACTERS: Final = 200

Claims = Mapping[str, Any]


class _Access(msgspec.Struct, frozen=True, rename="pascal"):
    scope: Annotated[str, msgspec.Meta(max_length=1024)]
    permission: Annotated[int, msgspec.Meta(ge=0, le=2**31)]


@dataclass(frozen=True, slots=True)
class Scopes:
    """``readable`` in token order; ``writable`` the first scope with the write bit."""

    readable: tuple[str, ...]
    writable: str | None


EVERYTHING: Final = Scopes(("",), "")
"""What a holder of a token without scopes gets, in the modes that accept one: the unnamed scope."""


def scopes_of(claims: Claims) -> Scopes:
    """The scopes of ``ac``. Raises Unauthenticated when it is absent, no JSON string, malformed or empty."""
    text = claims.get("ac")
    if not isinstance(text, str):
        raise Unauthenticated("the token has no 'ac' claim, or it is not a string")
    try:
        accesses = msgspec.json.decode(text, type=list[_Access])
    except _BROKEN:
        raise Unauthenticated("the token's 'ac' claim is not a JSON list of scopes") from None
    if not 0 < len(accesses) <= MAX_SCOPES or any(_UNPRINTABLE.search(access.scope) for access in accesses):
        raise Unauthenticated("the token's 'ac' claim names no scope, too many, or one with control characters")
    write_means_read = not claims.get("iss")
    readable = dict.fromkeys(
        access.scope
        for access in accesses
        if access.permission & READ or (write_means_read and access.permission == WRITE)
    )
    writable = next((access.scope for access in accesses if access.permission & WRITE), None)
    return Scopes(tuple(readable), writable)


@dataclass(frozen=True, slots=True)
class Facts:
    """What the claims show about the repository; "" where they show nothing."""

    repository_id: str
    name: str
    """owner/name"""
    owner: str


def facts_of(claims: Claims) -> Facts:
    """The repository, from the top of the claims or from ``oidc_extra``."""
    extra: Claims = {}
    if isinstance(text := claims.get("oidc_extra"), str):
        try:
            extra = msgspec.json.decode(text, type=dict[str, Any])
        except _BROKEN:
            extra = {}
    repository_id, name, owner = (
        _plain(claims.get(fact)) or _plain(extra.get(fact))
        for fact in ("repository_id", "repository", "repository_owner")
    )
    if "/" not in name:
        name = ""
    return Facts(repository_id, name, owner or name.partition("/")[0])


def issuer_prefix(issuer: str) -> str:
    """What stands before a repository id of this issuer: two issuers may count from the same numbers."""
    return "" if issuer in GITHUB_ISSUERS or not issuer else issuer.partition("://")[2].strip("/") + ":"


def writer_of(claims: Claims) -> str:
    """Who is at work, in one short printable line."""
    shown = (f"{name}={text}" for name in _SHOWN if (text := _plain(claims.get(name))))
    return " ".join(shown)[:_WRITER_CHARACTERS]


def principal(repository: str, scopes: Scopes, writer: str) -> Principal:
    """Put together what was established."""
    low_trust = scopes.writable is not None and scopes.writable.startswith(LOW_TRUST_PREFIX)
    return Principal(repository, scopes.readable, scopes.writable, low_trust, writer)


def _plain(value: object) -> str:
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**63:
        value = str(value)
    return value if isinstance(value, str) and len(value) <= 256 and not _UNPRINTABLE.search(value) else ""
