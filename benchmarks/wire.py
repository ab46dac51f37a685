"""A client that costs little: raw sockets for bodies, http.client for the API. Stands in for no real client; it shows
what the server can do when the client is not the limit."""

from __future__ import annotations

import base64
import hashlib
import http.client
import json
import os
import socket
import time
from collections.abc import Mapping
from urllib.parse import urlsplit

SERVICE = "/twirp/github.actions.results.api.v1.CacheService/"
BUFFER = bytearray(1 << 20)


def token(repository: str = "bench/repo", scope: str = "refs/heads/main") -> str:
    """An unsigned token, as a server in mode "none" accepts it on loopback."""
    claims = {
        "ac": json.dumps([{"Scope": scope, "Permission": 3}]),
        "repository_id": repository,
        "iss": "bench",
        "nbf": int(time.time()) - 10,
        "exp": int(time.time()) + 36000,
    }
    parts = [{"alg": "none", "typ": "JWT"}, claims]
    return ".".join(base64.urlsafe_b64encode(json.dumps(part).encode()).rstrip(b"=").decode() for part in parts) + "."


class Api:
    """The three calls of cache service v2 over one kept connection."""

    def __init__(self, base: str, bearer: str | None = None) -> None:
        url = urlsplit(base)
        self._connection = http.client.HTTPConnection(url.hostname or "127.0.0.1", url.port, timeout=600)
        self._headers = {"Authorization": f"Bearer {bearer or token()}", "Content-Type": "application/json"}

    def __enter__(self) -> Api:
        return self

    def __exit__(self, *_: object) -> None:
        self._connection.close()

    def call(self, method: str, body: Mapping[str, object]) -> dict[str, str]:
        self._connection.request("POST", SERVICE + method, json.dumps(body), self._headers)
        answer = self._connection.getresponse()
        text = answer.read()
        if answer.status != 200:
            raise RuntimeError(f"{method}: {answer.status} {text[:200]!r}")
        parsed: dict[str, str] = json.loads(text)
        return parsed

    def create(self, key: str) -> str:
        return self.call("CreateCacheEntry", {"key": key, "version": version()})["signed_upload_url"]

    def finalize(self, key: str, size: int) -> None:
        answer = self.call("FinalizeCacheEntryUpload", {"key": key, "version": version(), "size_bytes": str(size)})
        if not answer.get("ok"):
            raise RuntimeError(f"finalize: {answer}")

    def url(self, key: str, restore_keys: tuple[str, ...] = ()) -> str:
        body = {"key": key, "version": version(), "restore_keys": list(restore_keys)}
        return self.call("GetCacheEntryDownloadURL", body)["signed_download_url"]


def version() -> str:
    return hashlib.sha256(b"bench").hexdigest()


def _connect(url: str) -> tuple[socket.socket, str, str]:
    parts = urlsplit(url)
    sock = socket.create_connection((parts.hostname or "", parts.port or 80))
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return sock, parts.path + ("?" + parts.query if parts.query else ""), parts.netloc


def get(url: str) -> int:
    """Fetch and drop; the body length."""
    sock, path, host = _connect(url)
    with sock:
        sock.sendall(f"GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode())
        head = b""
        while b"\r\n\r\n" not in head:
            head += sock.recv(65536)
        head, _, rest = head.partition(b"\r\n\r\n")
        if b" 200 " not in head.split(b"\r\n")[0]:
            raise RuntimeError(head.decode())
        got = len(rest)
        while count := sock.recv_into(BUFFER):
            got += count
    return got


def put(url: str, path_or_bytes: str | bytes, *, headers: str = "") -> None:
    """Send a file (sendfile: costs the client next to nothing) or bytes; any 2xx is fine."""
    sock, path, host = _connect(url)
    with sock:
        size = len(path_or_bytes) if isinstance(path_or_bytes, bytes) else os.stat(path_or_bytes).st_size
        head = f"PUT {path} HTTP/1.1\r\nHost: {host}\r\nContent-Length: {size}\r\n{headers}Connection: close\r\n\r\n"
        sock.sendall(head.encode())
        if isinstance(path_or_bytes, bytes):
            sock.sendall(path_or_bytes)
        else:
            with open(path_or_bytes, "rb") as file:
                sock.sendfile(file)
        answer = b""
        while data := sock.recv(65536):
            answer += data
    if not answer.startswith(b"HTTP/1.1 2"):
        raise RuntimeError(answer[:300].decode(errors="replace"))


def put_blob(url: str, path_or_bytes: str | bytes) -> None:
    put(url, path_or_bytes, headers="x-ms-blob-type: BlockBlob\r\n")
