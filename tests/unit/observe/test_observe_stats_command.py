"""``cachesrv stats`` on a real data folder: stopped and live, empty and full, and on what is none."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from cachesrv.cli.stats import stats
from cachesrv.observe import layout
from cachesrv.observe.counters import SharedRecorder, counters_path, mark_started, open_counters
from cachesrv.observe.events import counting
from cachesrv.observe.history import History
from cachesrv.store.model import EntryFlag, Namespace, RemovalReason
from cachesrv.store.store import Store


@pytest.fixture(autouse=True)
def no_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "share"))
    monkeypatch.setenv("COLUMNS", "80")


def ask(*arguments: str) -> Result:
    return CliRunner().invoke(stats, arguments)


async def body(data: bytes) -> AsyncIterator[bytes]:
    yield data


async def fill(root: Path) -> None:
    """Two entries, one of them removed again, a history row, and a running upload."""
    recorders: list[SharedRecorder] = []
    store = await Store.start(root, local=True, on_event=lambda event: counting(recorders[0])(event))
    open_counters(counters_path(root), layout.slots_for(1))
    mark_started(root)
    recorders.append(SharedRecorder(counters_path(root), layout.worker_slot(0)))
    space = Namespace("actions", "octo/repo", "refs/heads/main", "v1")
    for key in ("one", "two"):
        await store.put(space, key, body(b"x" * 3000), flags=EntryFlag.IMMUTABLE, writer="t")
    await store.reserve(space, "three", flags=EntryFlag.IMMUTABLE, writer="t", size=None)
    found = store.lookup(space, "one")
    assert found is not None
    await store.delete([found.id], RemovalReason.DELETED)
    recorders[0].request("actions", "lookup", "hit", tenant="octo/repo", seconds=0.001)
    assert await History(root, store.index, store.writer.submit).tick()
    recorders[0].request("actions", "lookup", "miss", tenant="octo/repo", seconds=0.001)
    await store.close()


async def test_a_stopped_store_says_what_happened(tmp_path: Path) -> None:
    root = tmp_path / "share" / "cachesrv"
    await fill(root)
    before = {path: path.read_bytes() for path in root.rglob("*") if path.is_file() and path.name != "lock.mdb"}
    result = ask("--json")
    assert result.exit_code == 0, result.output
    report = json.loads(result.output)
    assert report["store"]["entries"] == 1
    assert report["store"]["logical"] == 3000
    assert report["store"]["uploads_in_flight"] == 1
    assert report["store"]["repositories"] == [
        {"protocol": "actions", "repository": "octo/repo", "entries": 1, "bytes": 3000}
    ]
    for window in report["windows"].values():
        assert (window["total"]["hits"], window["total"]["misses"], window["total"]["hit_rate"]) == (1, 1, 0.5)
        assert window["removed"] == {"deleted": {"entries": 1, "bytes": 3000}}
    shown = ask("--data", str(root))
    assert shown.exit_code == 0
    assert "octo/repo" in shown.output
    assert max(map(len, shown.output.splitlines())) <= 80
    assert {path: path.read_bytes() for path in before} == before


def test_a_folder_that_is_none_of_ours(tmp_path: Path) -> None:
    result = ask()
    assert result.exit_code == 1
    assert "there is no cache in" in result.output
    assert "cachesrv serve" in result.output
    (tmp_path / "newer").mkdir()
    (tmp_path / "newer" / "format").write_text('{"format": 99}')
    result = ask("--data", str(tmp_path / "newer"))
    assert result.exit_code == 1
    assert "format 99" in result.output


def test_both_sources_at_once_are_refused(tmp_path: Path) -> None:
    assert ask("--url", "http://127.0.0.1:1", "--data", str(tmp_path)).exit_code == 2


@pytest.mark.parametrize("url", ["http://127.0.0.1:1", "127.0.0.1", "ftp://127.0.0.1", "http://"])
def test_a_server_that_is_not_there(url: str) -> None:
    result = ask("--url", url)
    assert result.exit_code == 1
    assert url in result.output
    assert "Traceback" not in result.output
