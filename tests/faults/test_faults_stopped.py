"""A process that is stopped (SIGSTOP: swapped out, in a debugger, stuck in the kernel) stops nobody else."""

from __future__ import annotations

import os
import random
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from cachesrv.store.constants import COMMITTER_TIMEOUT_SECONDS
from tests.doubles.group_process import wait_until
from tests.faults.small_disk import Client, is_refusal
from tests.server_process import ServerProcess

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")

MB = 1_000_000


def content(key: str, size: int = MB) -> bytes:
    return random.Random(key).randbytes(size)


def children(server: ServerProcess) -> list[int]:
    """In the order of the forks: committer, workers, housekeeper."""
    return [int(pid) for pid in Path(f"/proc/{server.pid}/task/{server.pid}/children").read_text().split()]


@contextmanager
def stopped(pid: int) -> Iterator[None]:
    os.kill(pid, signal.SIGSTOP)
    wait_until(lambda: Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "T")
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[ServerProcess]:
    running = ServerProcess(tmp_path / "server", environment={"CACHESRV_LOG__ACCESS": "false"}).start()
    yield running
    running.stop()


def test_faults_stopped_committer_lets_reads_go_on_and_saves_come_back(server: ServerProcess) -> None:
    client = Client(server)
    sizes = {"tiny": 500, "small": 30_000, "large": 3 * MB}
    for key, size in sizes.items():
        assert client.saved(key, content(key, size))
    with stopped(children(server)[0]):
        steps = client.save("during", content("during"))
        assert is_refusal(steps[-1]), steps[-1]
        assert steps[-1].seconds < COMMITTER_TIMEOUT_SECONDS + 1
        for key, size in sizes.items():
            began = time.monotonic()
            assert client.restore(key) == content(key, size)
            assert time.monotonic() - began < 1.0
        assert client.restore("during") is None
    wait_until(lambda: client.saved("after", content("after")), seconds=10)
    assert client.restore("after") == content("after")
    for key, size in sizes.items():
        assert client.restore(key) == content(key, size)


def test_faults_stopped_worker_does_not_stop_the_other(server: ServerProcess) -> None:
    assert Client(server).saved("before", content("before"))
    _, first, second, _ = children(server)
    # A connection may fall to the worker that is stopped: its client gives up and comes again.
    client = Client(server, patience=0.3, tries=30)
    for victim, number in ((first, 1), (second, 2)):
        with stopped(victim):
            assert client.restore("before") == content("before")
            for attempt in range(3):
                key = f"k{number}-{attempt}"
                assert client.saved(key, content(key, 20_000))
                assert client.restore(key) == content(key, 20_000)
    assert Client(server).restore("before") == content("before")


def test_faults_stopped_housekeeper_is_not_missed(server: ServerProcess) -> None:
    client = Client(server)
    with stopped(children(server)[-1]):
        for number in range(5):
            assert client.saved(f"k{number}", content(f"k{number}"))
            assert client.restore(f"k{number}") == content(f"k{number}")
