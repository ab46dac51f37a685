"""The committer as a process behind its socket: pipelined senders, death at the worst moment, replacement, the end."""

from __future__ import annotations

import asyncio
import contextlib
import os
import select
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path

import lmdb
import pytest

from cachesrv.store import wire
from cachesrv.store.client import CommitterClient, LocalCommitter, Writer
from cachesrv.store.commands import Commit, Committed, Delete, Inline, LeaseIds, NewBlob, PutRows, Reserve, SetMeta
from cachesrv.store.committer import Committer, bind_listener, run
from cachesrv.store.errors import BlobMissing, LimitExceeded, StoreBusy
from cachesrv.store.index import Index, Volatile
from cachesrv.store.options import StoreOptions
from cachesrv.store.recency import Recency
from tests.unit.store.index_store import IMMUTABLE, MAIN, NOW, namespace

SLOTS = 1000
pytestmark = pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")


class Supervised:
    """A listening socket that stays, and committers forked from here one after the other."""

    def __init__(self, root: Path) -> None:
        self.root = root
        with Recency.open(root / "recency.map", SLOTS):
            pass
        self.listener = bind_listener(root)
        self.pid = 0

    def start(self, before: Callable[[], None] | None = None) -> None:
        """Fork a committer and wait until it takes commands. ``before`` runs in it first."""
        readable, writable = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            code = 1

            def ready() -> None:
                os.write(writable, b"!")

            try:
                os.close(readable)
                if before is not None:
                    before()
                run(self.root, self.listener, StoreOptions(), ready=ready)
                code = 0
            except BaseException:
                traceback.print_exc(file=sys.__stderr__)
            finally:
                os._exit(code)
        os.close(writable)
        assert select.select([readable], [], [], 30)[0]
        assert os.read(readable, 1) == b"!"
        os.close(readable)

    def stop(self, number: int = signal.SIGTERM) -> int:
        os.kill(self.pid, number)
        return self.wait()

    def wait(self) -> int:
        pid, self.pid = self.pid, 0
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

    def close(self) -> None:
        if self.pid:
            self.stop(signal.SIGKILL)
        self.listener.close()


@pytest.fixture
def supervised(tmp_path: Path) -> Iterator[Supervised]:
    made = Supervised(tmp_path)
    yield made
    made.close()


def save(key: str, blob: int) -> Commit:
    return Commit(MAIN, key, IMMUTABLE, NewBlob(blob, Inline(key.encode()), len(key)), "w", NOW)


async def test_committer_answers_and_readers_see_it(supervised: Supervised) -> None:
    supervised.start()
    client: CommitterClient = CommitterClient(supervised.root)
    writer: Writer = client
    first = await writer.submit(LeaseIds(400))
    done = await asyncio.gather(*(writer.submit(save(f"k{at}", first + at)) for at in range(400)))
    assert len({answer.entry_id for answer in done}) == 400
    index = Index.open(supervised.root / "index")
    volatile = Volatile.open(supervised.root / "volatile", readonly=True)
    assert index.totals().entries == 400
    entry = index.get(namespace(), "k399")
    assert entry is not None
    with pytest.raises(BlobMissing, match="gone"):
        await writer.submit(Commit(MAIN, "x", 0, 4, "w", NOW, members=[1 << 50]))
    upload = first + 1000
    assert (await writer.submit(Reserve(upload, MAIN, "new", 1, "w", NOW))).outcome == "reserved"
    assert volatile.reservation(namespace(), "new") == upload
    assert [row.key for row in await writer.submit(Delete([entry.id], NOW))] == ["k399"]
    assert index.by_id(entry.id) is None
    with pytest.raises(LimitExceeded):
        await writer.submit(PutRows({b"x": bytes(wire.FRAME_BYTES)}))
    await client.close()
    assert supervised.stop() == 0
    assert index.meta("clean") == b"1"
    index.close()
    volatile.close()


