"""The v2 cache service called with nothing but the standard library, to obtain signed URLs for other clients."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from dataclasses import dataclass
from typing import Any

_SERVICE = "twirp/github.actions.results.api.v1.CacheService"


@dataclass(frozen=True)
class ResultsService:
    url: str
    token: str

    def call(self, method: str, message: dict[str, object]) -> tuple[int, dict[str, Any]]:
        """Status and decoded JSON body of one Twirp call."""
        request = urllib.request.Request(
            f"{self.url}/{_SERVICE}/{method}",
            data=json.dumps(message).encode(),
            headers={"Authorization": f"Bearer {self.token}", "Content-Type": "application/json"},
        )
        try:
            with urllib.request.urlopen(request, timeout=30) as answer:
                return answer.status, json.loads(answer.read())
        except urllib.error.HTTPError as refusal:
            with refusal:
                return refusal.code, json.loads(refusal.read())

    def upload_url(self, key: str, version: str) -> str:
        status, answer = self.call("CreateCacheEntry", {"key": key, "version": version})
        assert status == 200, answer
        assert answer["ok"], answer
        return str(answer["signed_upload_url"])

    def finalize(self, key: str, version: str, size: int) -> None:
        message: dict[str, object] = {"key": key, "version": version, "size_bytes": str(size)}
        status, answer = self.call("FinalizeCacheEntryUpload", message)
        assert status == 200, answer
        assert answer["ok"], answer

    def download_url(self, key: str, version: str) -> str:
        status, answer = self.call("GetCacheEntryDownloadURL", {"key": key, "version": version})
        assert status == 200, answer
        assert answer["ok"], answer
        assert answer["matched_key"] == key
        return str(answer["signed_download_url"])
