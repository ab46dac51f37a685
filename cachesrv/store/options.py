"""What the store must be told, in plain numbers. The server fills it from the settings; tests from nothing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from cachesrv.store import constants


@dataclass(frozen=True, slots=True)
class StoreOptions:
    """Sizes in bytes, times in seconds; the meaning of each is in ``cachesrv.config.StoreSettings``."""

    max_size: int = 50 * 1000**3
    min_free: int = 2 * 1000**3
    durable: bool = True
    stale_upload: float = constants.STALE_UPLOAD_SECONDS
    expire_unused: float = 7 * 86400.0
    quota: int = 0
    quotas: Mapping[str, int] = field(default_factory=dict)
    scrub_rate: int = 20 * 1000**2
    zstd_level: int = 3
    index_limit: int = constants.INDEX_LIMIT_BYTES
    max_entry: int = 0
    max_blocks: int = 50_000
