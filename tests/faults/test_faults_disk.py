"""The real program on disks that are too small, full, or gone read-only: never a wrong byte, clear refusals, and it
recovers by itself."""

from __future__ import annotations

import os
import random
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import RequireClient
from tests.faults.small_disk import Client, can_mount, disk_bytes, is_ok, is_refusal, tmpfs
from tests.server_process import ServerProcess

MB = 1_000_000
QUIET = {"CACHESRV_LOG__ACCESS": "false", "CACHESRV_STORE__ZSTD_LEVEL": "0"}


def content(key: str, size: int) -> bytes:
    return random.Random(key).randbytes(size)


@pytest.fixture
def disk(tmp_path: Path, require_client: RequireClient) -> Iterator[Path]:
    """A disk of 96 MB, half of which the index and the lists take."""
    require_client("mount (as root)", can_mount())
    with tmpfs(tmp_path / "disk", 96 * MB) as folder:
        yield folder


def start(tmp_path: Path, disk: Path, **settings: str) -> ServerProcess:
    """A server whose data, and nothing else, lies on ``disk``."""
    server = ServerProcess(tmp_path / "server", environment={**QUIET, **settings})
    server.data = disk / "data"
    return server.start()


def test_faults_disk_full_refuses_saves_serves_reads_and_recovers(tmp_path: Path, disk: Path) -> None:
    server = start(
        tmp_path, disk, CACHESRV_STORE__MIN_FREE="0", CACHESRV_STORE__MAX_SIZE="50GB", CACHESRV_STORE__STALE_UPLOAD="2s"
    )
    try:
        client = Client(server)
        made = fill(client, 3 * MB)
        # What is still there was asked for now: it stays, however full the disk gets.
        kept = {key: size for key, size in made.items() if client.restore(key) == content(key, size)}
        assert kept
        eat_the_rest(disk)
        for size in (3 * MB, 100_000, 20_000, 5_000, 500):
            for number in range(20):
                key = f"{size}-{number}"
                steps = client.save(key, content(key, size))
                assert steps[-1].seconds < 1.0
                if len(steps) == 3 and is_ok(steps[-1]):
                    kept[key] = size
                    assert client.restore(key) == content(key, size)
                else:
                    assert is_refusal(steps[-1]), steps[-1]
                    assert client.restore(key) is None
            eat_the_rest(disk)
        assert is_refusal(client.save("no-room", content("no-room", MB))[-1])
        for key, size in kept.items():
            assert client.restore(key) == content(key, size), key
        assert "killed by" not in server.log

        (disk / "eaten").unlink()
        wait_for_save(client)
        for key, size in kept.items():
            assert client.restore(key) == content(key, size), key
        server.stop()
    finally:
        server.kill()


def eat_the_rest(disk: Path) -> None:
    with (disk / "eaten").open("ab", buffering=0) as file:
        try:
            while True:
                file.write(bytes(4096))
        except OSError:
            pass


def fill(client: Client, size: int) -> dict[str, int]:
    """Save until it is refused; the refusal must be quick and clear."""
    saved: dict[str, int] = {}
    for number in range(100):
        key = f"big-{number}"
        steps = client.save(key, content(key, size))
        if not (len(steps) == 3 and is_ok(steps[-1])):
            assert is_refusal(steps[-1]), steps[-1]
            assert steps[-1].seconds < 1.0
            return saved
        saved[key] = size
    raise AssertionError("the disk never got full")


def wait_for_save(client: Client, *, seconds: float = 30.0) -> None:
    deadline = time.monotonic() + seconds
    number = 0
    while not client.saved(f"again-{number}", content(f"again-{number}", MB)):
        assert time.monotonic() < deadline, "saves never worked again"
        number += 1
        time.sleep(0.2)
    assert client.restore(f"again-{number}") == content(f"again-{number}", MB)


def test_faults_disk_with_a_floor_makes_room_for_new_saves(tmp_path: Path, disk: Path) -> None:
    """The whole disk for the cache, its end kept free: saves push out the oldest, for as long as one likes."""
    server = start(tmp_path, disk, CACHESRV_STORE__MIN_FREE="20MB", CACHESRV_STORE__MAX_SIZE="2GB")
    try:
        client = Client(server)
        refused = 0
        last = ""
        for number in range(80):
            key = f"k{number}"
            while not client.saved(key, content(key, 2 * MB)):
                refused += 1
                key = f"k{number}-{refused}"
                time.sleep(0.2)
                assert refused < 400, "room never came"
            last = key
        assert client.restore(last) == content(last, 2 * MB)
        assert client.restore("k0") is None
        server.stop()
    finally:
        server.kill()


