"""The process group seen from outside: who dies is replaced, nobody is refused, everything ends in order."""

from __future__ import annotations

import http.client
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.doubles.group_process import Group, alive, wait_until

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")

StartGroup = Callable[..., Group]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[StartGroup]:
    groups: list[Group] = []

    def started(*arguments: str, environment: dict[str, str] | None = None) -> Group:
        groups.append(Group(tmp_path, *arguments, environment=environment))
        return groups[-1].start()

    yield started
    for group in groups:
        group.end()


class Clients:
    """Threads that open one connection after another and note every failure."""

    def __init__(self, group: Group, count: int = 4) -> None:
        self.group = group
        self.answered = 0
        self.refused: list[BaseException] = []
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._ask) for _ in range(count)]

    def __enter__(self) -> Clients:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def _ask(self) -> None:
        while not self._stop.is_set():
            try:
                assert self.group.get("/pid")[0] == 200
                self.answered += 1
            except OSError as error:
                self.refused.append(error)


def test_a_killed_worker_is_replaced_within_a_second_and_is_counted(start: StartGroup) -> None:
    group = start("--workers", "1")
    connection = group.connect()
    connection.request("GET", "/pid")
    pid = int(connection.getresponse().read())

    os.kill(pid, signal.SIGKILL)
    # The keep-alive connection is gone with its worker, the port is not: this waits in the queue of the same socket.
    status, answer = group.get("/pid")

    assert status == 200
    assert int(answer) != pid
    assert group.lines("restarts") == ["worker"]
    assert "killed by SIGKILL" in group.log
    connection.close()


