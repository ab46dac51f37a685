"""The one settings tree: defaults < TOML file < environment (CACHESRV_<SECTION>__<KEY>) < flags.

Each field's ``description`` is the comment that ``cachesrv config init`` writes above it.
"""

from __future__ import annotations

import re
from decimal import Decimal
from ipaddress import ip_network
from pathlib import Path
from typing import Annotated, Literal
from urllib.parse import urlsplit

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field

from cachesrv.addresses import Address

_SIZES = {
    "": 1,
    "b": 1,
    "k": 1000,
    "m": 1000**2,
    "g": 1000**3,
    "t": 1000**4,
    "ki": 1024,
    "mi": 1024**2,
    "gi": 1024**3,
    "ti": 1024**4,
}
_TIMES = {"": 1.0, "ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0, "w": 604800.0}


def parse_size(value: object) -> object:
    """ "50GB", "512 MiB", 1024 -> bytes. Raises ValueError naming what is accepted."""
    if isinstance(value, bool):
        raise ValueError("not a size: write it as 50GB, 512MiB or a number of bytes")
    if not isinstance(value, str):
        return value
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([kmgt]?i?)b?\s*", value, re.IGNORECASE)
    if not found or found[2].lower() not in _SIZES:
        raise ValueError(f"not a size: {value!r} (write it as 50GB, 512MiB or a number of bytes)")
    return int(Decimal(found[1]) * _SIZES[found[2].lower()])


def parse_duration(value: object) -> object:
    """ "15m", "7d", "500ms", 30 -> seconds. Raises ValueError naming what is accepted."""
    if isinstance(value, bool):
        raise ValueError("not a duration: write it as 15m, 7d, 500ms or a number of seconds")
    if not isinstance(value, str):
        return value
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*(ms|[smhdw]?)\s*", value, re.IGNORECASE)
    if not found:
        raise ValueError(f"not a duration: {value!r} (write it as 15m, 7d, 500ms or a number of seconds)")
    return float(found[1]) * _TIMES[found[2].lower()]


def format_size(size: int) -> str:
    """Bytes -> the shortest text that :func:`parse_size` reads back exactly."""
    for unit in ("TB", "GB", "MB", "TiB", "GiB", "MiB", "KiB", "KB"):
        factor = _SIZES[unit[:-1].lower()]
        if size and size % factor == 0:
            return f"{size // factor}{unit}"
    return str(size)


def format_duration(seconds: float) -> str:
    """Seconds -> the shortest text that :func:`parse_duration` reads back exactly."""
    for unit in ("d", "h", "m", "s"):
        if seconds and seconds % _TIMES[unit] == 0:
            return f"{int(seconds // _TIMES[unit])}{unit}"
    return "0s" if not seconds else f"{seconds!r}s"


def _address(value: str) -> str:
    Address.parse(value)
    return value


def _network(value: str) -> str:
    try:
        if value != "unix":
            ip_network(value, strict=False)
    except ValueError as error:
        raise ValueError(f"not a network: {value!r} (write it as 10.0.0.0/8, 192.0.2.7 or unix)") from error
    return value


def _url(value: str) -> str:
    if value and (urlsplit(value).scheme not in ("http", "https") or not urlsplit(value).hostname):
        raise ValueError("not a URL: write it as https://cache.example.com")
    return value


Size = Annotated[int, BeforeValidator(parse_size), Field(ge=0)]
Seconds = Annotated[float, BeforeValidator(parse_duration), Field(ge=0, allow_inf_nan=False)]
ListenAddress = Annotated[str, AfterValidator(_address)]
Network = Annotated[str, AfterValidator(_network)]
Url = Annotated[str, AfterValidator(_url)]


class Section(BaseModel):
    """One table of the settings. Immutable; an unknown key is an error; secrets are not in its repr."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True, hide_input_in_errors=True)


class ServerSettings(Section):
    """Where the server listens and how it stops."""

    listen: list[ListenAddress] = Field(
        ["127.0.0.1:8700"],
        min_length=1,
        description="Addresses: host:port, [v6]:port, unix:/path. Port 0 takes a free one.",
    )
    workers: int = Field(0, ge=0, le=256, description="Worker processes; 0 means one a core (1 on macOS).")
    base_url: Url = Field("", description="The URL clients see, if it is not the one they ask at (behind a proxy).")
    trusted_proxies: list[Network] = Field(
        [], description="Networks whose X-Forwarded-Proto/-Host are believed; unix: the unix sockets."
    )
    drain: Seconds = Field(30.0, description="How long SIGTERM waits for requests in progress.")


class StoreSettings(Section):
    """Where the bytes lie, how many, and how safely."""

    data: Annotated[Path | None, BeforeValidator(lambda value: value or None)] = Field(
        None, description="Data folder; default: cachesrv under the XDG data home."
    )
    max_size: Size = Field(
        50 * 1000**3, ge=16 * 1000**2, description="Byte budget on disk. Eviction starts at 95 % and stops at 90 %."
    )
    min_free: Size = Field(2 * 1000**3, description="Free space on the disk that is never used.")
    durability: Literal["durable", "relaxed"] = Field(
        "durable",
        description="durable: an acknowledged save survives a power cut. relaxed: it may be lost, never wrong.",
    )
    stale_upload: Seconds = Field(
        900.0, ge=1, description="A reservation without a byte for this long may be taken over."
    )
    expire_unused: Seconds = Field(7 * 86400.0, description="Actions entries unused for this long go; 0 keeps them.")
    quota: Size = Field(0, description="Logical bytes a repository may hold; 0: no quota.")
    quotas: dict[str, Size] = Field(
        {},
        description="The same for single repositories, as cachesrv stats names them: by id, where tokens have one.",
    )
    scrub_rate: Size = Field(
        20 * 1000**2, description="Bytes a second that the background scrub reads; 0 turns it off."
    )
    zstd_level: int = Field(3, ge=0, le=19, description="Level of zstd behind the acknowledgement; 0 turns it off.")
    index_limit: Size = Field(64 * 1024**3, ge=16 * 1024**2, description="Largest size of the index.")


class JwksIssuer(Section):
    """One token issuer that is believed."""

    issuer: str = Field(description="Exact 'iss' claim, e.g. https://token.actions.githubusercontent.com")
    jwks: str = Field("", description="URL or file of its key set; default: <issuer>/.well-known/jwks")


class AuthSettings(Section):
    """Who may read and write."""

    mode: Literal["", "jwks", "static-key", "shared-secret", "none"] = Field(
        "", description="How job tokens are checked. Empty: 'none' while every listener is on loopback, else an error."
    )
    issuers: list[JwksIssuer] = Field(
        [JwksIssuer(issuer="https://token.actions.githubusercontent.com", jwks="")],
        description="jwks: whose signatures count.",
    )
    allow_owners: list[str] = Field([], description="jwks: repository owners that may use this cache.")
    allow_repositories: list[str] = Field([], description="jwks: repository ids or owner/name that may use this cache.")
    static_key: str = Field("", description="static-key: file with a PEM public key (RS256/ES256).")
    shared_secret: str = Field(
        "", repr=False, description="shared-secret: the secret; HS256 tokens or /<secret>/ in the path."
    )
    fallback_repository: str = Field("", description="Repository of tokens that name none (Gitea, Forgejo, act).")
    admin_token: str = Field("", repr=False, description="Bearer token of /metrics and /api/; needed off loopback.")


class ActionsSettings(Section):
    """The GitHub Actions cache service."""

    upstream: Url = Field(
        "", description="Where everything else under the results URL goes (artifacts). Empty: refused."
    )
    upstream_hosts: list[str] = Field(
        ["results-receiver.actions.githubusercontent.com"],
        description="Hosts that 'upstream' may name; a leading dot allows subdomains.",
    )
    url_ttl: Seconds = Field(
        6 * 3600.0, ge=60, le=30 * 86400, description="How long signed upload and download URLs are good."
    )


class LimitSettings(Section):
    """What one request may cost."""

    max_entry: Size = Field(0, description="Largest single entry; 0: the byte budget.")
    max_json: Size = Field(1024**2, ge=1000, description="Largest JSON or protobuf request body.")
    max_block_list: Size = Field(8 * 1024**2, ge=1000, description="Largest block list document.")
    max_blocks: int = Field(50_000, ge=1, description="Blocks in one upload.")
    idle_send: Seconds = Field(300.0, ge=1, description="A download that moves no byte for this long is dropped.")
    idle_receive: Seconds = Field(120.0, ge=1, description="An upload that moves no byte for this long is dropped.")


class LogSettings(Section):
    """What is written to standard error."""

    format: Literal["auto", "text", "json"] = Field("auto", description="auto: text on a terminal, JSON otherwise.")
    level: Literal["debug", "info", "warning", "error"] = Field(
        "info", description="Lines below this level are dropped."
    )
    access: bool = Field(True, description="One line a request.")


class Settings(Section):
    """All of them, with their defaults; ``cachesrv.settings_source.load`` fills it from file, environment and flags."""

    server: ServerSettings = ServerSettings()
    store: StoreSettings = StoreSettings()
    auth: AuthSettings = AuthSettings()
    actions: ActionsSettings = ActionsSettings()
    limits: LimitSettings = LimitSettings()
    log: LogSettings = LogSettings()
