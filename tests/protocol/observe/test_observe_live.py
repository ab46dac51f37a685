"""Statistics of the running program: exact whichever worker counted or answers, and kept over a restart."""

from __future__ import annotations

import json
import subprocess
import sys
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

from prometheus_client.parser import text_string_to_metric_families

from cachesrv.observe.history import read_last
from cachesrv.observe.view import opened
from tests.server_process import ServerProcess

LOOKUP = "/twirp/github.actions.results.api.v1.CacheService/GetCacheEntryDownloadURL"
LOOKUPS = 40


def look_up(url: str, token: str) -> None:
    request = urllib.request.Request(
        url + LOOKUP,
        json.dumps({"key": "absent", "restore_keys": [], "version": "v"}).encode(),
        {"Content-Type": "application/json", "Authorization": f"Bearer {token}"},
    )
    with urllib.request.urlopen(request, timeout=20) as response:
        assert json.load(response)["ok"] is False


def misses(url: str) -> float:
    with urllib.request.urlopen(url + "/metrics", timeout=20) as response:
        return sum(
            sample.value
            for family in text_string_to_metric_families(response.read().decode())
            for sample in family.samples
            if sample.name == "cachesrv_requests_total" and sample.labels["outcome"] == "miss"
        )


def stats(*arguments: str) -> Any:
    command = [sys.executable, "-m", "cachesrv", "stats", "--json", *arguments]
    return json.loads(subprocess.run(command, check=True, capture_output=True, timeout=60).stdout)


def test_numbers_are_right_across_workers_and_restarts(tmp_path: Path, token: Callable[..., str]) -> None:
    server = ServerProcess(tmp_path).start()
    for n in range(LOOKUPS):  # each on a connection of its own, so that both workers get some
        look_up(server.url, token(str(1000 + n % 2)))
    assert {misses(server.url) for _ in range(8)} == {LOOKUPS}
    for report in (stats("--url", server.url), stats("--data", str(server.data))):
        for window in report["windows"].values():
            assert window["total"]["misses"] == window["total"]["lookups"]["count"] == LOOKUPS
            assert {one["misses"] for one in window["repositories"]} == {LOOKUPS // 2}
            assert len(window["repositories"]) == 2
    server.stop()
    with opened(server.data) as view:
        last = read_last(view)
    assert last is not None, "the history was not written at the end"
    assert last.totals.protocols["actions"].misses == LOOKUPS
    assert stats("--data", str(server.data))["windows"]["all"]["total"]["misses"] == LOOKUPS
    server.start()
    windows = stats("--url", server.url)["windows"]
    assert {name: window["total"]["misses"] for name, window in windows.items()} == {
        "start": 0,
        "hour": LOOKUPS,
        "day": LOOKUPS,
        "all": LOOKUPS,
    }
    server.stop()
