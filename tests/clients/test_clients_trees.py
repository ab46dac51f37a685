"""The two things people cache most, whole: a real node_modules and a real Python environment, byte for byte."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.clients import npm_clients
from tests.clients.file_tree import fingerprint
from tests.clients.npm_clients import NODE_MODULES, ActionsCache
from tests.conftest import RequireClient
from tests.job_token import job_token
from tests.server_process import ServerProcess

pytestmark = pytest.mark.client("@actions/cache")


@pytest.fixture(autouse=True)
def _node_and_packages(require_client: RequireClient) -> None:
    require_client("@actions/cache", npm_clients.installed())


def test_node_modules(shared_server: ServerProcess, repository: str, tmp_path: Path) -> None:
    """The clients' own dependencies: thousands of small files, links and executables."""
    original = fingerprint(NODE_MODULES)
    assert len(original) > 3000
    job = tmp_path / "job"
    job.mkdir()
    cache = ActionsCache("ac630", "v2", shared_server.url, job_token(repository))
    assert cache.save(NODE_MODULES.parent, ["node_modules"], "npm-1").value > 0
    restored = cache.restore(job, ["node_modules"], "npm-2", ["npm-"])
    assert restored.value == "npm-1", restored.output
    assert fingerprint(job / "node_modules") == original


def test_python_environment(shared_server: ServerProcess, repository: str, tmp_path: Path) -> None:
    """A virtual environment with pip in it, saved over v2, gone, restored over v1: it runs again."""
    job = tmp_path / "job"
    job.mkdir()
    subprocess.run([sys.executable, "-m", "venv", str(job / "venv")], check=True, timeout=120)
    original = fingerprint(job / "venv")
    assert len(original) > 500
    token = job_token(repository)
    assert ActionsCache("ac530", "v2", shared_server.url, token).save(job, ["venv"], "py-1").value > 0
    shutil.rmtree(job / "venv")
    restored = ActionsCache("ac324", "v1", shared_server.url, token).restore(job, ["venv"], "py-1")
    assert restored.value == "py-1", restored.output
    assert fingerprint(job / "venv") == original
    asked = [str(job / "venv" / "bin" / "python"), "-m", "pip", "--version"]
    assert "pip" in subprocess.run(asked, check=True, capture_output=True, text=True, timeout=60).stdout