def test_faults_disk_budget_holds_under_continuous_load(tmp_path: Path) -> None:
    budget = 40 * MB
    server = ServerProcess(
        tmp_path / "server",
        environment={**QUIET, "CACHESRV_STORE__MIN_FREE": "0", "CACHESRV_STORE__MAX_SIZE": "40MB"},
    ).start()
    try:
        client = Client(server)
        chosen = random.Random(5)
        sizes: dict[str, int] = {}
        most = 0
        end = time.monotonic() + 20
        while time.monotonic() < end:
            key = f"k{len(sizes)}"
            size = chosen.choice((500, 30_000, 700_000, 2 * MB))
            if client.saved(key, content(key, size)):
                sizes[key] = size
            # Few are asked for, since those are promised from then on.
            wanted = f"k{chosen.randrange(0, len(sizes), 10)}"
            got = client.restore(wanted)
            assert got is None or got == content(wanted, sizes[wanted]), wanted
            most = max(most, disk_bytes(server.data))
            time.sleep(0.02)
        written = sum(sizes.values())
        assert written > 2 * budget, "too little load to prove anything"
        # Evicted files lie in their graves for some seconds: what was saved in ten of twenty is the slack.
        assert most < budget + written // 2, f"{most} bytes on disk"
        deadline = time.monotonic() + 30
        while disk_bytes(server.data) > budget:
            assert time.monotonic() < deadline, f"{disk_bytes(server.data)} bytes stay on disk"
            time.sleep(0.1)
        server.stop()
    finally:
        server.kill()


def test_faults_disk_gone_read_only_serves_reads_refuses_saves_and_is_whole_after(
    tmp_path: Path, require_client: RequireClient
) -> None:
    """An ext4 that shut itself off, as after an error of the device: only mounting it again makes it writable."""
    require_client("mount (as root)", can_mount())
    image, folder = tmp_path / "image", tmp_path / "disk"
    folder.mkdir()
    with image.open("wb") as file:
        file.truncate(256 * MB)
    made = subprocess.run(["mkfs.ext4", "-q", "-F", image], check=False, capture_output=True)
    require_client("mkfs.ext4", made.returncode == 0)
    mounted = subprocess.run(["mount", "-o", "loop", image, folder], check=False, capture_output=True)
    require_client("a loop device", mounted.returncode == 0)
    server = start(tmp_path, folder, CACHESRV_STORE__MIN_FREE="0")
    try:
        client = Client(server)
        for number, size in enumerate((500, 30_000, 3 * MB)):
            assert client.saved(f"k{number}", content(f"k{number}", size))
        subprocess.run(["mount", "-o", "remount,abort", folder], check=True)
        for _ in range(3):
            for number, size in enumerate((500, 30_000, 3 * MB)):
                assert client.restore(f"k{number}") == content(f"k{number}", size)
            steps = client.save("new", content("new", MB))
            assert not (len(steps) == 3 and is_ok(steps[-1]))
            assert steps[-1].status in (200, 403, 503), steps[-1]
            assert steps[-1].seconds < 1.0
        assert client.restore("new") is None
        server.kill()
        wait_for_umount(folder)
        subprocess.run(["mount", "-o", "loop", image, folder], check=True)
        server.start()
        for number, size in enumerate((500, 30_000, 3 * MB)):
            assert client.restore(f"k{number}") == content(f"k{number}", size)
        wait_for_save(client)
        server.stop()
    finally:
        server.kill()
        wait_for_umount(folder)


def wait_for_umount(folder: Path) -> None:
    """The group ends a moment after its supervisor."""
    deadline = time.monotonic() + 20
    while subprocess.run(["umount", folder], check=False, capture_output=True).returncode:
        if not os.path.ismount(folder):
            return
        assert time.monotonic() < deadline, "somebody keeps the disk busy"
        time.sleep(0.1)
