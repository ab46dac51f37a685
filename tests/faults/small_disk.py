"""File systems of a few megabytes, made and unmade by the test; and saves as a v2 client makes them."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from tests.job_token import job_token
from tests.server_process import ServerProcess

SERVICE = "/twirp/github.actions.results.api.v1.CacheService/"


def can_mount() -> bool:
    return os.geteuid() == 0 and shutil.which("mount") is not None


@contextmanager
def tmpfs(folder: Path, size: int) -> Iterator[Path]:
    """A tmpfs of ``size`` bytes at ``folder``."""
    folder.mkdir(parents=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size},mode=700", "tmpfs", folder], check=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", folder], check=True)


@dataclass(frozen=True)
class Answer:
    """``seconds``: until the last byte."""

    status: int
    body: bytes
    seconds: float

    @property
    def json(self) -> dict[str, object]:
        parsed = json.loads(self.body)
        assert isinstance(parsed, dict)
        return parsed


def ask(method: str, url: str, body: bytes | None = None, patience: float = 60.0, **headers: str) -> Answer:
    """Raises TimeoutError."""
    request = urllib.request.Request(url, body, method=method)
    for name, value in headers.items():
        request.add_header(name.replace("_", "-"), value)
    began = time.monotonic()
    try:
        with urllib.request.urlopen(request, timeout=patience) as answer:
            return Answer(answer.status, answer.read(), time.monotonic() - began)
    except urllib.error.HTTPError as error:
        with error:
            return Answer(error.code, error.read(), time.monotonic() - began)
    except urllib.error.URLError as error:
        if isinstance(error.reason, TimeoutError):
            raise error.reason from error
        raise


class Client:
    """One repository's client. A request without an answer for ``patience`` seconds is sent again, ``tries`` times in
    all, each on a connection of its own."""

    def __init__(self, server: ServerProcess, *, patience: float = 60.0, tries: int = 1) -> None:
        self._server = server
        self._patience = patience
        self._tries = tries
        self._token = f"Bearer {job_token('4711')}"

    def ask(self, method: str, url: str, body: bytes | None = None, **headers: str) -> Answer:
        for _ in range(self._tries - 1):
            with suppress(TimeoutError):
                return ask(method, url, body, self._patience, **headers)
        return ask(method, url, body, self._patience, **headers)

    def call(self, method: str, **body: object) -> Answer:
        data = json.dumps({"version": "v", **body}).encode()
        headers = {"Authorization": self._token, "Content_Type": "application/json"}
        return self.ask("POST", self._server.url + SERVICE + method, data, **headers)

    def save(self, key: str, data: bytes) -> list[Answer]:
        """What each step answered; it went well when the last of three says ok."""
        steps = [self.call("CreateCacheEntry", key=key)]
        if not is_ok(steps[-1]):
            return steps
        url = str(steps[0].json["signed_upload_url"])
        steps.append(self.ask("PUT", url, data, x_ms_blob_type="BlockBlob"))
        if steps[-1].status == 201:
            steps.append(self.call("FinalizeCacheEntryUpload", key=key, size_bytes=str(len(data))))
        return steps

    def saved(self, key: str, data: bytes) -> bool:
        steps = self.save(key, data)
        return len(steps) == 3 and is_ok(steps[-1])

    def restore(self, key: str) -> bytes | None:
        """None is a miss. Any other trouble fails the test."""
        found = self.call("GetCacheEntryDownloadURL", key=key)
        assert found.status == 200, found
        if not found.json.get("ok") or found.json["matched_key"] != key:
            return None
        got = self.ask("GET", str(found.json["signed_download_url"]))
        assert got.status == 200, got
        return got.body


def is_ok(answer: Answer) -> bool:
    return answer.status == 200 and answer.json.get("ok") is True


def is_refusal(answer: Answer) -> bool:
    """What a client understands as "not saved": ok:false, or 503 in the words of the dialect."""
    if answer.status == 200:
        return answer.json.get("ok") is False
    return answer.status == 503 and (b"ServerBusy" in answer.body or b'"unavailable"' in answer.body)


def disk_bytes(folder: Path) -> int:
    """Bytes of all data files."""
    found = 0
    for name in ("f", "p"):
        for file in (folder / name).rglob("*"):
            try:
                found += file.stat().st_size
            except FileNotFoundError:
                continue
    return found
