"""The addresses of --listen."""

from __future__ import annotations

import pytest

from cachesrv.addresses import Address
from cachesrv.server.banner import banner, reachable


@pytest.mark.parametrize(
    ("text", "address", "url"),
    [
        ("127.0.0.1:8700", Address("127.0.0.1", 8700), "http://127.0.0.1:8700"),
        ("[::1]:0", Address("::1", 0), "http://[::1]:0"),
        ("cache.example:80", Address("cache.example", 80), "http://cache.example:80"),
        ("unix:/run/c.sock", Address(path="/run/c.sock"), "http+unix://%2Frun%2Fc.sock"),
    ],
)
def test_what_is_accepted(text: str, address: Address, url: str) -> None:
    assert Address.parse(text) == address
    assert address.url == url
    assert str(address) == text


@pytest.mark.parametrize(
    "text",
    ["", "8700", ":8700", "host", "host:", "host:port", "host:65536", "::1:80", "[::1]", "[nope]:1", "unix:relative",
     "host:²", "unix:/" + "x" * 101],
)  # fmt: skip
def test_what_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"address|unix socket"):
        Address.parse(text)


@pytest.mark.parametrize(
    ("text", "local"),
    [("127.0.0.1:1", True), ("127.9.9.9:1", True), ("[::1]:1", True), ("localhost:1", True), ("unix:/a", True),
     ("0.0.0.0:1", False), ("[::]:1", False), ("10.0.0.1:1", False), ("my-host:1", False), ("localhost.evil:1", False)],
)  # fmt: skip
def test_what_counts_as_local(text: str, local: bool) -> None:
    assert Address.parse(text).is_local is local


def test_a_wildcard_is_told_as_an_address_that_can_be_used() -> None:
    shown = reachable(Address("0.0.0.0", 8700))
    assert shown.port == 8700
    assert not shown.is_wildcard


def test_the_banner_points_a_runner_at_the_server() -> None:
    text = banner([Address(path="/run/c"), Address("127.0.0.1", 8700)], base_url="", data="/d", mode="none")
    assert "  ACTIONS_CACHE_URL=http://127.0.0.1:8700/\n" in text
    assert "  ACTIONS_RESULTS_URL=http://127.0.0.1:8700/\n" in text
    assert "  ACTIONS_CACHE_SERVICE_V2=true\n" in text
    assert 'external_server: "http://127.0.0.1:8700/"' in text


def test_the_banner_prefers_the_url_that_clients_see() -> None:
    text = banner([Address("127.0.0.1", 8700)], base_url="https://cache.example/", data="/d", mode="jwks")
    assert "  ACTIONS_CACHE_URL=https://cache.example/\n" in text
