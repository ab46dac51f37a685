"""Rows that rot, folders of another format, and a disk or an index that is full: said, never guessed, and got over."""

from __future__ import annotations

import errno
import itertools
import struct
from collections.abc import Iterator
from pathlib import Path

import lmdb
import pytest

from cachesrv.store import apply as apply_module
from cachesrv.store import committer as committer_module
from cachesrv.store.api import EntryFilter
from cachesrv.store.commands import (
    Command,
    Commit,
    Committed,
    Delete,
    Inline,
    LeaseIds,
    NewBlob,
    Purge,
    PutRows,
    Reserve,
)
from cachesrv.store.constants import FORMAT_VERSION, KiB, MiB
from cachesrv.store.errors import (
    FormatError,
    IndexFull,
    StoreError,
    StoreFull,
    StoreReadOnly,
    StoreUnavailable,
)
from cachesrv.store.index import Index, RowDamaged, Volatile
from cachesrv.store.index.batch import Batch
from cachesrv.store.index.codec import seal
from cachesrv.store.index.environment import Environment
from tests.unit.store.index_store import IMMUTABLE, MAIN, NOW, IndexStore, namespace

U64 = struct.Struct(">Q")


@pytest.fixture
def store(tmp_path: Path) -> Iterator[IndexStore]:
    made = IndexStore(tmp_path)
    yield made
    made.close()


def rot(store: IndexStore, table: str, key: bytes) -> None:
    """Flip a bit in the middle of a row."""
    environment = store.index.environment
    with environment.env.begin(write=True) as txn:
        value = bytearray(txn.get(key, db=environment.tables[table]))
        value[len(value) // 2] ^= 4
        txn.put(key, bytes(value), db=environment.tables[table])


# -- damage ------------------------------------------------------------------------------------------------------------


def test_index_a_damaged_row_is_missing_and_reported(store: IndexStore) -> None:
    told: list[RowDamaged] = []
    store.index.on_damage = told.append
    entry, other = store.save("k"), store.save("kk")
    rot(store, "rec", U64.pack(entry.id))
    assert store.index.get(namespace(), "k") is None
    assert store.index.by_id(entry.id) is None
    assert [error.table for error in told] == ["rec", "rec"]
    assert store.index.newest(namespace(), "k") == other
    assert list(store.index.entries(EntryFilter(), limit=9).entries) == [other]
    rot(store, "blob", U64.pack(other.blob))
    assert store.index.blob(other.blob) is None
    assert [row.id for row in store.index.blobs_after(0, 9)] == [entry.blob]


def test_index_a_damaged_entry_can_be_removed(store: IndexStore) -> None:
    """Else it would stand at the head of the eviction order for ever."""
    kept = store.save("a")
    for table in ("rec", "entry", "blob"):
        entry = store.save("b", now_ms=NOW + 1)
        key = {
            "rec": U64.pack(entry.id),
            "entry": struct.pack(">I", 1) + b"b",
            "blob": U64.pack(entry.blob),
        }[table]
        rot(store, table, key)
        (removed,) = store(Delete([entry.id], NOW))
        assert (removed.entry_id, removed.key, removed.tenant) == (entry.id, "b", "octo/hello")
        (tenant,) = store.index.tenants()
        assert [row.entry_id for row in store.index.lru_head(tenant.number, 1, 9)] == [kept.id]
        assert store.index.newest(namespace(), "") == kept
        assert store.index.totals().entries == tenant.entries == 1
        assert store.index.refs_of(entry.blob) == []


def test_index_a_command_that_meets_damage_spoils_no_other(store: IndexStore) -> None:
    entry = store.save("k", flags=0)
    rot(store, "rec", U64.pack(entry.id))
    blob = store.ids(2)
    results = store.committer.apply(
        [
            Commit(MAIN, "before", 0, NewBlob(blob, Inline(b"1"), 1), "w", NOW),
            Commit(MAIN, "k", 0, NewBlob(store.ids(), Inline(b"2"), 1), "w", NOW),
            Commit(MAIN, "after", 0, NewBlob(blob + 1, Inline(b"3"), 1), "w", NOW),
        ]
    )
    assert [type(result) for result in results] == [Committed, RowDamaged, Committed]
    assert store.index.get(namespace(), "before") is not None
    assert store.index.get(namespace(), "after") is not None


# -- format ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("readonly", [True, False])
def test_index_of_a_newer_format_is_refused(tmp_path: Path, readonly: bool) -> None:
    environment = Environment.open(tmp_path, readonly=False)
    with environment.env.begin(write=True) as txn:
        txn.put(b"format", seal(struct.pack(">H", FORMAT_VERSION + 1)), db=environment.tables["core"])
    environment.close()
    with pytest.raises(FormatError, match=f"format {FORMAT_VERSION + 1}"):
        Index.open(tmp_path, readonly=readonly)


@pytest.mark.parametrize("readonly", [True, False])
def test_index_of_somebody_else_is_refused(tmp_path: Path, readonly: bool) -> None:
    with lmdb.open(str(tmp_path / "a"), max_dbs=2) as env:
        env.open_db(b"theirs")
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "data.mdb").write_bytes(b"no LMDB at all" * 1000)
    for name in ("a", "b"):
        with pytest.raises(FormatError):
            Index.open(tmp_path / name, readonly=readonly)


def test_index_that_was_not_made_yet_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(StoreUnavailable):
        Index.open(tmp_path / "index", readonly=True)


# -- the volatile part -------------------------------------------------------------------------------------------------


