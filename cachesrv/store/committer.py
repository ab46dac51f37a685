"""The committer: the one writer of the index. ``Committer`` applies commands, ``run`` is the process around it.

A batch of commands shares one synced transaction of the index, then one of the volatile environment; the senders hear
of it after both. A command that is refused, or fails in a way nobody foresaw, does not touch the others. A full or
read-only disk is an answer, not an end: the next batch is tried afresh. Only a sick LMDB (MDB_PANIC) ends the process.
"""

from __future__ import annotations

import logging
import selectors
import signal
import socket
import threading
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

import lmdb
import msgspec

from cachesrv.store import epochs, wire
from cachesrv.store.apply import apply, grows
from cachesrv.store.commands import Command, Delete, Removed, SetMeta
from cachesrv.store.constants import BALLAST_BYTES, COMMIT_BATCH, MAP_BYTES
from cachesrv.store.data.io import sync_file_system
from cachesrv.store.errors import IndexFull, StoreError, StoreFull, StoreUnavailable
from cachesrv.store.index import Index, RowDamaged, Volatile
from cachesrv.store.index.ballast import Ballast
from cachesrv.store.index.batch import Batch
from cachesrv.store.index.environment import Environment, Rows, refusal
from cachesrv.store.index.volatile import drop_upload, put_finished
from cachesrv.store.options import StoreOptions
from cachesrv.store.recency import Recency
from cachesrv.store.wire import bind_listener

__all__ = ["Committer", "bind_listener", "run"]

_log = logging.getLogger(__name__)
READ_BYTES: Final = 256 * 1024
"""Bytes read from a connection in one go."""


