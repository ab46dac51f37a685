"""The real program on the real store: processes die, saves and lookups go on."""

from __future__ import annotations

import http.client
import json
import os
import signal
import sys
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from tests.doubles.group_process import alive, wait_until
from tests.job_token import job_token
from tests.server_process import ServerProcess

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")


def children(server: ServerProcess) -> list[int]:
    """In the order of the forks: committer, workers, housekeeper."""
    return [int(pid) for pid in Path(f"/proc/{server.pid}/task/{server.pid}/children").read_text().split()]


def call(server: ServerProcess, method: str, path: str, body: object = None, **headers: str) -> tuple[int, bytes]:
    data = body if isinstance(body, bytes) else json.dumps(body).encode() if body is not None else None
    request = urllib.request.Request(server.url + path, data, method=method)
    request.add_header("Authorization", f"Bearer {job_token()}")
    request.add_header("Content-Type", "application/json")
    for name, value in headers.items():
        request.add_header(name.replace("_", "-"), value)
    with urllib.request.urlopen(request, timeout=30) as answer:
        return answer.status, answer.read()


def save(server: ServerProcess, key: str, content: bytes) -> None:
    """A whole save in protocol v1."""
    _, reserved = call(server, "POST", "/_apis/artifactcache/caches", {"key": key, "version": "v"})
    cache = f"/_apis/artifactcache/caches/{json.loads(reserved)['cacheId']}"
    call(server, "PATCH", cache, content, Content_Range=f"bytes 0-{len(content) - 1}/*")
    call(server, "POST", cache, {"size": len(content)})


def restored(server: ServerProcess, key: str) -> bytes:
    status, found = call(server, "GET", f"/_apis/artifactcache/cache?keys={key}&version=v")
    assert status == 200, key
    url: str = json.loads(found)["archiveLocation"]
    return call(server, "GET", url.removeprefix(server.url))[1]


def test_each_kind_of_process_may_die_between_two_requests(server: ServerProcess) -> None:
    committer, first, second, housekeeper = children(server)
    save(server, "before", b"b" * 300_000)
    for number, victim in enumerate((committer, first, second, housekeeper)):
        os.kill(victim, signal.SIGKILL)
        save(server, f"after-{number}", bytes([number]) * 300_000)
        assert restored(server, f"after-{number}") == bytes([number]) * 300_000
    wait_until(lambda: len(children(server)) == 4)

    assert restored(server, "before") == b"b" * 300_000
    assert server.log.count("killed by SIGKILL") == 4


def test_a_save_survives_the_death_of_the_whole_group_and_the_next_start_is_at_once(server: ServerProcess) -> None:
    save(server, "kept", b"k" * 2_000_000)
    group = children(server)

    server.kill()
    assert wait_until(lambda: not any(map(alive, group))) < 2.0
    server.start(patience=10.0)

    assert restored(server, "kept") == b"k" * 2_000_000


def test_sighup_renews_the_whole_group_on_the_real_store(server: ServerProcess) -> None:
    before = set(children(server))
    save(server, "before", b"x" * 5000)

    os.kill(server.pid, signal.SIGHUP)
    wait_until(lambda: len(children(server)) == 4 and not before & set(children(server)), seconds=20)

    assert restored(server, "before") == b"x" * 5000
    save(server, "after", b"y" * 5000)
    assert restored(server, "after") == b"y" * 5000


def test_sighup_takes_other_tokens_at_once(tmp_path: Path) -> None:
    config = tmp_path / "config.toml"
    config.write_text("")
    server = ServerProcess(tmp_path, arguments=["--config", str(config)]).start()
    before = set(children(server))
    save(server, "k", b"x" * 5000)
    config.write_text('[auth]\nmode = "shared-secret"\nshared_secret = "0123456789abcdef0123456789abcdef"\n')

    os.kill(server.pid, signal.SIGHUP)
    wait_until(lambda: len(children(server)) == 4 and not before & set(children(server)), seconds=20)

    with pytest.raises(urllib.error.HTTPError) as refused:  # remembered as good by the workers before
        restored(server, "k")
    assert refused.value.code == 401
    refused.value.close()
    config.write_text("")
    os.kill(server.pid, signal.SIGHUP)
    wait_until(lambda: server.log.count("auth.mode is 'none'") == 2)  # loud again
    server.stop()


def test_an_upload_under_way_at_sigterm_is_finished_and_goes_on_after_the_restart(server: ServerProcess) -> None:
    _, reserved = call(server, "POST", "/_apis/artifactcache/caches", {"key": "k", "version": "v"})
    cache = f"/_apis/artifactcache/caches/{json.loads(reserved)['cacheId']}"
    content = b"u" * 900_000
    connection = http.client.HTTPConnection(server.url.partition("//")[2], timeout=20)
    connection.putrequest("PATCH", cache)
    connection.putheader("Authorization", f"Bearer {job_token()}")
    connection.putheader("Content-Range", f"bytes 0-{len(content) - 1}/*")
    connection.putheader("Content-Length", str(len(content)))
    connection.endheaders(content[:500_000])

    os.kill(server.pid, signal.SIGTERM)
    wait_until(lambda: '"stopping"' in server.log)
    connection.send(content[500_000:])
    assert connection.getresponse().status == 204
    connection.close()
    server.stop()
    server.start()
    with pytest.raises(urllib.error.HTTPError) as incomplete:
        call(server, "POST", cache, {"size": len(content) + 1})
    assert incomplete.value.code == 400
    incomplete.value.close()
    call(server, "POST", cache, {"size": len(content)})

    assert restored(server, "k") == content
