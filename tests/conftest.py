"""What every test may ask for: the running program, job tokens, real clients, and a guard on the event loop."""

from __future__ import annotations

import os
from collections.abc import Callable, Generator, Iterator
from itertools import count
from pathlib import Path

import pytest
from blockbuster import BlockBuster, blockbuster_ctx

from tests.job_token import job_token
from tests.server_process import ServerProcess

_repositories = count(10_001)

RequireClient = Callable[[str, bool], None]


@pytest.fixture
def server(tmp_path: Path) -> Iterator[ServerProcess]:
    """A server of the test's own; stopped with SIGTERM, which must end it cleanly."""
    running = ServerProcess(tmp_path / "server").start()
    yield running
    running.stop()


@pytest.fixture(scope="session")
def shared_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """One server for many tests; tests keep apart by ``repository``, which is itself a promise of the server."""
    running = ServerProcess(tmp_path_factory.mktemp("shared")).start()
    yield running
    running.stop()


@pytest.fixture
def repository() -> str:
    """A repository id that no other test of this run uses."""
    return str(next(_repositories))


@pytest.fixture
def token() -> Callable[..., str]:
    """Makes job tokens: ``token("1001", [("refs/heads/main", 3)], secret=None)``."""
    return job_token


@pytest.fixture
def require_client() -> RequireClient:
    """``require_client(name, present)``: go on when the client is there, else a visible skip.

    With CACHESRV_NO_SKIPS=1 (``make test-all``) a missing client is a failure.
    """
    return absent_client


def absent_client(name: str, present: bool) -> None:
    if present:
        return
    if os.environ.get("CACHESRV_NO_SKIPS") == "1":
        pytest.fail(f"{name} is not installed, and CACHESRV_NO_SKIPS=1 (run scripts/install-system-clients)")
    pytest.skip(f"{name} is not installed")


@pytest.fixture
def loop_guard() -> Iterator[BlockBuster]:
    """Fails the test when cachesrv blocks the event loop; for in-process async tests."""
    with blockbuster_ctx(scanned_modules=["cachesrv"]) as guard:
        # On a socket that never blocks, sendfile does not either: the files were read and checked before.
        guard.functions["os.sendfile"].can_block_in("cachesrv/web/sendfile.py", "_step")
        yield guard


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """CACHESRV_NO_SKIPS=1 turns every skip, whoever asked for it, into a failure."""
    report = yield
    if os.environ.get("CACHESRV_NO_SKIPS") == "1" and report.skipped and not hasattr(report, "wasxfail"):
        report.outcome = "failed"
        report.longrepr = f"skipped, and CACHESRV_NO_SKIPS=1 allows none: {report.longrepr}"
    return report
