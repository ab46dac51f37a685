"""Who asks, and what it may touch: the outcome of authentication, the same for every protocol and token mode.

A principal never rests on an address or a header other than the token and the path it came with.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Principal:
    """One authenticated job.

    ``repository`` is the tenant: nothing is ever read or written outside it. ``readable`` are the scopes it may read,
    in the order they are searched; ``writable`` the one it saves to, None when it may not. ``low_trust``: what it saves
    comes from a pull request. ``writer`` says in words who it is (run, job), for logs and entries; never a secret.
    """

    repository: str
    readable: tuple[str, ...]
    writable: str | None
    low_trust: bool
    writer: str


class AuthSettingsError(ValueError):
    """The settings would let in everybody, or nobody. The message begins with the name of the setting."""


class Unauthenticated(Exception):
    """No principal. The message says why, for the client and the log; it never holds a token."""


class NotAllowed(Unauthenticated):
    """The token is genuine, but its repository is not among those that may use this cache."""


class KeysUnavailable(Unauthenticated):
    """The issuer's keys could not be fetched yet; the same token may be good later."""