async def test_committer_killed_between_commit_and_answer(supervised: Supervised) -> None:
    """The first committer dies with the transaction on disk and the answer unsent; the sender notices nothing."""

    def die_after_commit() -> None:
        real = Committer.apply

        def apply(self: Committer, commands: list[object]) -> list[object]:
            results = real(self, commands)  # type: ignore[arg-type]
            if any(isinstance(command, Commit) for command in commands):
                os.kill(os.getpid(), signal.SIGKILL)
            return results

        Committer.apply = apply  # type: ignore[method-assign,assignment]

    supervised.start(die_after_commit)
    client = CommitterClient(supervised.root)
    upload = await client.submit(LeaseIds(1))
    await client.submit(Reserve(upload, MAIN, "k", IMMUTABLE, "w", NOW))
    commit = Commit(MAIN, "k", IMMUTABLE, NewBlob(upload, Inline(b"1"), 1), "w", NOW, upload)
    waiting = asyncio.create_task(client.submit(commit))
    assert await asyncio.to_thread(supervised.wait) == -signal.SIGKILL
    assert not waiting.done()
    # The commit stands before anybody has heard of it.
    index = Index.open(supervised.root / "index")
    entry = index.get(namespace(), "k")
    assert entry is not None
    index.close()
    supervised.start()
    assert await waiting == Committed(entry.id, True)
    assert await client.submit(commit) == Committed(entry.id, True)
    await client.close()


async def test_committer_killed_again_and_again_loses_nothing(supervised: Supervised) -> None:
    supervised.start()
    client = CommitterClient(supervised.root)
    base = await client.submit(LeaseIds(100_000))
    acknowledged: dict[str, int] = {}
    enough = asyncio.Event()
    stop = False

    async def saver(number: int) -> None:
        count = 0
        while not stop:
            key = f"{number}-{count}"
            acknowledged[key] = (await client.submit(save(key, base + number * 10_000 + count))).entry_id
            count += 1
            if len(acknowledged) % 60 == 0:
                enough.set()

    savers = [asyncio.create_task(saver(number)) for number in range(8)]
    for _ in range(8):
        enough.clear()
        await enough.wait()
        await asyncio.to_thread(supervised.stop, signal.SIGKILL)
        supervised.start()
    stop = True
    await asyncio.gather(*savers)
    index = Index.open(supervised.root / "index")
    for key, entry_id in acknowledged.items():
        entry = index.get(namespace(), key)
        assert entry is not None
        assert entry.id == entry_id
    assert index.totals().entries == len(acknowledged)
    index.close()
    await client.close()


async def test_committer_that_does_not_answer_is_busy(supervised: Supervised) -> None:
    supervised.start()
    client = CommitterClient(supervised.root, timeout=0.3)
    first = await client.submit(LeaseIds(1))
    os.kill(supervised.pid, signal.SIGSTOP)
    with pytest.raises(StoreBusy):
        await client.submit(LeaseIds(1))
    os.kill(supervised.pid, signal.SIGCONT)
    patient = CommitterClient(supervised.root)
    assert await patient.submit(LeaseIds(1)) > first
    assert await client.submit(LeaseIds(1)) > first
    await patient.close()
    await client.close()


async def test_committer_not_there_yet(supervised: Supervised) -> None:
    """Commands queue at the socket of a committer that is still to come; where nobody listens they are busy."""
    client = CommitterClient(supervised.root)
    waiting = asyncio.create_task(client.submit(SetMeta({"a": b"1"})))
    await asyncio.sleep(0)
    supervised.start()
    assert await waiting
    await client.close()
    nobody = CommitterClient(supervised.root / "nowhere", timeout=0.1)
    with pytest.raises(StoreBusy):
        await nobody.submit(LeaseIds(1))
    await nobody.close()


async def test_committer_closing_client_tells_who_waits(supervised: Supervised) -> None:
    client = CommitterClient(supervised.root)
    waiting = asyncio.create_task(client.submit(LeaseIds(1)))
    await asyncio.sleep(0)
    await client.close()
    with pytest.raises(StoreBusy):
        await waiting


async def test_committer_drops_who_speaks_nonsense(supervised: Supervised) -> None:
    supervised.start()
    client = CommitterClient(supervised.root)
    await client.submit(LeaseIds(1))
    for nonsense in (b"\xff" * 64, b"\0\0\0\3abc", wire.encode_request(1, LeaseIds(1))[:-1] + b"\xc1"):
        with contextlib.closing(wire.connect(supervised.root)) as peer:
            peer.setblocking(True)
            peer.settimeout(10)
            peer.sendall(nonsense)
            assert peer.recv(1) == b""
    # Half a frame, then gone: nobody else is disturbed.
    with contextlib.closing(wire.connect(supervised.root)) as peer:
        peer.send(wire.encode_request(1, LeaseIds(1))[:7])
    assert await client.submit(LeaseIds(1))
    await client.close()
    assert supervised.stop() == 0


