"""Starts ``fake_group`` as a process of its own and asks it things; everything it does is seen from outside."""

from __future__ import annotations

import http.client
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

ROOT = Path(__file__).parents[2]


def wait_until(condition: Callable[[], bool], *, seconds: float = 10.0) -> float:
    """Wait for a condition; returns how long it took. Fails when it never comes."""
    started = time.monotonic()
    while not condition():
        assert time.monotonic() - started < seconds, "the condition never came"
        time.sleep(0.005)
    return time.monotonic() - started


def alive(pid: int) -> bool:
    """Whether a process runs (a zombie does not)."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


class Group:
    """One fake group. ``start`` returns when it printed its URL."""

    def __init__(self, folder: Path, *arguments: str, environment: dict[str, str] | None = None) -> None:
        self.data = folder / "data"
        self.marks = folder
        self._log = folder / "log"
        self._arguments = arguments
        self._environment = environment or {}
        self.process: subprocess.Popen[bytes] | None = None
        self.host, self.port = "", 0

    def spawn(self) -> subprocess.Popen[bytes]:
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("CACHESRV_")}
        with self._log.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, str(ROOT / "tests/doubles/fake_group.py"), "--data", str(self.data), *self._arguments],
                env={**inherited, "PYTHONPATH": str(ROOT), "FAKE_MARKS": str(self.marks), **self._environment},
                stdout=log,
                stderr=log,
            )
        return self.process

    def start(self) -> Group:
        process = self.spawn()
        wait_until(lambda: "cachesrv serves at" in self.log or process.poll() is not None, seconds=20)
        found = re.search(r"http://(127\.0\.0\.1):(\d+)", self.log.partition("cachesrv serves at")[2])
        assert found, self.log
        self.host, self.port = found[1], int(found[2])
        # The program announces itself when its workers serve; the housekeeper, which is nice, may come later.
        wait_until(lambda: self.pid_of("housekeeper") != 0, seconds=20)
        return self

    @property
    def log(self) -> str:
        return self._log.read_text()

    @property
    def pid(self) -> int:
        assert self.process is not None
        return self.process.pid

    def connect(self) -> http.client.HTTPConnection:
        return http.client.HTTPConnection(self.host, self.port, timeout=10)

    def get(self, path: str) -> tuple[int, str]:
        connection = self.connect()
        try:
            connection.request("GET", path)
            answer = connection.getresponse()
            return answer.status, answer.read().decode()
        finally:
            connection.close()

    def children(self) -> list[int]:
        return [int(pid) for pid in Path(f"/proc/{self.pid}/task/{self.pid}/children").read_text().split()]

    def signal(self, number: signal.Signals) -> None:
        os.kill(self.pid, number)

    def pid_of(self, role: str) -> int:
        """Of the committer or housekeeper that was started last; 0 before the first."""
        try:
            return int((self.data / f"{role}.pid").read_text())
        except (FileNotFoundError, ValueError):
            return 0

    def worker_pids(self) -> set[int]:
        return {pid for pid in self.children() if pid not in (self.pid_of("committer"), self.pid_of("housekeeper"))}

    def lines(self, name: str) -> Sequence[str]:
        path = self.data / name
        return path.read_text().split() if path.exists() else []

    def end(self) -> int:
        """SIGTERM and wait; kills what does not end."""
        assert self.process is not None
        if self.process.poll() is None:
            self.process.terminate()
        try:
            return self.process.wait(15)
        finally:
            self.process.kill()
