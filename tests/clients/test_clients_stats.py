"""What `cachesrv stats` says after a job has missed, saved and restored."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.clients import npm_clients
from tests.clients.npm_clients import ActionsCache
from tests.conftest import RequireClient
from tests.job_token import job_token
from tests.server_process import ServerProcess

pytestmark = pytest.mark.client("@actions/cache")


def stats(*arguments: str) -> str:
    command = [sys.executable, "-m", "cachesrv", "stats", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.parametrize("dialect", ["v1", "v2"])
def test_a_miss_a_save_and_a_hit_are_counted(
    server: ServerProcess, repository: str, tmp_path: Path, require_client: RequireClient, dialect: str
) -> None:
    require_client("@actions/cache", npm_clients.installed())
    workspace = tmp_path / "workspace"
    (workspace / "data").mkdir(parents=True)
    with open("/dev/urandom", "rb") as source:
        (workspace / "data" / "random.bin").write_bytes(source.read(1_000_000))
    cache = ActionsCache("ac630", dialect, server.url, job_token(repository))
    assert cache.restore(workspace, ["data"], "counted").value is None
    assert cache.save(workspace, ["data"], "counted").value > 0
    assert cache.restore(workspace, ["data"], "counted").value == "counted"

    for source_of_figures in (["--url", server.url], ["--data", str(server.data)]):
        report: dict[str, Any] = json.loads(stats("--json", *source_of_figures))
        total = report["windows"]["start"]["total"]
        assert (total["hits"], total["misses"], total["hit_rate"], total["saves"]) == (1, 1, 0.5, 1)
        archive = report["store"]["logical"]
        assert 1_000_000 < archive < 1_100_000
        # Bodies of the calls around the archive are bytes too.
        assert archive <= total["bytes_in"] < archive + 4096
        assert archive <= total["bytes_out"] < archive + 4096
        assert report["store"]["entries"] == 1
        assert report["store"]["uploads_in_flight"] == 0
        assert [held["repository"] for held in report["store"]["repositories"]] == [repository]
        assert max(map(len, stats(*source_of_figures).splitlines())) <= 80
