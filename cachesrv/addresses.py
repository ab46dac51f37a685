"""The addresses that ``--listen`` and ``server.listen`` accept: ``host:port``, ``[v6]:port`` and ``unix:/path``.

Parsing opens nothing and looks up nothing; a name is resolved when its socket is bound.
"""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from urllib.parse import quote

UNIX_PATH_BYTES = 100
"""Longest unix socket path: sun_path holds 108 bytes on Linux and 104 on macOS, terminator included."""


@dataclass(frozen=True, slots=True)
class Address:
    """Where to listen: ``path`` for a unix socket, else ``host`` (no brackets) and ``port`` (0: any free one)."""

    host: str = ""
    port: int = 0
    path: str = ""

    @classmethod
    def parse(cls, text: str) -> Address:
        """Raises ValueError that says what is accepted."""
        if text.startswith("unix:"):
            path = text[5:]
            if not path.startswith("/"):
                raise ValueError(
                    f"not an address: {text!r} (a unix socket needs an absolute path: unix:/run/cache.sock)"
                )
            if len(path.encode()) > UNIX_PATH_BYTES:
                raise ValueError(f"the unix socket path is longer than {UNIX_PATH_BYTES} bytes: {path!r}")
            return cls(path=path)
        host, colon, port = text.rpartition(":")
        if host.startswith("[") and host.endswith("]"):
            host = host[1:-1]
            try:
                ipaddress.IPv6Address(host)
            except ValueError as error:
                raise ValueError(f"not an IPv6 address: {host!r}") from error
        elif ":" in host:
            raise ValueError(f"not an address: {text!r} (write an IPv6 address in brackets: [::1]:8700)")
        if not colon or not host or not (port.isascii() and port.isdigit()) or int(port) > 65535:
            raise ValueError(f"not an address: {text!r} (write it as host:port, [v6]:port or unix:/path)")
        return cls(host=host, port=int(port))

    @property
    def is_local(self) -> bool:
        """Whether only this machine can reach it. A name counts as local only if it is ``localhost``."""
        if self.path or self.host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False

    @property
    def is_wildcard(self) -> bool:
        """Whether it means every interface, so that no client can use it as it stands."""
        try:
            return ipaddress.ip_address(self.host).is_unspecified
        except ValueError:
            return False

    @property
    def url(self) -> str:
        """``http://host:port``, or ``http+unix://`` with the escaped path."""
        if self.path:
            return f"http+unix://{quote(self.path, safe='')}"
        return f"http://[{self.host}]:{self.port}" if ":" in self.host else f"http://{self.host}:{self.port}"

    def __str__(self) -> str:
        if self.path:
            return f"unix:{self.path}"
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"
