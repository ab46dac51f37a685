"""The real program on damaged files: a client gets the right bytes, or a broken download and then a miss."""

from __future__ import annotations

import http.client
import random
import urllib.error
from pathlib import Path

import pytest

from tests.doubles.group_process import wait_until
from tests.faults.small_disk import Client, ask, is_ok
from tests.server_process import ServerProcess

MB = 1_000_000
SETTINGS = {"CACHESRV_LOG__ACCESS": "false", "CACHESRV_STORE__ZSTD_LEVEL": "0"}


def content(key: str, size: int) -> bytes:
    return random.Random(key).randbytes(size)


def bytes_of(url: str) -> bytes:
    """What a client has when the download ends, or breaks."""
    try:
        got = ask("GET", url)
    except http.client.IncompleteRead as broken:
        return broken.partial
    except (ConnectionError, urllib.error.URLError):
        return b""
    assert got.status == 404
    return b""


def file_with(server: ServerProcess, data: bytes) -> tuple[Path, int]:
    """The data file that holds these bytes, and where."""
    for path in (*server.data.glob("f/*/*"), *server.data.glob("p/*")):
        found = path.read_bytes().find(data)
        if found >= 0:
            return path, found
    raise AssertionError("the bytes are in no file")


@pytest.mark.parametrize(("size", "at"), [(20_000, 10_000), (400_000, 0), (20 * MB, 0), (20 * MB, 19 * MB)])
def test_faults_damage_under_a_stopped_server_is_never_served(tmp_path: Path, size: int, at: int) -> None:
    server = ServerProcess(tmp_path / "server", environment=SETTINGS).start()
    try:
        client = Client(server)
        for key in ("hurt", "whole"):
            assert client.saved(key, content(key, size))
        path, start = file_with(server, content("hurt", size)[at : at + 1000])
        server.stop()
        with path.open("r+b") as file:
            file.seek(start + 500)
            byte = file.read(1)[0]
            file.seek(start + 500)
            file.write(bytes([byte ^ 1]))
        server.start()

        right = content("hurt", size)
        found = client.call("GetCacheEntryDownloadURL", key="hurt")
        if is_ok(found):  # else the housekeeping met it first, on its way to a digest
            got = bytes_of(str(found.json["signed_download_url"]))
            assert right.startswith(got)
            assert len(got) < len(right)
        wait_until(lambda: not is_ok(client.call("GetCacheEntryDownloadURL", key="hurt")))
        assert client.restore("whole") == content("whole", size)
        assert client.saved("hurt", right)
        assert client.restore("hurt") == right
    finally:
        server.kill()


def test_faults_damage_of_a_missing_file_is_a_miss_while_the_server_runs(tmp_path: Path) -> None:
    server = ServerProcess(tmp_path / "server", environment=SETTINGS).start()
    try:
        client = Client(server)
        for key in ("gone", "whole"):
            assert client.saved(key, content(key, 3 * MB))
        path, _ = file_with(server, content("gone", 3 * MB)[:1000])
        path.unlink()
        assert client.restore("gone") is None
        assert client.restore("whole") == content("whole", 3 * MB)
        assert client.saved("gone", content("gone", 3 * MB))
        assert client.restore("gone") == content("gone", 3 * MB)
        assert "its files are missing" in server.log
    finally:
        server.kill()
