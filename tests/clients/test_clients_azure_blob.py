"""Azure's own SDKs, from PyPI and from npm, against the signed URLs: an independent reading of the blob subset."""

from __future__ import annotations

import base64
import hashlib
import random
from pathlib import Path
from typing import Any

import pytest
from azure.core.exceptions import HttpResponseError
from azure.storage.blob import BlobBlock, BlobClient

from tests.clients import npm_clients
from tests.clients.npm_clients import NodeRun
from tests.clients.results_service import ResultsService
from tests.conftest import RequireClient
from tests.job_token import job_token
from tests.server_process import ServerProcess

pytestmark = pytest.mark.client("azure-storage-blob")

VERSION = hashlib.sha256(b"azure").hexdigest()
KIB = 1024


@pytest.fixture
def service(shared_server: ServerProcess, repository: str) -> ResultsService:
    return ResultsService(shared_server.url, job_token(repository))


def blob(url: str, **options: Any) -> BlobClient:
    return BlobClient.from_blob_url(url, retry_total=0, **options)


def store(service: ResultsService, key: str, content: bytes) -> str:
    """Save ``content`` under ``key`` with one Put Blob; returns its download URL."""
    with blob(service.upload_url(key, VERSION)) as target:
        target.upload_blob(content, overwrite=True)
    service.finalize(key, VERSION, len(content))
    return service.download_url(key, VERSION)


@pytest.mark.parametrize("size", [0, 1, 64 * KIB, 3 * 1024 * KIB + 1])
def test_put_blob_and_get_back(service: ResultsService, size: int) -> None:
    content = random.Random(size).randbytes(size)
    with blob(store(service, "single", content)) as source:
        assert source.get_blob_properties().size == size
        assert source.download_blob().readall() == content


def test_parallel_staged_blocks(service: ResultsService) -> None:
    content = random.Random(3).randbytes(1024 * KIB + 333)
    with blob(service.upload_url("staged", VERSION), max_single_put_size=64 * KIB, max_block_size=64 * KIB) as target:
        target.upload_blob(content, overwrite=True, max_concurrency=4)
    service.finalize("staged", VERSION, len(content))
    with blob(
        service.download_url("staged", VERSION), max_single_get_size=100 * KIB, max_chunk_get_size=100 * KIB
    ) as source:
        assert source.download_blob(max_concurrency=4).readall() == content


def test_the_block_list_gives_the_order(service: ResultsService) -> None:
    parts = {name: random.Random(name).randbytes(70 * KIB) for name in ("d", "a", "c", "b")}
    with blob(service.upload_url("ordered", VERSION)) as target:
        for name, part in parts.items():
            target.stage_block(name, b"soon replaced")
            target.stage_block(name, part)
        target.stage_block("never-listed", b"dropped")
        target.commit_block_list([BlobBlock(name) for name in ("a", "b", "c", "d")])
    expected = b"".join(parts[name] for name in "abcd")
    service.finalize("ordered", VERSION, len(expected))
    with blob(service.download_url("ordered", VERSION)) as source:
        assert source.download_blob().readall() == expected


def test_a_block_list_with_an_unknown_block_is_refused(service: ResultsService) -> None:
    with blob(service.upload_url("holes", VERSION)) as target:
        target.stage_block("known", b"here")
        with pytest.raises(HttpResponseError) as refused:
            target.commit_block_list([BlobBlock("known"), BlobBlock("missing")])
    assert refused.value.status_code == 400
    assert "InvalidBlockList" in str(refused.value)


def test_ranges(service: ResultsService) -> None:
    content = random.Random(5).randbytes(300 * KIB)
    with blob(store(service, "ranges", content)) as source:
        assert source.download_blob(offset=1000, length=500).readall() == content[1000:1500]
        assert source.download_blob(offset=len(content) - 7).readall() == content[-7:]
        assert source.download_blob(offset=len(content) - 7, length=4096).readall() == content[-7:]
        with pytest.raises(HttpResponseError) as refused:
            source.download_blob(offset=len(content) + 1, length=10)
    assert refused.value.status_code == 416


def test_a_url_works_in_its_own_direction_only(service: ResultsService) -> None:
    upload = service.upload_url("direction", VERSION)
    with blob(upload) as target:
        target.upload_blob(b"content", overwrite=True)
        for read in (target.get_blob_properties, target.download_blob):
            with pytest.raises(HttpResponseError) as refused:
                read()
            assert refused.value.status_code == 403
    service.finalize("direction", VERSION, 7)
    with blob(service.download_url("direction", VERSION)) as source:
        with pytest.raises(HttpResponseError) as refused:
            source.upload_blob(b"poison", overwrite=True)
        assert refused.value.status_code == 403
        assert source.download_blob().readall() == b"content"


def test_a_bent_url_is_refused(service: ResultsService) -> None:
    url = store(service, "bent", b"content")
    path, _, query = url.partition("?")
    other = store(service, "other", b"secret").partition("?")[0]
    bent = [f"{other}?{query}", f"{path}?{query.replace('sig=', 'sig=A')}", f"{path}?sp=r"]
    for address in bent:
        with blob(address) as source, pytest.raises(HttpResponseError) as refused:
            source.download_blob()
        assert refused.value.status_code == 403, address


@pytest.mark.parametrize(
    ("size", "single_shot"), [(100, 256 * KIB), (1024 * KIB + 9, 64 * KIB), (1024 * KIB + 9, 8 * 1024 * KIB)]
)
def test_the_npm_sdk(
    service: ResultsService, tmp_path: Path, require_client: RequireClient, size: int, single_shot: int
) -> None:
    require_client("@azure/storage-blob", npm_clients.installed())
    sdk = "@azure/storage-blob"
    workspace = tmp_path / "workspace"
    workspace.mkdir()
    upload: dict[str, object] = {
        "package": sdk,
        "operation": "upload",
        "url": service.upload_url("npm", VERSION),
        "size": size,
        "blockSize": 64 * KIB,
        "singleShot": single_shot,
    }
    uploaded = NodeRun(upload, {}, workspace).answer()
    assert uploaded.error is None, uploaded
    service.finalize("npm", VERSION, size)
    url = service.download_url("npm", VERSION)
    download: dict[str, object] = {"package": sdk, "operation": "download", "url": url, "offset": 10, "count": 20}
    downloaded = NodeRun(download, {}, workspace).answer()
    assert downloaded.error is None, downloaded
    assert downloaded.value["size"] == size
    assert downloaded.value["sha256"] == uploaded.value["sha256"]
    with blob(url) as source:
        content = source.download_blob().readall()
    assert hashlib.sha256(content).hexdigest() == uploaded.value["sha256"]
    assert base64.b64decode(downloaded.value["part"]) == content[10:30]