def test_committer_with_a_slow_reader_serves_the_others(supervised: Supervised) -> None:
    supervised.start()
    slow = wire.connect(supervised.root)
    slow.setblocking(True)
    slow.settimeout(0.2)
    frame = wire.encode_request(1, LeaseIds(1))
    sent = 0
    with contextlib.suppress(TimeoutError):
        while sent < 200_000:
            slow.sendall(frame * 100)
            sent += 100

    async def other() -> int:
        client = CommitterClient(supervised.root)
        try:
            return await client.submit(LeaseIds(1))
        finally:
            await client.close()

    assert asyncio.run(other()) > 0
    slow.close()


def test_committer_socket_in_a_deep_folder(tmp_path: Path) -> None:
    deep = tmp_path / ("d" * 100) / ("e" * 100)
    deep.mkdir(parents=True)
    with bind_listener(deep) as listener, contextlib.closing(wire.connect(deep)):
        accepted, _ = listener.accept()
        accepted.close()
    assert (deep / "run" / wire.SOCKET_NAME).stat().st_mode & 0o777 == 0o600
    # A left-over socket is replaced.
    with bind_listener(deep):
        wire.connect(deep).close()


def test_committer_ends_when_the_index_is_beyond_use(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def panic(self: Committer, commands: object) -> None:
        raise lmdb.PanicError("sick")

    with Recency.open(tmp_path / "recency.map", SLOTS):
        pass
    listener = bind_listener(tmp_path)
    ready = threading.Event()
    failure: list[BaseException] = []

    def process() -> None:
        try:
            run(tmp_path, listener, StoreOptions(), ready=ready.set)
        except lmdb.PanicError as error:
            failure.append(error)

    thread = threading.Thread(target=process)
    thread.start()
    assert ready.wait(30)
    monkeypatch.setattr(Committer, "_transact", panic)
    with contextlib.closing(wire.connect(tmp_path)) as peer:
        peer.setblocking(True)
        peer.sendall(wire.encode_request(1, LeaseIds(1)))
        assert peer.recv(1) == b""
    thread.join(30)
    assert failure
    listener.close()


async def test_committer_in_this_process(tmp_path: Path) -> None:
    with Recency.open(tmp_path / "recency.map", SLOTS) as recency:
        local = LocalCommitter(tmp_path, recency=recency)
        writer: Writer = local
        base = await writer.submit(LeaseIds(50))
        done = await asyncio.gather(*(writer.submit(save(str(at), base + at)) for at in range(50)))
        assert len({answer.entry_id for answer in done}) == 50
        with pytest.raises(BlobMissing):
            await writer.submit(Commit(MAIN, "x", 0, 1 << 40, "w", NOW))
        entry = local.index.get(namespace(), "7")
        assert entry is not None
        recency.touch(entry.slot, 5)
        entry = local.index.get(namespace(), "7")
        assert entry is not None
        assert entry.last_used_ms == 5000
        await local.close()


@pytest.mark.parametrize("sizes", [[1], [3, 5, 1000], [4096]])
def test_wire_frames_come_whole_however_they_are_cut(sizes: list[int]) -> None:
    rows = [PutRows({b"k": bytes(size)}) for size in sizes]
    data = b"".join(wire.encode_request(at, row) for at, row in enumerate(rows))
    for cut in (1, 2, 7, len(data)):
        buffer = wire.FrameBuffer()
        frames = [frame for at in range(0, len(data), cut) for frame in buffer.feed(data[at : at + cut])]
        assert [wire.decode_request(frame).command for frame in frames] == rows


def test_wire_errors_cross_by_name() -> None:
    frame = wire.encode_answer(7, BlobMissing("gone"))
    answer = wire.decode_answer(frame[4:])
    assert answer.id == 7
    with pytest.raises(BlobMissing, match="gone"):
        wire.read_answer(answer, LeaseIds)