def test_index_uploads_of_another_boot_are_forgotten(tmp_path: Path) -> None:
    store = IndexStore(tmp_path)
    entry, upload = store.save("kept"), store.reserve("k")
    store = store.reopen()
    assert store.volatile.upload(upload) is not None
    store.close()
    (tmp_path / "volatile" / "boot-id").write_bytes(b"another")
    store = IndexStore(tmp_path)
    assert store.volatile.uploads() == []
    assert store.index.get(namespace(), "kept") == entry
    store.close()


def test_index_unreadable_uploads_are_thrown_away(tmp_path: Path) -> None:
    store = IndexStore(tmp_path)
    store.reserve("k")
    store.close()
    (tmp_path / "volatile" / "data.mdb").write_bytes(b"torn" * 5000)
    store = IndexStore(tmp_path)
    assert store.volatile.uploads() == []
    store.reserve("k")
    store.close()


# -- full --------------------------------------------------------------------------------------------------------------


def fill(store: IndexStore) -> tuple[list[int], StoreError]:
    """Save until it is refused; what was saved, and why no more."""
    entries: list[int] = []
    for number in itertools.count():
        try:
            entries.append(store.save(f"{number:04d}" + "x" * 400, 1000, form=Inline(bytes(1000))).id)
        except StoreError as error:
            return entries, error
    raise AssertionError


@pytest.mark.parametrize("how", ["map", "limit"])
def test_index_full_refuses_saves_and_takes_deletes(tmp_path: Path, how: str) -> None:
    if how == "map":
        store = IndexStore(tmp_path, map_bytes=2 * MiB, ballast_bytes=256 * KiB)
    else:
        store = IndexStore(tmp_path, index_limit=1 * MiB)
    entries, error = fill(store)
    assert isinstance(error, IndexFull)
    assert len(entries) > 100
    with pytest.raises(IndexFull):
        store(Reserve(store.ids(), MAIN, "another", IMMUTABLE, "w", NOW))
    # What stands is still answered, and everything can be removed.
    assert store(Reserve(store.ids(), MAIN, "0000" + "x" * 400, IMMUTABLE, "w", NOW)).outcome == "committed"
    for start in range(0, len(entries), 200):
        store(Delete(entries[start : start + 200], NOW))
    assert store.index.totals().entries == 0
    assert store.index.get(namespace(), "0000" + "x" * 400) is None
    store.close()


def test_index_full_recovers(tmp_path: Path) -> None:
    store = IndexStore(tmp_path, index_limit=1 * MiB)
    entries, _ = fill(store)
    store(Delete(entries[:200], NOW))
    graves = store.due()
    while graves:
        store(Purge(graves))
        graves = store.due()
    again, error = fill(store)
    assert len(again) > 50
    assert isinstance(error, IndexFull)
    store.close()


def test_index_keeps_its_ballast(tmp_path: Path) -> None:
    store = IndexStore(tmp_path, ballast_bytes=1 * MiB)
    for start in range(0, 600, 200):
        for number in range(start, start + 200):
            store.save(f"{number}", 1000, form=Inline(bytes(1000)))
        _, free = store.committer._ballast.pages()
        assert free >= 1 * MiB - 256 * KiB
    store.close()


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        (errno.ENOSPC, StoreFull),
        (errno.EROFS, StoreReadOnly),
        (errno.EIO, StoreReadOnly),
        (errno.EINVAL, StoreUnavailable),
    ],
)
def test_index_a_commit_that_fails_is_said_and_got_over(
    store: IndexStore, monkeypatch: pytest.MonkeyPatch, code: int, kind: type[StoreError]
) -> None:
    entry = store.save("k")
    before = store.index.totals()

    def fail(self: Batch) -> None:
        raise OSError(code, "the disk says no")

    blob = store.ids()
    save = Commit(MAIN, "new", 0, NewBlob(blob, Inline(b"1"), 1), "w", NOW)
    with monkeypatch.context() as patch:
        patch.setattr(Batch, "flush", fail)
        results = store.committer.apply([save, LeaseIds(1)])
        assert [type(result) for result in results] == [kind, kind]
    assert store.index.get(namespace(), "new") is None
    assert store.index.totals() == before
    assert store(save).created
    assert store.index.by_id(entry.id) == entry


def test_index_only_the_guilty_command_fails(store: IndexStore, monkeypatch: pytest.MonkeyPatch) -> None:
    real = apply_module.apply

    def apply(batch: Batch, command: Command) -> object:
        if isinstance(command, PutRows) and b"guilty" in command.rows:
            batch.put("side", b"half", b"done")
            raise RuntimeError("nobody foresaw this")
        return real(batch, command)

    monkeypatch.setattr(committer_module, "apply", apply)
    results = store.committer.apply([PutRows({b"a": b"1"}), PutRows({b"guilty": b"1"}), PutRows({b"b": b"1"})])
    assert results[0] is results[2] is True
    assert isinstance(results[1], StoreUnavailable)
    assert store.index.side_range(b"", b"") == [(b"a", b"1"), (b"b", b"1")]


def test_index_readers_see_a_replaced_volatile(tmp_path: Path) -> None:
    """A reader of another process; here it opens a copy, since LMDB opens a folder once a process."""
    volatile = Volatile.open(tmp_path / "volatile", readonly=True)
    assert volatile.uploads() == []
    assert volatile.reservation(namespace(), "k") is None
    (tmp_path / "made").mkdir()
    store = IndexStore(tmp_path / "made")
    upload = store.reserve("k")
    store.close()
    (tmp_path / "made" / "volatile").rename(tmp_path / "volatile")
    assert volatile.reservation(namespace(), "k") == upload
    volatile.close()
