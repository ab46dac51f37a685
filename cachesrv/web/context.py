"""What a worker hands to every room it builds: the shared parts, made once and open already."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from cachesrv.config import Settings
from cachesrv.observe.recorder import Recorder
from cachesrv.store.api import CacheStore
from cachesrv.web.authenticator import Authenticator
from cachesrv.web.requests import BaseUrl
from cachesrv.web.signing import UrlSigner
from cachesrv.web.upstream import Upstream


@dataclass(frozen=True)
class Context:
    """``clock`` gives Unix seconds. ``upstream`` is None when none is configured. Whoever makes it starts and stops the
    authenticator and the upstream; rooms only use them."""

    settings: Settings
    store: CacheStore
    recorder: Recorder
    authenticator: Authenticator
    signer: UrlSigner
    base_url: BaseUrl
    upstream: Upstream | None
    clock: Callable[[], float]