class Committer:
    """Opens the environments of a data folder for writing and applies commands. A folder has one at a time."""

    def __init__(
        self,
        root: Path,
        options: StoreOptions,
        *,
        recency: Recency | None = None,
        map_bytes: int = MAP_BYTES,
        ballast_bytes: int = BALLAST_BYTES,
    ) -> None:
        """Opens what is there or makes it, and records the start (``cachesrv.store.epochs``). A ``recency`` that is
        given stays the caller's. Raises FormatError, StoreUnavailable."""
        self._root = root
        self._own_recency = recency is None
        self.recency = recency if recency is not None else Recency.open(root / "recency.map")
        self._environment = Environment.open(root / "index", readonly=False, map_bytes=map_bytes)
        self.index = Index(self._environment, self.recency)
        self.volatile = Volatile.open(root / "volatile", readonly=False)
        self._ballast = Ballast(self._environment, size=ballast_bytes, limit=options.index_limit)
        self._sync_at_stop = not options.durable
        self._environment.env.reader_check()
        self._ballast.refusal()
        self._drop_committed_uploads()
        self.apply([SetMeta(epochs.at_start(self.index, epochs.boot_id()))])

    def apply(self, commands: Sequence[Command]) -> list[Any]:
        """The answers, in order: a result, or the StoreError the command was refused with. Durable when it returns.

        Raises lmdb.PanicError when the environment is beyond use."""
        results: list[Any] = []
        for start in range(0, len(commands), COMMIT_BATCH):
            results += self._apply(commands[start : start + COMMIT_BATCH])
        return results

    def _apply(self, commands: Sequence[Command]) -> list[Any]:
        try:
            return self._transact(commands)
        except lmdb.PanicError:
            raise
        except Exception as error:
            if len(commands) > 1:
                return [result for command in commands for result in self._apply([command])]
            command, failure = commands[0], _failure(error, commands[0])
            if isinstance(command, Delete) and isinstance(failure, StoreFull | IndexFull):
                return [self._delete_in_halves(command, failure)]
            return [failure]

    def _delete_in_halves(self, command: Delete, failure: StoreError) -> list[Removed] | StoreError:
        """The pages that are left were too few for all of it at once; each half needs half, and frees some."""
        ids = command.entry_ids
        if len(ids) == 1:
            return failure
        removed: list[Removed] = []
        for half in (ids[: len(ids) // 2], ids[len(ids) // 2 :]):
            (result,) = self._apply([msgspec.structs.replace(command, entry_ids=half)])
            if isinstance(result, StoreError):
                return removed or result
            removed += result
        return removed

    def _transact(self, commands: Sequence[Command]) -> list[Any]:
        why_not = self._ballast.refusal() if any(map(grows, commands)) else None
        volatile: list[Rows] = []

        def open_volatile() -> Rows:
            if not volatile:
                environment = self.volatile.environment
                volatile.append(Rows(environment.env.begin(write=True), environment.tables))
            return volatile[0]

        txn = self._environment.env.begin(write=True)
        try:
            batch = Batch(txn, self._environment.tables, self.recency, open_volatile, why_not)
            results = [_answer(batch, command) for command in commands]
            batch.flush()
            txn.commit()
            for rows in volatile:
                rows.txn.commit()
        except BaseException:
            txn.abort()
            for rows in volatile:
                rows.txn.abort()
            raise
        return results

    def _drop_committed_uploads(self) -> None:
        """A stop between the two transactions leaves the upload row of what is a blob already: its files are not an
        upload's any more."""
        done = [blob for row in self.volatile.uploads() if (blob := self.index.blob(row.id)) is not None]
        environment = self.volatile.environment
        if done:
            with environment.env.begin(write=True) as txn:
                rows = Rows(txn, environment.tables)
                for blob in done:
                    drop_upload(rows, blob.id)
                    for clock in self.index.refs_of(blob.successor or blob.id)[:1]:
                        put_finished(rows, blob.id, clock)
            _log.info("uploads that were committed already: %d", len(done))

    def check_readers(self) -> None:
        """Free the reader slots of processes that died, whose snapshots would keep pages from being used again."""
        self._environment.env.reader_check()

    def stop_cleanly(self) -> None:
        """Record that nothing unsynced is left behind."""
        if self._sync_at_stop:
            sync_file_system(self._root)
        self.apply([SetMeta({"clean": b"1"})])

    def close(self) -> None:
        self.index.close()
        self.volatile.close()
        if self._own_recency:
            self.recency.close()


def _answer(batch: Batch, command: Command) -> Any:
    try:
        return apply(batch, command)
    except RowDamaged:
        raise
    except StoreError as error:
        return error


def _failure(error: Exception, command: Command) -> StoreError:
    name = type(command).__name__
    if isinstance(error, StoreError):
        _log.error("%s: %s", name, error)
        return error
    if isinstance(error, lmdb.Error | OSError):
        refused = refusal(error)
        _log.warning("%s: %s (%s)", name, refused, error)
        return refused
    _log.error("%s failed", name, exc_info=error)
    return StoreUnavailable("the store failed at this command")


# -- the process -------------------------------------------------------------------------------------------------------


class _Connection:
    """One sender: bytes in, answers out."""

    def __init__(self, peer: socket.socket) -> None:
        self.peer = peer
        self.frames = wire.FrameBuffer()
        self.out = bytearray()


class _Loop:
    """Reads what all connections sent, commits it, answers, and again: batches form while a commit syncs."""

    def __init__(self, committer: Committer, listener: socket.socket) -> None:
        self._committer = committer
        self._listener = listener
        self._selector = selectors.DefaultSelector()
        self._waiting: deque[tuple[_Connection, wire.Request]] = deque()
        self._stopping = False
        self._waker, self._wake = socket.socketpair()
        self._waker.setblocking(False)
        self._wake.setblocking(False)

    def stop(self, *_: object) -> None:
        self._stopping = True

    def serve(self) -> None:
        self._listener.setblocking(False)
        self._selector.register(self._listener, selectors.EVENT_READ)
        self._selector.register(self._waker, selectors.EVENT_READ)
        while not self._stopping:
            for key, events in self._selector.select(0 if self._waiting else None):
                if key.fileobj is self._listener:
                    self._accept()
                elif key.fileobj is self._waker:
                    self._waker.recv(READ_BYTES)
                else:
                    if events & selectors.EVENT_READ:
                        self._read(key.data)
                    if events & selectors.EVENT_WRITE:
                        self._write(key.data)
            self._commit()

    def _accept(self) -> None:
        try:
            peer, _ = self._listener.accept()
        except (BlockingIOError, ConnectionAbortedError):
            return
        peer.setblocking(False)
        self._selector.register(peer, selectors.EVENT_READ, _Connection(peer))

    def _read(self, connection: _Connection) -> None:
        try:
            data = connection.peer.recv(READ_BYTES)
            if not data:
                self._drop(connection)
                return
            for frame in connection.frames.feed(data):
                self._waiting.append((connection, wire.decode_request(frame)))
        except BlockingIOError:
            return
        except (OSError, StoreError, msgspec.MsgspecError) as error:
            if not isinstance(error, OSError):
                _log.error("a sender does not speak our language: %s", error)
            self._drop(connection)

    def _commit(self) -> None:
        batch = [self._waiting.popleft() for _ in range(min(len(self._waiting), COMMIT_BATCH))]
        if not batch:
            return
        results = self._committer.apply([request.command for _, request in batch])
        touched = {}
        for (connection, request), result in zip(batch, results, strict=True):
            connection.out += wire.encode_answer(request.id, result)
            touched[id(connection)] = connection
        for connection in touched.values():
            self._write(connection)

    def _write(self, connection: _Connection) -> None:
        if connection.peer.fileno() < 0:
            return
        try:
            sent = connection.peer.send(connection.out) if connection.out else 0
        except BlockingIOError:
            sent = 0
        except OSError:
            self._drop(connection)
            return
        del connection.out[:sent]
        events = selectors.EVENT_READ | (selectors.EVENT_WRITE if connection.out else 0)
        self._selector.modify(connection.peer, events, connection)

    def _drop(self, connection: _Connection) -> None:
        if connection.peer.fileno() >= 0:
            self._selector.unregister(connection.peer)
            connection.peer.close()
            # A sender that went away may have died while it read.
            self._committer.check_readers()

    def wake_descriptor(self) -> int:
        return self._wake.fileno()

    def close(self) -> None:
        for key in list(self._selector.get_map().values()):
            if isinstance(key.data, _Connection):
                key.data.peer.close()
        self._selector.close()
        self._waker.close()
        self._wake.close()


def run(root: Path, listener: socket.socket, options: StoreOptions, *, ready: Callable[[], None] | None = None) -> None:
    """Be the committer of a data folder until SIGTERM, then finish the batch and return. Blocks; needs a process that
    was just forked (main thread, no LMDB open).

    ``listener`` comes from :func:`bind_listener` and stays open. ``ready`` is called when commands are taken. Raises
    FormatError, StoreUnavailable at the start, lmdb.PanicError when the index is beyond use: start another process.
    """
    committer = Committer(root, options)
    loop = _Loop(committer, listener)
    in_main = threading.current_thread() is threading.main_thread()
    try:
        if in_main:
            signal.set_wakeup_fd(loop.wake_descriptor(), warn_on_full_buffer=False)
            signal.signal(signal.SIGTERM, loop.stop)
        if ready is not None:
            ready()
        loop.serve()
        committer.stop_cleanly()
    finally:
        if in_main:
            signal.set_wakeup_fd(-1)
        loop.close()
        committer.close()
