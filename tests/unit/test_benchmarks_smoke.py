"""The benchmarks run and fill their table; how fast anything is, is not asked here."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

from benchmarks import client
from benchmarks.report import Report
from tests.clients import npm_clients
from tests.conftest import RequireClient

ROOT = Path(__file__).parents[2]


def test_downloads_against_nginx(require_client: RequireClient, tmp_path: Path) -> None:
    """As a user starts it; a process of its own, because it binds itself to one core."""
    found = shutil.which("nginx") or shutil.which("/usr/sbin/nginx")
    require_client("nginx", found is not None)
    command = [sys.executable, "-m", "benchmarks", "get", "--quick", "--results", str(tmp_path / "results")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    written = json.loads((tmp_path / "results" / "get.json").read_text())
    assert [row["question"] for row in written["rows"]] == ["GET 16 MiB against nginx"]
    assert written["rows"][0]["ratio"] > 0
    assert "GET 16 MiB against nginx" in (tmp_path / "results" / "get.md").read_text()


def test_a_real_client_against_the_null_server(require_client: RequireClient, tmp_path: Path) -> None:
    require_client("@actions/cache", npm_clients.installed())
    require_client("zstd", shutil.which("zstd") is not None)
    source = tmp_path / "data"
    source.mkdir()
    (source / "bytes").write_bytes(os.urandom(100_000))
    report = Report("client", quick=True)
    client.measure(report, "little", source, tmp_path / "scratch", rounds=1)
    questions = [row.question for row in report.rows if row.bar]
    assert questions == [
        "save little, real client, against a null server",
        "restore little, real client, against a null server",
    ]
    assert all(row.ratio is not None and row.ratio > 0 for row in report.rows)
