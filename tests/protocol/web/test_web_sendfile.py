"""The way round the transport, by itself: exact bytes, kind to everybody else on the loop."""

from __future__ import annotations

import asyncio
import os
import socket
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from cachesrv.web.sendfile import FileEnded, FileSender

CONTENT = os.urandom(8_000_001)


class Drain(threading.Thread):
    """A client that takes everything as fast as it comes, in a thread of its own."""

    def __init__(self, sock: socket.socket) -> None:
        super().__init__(daemon=True)
        self.sock = sock
        self.got = bytearray()
        self.more = threading.Condition()
        self.start()

    def run(self) -> None:
        while data := self.sock.recv(1 << 20):
            with self.more:
                self.got += data
                self.more.notify_all()

    def has(self, count: int) -> bool:
        """Waits until so many bytes have come."""
        with self.more:
            return self.more.wait_for(lambda: len(self.got) >= count, 20)


@asynccontextmanager
async def sending(drained: bool, idle: float = 30.0) -> AsyncIterator[tuple[FileSender, Drain | None]]:
    ours, theirs = socket.socketpair()
    transport, _ = await asyncio.get_running_loop().create_connection(asyncio.Protocol, sock=ours)
    drain = Drain(theirs) if drained else None
    sender = FileSender(transport, idle)
    try:
        yield sender, drain
    finally:
        sender.close()
        transport.abort()
        await asyncio.sleep(0)
        if drain is not None:
            await asyncio.to_thread(drain.join, 10)
        theirs.close()


@pytest.fixture
def file(tmp_path: Path) -> int:
    path = tmp_path / "blob"
    path.write_bytes(CONTENT)
    return os.open(path, os.O_RDONLY)


async def test_any_run_of_bytes_arrives_exactly(file: int) -> None:
    async with sending(drained=True) as (sender, drain):
        assert drain is not None
        runs = [(0, 1), (1, 4_000_000), (3, 0), (len(CONTENT) - 5, 5), (0, len(CONTENT))]
        for offset, length in runs:
            await sender.send(file, offset, length)
        wanted = b"".join(CONTENT[offset : offset + length] for offset, length in runs)
        assert sender.sent == len(wanted)
        assert await asyncio.to_thread(drain.has, len(wanted))
        assert bytes(drain.got) == wanted


async def test_a_fast_client_does_not_keep_the_loop(file: int) -> None:
    turns = 0

    async def somebody_else() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    async with sending(drained=True) as (sender, _):
        other = asyncio.create_task(somebody_else())
        for _ in range(50):
            await sender.send(file, 0, 4096)
        other.cancel()
    assert turns >= 49


async def test_a_file_that_is_too_short_is_no_success(file: int) -> None:
    async with sending(drained=True) as (sender, _):
        with pytest.raises(FileEnded):
            await sender.send(file, len(CONTENT) - 10, 20)


async def test_a_client_that_takes_nothing_is_given_up(file: int) -> None:
    async with sending(drained=False, idle=0.1) as (sender, _):
        with pytest.raises(TimeoutError):
            await sender.send(file, 0, len(CONTENT))
        assert 0 < sender.sent < len(CONTENT)
