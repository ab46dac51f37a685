"""Forwards what is not ours to the one configured upstream, byte for byte and streaming both ways.

* Method, raw path and query, body, status and headers pass as they are; Host is the upstream's, hop-by-hop headers
  (RFC 9110, 7.6.1) stay on their hop. No redirect is followed, nothing is decompressed, no cookie is kept.
* The job's token goes along, so the upstream must be on the allow-list: checked once, at start.
* Whatever goes wrong before the first byte of the answer is an UpstreamFailed, for the room to word (502); after it
  the connection is broken off, so that a truncated answer never looks complete.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Final
from urllib.parse import urlsplit

import aiohttp
from aiohttp import hdrs, web
from multidict import CIMultiDict
from yarl import URL

from cachesrv.web.bodies import ClientGone, RequestBody

CONNECT_SECONDS: Final = 10.0
IDLE_SECONDS: Final = 60.0
"""An upstream that sends nothing for this long has failed."""
CONNECTIONS: Final = 64
"""Open connections to the upstream, for one worker."""
_HOP_BY_HOP: Final = frozenset(
    name.lower()
    for name in (
        hdrs.CONNECTION,
        hdrs.KEEP_ALIVE,
        hdrs.PROXY_AUTHENTICATE,
        hdrs.PROXY_AUTHORIZATION,
        hdrs.TE,
        hdrs.TRAILER,
        hdrs.TRANSFER_ENCODING,
        hdrs.UPGRADE,
        hdrs.EXPECT,
        "Proxy-Connection",
    )
)
_NOT_ADDED: Final = (hdrs.USER_AGENT, hdrs.ACCEPT, hdrs.ACCEPT_ENCODING, hdrs.CONTENT_TYPE)


class UpstreamFailed(Exception):
    """The upstream did not answer. The message is fit for a client; it names no token."""


class Upstream:
    """``url``: http(s)://host[:port][/prefix]. ``allowed_hosts``: names it may have; a leading dot allows subdomains.

    Raises ValueError, naming the setting. ``start`` and ``stop`` run on the loop.
    """

    def __init__(self, url: str, allowed_hosts: Sequence[str]) -> None:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment:
            raise ValueError(f"actions.upstream: not an http or https URL: {url!r}")
        if parts.username is not None or parts.password is not None:
            raise ValueError("actions.upstream: must not hold a user name or password")
        if not any(_allows(allowed, parts.hostname) for allowed in allowed_hosts):
            raise ValueError(f"actions.upstream: {parts.hostname} is not in actions.upstream_hosts")
        self._base = url.rstrip("/")
        self._host = parts.netloc
        self._session: aiohttp.ClientSession | None = None

    async def start(self) -> None:
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=CONNECTIONS),
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_SECONDS, sock_read=IDLE_SECONDS),
            cookie_jar=aiohttp.DummyCookieJar(),
            auto_decompress=False,
            skip_auto_headers=_NOT_ADDED,
        )

    async def stop(self) -> None:
        if self._session is not None:
            await self._session.close()

    async def forward(
        self,
        request: web.BaseRequest,
        *,
        idle_receive: float = 120.0,
        headers: Mapping[str, str] | None = None,
    ) -> web.StreamResponse:
        """Ask the upstream what we were asked, and answer what it answered; ``headers`` are added to the answer.

        Raises UpstreamFailed, ClientGone; both only before the answer has begun.
        """
        if self._session is None:
            raise UpstreamFailed("the upstream is not started")
        if not request.raw_path.startswith("/"):
            raise UpstreamFailed("only plain paths are forwarded")
        body = _Upload(RequestBody(request, idle=idle_receive)) if request.body_exists else None
        try:
            answer = await self._session.request(
                request.method,
                URL(self._base + request.raw_path, encoded=True),
                headers=_passed(request.headers, {hdrs.HOST: self._host}),
                data=body.chunks() if body is not None else None,
                allow_redirects=False,
            )
        except (aiohttp.ClientError, OSError, ValueError) as error:
            if body is not None and body.gone is not None:
                raise body.gone from None
            raise UpstreamFailed(f"the upstream did not answer ({type(error).__name__})") from None
        async with answer:
            return await _pass_back(request, answer, headers or {})


async def _pass_back(
    request: web.BaseRequest, answer: aiohttp.ClientResponse, headers: Mapping[str, str]
) -> web.StreamResponse:
    response = web.StreamResponse(status=answer.status, reason=answer.reason)
    response.headers.extend(_passed(answer.headers, headers))
    try:
        await response.prepare(request)
        async for chunk in answer.content.iter_any():
            await response.write(chunk)
        await response.write_eof()
    except (aiohttp.ClientError, OSError):
        response.force_close()
        if request.transport is not None:
            request.transport.abort()
    return response


class _Upload:
    """The request's body on its way up; remembers whether the client broke off."""

    def __init__(self, body: RequestBody) -> None:
        self._body = body
        self.gone: ClientGone | None = None

    async def chunks(self) -> AsyncIterator[bytes]:
        try:
            async for chunk in self._body:
                yield chunk
        except ClientGone as error:
            self.gone = error
            raise


def _passed(headers: Mapping[str, str], replaced: Mapping[str, str]) -> CIMultiDict[str]:
    """End-to-end headers, in order, repeats included."""
    dropped = _HOP_BY_HOP | {name.strip().lower() for name in headers.get(hdrs.CONNECTION, "").split(",")}
    dropped |= {name.lower() for name in replaced}
    passed = CIMultiDict((name, value) for name, value in headers.items() if name.lower() not in dropped)
    passed.extend(replaced)
    return passed


def _allows(allowed: str, host: str) -> bool:
    allowed, host = allowed.lower(), host.lower()
    return host.endswith(allowed) if allowed.startswith(".") else host == allowed
