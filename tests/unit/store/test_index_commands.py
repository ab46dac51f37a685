"""What every command promises, a repeat included: the answers, what readers then see, and the sums."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from cachesrv.store.api import Usage
from cachesrv.store.commands import (
    Commit,
    Committed,
    Delete,
    DropSegment,
    DropUpload,
    Filed,
    Inline,
    LeaseIds,
    MarkProbed,
    MarkProven,
    NewBlob,
    OpenSegment,
    Packed,
    Purge,
    PutRows,
    Quarantine,
    Requeue,
    Reserve,
    SealSegment,
    SetDigest,
    SetMeta,
    Space,
    SwapForm,
)
from cachesrv.store.constants import COMMIT_BATCH, GRAVE_SECONDS
from cachesrv.store.errors import BlobMissing, DigestMismatch, EntryExists, LimitExceeded, UploadUnknown
from cachesrv.store.index import GraveKind, Totals
from cachesrv.store.model import Digest, EntryFlag
from tests.unit.store.index_store import IMMUTABLE, MAIN, NOW, IndexStore, filed, namespace

OTHER = Space("actions", "octo/other", "refs/heads/main", "v1")


def sha(data: bytes) -> bytes:
    return hashlib.sha256(data).digest()


@pytest.fixture
def store(tmp_path: Path) -> Iterator[IndexStore]:
    made = IndexStore(tmp_path)
    yield made
    made.close()


def test_index_leases_never_overlap(store: IndexStore) -> None:
    first, second = store(LeaseIds(5)), store(LeaseIds(5))
    assert second >= first + 5
    store = store.reopen()
    assert store(LeaseIds(1)) >= second + 5
    with pytest.raises(LimitExceeded):
        store(LeaseIds(0))
    store.close()


# -- reserve, drop, commit ---------------------------------------------------------------------------------------------


def test_index_reserve_commit_and_repeats(store: IndexStore) -> None:
    upload = store.reserve("k")
    assert store(Reserve(upload, MAIN, "k", IMMUTABLE, "w", NOW)).outcome == "reserved"
    info = store.volatile.upload(upload)
    assert info is not None
    assert (info.info.key, info.info.namespace, info.info.reserved_ms) == ("k", namespace(), NOW)
    assert store.volatile.reservation(namespace(), "k") == upload

    other = store.ids()
    busy = store(Reserve(other, MAIN, "k", IMMUTABLE, "w", NOW))
    assert (busy.outcome, busy.holder) == ("in-flight", upload)

    commit = Commit(MAIN, "k", IMMUTABLE, NewBlob(upload, filed(upload), 1000), "w", NOW + 5, upload)
    done = store(commit)
    assert done == Committed(done.entry_id, True)
    assert store(commit) == done
    assert store.volatile.uploads() == []
    assert store.volatile.reservation(namespace(), "k") is None
    assert store.volatile.finished(upload) == done.entry_id

    entry = store.index.get(namespace(), "k")
    assert entry is not None
    assert (entry.id, entry.blob, entry.size, entry.created_ms, entry.last_used_ms, entry.writer) == (
        done.entry_id,
        upload,
        1000,
        NOW + 5,
        None,
        "w",
    )
    assert store.index.by_id(entry.id) == entry
    taken = store(Reserve(other, MAIN, "k", IMMUTABLE, "w", NOW))
    assert (taken.outcome, taken.holder) == ("committed", done.entry_id)


def test_index_stale_reservation_is_taken_over(store: IndexStore) -> None:
    stale, fresh = store.reserve("k"), store.ids()
    assert store(Reserve(fresh, MAIN, "k", IMMUTABLE, "w", NOW, replacing=stale)).outcome == "reserved"
    assert store.volatile.upload(stale) is None
    with pytest.raises(UploadUnknown):
        store(Commit(MAIN, "k", IMMUTABLE, NewBlob(stale, filed(stale), 1), "w", NOW, stale))
    assert store.index.get(namespace(), "k") is None
    # Taking over one that no longer holds the key does nothing to who does.
    third = store.ids()
    assert store(Reserve(third, MAIN, "k", IMMUTABLE, "w", NOW, replacing=stale)).holder == fresh


def test_index_drop_upload(store: IndexStore) -> None:
    upload = store.reserve("k")
    assert store(DropUpload(upload)) is True
    assert store(DropUpload(upload)) is False
    assert store.volatile.reservation(namespace(), "k") is None


def test_index_upload_of_a_committed_blob_is_not_the_senders_to_remove(store: IndexStore) -> None:
    # A stop between the two environments leaves the upload row of a committed blob.
    upload = store.reserve("k")
    store(Commit(MAIN, "k", IMMUTABLE, NewBlob(upload, filed(upload), 1), "w", NOW))
    assert store.volatile.upload(upload) is not None
    assert store(DropUpload(upload)) is False
    assert store.volatile.upload(upload) is None


def test_index_start_forgets_uploads_that_were_committed(store: IndexStore) -> None:
    upload, waiting = store.reserve("k"), store.reserve("other")
    done = store(Commit(MAIN, "k", IMMUTABLE, NewBlob(upload, filed(upload), 1), "w", NOW))
    store = store.reopen()
    assert [row.id for row in store.volatile.uploads()] == [waiting]
    assert store.volatile.finished(upload) == done.entry_id
    store.close()


def test_index_immutable_entries_are_not_replaced(store: IndexStore) -> None:
    entry = store.save("k")
    blob = store.ids()
    with pytest.raises(EntryExists):
        store(Commit(MAIN, "k", IMMUTABLE, NewBlob(blob, filed(blob), 5), "w", NOW))
    assert store.index.blob(blob) is None
    assert store.index.get(namespace(), "k") == entry
    assert store(Commit(MAIN, "k", IMMUTABLE, entry.blob, "w", NOW + 9)) == Committed(entry.id, False)


def test_index_mutable_entries_are_replaced(store: IndexStore) -> None:
    old = store.save("tag", flags=0)
    new = store.save("tag", 50, flags=0, now_ms=NOW + 1)
    assert new.id > old.id
    assert store.index.by_id(old.id) is None
    assert store.index.newest(namespace(), "t") == new
    row = store.index.blob(old.blob)
    assert row is not None
    assert row.dead
    assert store.index.totals().entries == 1
    assert store.index.totals().logical_bytes == 50


def test_index_commit_of_unknown_or_dead_blobs(store: IndexStore) -> None:
    with pytest.raises(BlobMissing):
        store(Commit(MAIN, "k", 0, 4711, "w", NOW))
    with pytest.raises(BlobMissing):
        store(Commit(MAIN, "k", 0, NewBlob(store.ids(), Inline(b"x"), 1), "w", NOW, members=[4711]))
    gone = store.save("old")
    store(Delete([gone.id], NOW))
    with pytest.raises(BlobMissing):
        store(Commit(MAIN, "k", 0, gone.blob, "w", NOW))
    with pytest.raises(BlobMissing):
        store(Commit(MAIN, "k", 0, NewBlob(store.ids(), Packed(99, 0, 100), 36), "w", NOW))
    assert store.index.usage() == []


def test_index_equal_content_is_stored_once(store: IndexStore) -> None:
    first = store.save("a", sha256=sha(b"same"))
    upload = store.reserve("b")
    commit = Commit(MAIN, "b", IMMUTABLE, NewBlob(upload, filed(upload, 1100), 1000, sha(b"same")), "w", NOW, upload)
    done = store(commit)
    assert done.created
    second = store.index.get(namespace(), "b")
    assert second is not None
    assert second.blob == first.blob
    assert store.index.by_digest(Digest("sha256", sha(b"same"))) == first.blob
    assert store.index.refs_of(first.blob) == [first.id, second.id]
    totals = store.index.totals()
    assert (totals.entries, totals.blobs, totals.logical_bytes, totals.raw_bytes) == (2, 1, 2000, 1000)
    assert (totals.dedup_bytes, totals.file_bytes, totals.grave_bytes) == (1000, 1100, 1100)
    assert store(commit) == done
    assert store.index.totals() == totals
    (grave,) = store.index.graves()
    assert (grave.file_id, grave.kind, grave.parts) == (upload, GraveKind.FILES, 1)
    assert store(DropUpload(upload)) is False

    # The same key and content by somebody else: told that it stands, and the files go.
    again = store.ids()
    late = Commit(MAIN, "b", IMMUTABLE, NewBlob(again, filed(again), 1000, sha(b"same")), "w", NOW + 77)
    assert store(late) == Committed(second.id, False)
    assert store(late) == Committed(second.id, False)
    assert len(store.index.graves()) == 2
    # A digest of another length is another content.
    third = store.save("c", 999, sha256=sha(b"same"))
    assert third.blob != first.blob


# -- delete, graves ----------------------------------------------------------------------------------------------------


def test_index_delete_and_purge(store: IndexStore) -> None:
    entry, kept = store.save("k", 1000), store.save("stays", 10)
    before = store.index.totals()
    (removed,) = store(Delete([entry.id, 12345], NOW))
    assert (removed.entry_id, removed.tenant, removed.key, removed.size) == (entry.id, "octo/hello", "k", 1000)
    assert (removed.disk_bytes, removed.never_read) == (1100, True)
    assert store(Delete([entry.id], NOW)) == []
    assert store.index.get(namespace(), "k") is None
    assert store.index.newest(namespace(), "k") is None
    row = store.index.blob(entry.blob)
    assert row is not None
    assert row.dead
    assert row.due_s == NOW // 1000 + GRAVE_SECONDS
    assert store.due(GRAVE_SECONDS - 1) == []
    graves = store.due()
    assert store.index.totals().grave_bytes == 1100
    assert store(Purge(graves)) == 1
    assert store(Purge(graves)) == 0
    assert store.index.blob(entry.blob) is None
    after = store.index.totals()
    assert (after.grave_bytes, after.file_bytes, after.blobs) == (0, before.file_bytes - 1100, 1)
    assert store.index.get(namespace(), "stays") == kept
    with pytest.raises(LimitExceeded):
        store(Delete(list(range(COMMIT_BATCH + 1)), NOW))


def test_index_delete_spares_what_was_used(store: IndexStore) -> None:
    entry = store.save("k")
    store.recency.touch(entry.slot, 5000)
    assert store(Delete([entry.id], NOW, unless_used_since_s=5000)) == []
    assert store.index.by_id(entry.id) is not None
    (removed,) = store(Delete([entry.id], NOW, unless_used_since_s=5001))
    assert not removed.never_read


def test_index_shared_blob_dies_with_its_last_reference(store: IndexStore) -> None:
    layer = store.save("layer", 500)
    image = store.save("image", 10, form=Inline(b"0123456789"), members=[layer.blob])
    assert store.index.refs_of(layer.blob) == [layer.id, image.id]
    (removed,) = store(Delete([layer.id], NOW))
    assert removed.disk_bytes == 0
    row = store.index.blob(layer.blob)
    assert row is not None
    assert row.live
    (removed,) = store(Delete([image.id], NOW))
    assert removed.disk_bytes == 600
    kinds = {grave.blob_id: grave.kind for grave in store.index.graves()}
    assert kinds == {layer.blob: GraveKind.FILES, image.blob: GraveKind.NOTHING}
    store(Purge(store.due()))
    assert store.index.totals() == Totals()


def test_index_replacing_keeps_members_that_stay(store: IndexStore) -> None:
    layer = store.save("layer")
    store.save("image", 1, flags=0, form=Inline(b"1"), members=[layer.blob])
    store(Delete([layer.id], NOW))
    store.save("image", 1, flags=0, form=Inline(b"2"), members=[layer.blob], now_ms=NOW + 1)
    row = store.index.blob(layer.blob)
    assert row is not None
    assert row.live


def test_index_everything_deleted_leaves_nothing(store: IndexStore) -> None:
    segment = store.segment()
    ids: list[int] = [
        store.save("a", 1000).id,
        store.save("a", 1000, space=OTHER, sha256=sha(b"a")).id,
        store.save("b", 36, form=Packed(segment, 0, 100), sha256=sha(b"b")).id,
        store.save("c", 3, form=Inline(b"abc"), sha256=sha(b"abc")).id,
    ]
    assert {row.tenant: row.entries for row in store.index.tenants()} == {"octo/hello": 3, "octo/other": 1}
    assert store.index.usage()[1] == Usage("actions", "octo/other", 1, 1000)
    store(Delete(ids, NOW))
    store(SealSegment(segment, 100, NOW))
    assert store(DropSegment(segment, NOW))
    store(Purge(store.due()))
    assert store.index.totals() == Totals()
    assert store.index.tenants() == []
    assert store.index.unhashed(9) == []
    assert store.index.unprobed(9) == []
    with store.index.environment.reading() as rows:
        left = {table: rows.count(table) for table in store.index.environment.tables if rows.count(table)}
    assert set(left) == {"core", "meta", "slotfree"}


# -- order of eviction -------------------------------------------------------------------------------------------------


def test_index_eviction_order_and_requeue(store: IndexStore) -> None:
    old, new = store.save("old"), store.save("new", now_ms=NOW + 5000)
    low = store.save("pr", flags=IMMUTABLE | EntryFlag.LOW_TRUST | EntryFlag.EXPIRES, now_ms=NOW + 9000)
    (tenant,) = store.index.tenants()
    assert (tenant.entries, tenant.bytes, tenant.disk_bytes) == (3, 3000, 3300)

    def order(queue: int) -> list[int]:
        return [row.entry_id for row in store.index.lru_head(tenant.number, queue, 10)]

    assert (order(0), order(1)) == ([low.id], [old.id, new.id])
    (head,) = store.index.lru_head(tenant.number, 0, 10)
    assert (head.size, head.disk_bytes, head.slot, head.expires) == (1000, 1100, low.slot, True)
    assert head.seconds == NOW // 1000 + 9
    assert store(Requeue([old.id, new.id, low.id])) == 0
    store.recency.touch(old.slot, NOW // 1000 + 20)
    store.recency.touch(low.slot, NOW // 1000 + 30)
    assert store(Requeue([old.id, new.id, low.id, 99])) == 2
    assert store(Requeue([old.id, new.id, low.id])) == 0
    assert (order(0), order(1)) == ([], [new.id, old.id, low.id])
    used = store.index.by_id(old.id)
    assert used is not None
    assert used.last_used_ms == NOW + 20_000
    assert len(store(Delete([old.id, new.id, low.id], NOW))) == 3
    assert order(1) == []


def test_index_slots_are_reused_and_start_unread(tmp_path: Path) -> None:
    store = IndexStore(tmp_path, slots=3)
    first, second = store.save("a"), store.save("b")
    assert {first.slot, second.slot} == {1, 2}
    assert store.save("c").slot == 0
    store.recency.touch(first.slot, 77)
    store(Delete([first.id], NOW))
    again = store.save("d")
    assert again.slot == first.slot
    assert again.last_used_ms is None
    store.close()


def test_index_fresh_slots_go_before_those_just_freed(store: IndexStore) -> None:
    first = store.save("a")
    store(Delete([first.id], NOW))
    assert store.save("b", now_ms=NOW + 1000).slot != first.slot
    assert store.save("c", now_ms=NOW + (GRAVE_SECONDS + 1) * 1000).slot == first.slot


# -- forms and digests -------------------------------------------------------------------------------------------------


def test_index_swap_form(store: IndexStore) -> None:
    entry = store.save("k", 1000)
    assert store.index.unprobed(9) == [entry.blob]
    smaller = filed(store.ids(), 400, parts=2, zstd=True)
    swap = SwapForm(entry.blob, filed(entry.blob, 1100), smaller, NOW)
    assert store(swap) is True
    assert store(swap) is True
    assert store(SwapForm(entry.blob, filed(entry.blob, 1100), filed(99), NOW)) is False
    assert store(SwapForm(4711, smaller, filed(99), NOW)) is False
    totals = store.index.totals()
    assert (totals.stored_bytes, totals.file_bytes, totals.grave_bytes) == (400, 400, 1100)
    assert store.index.tenants()[0].disk_bytes == 400
    assert store.index.unprobed(9) == []
    (grave,) = store.index.graves()
    assert (grave.file_id, grave.blob_id) == (entry.blob, 0)
    store(Purge(store.due()))
    row = store.index.blob(entry.blob)
    assert row is not None
    assert row.form == smaller
    assert row.live


def test_index_set_digest(store: IndexStore) -> None:
    entry = store.save("k")
    assert store.index.unhashed(9) == [entry.blob]
    assert store(SetDigest(entry.blob, sha(b"x"), NOW)) == entry.blob
    assert store(SetDigest(entry.blob, sha(b"x"), NOW)) == entry.blob
    with pytest.raises(DigestMismatch):
        store(SetDigest(entry.blob, sha(b"y"), NOW))
    assert store.index.unhashed(9) == []
    assert store.index.by_digest(Digest("sha256", sha(b"x"))) == entry.blob
    assert store.index.by_digest(Digest("sha512", sha(b"x"))) is None
    assert store(SetDigest(4711, sha(b"x"), NOW)) == 0


def test_index_set_digest_links_duplicates(store: IndexStore) -> None:
    first = store.save("a", sha256=sha(b"x"))
    second = store.save("b")
    store(Commit(OTHER, "b2", IMMUTABLE, second.blob, "w", NOW))
    image = store.save("image", 1, form=Inline(b"1"), members=[second.blob])
    assert store.index.totals().dedup_bytes == 1000
    assert store(SetDigest(second.blob, sha(b"x"), NOW)) == first.blob
    assert store(SetDigest(second.blob, sha(b"x"), NOW)) == first.blob
    for space, key in ((MAIN, "a"), (MAIN, "b"), (OTHER, "b2")):
        entry = store.index.get(namespace(space), key)
        assert entry is not None
        assert entry.blob == first.blob
    assert len(store.index.refs_of(first.blob)) == 4
    assert store.index.refs_of(second.blob) == []
    row = store.index.blob(second.blob)
    assert row is not None
    assert (row.dead, row.successor) == (True, first.blob)
    totals = store.index.totals()
    assert (totals.blobs, totals.dedup_bytes, totals.grave_bytes) == (2, 2000, 1100)
    # A late repeat of the commit that made the duplicate still finds its entry.
    repeat = Commit(MAIN, "b", IMMUTABLE, NewBlob(second.blob, filed(second.blob, 1100), 1000), "w", NOW)
    assert store(repeat) == Committed(second.id, True)
    with_image: list[int] = [entry_id for entry_id in store.index.refs_of(first.blob) if entry_id != image.id]
    store(Delete(with_image, NOW))
    row = store.index.blob(first.blob)
    assert row is not None
    assert row.live
    store(Delete([image.id], NOW))
    store(Purge(store.due()))
    assert store.index.totals() == Totals()


def test_index_marks(store: IndexStore) -> None:
    blob = store.ids()
    store(Commit(MAIN, "k", 0, NewBlob(blob, filed(blob), 1000, epoch=7), "w", NOW))
    row = store.index.blob(blob)
    assert row is not None
    assert (row.epoch, row.probed) == (7, False)
    for _ in range(2):
        assert store(MarkProbed([blob, 4711])) == 1
        assert store(MarkProven([blob, 4711])) == 1
    row = store.index.blob(blob)
    assert row is not None
    assert (row.epoch, row.probed) == (0, True)
    assert store.index.unprobed(9) == []


def test_index_quarantine(store: IndexStore) -> None:
    entry = store.save("a", sha256=sha(b"x"))
    image = store.save("image", 1, form=Inline(b"1"), members=[entry.blob])
    removed = store(Quarantine(entry.blob, "bit rot", NOW))
    assert {row.entry_id for row in removed} == {entry.id, image.id}
    assert store(Quarantine(entry.blob, "bit rot", NOW)) == []
    assert store.index.get(namespace(), "a") is None
    row = store.index.blob(entry.blob)
    assert row is not None
    assert row.bad
    # The same content may come again, and is not linked to the bad one.
    again = store.save("a", sha256=sha(b"x"))
    assert again.blob != entry.blob
    assert GraveKind.FILES not in {grave.kind for grave in store.index.graves()}
    store(Purge(store.due()))
    assert store.index.blob(entry.blob) is None
    store(Delete([again.id], NOW))
    store(Purge(store.due()))
    assert store.index.totals() == Totals()


# -- segments, named values --------------------------------------------------------------------------------------------


def test_index_segments(store: IndexStore) -> None:
    segment = store.segment()
    assert store(OpenSegment(segment, NOW + 1))
    one = store.save("a", 36, form=Packed(segment, 0, 100), sha256=sha(b"1"))
    store.save("b", 86, form=Packed(segment, 100, 150), sha256=sha(b"2"))
    (row,) = store.index.segments()
    assert (row.segment, row.opened_ms, row.sealed_ms) == (segment, NOW, 0)
    assert (row.bytes, row.live_bytes, row.live_records) == (250, 250, 2)
    assert store(DropSegment(segment, NOW)) is False
    for _ in range(2):
        assert store(SealSegment(segment, 300, NOW + 2))
    assert store.index.totals().segment_bytes == 300
    store(Delete([one.id], NOW))
    (row,) = store.index.segments()
    assert (row.bytes, row.live_bytes, row.live_records, row.sealed_ms) == (300, 150, 1, NOW + 2)
    assert store(DropSegment(segment, NOW)) is False
    entry = store.index.get(namespace(), "b")
    assert entry is not None
    store(SwapForm(entry.blob, Packed(segment, 100, 150), Inline(b"x" * 86), NOW))
    for _ in range(2):
        assert store(DropSegment(segment, NOW)) is True
    assert store.index.segments() == []
    graves = [grave for grave in store.index.graves() if grave.segment]
    assert [(grave.file_id, grave.disk_bytes) for grave in graves] == [(segment, 300)]


def test_index_named_values(store: IndexStore) -> None:
    assert store(SetMeta({"epoch": b"5", "empty": b""}))
    assert (store.index.meta("epoch"), store.index.meta("empty"), store.index.meta("none")) == (b"5", b"", None)
    assert store(PutRows({b"a1": b"1", b"a2": b"2", b"b1": b"3"}))
    assert store(PutRows({b"a2": b""}))
    assert store.index.side(b"a1") == b"1"
    assert store.index.side(b"a2") is None
    assert store.index.side_range(b"a", b"c") == [(b"a1", b"1"), (b"b1", b"3")]
    assert store.index.side_range(b"", b"", 1) == [(b"a1", b"1")]
    with pytest.raises(LimitExceeded):
        store(PutRows({b"": b"x"}))


def test_index_blobs_after_walks_all(store: IndexStore) -> None:
    blobs = sorted(store.save(str(number)).blob for number in range(5))
    first = store.index.blobs_after(0, 3)
    rest = store.index.blobs_after(first[-1].id, 3)
    assert [row.id for row in first + rest] == blobs
    assert isinstance(first[0].form, Filed)
