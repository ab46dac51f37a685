"""Paths, hosts, base URLs, request ids."""

from __future__ import annotations

import re
from typing import Any
from unittest.mock import Mock

import pytest
from aiohttp.test_utils import make_mocked_request
from hypothesis import given
from hypothesis import strategies as st

from cachesrv.web.requests import BaseUrl, InvalidHost, header_text, new_request_id, request_path


def request(headers: dict[str, str], peer: Any = ("10.0.0.9", 5)) -> Any:
    transport = Mock()
    transport.get_extra_info = {"peername": peer}.get
    transport.is_closing.return_value = False
    return make_mocked_request("GET", "/", headers, transport=transport)


@pytest.mark.parametrize(
    ("raw", "path"),
    [
        ("/a/b?x=//y", "/a/b"),
        ("//twirp///x/", "/twirp/x/"),
        ("/a%2Fb//%2f%2fc", "/a%2Fb/%2f%2fc"),
        ("http://host//a//b?c", "/a/b"),
        ("HTTPS://host", "/"),
        ("*", "/"),
        ("host:443", "/"),
        ("", "/"),
        ("/a#b", "/a"),
    ],
)
def test_request_path(raw: str, path: str) -> None:
    assert request_path(raw) == path


@given(st.text())
def test_request_path_always_begins_with_one_slash(raw: str) -> None:
    path = request_path(raw)
    assert path.startswith("/")
    assert "//" not in path
    assert "?" not in path


@given(st.text())
def test_header_text_cannot_end_a_header(value: str) -> None:
    assert not re.search(r"[\r\n\0]", header_text(value))


def test_request_ids_look_like_azures() -> None:
    first, second = new_request_id(), new_request_id()
    assert first != second
    assert re.fullmatch(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", first)


@pytest.mark.parametrize("host", ["cache", "cache:3000", "10.0.0.1:80", "[::1]:8700", "[fd00::1]", "a_b.c-d.e:1"])
def test_host_is_what_the_client_asked(host: str) -> None:
    assert BaseUrl().of(request({"Host": host})) == f"http://{host}"


@pytest.mark.parametrize(
    "host",
    [
        "",
        "a b",
        "a/b",
        "a?b",
        "a#b",
        "u@h",
        "[::1",
        "[:::]",
        "h:0",
        "h:99999",
        "h:",
        "-h",
        "h:1:2",
        "::1",
        "a\\b",
        'a"b',
    ],
)
def test_a_host_that_is_none_is_refused(host: str) -> None:
    with pytest.raises(InvalidHost):
        BaseUrl().of(request({"Host": host}))


def test_the_setting_wins() -> None:
    base = BaseUrl("https://cache.example/prefix/", ["10.0.0.0/8"])
    assert base.of(request({"Host": "x", "X-Forwarded-Host": "y"})) == "https://cache.example/prefix"


@pytest.mark.parametrize(
    ("peer", "trusted", "url"),
    [
        (("10.0.0.9", 5), ["10.0.0.0/8"], "https://outside"),
        (("10.0.0.9", 5), ["10.0.0.9"], "https://outside"),
        (("::ffff:10.0.0.9", 5, 0, 0), ["10.0.0.0/8"], "https://outside"),
        (("fe80::1%eth0", 5, 0, 2), ["fe80::/10"], "https://outside"),
        (("11.0.0.9", 5), ["10.0.0.0/8"], "http://inside"),
        (("10.0.0.9", 5), [], "http://inside"),
        ("", ["10.0.0.0/8"], "http://inside"),
        ("", ["unix"], "https://outside"),
    ],
)
def test_forwarded_headers_count_only_from_trusted_proxies(peer: Any, trusted: list[str], url: str) -> None:
    forwarded = {"Host": "inside", "X-Forwarded-Proto": "https", "X-Forwarded-Host": "outside, other"}
    assert BaseUrl("", trusted).of(request(forwarded, peer)) == url


def test_a_trusted_proxy_cannot_smuggle_a_bad_host_or_scheme() -> None:
    base = BaseUrl("", ["10.0.0.0/8"])
    with pytest.raises(InvalidHost):
        base.of(request({"Host": "inside", "X-Forwarded-Host": "a/b"}))
    assert base.of(request({"Host": "inside", "X-Forwarded-Proto": "javascript"})) == "http://inside"


@pytest.mark.parametrize("setting", ["cache:3000", "ftp://x", "http://", "http://a b", "http://h?x", "http://u@h"])
def test_a_bad_base_url_is_named(setting: str) -> None:
    with pytest.raises(ValueError, match=r"server\.base_url"):
        BaseUrl(setting)


def test_a_bad_network_is_named() -> None:
    with pytest.raises(ValueError, match=r"server\.trusted_proxies.*10\.0\.0\.0/99"):
        BaseUrl("", ["10.0.0.0/99"])
