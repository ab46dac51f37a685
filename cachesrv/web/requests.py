"""What every room asks of a request besides its body: an id, a path, the URL the client knows us by, safe header text.

Nothing here reads a body or waits. Forwarded headers count only when they come from a trusted proxy; a Host that is not
a host never reaches a URL we hand out.
"""

from __future__ import annotations

import ipaddress
import re
import uuid
from collections.abc import Iterable
from typing import Final

from aiohttp import hdrs, web

_SLASHES = re.compile(r"/{2,}")
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
_HOST = re.compile(r"(?P<name>\[[0-9A-Fa-f:.]{2,45}\]|[A-Za-z0-9_](?:[A-Za-z0-9._-]{0,252}))(?::(?P<port>[0-9]{1,5}))?")
UNIX_PEER: Final = "unix"
"""What ``server.trusted_proxies`` calls the peers of a Unix socket listener."""


class InvalidHost(ValueError):
    """The request has no usable Host (or X-Forwarded-Host), so no URL can be made for its client."""


def new_request_id() -> str:
    """A fresh request id in the form Azure uses (a lower-case UUID): our logs and ``x-ms-request-id`` carry it.

    Always ours, never echoed: a client must not choose what stands in our logs.
    """
    return str(uuid.uuid4())


def request_path(raw_path: str) -> str:
    """The path of a request target: query dropped, repeated slashes folded, percent-encoding untouched.

    An absolute-form target ("GET http://host/path") gives its path; anything else gives "/".
    """
    path = raw_path.partition("?")[0].partition("#")[0]
    if not path.startswith("/"):
        scheme, found, rest = path.partition("://")
        if not found or scheme.lower() not in ("http", "https"):
            return "/"
        path = "/" + rest.partition("/")[2]
    return _SLASHES.sub("/", path) if "//" in path else path


def header_text(value: str, limit: int = 1024) -> str:
    """``value`` fit for a response header: control characters (CR, LF, NUL and the like) become spaces, cut at
    ``limit`` characters. For text that a client sent and wants back."""
    return _CONTROL.sub(" ", value[:limit])


def valid_host(host: str) -> str:
    """``host`` in lower case when it is a name, an IPv4 or a bracketed IPv6 address, with or without a port.

    Raises InvalidHost.
    """
    found = _HOST.fullmatch(host)
    if found is None or (found["port"] is not None and not 0 < int(found["port"]) < 65536):
        raise InvalidHost("the Host header is not a host name or address")
    if found["name"].startswith("["):
        try:
            ipaddress.IPv6Address(found["name"][1:-1])
        except ValueError as error:
            raise InvalidHost("the Host header is not a host name or address") from error
    return host.lower()


class BaseUrl:
    """The URL at which a client reaches us, without a trailing slash: signed URLs are built on it.

    ``base_url`` (the setting) wins; else X-Forwarded-Proto/-Host of peers in ``trusted_proxies``; else the Host header
    and the scheme of the listener.

    ``trusted_proxies`` holds networks in CIDR form, single addresses, or "unix". Raises ValueError naming the setting.
    """

    def __init__(self, base_url: str = "", trusted_proxies: Iterable[str] = ()) -> None:
        self._fixed = base_url.rstrip("/")
        if self._fixed:
            scheme, _, rest = self._fixed.partition("://")
            host = rest.partition("/")[0]
            if scheme not in ("http", "https") or _CONTROL.search(rest) or any(sign in rest for sign in " ?#@"):
                raise ValueError(f"server.base_url: not an http or https URL: {base_url!r}")
            try:
                valid_host(host)
            except InvalidHost as error:
                raise ValueError(f"server.base_url: not a host: {host!r}") from error
        self._trust_unix = False
        self._networks: list[ipaddress.IPv4Network | ipaddress.IPv6Network] = []
        for network in trusted_proxies:
            if network == UNIX_PEER:
                self._trust_unix = True
                continue
            try:
                self._networks.append(ipaddress.ip_network(network, strict=False))
            except ValueError as error:
                raise ValueError(f"server.trusted_proxies: not a network: {network!r}") from error

    def of(self, request: web.BaseRequest) -> str:
        """The base URL for the client of this request. Raises InvalidHost."""
        if self._fixed:
            return self._fixed
        scheme, host = request.scheme, request.headers.get(hdrs.HOST, "")
        if (self._networks or self._trust_unix) and self._trusts(request):
            forwarded = _first(request.headers.get(hdrs.X_FORWARDED_PROTO, "")).lower()
            if forwarded in ("http", "https"):
                scheme = forwarded
            host = _first(request.headers.get(hdrs.X_FORWARDED_HOST, "")) or host
        return f"{scheme}://{valid_host(host)}"

    def _trusts(self, request: web.BaseRequest) -> bool:
        peer = request.transport.get_extra_info("peername") if request.transport is not None else None
        if not isinstance(peer, tuple):
            return self._trust_unix and peer is not None
        try:
            address = ipaddress.ip_address(str(peer[0]).partition("%")[0])
        except ValueError:
            return False
        if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
            address = address.ipv4_mapped
        return any(address in network for network in self._networks)


def _first(value: str) -> str:
    return value.partition(",")[0].strip()
