"""The upload log: bytes and meaning, torn tails, damage, locking, dropped uploads."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cachesrv.store.data import uploadlog
from cachesrv.store.data.io import Disk
from cachesrv.store.data.uploadlog import (
    NAMED,
    RANGE,
    WHOLE,
    Block,
    Extent,
    LogState,
    UploadLogs,
    decode_block,
    decode_chosen,
    encode_block,
    encode_chosen,
    encode_sealed,
    records,
)
from cachesrv.store.errors import LimitExceeded, StoreBusy, StoreUnavailable, UploadUnknown
from cachesrv.store.folder import DataFolder

UPLOAD = 77


def block(kind: int = NAMED, name: bytes = b"id", start: int = 0, length: int = 10) -> Block:
    return Block(kind, name, start, length, (Extent(0, 0, length),), ((length, 99),))


@pytest.fixture
def logs(tmp_path: Path) -> UploadLogs:
    folder = DataFolder(tmp_path / "data")
    folder.create_or_open()
    return UploadLogs(folder, Disk(), lock_seconds=0.05)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "data" / "f" / "4d" / "000000000000004d.log"


def test_bytes_of_the_format() -> None:
    record = encode_block(Block(NAMED, b"ab", 0, 5, (Extent(1, 2, 5),), ((5, 0x1122334455667788),)))
    assert record[:-8].hex(" ") == (
        "42 01 00 00 00 00 00 3e "
        "02 02 00 00 00 00 00 00 00 00 00 00 00 00 00 00 00 00 00 05 00 00 00 01 00 00 00 01 "
        "61 62 "
        "00 00 00 01 00 00 00 00 00 00 00 02 00 00 00 00 00 00 00 05 "
        "00 00 00 05 11 22 33 44 55 66 77 88"
    )
    assert encode_chosen(3, [7])[:-8].hex(" ") == (
        "43 01 00 00 00 00 00 14 00 00 00 00 00 00 00 03 00 00 00 01 00 00 00 00 00 00 00 07"
    )
    assert encode_sealed(9)[:-8].hex(" ") == "53 01 00 00 00 00 00 08 00 00 00 00 00 00 00 09"


names = st.binary(min_size=1, max_size=64)
blocks = st.one_of(
    st.builds(block, st.just(NAMED), names, st.just(0), st.integers(1, 1 << 30)),
    st.builds(block, st.just(WHOLE), st.just(b""), st.just(0), st.integers(1, 1 << 30)),
    st.builds(block, st.just(RANGE), st.just(b""), st.integers(0, 1 << 40), st.integers(1, 1 << 30)),
)
some_records = st.one_of(
    blocks.map(encode_block),
    st.builds(encode_chosen, st.integers(0, 1 << 60), st.lists(st.integers(0, 1 << 60), max_size=5)),
    st.integers(0, 1 << 60).map(encode_sealed),
)


@given(st.lists(some_records, min_size=1, max_size=5))
def test_a_log_cut_anywhere_is_a_prefix_of_its_records(written: list[bytes]) -> None:
    data = b"".join(written)
    ends = [sum(map(len, written[: n + 1])) for n in range(len(written))]
    for cut in range(len(data) + 1):
        found = [end for *_, end in records(data[:cut])]
        assert found == [end for end in ends if end <= cut]
        state = LogState()
        state.read(data[:cut])
        assert state.end == (found[-1] if found else 0)


@given(st.lists(some_records, min_size=1, max_size=4), st.data())
def test_a_damaged_byte_ends_the_log_before_its_record(written: list[bytes], data: st.DataObject) -> None:
    log = bytearray(b"".join(written))
    at = data.draw(st.integers(0, len(log) - 1))
    log[at] ^= data.draw(st.integers(1, 255))
    found = [end for *_, end in records(bytes(log))]
    assert all(end <= at for end in found)
    assert len(found) == sum(1 for n in range(len(written)) if sum(map(len, written[: n + 1])) <= at)


@given(st.binary(max_size=300))
def test_any_bytes_are_read_without_harm(data: bytes) -> None:
    LogState().read(data)
    for decode in (decode_block, decode_chosen):
        try:
            decode(data)
        except ValueError:
            continue


@given(blocks)
def test_blocks_come_back_as_they_were(one: Block) -> None:
    ((_, kind, body, _),) = records(encode_block(one))
    assert kind == uploadlog.BLOCK
    assert decode_block(body) == one


@pytest.mark.parametrize("pieces", [(), ((9, 1),), ((11, 1),), ((5, 1), (6, 1)), ((10, 1), (1, 1)), ((0, 1), (10, 1))])
def test_pieces_must_fill_the_extents(pieces: tuple[tuple[int, int], ...]) -> None:
    with pytest.raises(ValueError, match="piece"):
        list(Block(WHOLE, b"", 0, 10, (Extent(0, 0, 10),), pieces).placed())


def test_another_worker_sees_what_came_since(logs: UploadLogs, tmp_path: Path) -> None:
    other = UploadLogs(DataFolder(tmp_path / "data"), Disk())
    for n in range(6):
        with (logs, other)[n % 2].open(UPLOAD, create=True) as log:
            assert len(log.state.blocks) == n
            log.append(encode_block(block(name=b"%d" % n)))
    with logs.open(UPLOAD) as log:
        assert list(log.state.blocks) == [b"%d" % n for n in range(6)]
        assert log.state.staged_bytes == 60


@pytest.mark.parametrize("rest", [b"B", encode_block(block())[:-1], b"\0" * 100])
def test_the_next_writer_cuts_a_torn_record_off(logs: UploadLogs, path: Path, rest: bytes) -> None:
    with logs.open(UPLOAD, create=True) as log:
        log.append(encode_block(block(name=b"1")))
    with path.open("ab") as file:
        file.write(rest)
    with logs.open(UPLOAD) as log:
        log.append(encode_block(block(name=b"2")))
    assert path.read_bytes() == encode_block(block(name=b"1")) + encode_block(block(name=b"2"))


def test_a_damaged_record_that_is_needed(logs: UploadLogs, path: Path) -> None:
    with logs.open(UPLOAD, create=True) as log:
        at = log.append(encode_block(block()))
        data = bytearray(path.read_bytes())
        data[-1] ^= 1
        path.write_bytes(data)
        with pytest.raises(StoreUnavailable):
            log.record(at, uploadlog.BLOCK)


def test_a_stopped_worker_does_not_stop_the_others(logs: UploadLogs) -> None:
    with logs.open(UPLOAD, create=True), pytest.raises(StoreBusy):
        logs.open(UPLOAD)
    with logs.open(UPLOAD):
        pass


def test_two_threads_take_turns(logs: UploadLogs, tmp_path: Path) -> None:
    patient = UploadLogs(DataFolder(tmp_path / "data"), Disk())

    def add(start: int) -> None:
        for n in range(start, start + 50):
            with patient.open(UPLOAD, create=True) as log:
                log.append(encode_block(block(name=b"%d" % n)))

    threads = [threading.Thread(target=add, args=(start,)) for start in (0, 50, 100)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    with logs.open(UPLOAD) as log:
        assert len(log.state.blocks) == 150


def test_a_log_that_is_gone(logs: UploadLogs, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UploadUnknown):
        logs.open(UPLOAD)
    with logs.open(UPLOAD, create=True) as log:
        log.append(encode_block(block()))
    path.unlink()
    with logs.open(UPLOAD, create=True) as log:  # another file: nothing of the old one counts
        assert log.state.blocks == {}

    take_lock = UploadLogs._take_lock

    def unlinked_meanwhile(self: UploadLogs, fd: int) -> None:
        path.unlink()
        take_lock(self, fd)

    monkeypatch.setattr(UploadLogs, "_take_lock", unlinked_meanwhile)
    with pytest.raises(UploadUnknown):
        logs.open(UPLOAD)


def test_a_log_has_a_bound(logs: UploadLogs, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(uploadlog, "LOG_BYTES", 200)
    with logs.open(UPLOAD, create=True) as log:
        record = encode_block(block())
        for _ in range(200 // len(record)):
            log.append(record)
        with pytest.raises(LimitExceeded):
            log.append(record)
        assert os.fstat(log.fd).st_size <= 200
