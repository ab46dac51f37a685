"""Job tokens as CI systems issue them, for tests: the claims that clients and servers read, nothing else."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence

import jwt

READ = 1
WRITE = 2
MAIN: tuple[str, int] = ("refs/heads/main", READ | WRITE)


def job_token(
    repository: str = "1001",
    scopes: Sequence[tuple[str, int]] = (MAIN,),
    *,
    secret: str | None = None,
    lifetime: float = 3600.0,
) -> str:
    """An ACTIONS_RUNTIME_TOKEN of ``repository``.

    ``scopes`` are (ref, permission bits) in lookup order. Signed with HS256 when a ``secret`` is given, else unsigned
    (alg none). ``lifetime`` in seconds; negative makes an expired token.
    """
    now = int(time.time())
    claims = {
        "iss": "https://token.actions.githubusercontent.com",
        "nbf": now - 60,
        "exp": now + int(lifetime),
        "repository_id": repository,
        "scp": "Actions.Results:11111111-1111-1111-1111-111111111111:22222222-2222-2222-2222-222222222222",
        "orch_id": "11111111-1111-1111-1111-111111111111.job.__default",
        "ac": json.dumps([{"Scope": scope, "Permission": permission} for scope, permission in scopes]),
    }
    if secret is None:
        return jwt.encode(claims, "", algorithm="none")
    return jwt.encode(claims, secret, algorithm="HS256")
