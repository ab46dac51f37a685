"""Relaxed durability: what a power cut may have torn is checked before it is served, and nothing else is."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from cachesrv.store import epochs
from cachesrv.store.commands import Packed
from cachesrv.store.committer import Committer
from cachesrv.store.housekeeping import scrub
from cachesrv.store.model import Entry
from cachesrv.store.options import StoreOptions
from cachesrv.store.store import Store
from tests.doubles.open_store import open_store
from tests.unit.store.housekeeping_case import content, part_of, place, put, restored
from tests.unit.store.test_housekeeping_damage import segment_of

MB = 1_000_000
RELAXED = StoreOptions(min_free=0, durable=False, scrub_rate=0)
PackedOrFiled = pytest.mark.parametrize("size", [20_000, 3 * MB])


@pytest.fixture
def boot(monkeypatch: pytest.MonkeyPatch) -> Callable[[bytes], None]:
    """Set the name of the boot that starts from here on."""

    def set_to(name: bytes) -> None:
        monkeypatch.setattr(epochs, "boot_id", lambda: name)

    set_to(b"first")
    return set_to


def tear(store: Store, entry: Entry) -> None:
    """What was not synced is zeros after a power cut."""
    row = store.index.blob(entry.blob)
    assert row is not None
    if isinstance(row.form, Packed):
        path, start, length = segment_of(store, entry)[0], row.form.offset, row.form.length
    else:
        path, start, length = part_of(store, entry), 0, MB
    with path.open("r+b") as file:
        file.seek(start)
        file.write(bytes(length))


async def save_and_die(root: Path, size: int, *, sync_first: bool = False, torn: bool = True) -> None:
    """A life that ends without a clean stop (the last thing it does is not to say so)."""
    async with open_store(root, RELAXED) as store:
        if sync_first:
            await put(store, "early", size)
            await scrub.Epochs().advance(store)
        await put(store, "torn", size)
        await put(store, "whole", size)
        if torn:
            entry = store.lookup(place(), "torn")
            assert entry is not None
            tear(store, entry)


@PackedOrFiled
async def test_after_a_power_cut_the_torn_is_a_miss_and_the_whole_a_hit(
    tmp_path: Path, boot: Callable[[bytes], None], size: int
) -> None:
    await save_and_die(tmp_path / "data", size)
    boot(b"second")
    async with open_store(tmp_path / "data", RELAXED) as store:
        assert epochs.suspects(store.index) == [(1, 1)]
        assert store.lookup(place(), "torn") is not None
        assert await restored(store, "torn") is None
        assert store.lookup(place(), "torn") is None
        assert await restored(store, "whole") == content("whole", size)
        whole = store.lookup(place(), "whole")
        assert whole is not None
        row = store.index.blob(whole.blob)
        assert row is not None
        assert row.epoch == 0


@PackedOrFiled
async def test_proving_all_clears_the_suspicion(tmp_path: Path, boot: Callable[[bytes], None], size: int) -> None:
    await save_and_die(tmp_path / "data", size)
    boot(b"second")
    async with open_store(tmp_path / "data", RELAXED) as store:
        new = await put(store, "new", size)
        assert await scrub.prove_suspects(store) == 2
        assert epochs.suspects(store.index) == []
        assert store.lookup(place(), "torn") is None
        assert await restored(store, "whole") == content("whole", size)
        assert await store.prove(new)
        assert await scrub.prove_suspects(store) == 0


async def test_what_was_synced_is_not_suspect(tmp_path: Path, boot: Callable[[bytes], None]) -> None:
    await save_and_die(tmp_path / "data", 3 * MB, sync_first=True)
    boot(b"second")
    async with open_store(tmp_path / "data", RELAXED) as store:
        assert epochs.suspects(store.index) == [(2, 2)]
        assert await scrub.prove_suspects(store) == 2


async def test_suspicion_of_two_power_cuts_adds_up(tmp_path: Path, boot: Callable[[bytes], None]) -> None:
    await save_and_die(tmp_path / "data", 3 * MB)
    boot(b"second")
    async with open_store(tmp_path / "data", RELAXED) as store:
        await put(store, "between", 3 * MB)
    boot(b"third")
    async with open_store(tmp_path / "data", RELAXED) as store:
        assert await restored(store, "torn") is None
        assert await restored(store, "whole") == content("whole", 3 * MB)
        assert await restored(store, "between") == content("between", 3 * MB)


async def test_a_crash_without_a_power_cut_leaves_no_suspicion(tmp_path: Path, boot: Callable[[bytes], None]) -> None:
    await save_and_die(tmp_path / "data", 3 * MB, torn=False)
    async with open_store(tmp_path / "data", RELAXED) as store:
        assert epochs.suspects(store.index) == []
        assert await scrub.prove_suspects(store) == 0
        assert await restored(store, "torn") == content("torn", 3 * MB)


async def test_a_clean_stop_leaves_no_suspicion(tmp_path: Path, boot: Callable[[bytes], None]) -> None:
    await save_and_die(tmp_path / "data", 3 * MB, torn=False)
    committer = Committer(tmp_path / "data", RELAXED)
    committer.stop_cleanly()
    committer.close()
    boot(b"second")
    async with open_store(tmp_path / "data", RELAXED) as store:
        assert epochs.suspects(store.index) == []


async def test_a_system_that_names_no_boot_counts_every_unclean_stop(
    tmp_path: Path, boot: Callable[[bytes], None]
) -> None:
    boot(b"")
    await save_and_die(tmp_path / "data", 3 * MB)
    async with open_store(tmp_path / "data", RELAXED) as store:
        assert await restored(store, "torn") is None
        assert await restored(store, "whole") == content("whole", 3 * MB)


async def test_durable_saves_are_never_suspect(tmp_path: Path, boot: Callable[[bytes], None]) -> None:
    async with open_store(tmp_path / "data") as store:
        await put(store, "k", 3 * MB)
    boot(b"second")
    async with open_store(tmp_path / "data") as store:
        assert await scrub.prove_suspects(store) == 0
        assert await restored(store, "k") == content("k", 3 * MB)


async def test_an_idle_store_is_not_synced_again(tmp_path: Path, boot: Callable[[bytes], None]) -> None:
    async with open_store(tmp_path / "data", RELAXED) as store:
        keeper = scrub.Epochs()
        await put(store, "k", 3 * MB)
        await keeper.advance(store)
        assert epochs.durable(store.index) == 1
        changes = store.index.changes()
        await keeper.advance(store)
        await keeper.advance(store)
        assert store.index.changes() == changes
        await put(store, "l", 3 * MB)
        await keeper.advance(store)
        assert epochs.durable(store.index) == 2