def test_waiting_connections_of_a_stopped_and_killed_worker_are_served(start: StartGroup) -> None:
    group = start("--workers", "2")
    workers = group.worker_pids()
    for pid in workers:
        os.kill(pid, signal.SIGSTOP)
    waiting = [socket.create_connection((group.host, group.port), timeout=10) for _ in range(40)]
    for each in waiting:
        each.sendall(b"GET /pid HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
    for pid in workers:
        os.kill(pid, signal.SIGKILL)

    answers = []
    for each in waiting:
        with each, each.makefile("rb") as stream:
            answers.append(stream.read())

    assert all(answer.startswith(b"HTTP/1.1 200") for answer in answers)
    assert not {int(answer.rpartition(b"\n")[2]) for answer in answers} & workers


def test_a_killed_committer_is_replaced_and_requests_go_on(start: StartGroup) -> None:
    group = start()
    old = group.pid_of("committer")
    with Clients(group) as clients:
        wait_until(lambda: clients.answered > 20)
        os.kill(old, signal.SIGKILL)
        took = wait_until(lambda: group.pid_of("committer") != old)
        wait_until(lambda: group.get("/readyz")[0] == 200)

    assert took < 1.0
    assert clients.refused == []
    assert group.lines("restarts") == ["committer"]


def test_readyz_says_so_while_the_committer_does_not_answer(start: StartGroup) -> None:
    group = start("--workers", "1")
    committer = group.pid_of("committer")
    os.kill(committer, signal.SIGSTOP)

    status, text = group.get("/readyz")
    alive_status, _ = group.get("/healthz")
    os.kill(committer, signal.SIGCONT)

    assert (status, alive_status) == (503, 200)
    assert "committer" in text
    wait_until(lambda: group.get("/readyz")[0] == 200)


def test_when_the_supervisor_is_killed_nobody_goes_on_and_a_new_one_starts_at_once(start: StartGroup) -> None:
    group = start()
    children = group.children()
    assert len(children) == 4
    os.kill(children[0], signal.SIGSTOP)  # even a stopped one must go

    group.signal(signal.SIGKILL)
    assert group.process is not None
    group.process.wait(5)

    assert wait_until(lambda: not any(map(alive, children))) < 2.0
    again = start("--listen", f"127.0.0.1:{group.port}")
    assert again.get("/readyz")[0] == 200


def test_sigterm_finishes_what_is_in_progress_and_ends_the_committer_last(start: StartGroup) -> None:
    group = start("--workers", "1")
    upload = group.connect()
    upload.putrequest("PUT", "/echo")
    upload.putheader("Content-Length", "200000")
    upload.endheaders(b"x" * 100_000)
    download = group.connect()
    download.request("GET", "/slow?seconds=0.5")
    idle = group.connect()
    idle.request("GET", "/pid")
    idle.getresponse().read()
    wait_until((group.marks / "slow").exists)

    group.signal(signal.SIGTERM)
    wait_until(lambda: "stopping" in group.log)
    assert idle.sock is not None
    assert idle.sock.recv(1) == b""  # an idle connection is closed at once
    wait_until(lambda: _refused(group))
    upload.send(b"x" * 100_000)
    answer = upload.getresponse()

    assert answer.read() == b"200000"
    assert answer.getheader("Connection") == "close"
    assert download.getresponse().read() == b"done"
    assert group.process is not None
    assert group.process.wait(10) == 0
    assert group.lines("ended") == ["worker", "housekeeper", "committer"]
    for connection in (upload, download, idle):
        connection.close()


def _refused(group: Group) -> bool:
    try:
        socket.create_connection((group.host, group.port), timeout=5).close()
    except ConnectionRefusedError:
        return True
    return False


def test_a_second_signal_does_not_wait_for_requests(start: StartGroup) -> None:
    group = start("--workers", "1")
    connection = group.connect()
    connection.request("GET", "/slow?seconds=60")
    wait_until((group.marks / "slow").exists)

    group.signal(signal.SIGINT)
    wait_until(lambda: "stopping" in group.log)
    group.signal(signal.SIGINT)

    assert group.process is not None
    assert group.process.wait(5) == 0
    with pytest.raises((http.client.HTTPException, ConnectionError)):
        connection.getresponse()
    connection.close()


def test_the_drain_has_a_limit(start: StartGroup) -> None:
    group = start("--workers", "1", environment={"CACHESRV_SERVER__DRAIN": "200ms"})
    connection = group.connect()
    connection.request("GET", "/slow?seconds=60")
    wait_until((group.marks / "slow").exists)

    group.signal(signal.SIGTERM)

    assert group.process is not None
    assert group.process.wait(5) == 0
    assert "requests cut off" in group.log
    connection.close()


def test_sighup_replaces_every_process_and_refuses_nobody(start: StartGroup, tmp_path: Path) -> None:
    config = tmp_path / "config.toml"
    config.write_text('[log]\nlevel = "info"\n')
    group = start("--config", str(config))
    before = set(group.children())
    with Clients(group) as clients:
        wait_until(lambda: clients.answered > 20)
        config.write_text('[log]\nlevel = "warning"\n')
        group.signal(signal.SIGHUP)
        wait_until(lambda: len(group.children()) == 4 and not before & set(group.children()), seconds=20)
        wait_until(lambda: group.get("/level") == (200, "warning"))

    assert clients.refused == []
    assert group.lines("restarts") == []


def test_sighup_with_a_bad_file_names_the_line_and_changes_nothing(start: StartGroup, tmp_path: Path) -> None:
    config = tmp_path / "config.toml"
    config.write_text("")
    group = start("--config", str(config))
    before = group.children()
    config.write_text('[store]\nmax_sze = "1GB"\n')

    group.signal(signal.SIGHUP)
    wait_until(lambda: "the old ones stay" in group.log)

    assert f"{config}:2: store.max_sze: unknown key; did you mean 'max_size'?" in group.log
    assert group.children() == before
    assert group.get("/pid")[0] == 200


def test_sighup_with_settings_that_no_worker_can_live_with_keeps_the_old_workers(
    start: StartGroup, tmp_path: Path
) -> None:
    config = tmp_path / "config.toml"
    config.write_text("")
    group = start("--config", str(config), environment={"FAKE_BAD_LEVEL": "error"})
    before = group.worker_pids()
    config.write_text('[log]\nlevel = "error"\n')

    group.signal(signal.SIGHUP)
    wait_until(lambda: "the fake room does not like this level" in group.log)

    wait_until(lambda: group.worker_pids() == before)
    os.kill(min(before), signal.SIGKILL)
    wait_until(lambda: min(before) not in group.worker_pids() and len(group.worker_pids()) == 2)
    assert group.get("/level") == (200, "info")


def test_a_folder_in_use_and_a_port_in_use_are_said_in_one_line(start: StartGroup, tmp_path: Path) -> None:
    group = start()
    (tmp_path / "other").mkdir()
    same_folder = Group(tmp_path / "other")
    same_folder.data = group.data
    same_port = Group(tmp_path / "other", "--listen", f"127.0.0.1:{group.port}")

    for other, reason in (
        (same_folder, "another cachesrv owns this data folder"),
        (same_port, f"cannot listen on 127.0.0.1:{group.port}: it is in use"),
    ):
        assert other.spawn().wait(15) == 1
        assert reason in other.log
        assert "Traceback" not in other.log


def test_a_worker_that_cannot_start_ends_the_start_with_its_reason(tmp_path: Path) -> None:
    group = Group(tmp_path, environment={"FAKE_BAD_LEVEL": "info"})

    assert group.spawn().wait(15) == 1
    assert "Error: the fake room does not like this level" in group.log


def test_unix_sockets_are_shared_by_all_workers_and_removed_at_the_end(start: StartGroup, tmp_path: Path) -> None:
    path = tmp_path / "cache.sock"
    group = start("--listen", "127.0.0.1:0", "--listen", f"unix:{path}")
    pid = min(group.worker_pids())
    os.kill(pid, signal.SIGKILL)

    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(path))
        client.sendall(b"GET /pid HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        with client.makefile("rb") as stream:
            assert stream.read().startswith(b"HTTP/1.1 200")

    assert path.stat().st_mode & 0o777 == 0o660
    assert group.end() == 0
    assert not path.exists()
