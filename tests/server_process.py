"""The real program in a process of its own, as a user starts it; tests talk to it over loopback only."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from pathlib import Path

_ADDRESS = re.compile(r"http://127\.0\.0\.1:([1-9]\d*)")
_COMPLAINT = re.compile(r"Traceback|\"level\": ?\"(error|critical)\"")


class ServerProcess:
    """``cachesrv serve`` on a free loopback port.

    ``start`` returns once ``/readyz`` answers 200; ``stop`` sends SIGTERM and insists on a clean exit. Everything that
    the program prints is kept in ``log``.
    """

    def __init__(
        self, folder: Path, *, arguments: Sequence[str] = (), environment: Mapping[str, str] | None = None
    ) -> None:
        """``folder`` receives the data folder and the log; ``arguments`` follow the usual ones of ``serve``."""
        folder.mkdir(parents=True, exist_ok=True)
        self.data = folder / "data"
        self.log_file = folder / "serve.log"
        self.url = ""
        self._arguments = list(arguments)
        self._environment = dict(environment or {})
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def log(self) -> str:
        return self.log_file.read_text(errors="replace") if self.log_file.exists() else ""

    @property
    def pid(self) -> int:
        """The supervisor's process id."""
        assert self._process is not None, "not started"
        return self._process.pid

    def start(self, *, patience: float = 30.0) -> ServerProcess:
        """Start and wait until ready. Raises AssertionError with the log when that takes over ``patience`` seconds."""
        environment = {name: value for name, value in os.environ.items() if not name.startswith("CACHESRV_")}
        environment |= {"PYTHONUNBUFFERED": "1", **self._environment}
        command = [sys.executable, "-m", "cachesrv", "serve", "--listen", "127.0.0.1:0", "--data", str(self.data)]
        command += ["--workers", "2", *self._arguments]
        written = len(self.log)
        with self.log_file.open("ab") as log:
            self._process = subprocess.Popen(
                command, cwd=self.log_file.parent, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )
        deadline = time.monotonic() + patience
        while time.monotonic() < deadline:
            assert self._process.poll() is None, f"serve ended with {self._process.returncode}:\n{self.log}"
            found = _ADDRESS.search(self.log, written)
            if found and _answers(f"{found[0]}/readyz"):
                self.url = found[0]
                return self
            time.sleep(0.02)
        self.kill()
        raise AssertionError(f"serve was not ready within {patience:g} s:\n{self.log}")

    def stop(self, *, patience: float = 40.0) -> None:
        """SIGTERM; asserts that it drains, exits 0 and never logged an error."""
        assert self._process is not None, "not started"
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
        try:
            code = self._process.wait(patience)
        except subprocess.TimeoutExpired:
            self.kill()
            raise AssertionError(f"serve ignored SIGTERM for {patience:g} s:\n{self.log}") from None
        assert code == 0, f"serve ended with {code}:\n{self.log}"
        assert not _COMPLAINT.search(self.log), self.log

    def kill(self) -> None:
        """SIGKILL to the supervisor alone; for a server that no longer listens to reason."""
        if self._process is not None and self._process.poll() is None:
            self._process.kill()
            self._process.wait()


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:
            return int(answer.status) == 200
    except (urllib.error.URLError, ConnectionError, TimeoutError):
        return False
