"""How commands reach the committer: the ``Writer`` contract and its two implementations.

``CommitterClient`` speaks to the committer process; ``LocalCommitter`` applies in this process (tests, tools on a
stopped store). Both raise what ``cachesrv.store.commands`` says, StoreBusy when no answer comes in time, and the
StoreUnavailable family when the disk or the index cannot take it.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final, Protocol, overload

from cachesrv.store import wire
from cachesrv.store.commands import (
    Command,
    Commit,
    Committed,
    Delete,
    DropSegment,
    DropUpload,
    LeaseIds,
    MarkProbed,
    MarkProven,
    OpenSegment,
    Purge,
    PutRows,
    Quarantine,
    Removed,
    Requeue,
    Reserve,
    Reserved,
    SealSegment,
    SetDigest,
    SetMeta,
    SwapForm,
)
from cachesrv.store.committer import Committer
from cachesrv.store.constants import COMMITTER_TIMEOUT_SECONDS
from cachesrv.store.errors import LimitExceeded, StoreBusy, StoreError
from cachesrv.store.options import StoreOptions
from cachesrv.store.recency import Recency

RECONNECT_SECONDS: Final = 0.05
"""Pause between two attempts to reach a committer that does not accept."""


class Writer(Protocol):
    """Who takes commands. Awaiting ``submit`` gives the answer that the command's docstring names, after the index
    holds it durably."""

    @overload
    def submit(self, command: LeaseIds | Requeue | Purge | SetDigest | MarkProbed | MarkProven) -> Awaitable[int]: ...
    @overload
    def submit(
        self, command: DropUpload | SwapForm | OpenSegment | SealSegment | DropSegment | SetMeta | PutRows
    ) -> Awaitable[bool]: ...
    @overload
    def submit(self, command: Reserve) -> Awaitable[Reserved]: ...
    @overload
    def submit(self, command: Commit) -> Awaitable[Committed]: ...
    @overload
    def submit(self, command: Delete | Quarantine) -> Awaitable[list[Removed]]: ...
    def submit(self, command: Command) -> Awaitable[Any]: ...


class _Pending:
    __slots__ = ("frame", "future", "kind")

    def __init__(self, frame: bytes, future: asyncio.Future[Any], kind: type[Command]) -> None:
        self.frame = frame
        self.future = future
        self.kind = kind


class _Link(asyncio.Protocol):
    """One connection: hands whole frames up, and says when it ended."""

    def __init__(self, on_frame: Callable[[bytes], None]) -> None:
        self._frames = wire.FrameBuffer()
        self._on_frame = on_frame
        self._transport: asyncio.Transport | None = None
        self.lost = asyncio.Event()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        try:
            for frame in self._frames.feed(data):
                self._on_frame(frame)
        except LimitExceeded:
            self.close()

    def connection_lost(self, error: Exception | None) -> None:
        self.lost.set()

    def send(self, frame: bytes) -> None:
        if self._transport is not None:
            self._transport.write(frame)

    def close(self) -> None:
        if self._transport is not None:
            self._transport.abort()


class CommitterClient:
    """One pipelined connection to the committer of a data folder, opened at the first command.

    When the committer is replaced, the client connects again and resends what is unanswered, in order: commands are
    idempotent. Belongs to the event loop that first submits. ``close`` ends it.
    """

    def __init__(self, root: Path, *, timeout: float = COMMITTER_TIMEOUT_SECONDS) -> None:
        self._root = root
        self._timeout = timeout
        self._next = 1
        self._pending: dict[int, _Pending] = {}
        self._link: _Link | None = None
        self._keeper: asyncio.Task[None] | None = None

    @overload
    async def submit(self, command: LeaseIds | Requeue | Purge | SetDigest | MarkProbed | MarkProven) -> int: ...
    @overload
    async def submit(
        self, command: DropUpload | SwapForm | OpenSegment | SealSegment | DropSegment | SetMeta | PutRows
    ) -> bool: ...
    @overload
    async def submit(self, command: Reserve) -> Reserved: ...
    @overload
    async def submit(self, command: Commit) -> Committed: ...
    @overload
    async def submit(self, command: Delete | Quarantine) -> list[Removed]: ...
    async def submit(self, command: Command) -> Any:
        """Send and wait for the answer. Cancelling stops the waiting only: the command may still be applied.

        Raises LimitExceeded (a frame too long), StoreBusy (no answer in time), and the command's own errors."""
        number = self._next
        self._next += 1
        pending = _Pending(
            wire.encode_request(number, command), asyncio.get_running_loop().create_future(), type(command)
        )
        self._pending[number] = pending
        if self._keeper is None or self._keeper.done():
            self._keeper = asyncio.create_task(self._keep_connected())
        elif self._link is not None:
            self._link.send(pending.frame)
        try:
            async with asyncio.timeout(self._timeout):
                return await pending.future
        except TimeoutError:
            raise StoreBusy("the store did not answer in time") from None
        finally:
            self._pending.pop(number, None)

    async def _keep_connected(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            link = _Link(self._answered)
            try:
                connection = wire.connect(self._root)
                await loop.create_unix_connection(lambda link=link: link, sock=connection)  # type: ignore[misc]
            except OSError:
                await asyncio.sleep(RECONNECT_SECONDS)
                continue
            self._link = link
            for pending in list(self._pending.values()):
                link.send(pending.frame)
            await link.lost.wait()
            self._link = None

    def _answered(self, frame: bytes) -> None:
        answer = wire.decode_answer(frame)
        pending = self._pending.get(answer.id)
        if pending is None or pending.future.done():
            return
        try:
            pending.future.set_result(wire.read_answer(answer, pending.kind))
        except StoreError as error:
            pending.future.set_exception(error)

    async def close(self) -> None:
        """Drop the connection; commands still waiting raise StoreBusy."""
        if self._keeper is not None:
            self._keeper.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._keeper
            self._keeper = None
        if self._link is not None:
            self._link.close()
            await self._link.lost.wait()
            self._link = None
        for pending in self._pending.values():
            if not pending.future.done():
                pending.future.set_exception(StoreBusy("the store is closing"))


class LocalCommitter:
    """The committer inside this process: one thread applies, commands that wait share a transaction.

    Read through its ``index`` and ``volatile``, since LMDB opens an environment once a process; ``close`` closes them.
    ``committer`` is what applies; ``recency`` (opened here when not given) stays open when it was.
    """

    def __init__(self, root: Path, options: StoreOptions | None = None, *, recency: Recency | None = None) -> None:
        """Raises FormatError, StoreUnavailable."""
        self.committer = Committer(root, options or StoreOptions(), recency=recency)
        self.index = self.committer.index
        self.volatile = self.committer.volatile
        self._waiting: list[tuple[Command, asyncio.Future[Any]]] = []
        self._thread = ThreadPoolExecutor(1, "committer")
        self._draining: asyncio.Task[None] | None = None

    @overload
    async def submit(self, command: LeaseIds | Requeue | Purge | SetDigest | MarkProbed | MarkProven) -> int: ...
    @overload
    async def submit(
        self, command: DropUpload | SwapForm | OpenSegment | SealSegment | DropSegment | SetMeta | PutRows
    ) -> bool: ...
    @overload
    async def submit(self, command: Reserve) -> Reserved: ...
    @overload
    async def submit(self, command: Commit) -> Committed: ...
    @overload
    async def submit(self, command: Delete | Quarantine) -> list[Removed]: ...
    async def submit(self, command: Command) -> Any:
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._waiting.append((command, future))
        if self._draining is None or self._draining.done():
            self._draining = asyncio.create_task(self._drain())
        return await future

    async def _drain(self) -> None:
        loop = asyncio.get_running_loop()
        while self._waiting:
            batch, self._waiting = self._waiting, []
            try:
                results = await loop.run_in_executor(
                    self._thread, self.committer.apply, [command for command, _ in batch]
                )
            except Exception as error:
                results = [error] * len(batch)
            for (_, future), result in zip(batch, results, strict=True):
                if future.done():
                    continue
                if isinstance(result, Exception):
                    future.set_exception(result)
                else:
                    future.set_result(result)

    async def close(self) -> None:
        """Finish what waits, then close the environments."""
        if self._draining is not None:
            await self._draining
        self._thread.shutdown()
        self.committer.close()
