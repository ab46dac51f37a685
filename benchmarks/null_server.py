"""The reference that shows what a client costs by itself: speaks cache service v2 and its blob uploads and downloads as
far as @actions/cache goes, keeps nothing and looks at nothing.

* Uploads are acknowledged once their last byte arrived; the kernel drops the bytes (``MSG_TRUNC``: tcp(7)), so nothing
  is even copied out of the socket.
* Every key is a hit, and every download is the one archive given at the start, by sendfile(2) from anonymous memory.
* Workers are forked and accept from one socket; a thread a connection, which is blocked in the kernel nearly always.

No server that keeps what it is given can be faster, whatever it is written in. Loopback only; trusts its client: no
limits, no checks. ``python -m benchmarks.null_server PORT ARCHIVE [--workers 2]``, ended by SIGTERM.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import socket
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from benchmarks.processes import Served, free_port, running, wait_for

ENDING = {signal.SIGTERM, signal.SIGINT}
_BUFFER = 1 << 20
_BLOB_HEADERS = (
    "x-ms-request-id: 0\r\nx-ms-version: 2026-04-06\r\nx-ms-request-server-encrypted: true\r\n"
    'ETag: "0x1"\r\nLast-Modified: Thu, 01 Jan 2026 00:00:00 GMT\r\n'
)


@contextmanager
def null_server(archive: Path, *, workers: int = 2) -> Iterator[Served]:
    """A null server of its own that answers every download with ``archive``."""
    port = free_port()
    command = [sys.executable, "-m", "benchmarks.null_server", str(port), str(archive), "--workers", str(workers)]
    with running(command) as process:
        wait_for(port)
        yield Served(f"http://127.0.0.1:{port}/", process.pid, port)


class _Connection:
    """One connection, served to its end by the calling thread."""

    def __init__(self, sock: socket.socket, base: str, archive: int, size: int) -> None:
        self._sock = sock
        self._base = base
        self._archive = archive
        self._size = size
        self._held = b""
        self._scratch = bytearray(_BUFFER)

    def serve(self) -> None:
        with self._sock, suppress(OSError):
            self._sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            while head := self._head():
                method, target, _ = head.split(b" ", 2)
                length = _content_length(head)
                if method == b"POST":
                    self._answer_call(target.rpartition(b"/")[2], json.loads(self._body(length)))
                elif method == b"PUT":
                    self._drop(length)
                    self._answer("201 Created", _BLOB_HEADERS)
                else:
                    self._send_archive()

    def _head(self) -> bytes:
        """The next request's head, or nothing when the client is gone; what came behind it stays in ``_held``."""
        while b"\r\n\r\n" not in self._held:
            data = self._sock.recv(65536)
            if not data:
                return b""
            self._held += data
        head, _, self._held = self._held.partition(b"\r\n\r\n")
        return head

    def _body(self, length: int) -> bytes:
        while len(self._held) < length:
            self._held += self._sock.recv(65536)
        body, self._held = self._held[:length], self._held[length:]
        return body

    def _drop(self, length: int) -> None:
        left = length - len(self._held)
        self._held = b"" if left >= 0 else self._held[length:]
        while left > 0:
            count = self._sock.recv_into(self._scratch, min(left, _BUFFER), socket.MSG_TRUNC)
            if not count:
                raise ConnectionResetError
            left -= count

    def _answer_call(self, method: bytes, message: Mapping[str, object]) -> None:
        answers: dict[bytes, dict[str, object]] = {
            b"CreateCacheEntry": {"ok": True, "signed_upload_url": f"{self._base}null/cache/upload?sig=0"},
            b"FinalizeCacheEntryUpload": {"ok": True, "entry_id": "1"},
            b"GetCacheEntryDownloadURL": {
                "ok": True,
                "signed_download_url": f"{self._base}null/cache/download?sig=0",
                "matched_key": message["key"],
            },
        }
        self._answer("200 OK", "Content-Type: application/json\r\n", json.dumps(answers[method]).encode())

    def _answer(self, status: str, headers: str, body: bytes = b"") -> None:
        self._sock.sendall(f"HTTP/1.1 {status}\r\n{headers}Content-Length: {len(body)}\r\n\r\n".encode() + body)

    def _send_archive(self) -> None:
        head = "HTTP/1.1 200 OK\r\nContent-Type: application/octet-stream\r\n"
        self._sock.sendall(f"{head}{_BLOB_HEADERS}Content-Length: {self._size}\r\n\r\n".encode())
        sent = 0
        while sent < self._size:
            sent += os.sendfile(self._sock.fileno(), self._archive, sent, self._size - sent)


def _content_length(head: bytes) -> int:
    for line in head.split(b"\r\n")[1:]:
        name, _, value = line.partition(b":")
        if name.lower() == b"content-length":
            return int(value)
    return 0


def _work(listener: socket.socket, base: str, archive: int, size: int) -> None:
    while True:
        sock, _ = listener.accept()
        threading.Thread(target=_Connection(sock, base, archive, size).serve, daemon=True).start()


def main() -> None:
    parser = argparse.ArgumentParser(prog="benchmarks.null_server")
    parser.add_argument("port", type=int)
    parser.add_argument("archive", type=Path)
    parser.add_argument("--workers", type=int, default=2)
    chosen = parser.parse_args()
    memory = os.memfd_create("archive")
    with open(chosen.archive, "rb") as source, open(memory, "wb", closefd=False) as target:
        shutil.copyfileobj(source, target, _BUFFER)
    size = os.fstat(memory).st_size
    base = f"http://127.0.0.1:{chosen.port}/"
    with socket.create_server(("127.0.0.1", chosen.port), backlog=128) as listener:
        children = []
        for _ in range(chosen.workers):
            child = os.fork()
            if child == 0:
                _work(listener, base, memory, size)
            children.append(child)
        signal.pthread_sigmask(signal.SIG_BLOCK, ENDING)
        signal.sigwait(ENDING)
        for child in children:
            os.kill(child, signal.SIGTERM)
            os.waitpid(child, 0)


if __name__ == "__main__":
    main()
