"""What ``serve`` prints once it serves: its URL and the lines that point a runner at it. Pure but for one look at the
routing table."""

from __future__ import annotations

import socket
from collections.abc import Iterator, Sequence

from cachesrv.addresses import Address

_PROBE = ("192.0.2.1", 9)
_PROBE6 = ("2001:db8::1", 9)
"""Documentation addresses: connecting a UDP socket sends nothing, it only asks which of our addresses would be used."""


def banner(addresses: Sequence[Address], *, base_url: str, data: str, mode: str) -> str:
    """The text. ``addresses`` are the bound ones; ``base_url`` wins over them for what a runner is told."""
    urls = [reachable(address).url for address in addresses]
    for_runner = (base_url or next((url for url in urls if not url.startswith("http+unix:")), "")).rstrip("/")
    lines = [f"cachesrv serves at {', '.join(urls)}", f"  data in {data}, auth mode {mode}"]
    if for_runner:
        lines += ["", *_runner_lines(for_runner)]
    return "\n".join(lines) + "\n"


def _runner_lines(url: str) -> Iterator[str]:
    yield "Point a GitHub Actions runner (or @actions/cache) at it with:"
    yield f"  ACTIONS_CACHE_URL={url}/"
    yield f"  ACTIONS_RESULTS_URL={url}/"
    yield "  ACTIONS_CACHE_SERVICE_V2=true"
    yield "Gitea or Forgejo runner, in config.yaml under cache:"
    yield f'  external_server: "{url}/"'


def reachable(address: Address) -> Address:
    """The address itself, or for a wildcard one of this machine's own that others can use."""
    if not address.is_wildcard:
        return address
    six = ":" in address.host
    try:
        with socket.socket(socket.AF_INET6 if six else socket.AF_INET, socket.SOCK_DGRAM) as probe:
            probe.connect(_PROBE6 if six else _PROBE)
            return Address(host=str(probe.getsockname()[0]), port=address.port)
    except OSError:
        return Address(host="::1" if six else "127.0.0.1", port=address.port)
