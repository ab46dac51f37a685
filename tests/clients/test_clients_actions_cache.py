"""npm @actions/cache, five releases, both dialects: what a workflow's user sees."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.clients import npm_clients
from tests.clients.file_tree import fingerprint
from tests.clients.npm_clients import ALL_RELEASES, DIALECTS, ActionsCache
from tests.conftest import RequireClient
from tests.job_token import job_token
from tests.server_process import ServerProcess

pytestmark = pytest.mark.client("@actions/cache")

every_dialect = pytest.mark.parametrize(("release", "dialect"), DIALECTS)
BLOCK_LIMIT = 128 * 1024**2
"""Archives above this many bytes go up in blocks (v2) or in several chunks (v1)."""


@pytest.fixture(autouse=True)
def _node_and_packages(require_client: RequireClient) -> None:
    require_client("@actions/cache", npm_clients.installed())


@pytest.fixture
def workspace(tmp_path: Path) -> Path:
    folder = tmp_path / "workspace"
    (folder / "data" / "deep").mkdir(parents=True)
    (folder / "data" / "hello.txt").write_text("hello, cache\n")
    (folder / "data" / "deep" / "numbers.bin").write_bytes(bytes(range(256)) * 64)
    (folder / "data" / "deep" / "run.sh").write_text("#!/bin/sh\n")
    (folder / "data" / "deep" / "run.sh").chmod(0o755)
    (folder / "data" / "link").symlink_to("hello.txt")
    return folder


@pytest.fixture
def elsewhere(tmp_path: Path) -> Path:
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    return folder


def client(server: ServerProcess, repository: str, release: str, dialect: str) -> ActionsCache:
    return ActionsCache(release, dialect, server.url, job_token(repository))


@every_dialect
def test_save_and_restore(
    shared_server: ServerProcess, repository: str, workspace: Path, elsewhere: Path, release: str, dialect: str
) -> None:
    cache = client(shared_server, repository, release, dialect)
    missed = cache.restore(elsewhere, ["data"], "linux-deps-1")
    assert (missed.value, missed.error) == (None, None)

    saved = cache.save(workspace, ["data"], "linux-deps-1")
    assert isinstance(saved.value, int), saved
    assert saved.value > 0, saved.output
    assert "::warning::" not in saved.output

    restored = cache.restore(elsewhere, ["data"], "linux-deps-1")
    assert restored.value == "linux-deps-1", restored
    assert "::warning::" not in restored.output
    assert fingerprint(elsewhere) == fingerprint(workspace)


@every_dialect
def test_restore_keys_find_the_newest(
    shared_server: ServerProcess, repository: str, workspace: Path, elsewhere: Path, release: str, dialect: str
) -> None:
    cache = client(shared_server, repository, release, dialect)
    for key in ("npm-aaa", "npm-bbb", "npm-ab"):
        (workspace / "data" / "hello.txt").write_text(key)
        assert cache.save(workspace, ["data"], key).value > 0
    assert cache.restore(elsewhere, ["data"], "npm-zzz", ["gem-", "npm-"]).value == "npm-ab"
    assert (elsewhere / "data" / "hello.txt").read_text() == "npm-ab"
    # The primary key is a prefix as well, and an earlier restore key beats a newer entry of a later one.
    assert cache.lookup(elsewhere, ["data"], "npm-a").value == "npm-ab"
    assert cache.lookup(elsewhere, ["data"], "npm-zzz", ["npm-b", "npm-"]).value == "npm-bbb"
    # Other paths are another version: the same keys find nothing.
    assert cache.lookup(elsewhere, ["data", "more"], "npm-aaa", ["npm-"]).value is None


@every_dialect
def test_lookup_only_downloads_nothing(
    shared_server: ServerProcess, repository: str, workspace: Path, elsewhere: Path, release: str, dialect: str
) -> None:
    cache = client(shared_server, repository, release, dialect)
    assert cache.save(workspace, ["data"], "look").value > 0
    assert cache.lookup(elsewhere, ["data"], "look").value == "look"
    assert fingerprint(elsewhere) == {}


@every_dialect
def test_a_second_save_is_told_and_changes_nothing(
    shared_server: ServerProcess, repository: str, workspace: Path, elsewhere: Path, release: str, dialect: str
) -> None:
    cache = client(shared_server, repository, release, dialect)
    assert cache.save(workspace, ["data"], "once").value > 0
    original = fingerprint(workspace)
    (workspace / "data" / "hello.txt").write_text("a later job's idea")
    again = cache.save(workspace, ["data"], "once")
    assert again.value == -1
    assert "Failed to save" in again.output
    if (release, dialect) != ("ac400", "v2"):  # 4.0.0 shows the bare 409 instead of this sentence
        assert "another job may be creating this cache" in again.output
    assert cache.restore(elsewhere, ["data"], "once").value == "once"
    assert fingerprint(elsewhere) == original


@pytest.mark.parametrize("release", ALL_RELEASES[1:])
def test_both_dialects_see_the_same_entries(
    shared_server: ServerProcess, repository: str, workspace: Path, elsewhere: Path, release: str
) -> None:
    v1 = client(shared_server, repository, release, "v1")
    v2 = client(shared_server, repository, release, "v2")
    assert v1.save(workspace, ["data"], "from-v1").value > 0
    assert v2.restore(elsewhere, ["data"], "from-v1").value == "from-v1"
    assert fingerprint(elsewhere) == fingerprint(workspace)
    assert v2.save(workspace, ["data"], "from-v2").value > 0
    assert v1.lookup(elsewhere, ["data"], "other", ["from-"]).value == "from-v2"
    assert v1.save(workspace, ["data"], "from-v2").value == -1


@pytest.mark.parametrize(("release", "dialect"), [("ac400", "v2"), ("ac630", "v2"), ("ac324", "v1"), ("ac630", "v1")])
def test_an_archive_that_needs_blocks(
    shared_server: ServerProcess, repository: str, tmp_path: Path, elsewhere: Path, release: str, dialect: str
) -> None:
    workspace = tmp_path / "workspace"
    (workspace / "data").mkdir(parents=True)
    with open("/dev/urandom", "rb") as source, (workspace / "data" / "random.bin").open("wb") as target:
        for _ in range(135):
            target.write(source.read(1024**2))
    assert (workspace / "data" / "random.bin").stat().st_size > BLOCK_LIMIT
    cache = client(shared_server, repository, release, dialect)
    assert cache.save(workspace, ["data"], "large").value > 0
    restored = cache.restore(elsewhere, ["data"], "large")
    assert restored.value == "large", restored.output
    assert fingerprint(elsewhere) == fingerprint(workspace)


@pytest.mark.parametrize("dialect", ["v1", "v2"])
def test_of_eight_savers_one_wins_and_the_others_are_told(
    shared_server: ServerProcess, repository: str, tmp_path: Path, elsewhere: Path, dialect: str
) -> None:
    cache = client(shared_server, repository, "ac630", dialect)
    savers = []
    for number in range(8):
        workspace = tmp_path / f"job-{number}"
        (workspace / "data").mkdir(parents=True)
        (workspace / "data" / "who.txt").write_text(f"job {number}")
        savers.append(cache.begin("save", workspace, ["data"], "contested", []))
    answers = [saver.answer() for saver in savers]
    winners = [number for number, answer in enumerate(answers) if answer.value != -1]
    assert len(winners) == 1, [answer.output for answer in answers]
    told = [answer for answer in answers if "another job may be creating this cache" in answer.output]
    assert len(told) == 7, [answer.output for answer in answers]
    assert cache.restore(elsewhere, ["data"], "contested").value == "contested"
    assert (elsewhere / "data" / "who.txt").read_text() == f"job {winners[0]}"


def test_other_repositories_and_branches_see_nothing(
    shared_server: ServerProcess, repository: str, workspace: Path, elsewhere: Path
) -> None:
    pull_request = [("refs/pull/7/merge", 3), ("refs/heads/main", 1)]
    theirs = ActionsCache("ac630", "v2", shared_server.url, job_token(repository, pull_request))
    ours = client(shared_server, repository, "ac630", "v2")
    stranger = client(shared_server, f"{repository}9", "ac630", "v2")
    assert theirs.save(workspace, ["data"], "poison").value > 0
    assert ours.lookup(elsewhere, ["data"], "poison").value is None
    assert ours.save(workspace, ["data"], "trusted").value > 0
    assert theirs.lookup(elsewhere, ["data"], "trusted").value == "trusted"
    assert stranger.lookup(elsewhere, ["data"], "trusted").value is None


@pytest.mark.parametrize("dialect", ["v1", "v2"])
def test_a_token_that_may_only_read_is_told_so(
    shared_server: ServerProcess, repository: str, workspace: Path, elsewhere: Path, dialect: str
) -> None:
    token = job_token(repository, [("refs/heads/main", 1)])
    reader = ActionsCache("ac630", dialect, shared_server.url, token)
    denied = reader.save(workspace, ["data"], "forbidden")
    assert denied.value == -1
    assert "cache write denied:" in denied.output
    assert client(shared_server, repository, "ac630", dialect).lookup(elsewhere, ["data"], "forbidden").value is None
