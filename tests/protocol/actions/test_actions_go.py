"""BuildKit's cache exporter and importer against the room, by the strict imitation of its client."""

from __future__ import annotations

import asyncio
import random

import pytest

from tests.protocol.actions.actions_server import ActionsServer
from tests.protocol.actions.go_client import MIB, GoClient, GoError, GoExists


@pytest.fixture(params=["v1", "v2"])
def go(request: pytest.FixtureRequest, cache: ActionsServer) -> GoClient:
    cache.prefix = "/pfx"
    return GoClient(cache, v2=request.param == "v2")


@pytest.mark.parametrize("size", [6, MIB - 1, MIB, 3 * MIB + 5])
async def test_t01_save_and_load(go: GoClient, size: int) -> None:
    content = random.Random(size).randbytes(size)
    key = "buildkit-blob-1-sha256:" + "0f" * 32
    assert await go.load(key) is None
    await go.save(key, content)
    found = await go.load(key)
    assert found
    assert found[0] == key
    assert await go.read(found[1]) == content
    assert await go.read(found[1], offset=size // 2) == content[size // 2 :]


async def test_t09_an_existing_key_is_err_exist(go: GoClient) -> None:
    await go.save("k", b"foobar")
    with pytest.raises(GoExists):
        await go.save("k", b"foobar")


async def test_t10_load_by_prefix(go: GoClient) -> None:
    await go.save("key-of-test-1", b"foobar")
    found = await go.load("key-o")
    assert found
    assert found[0] == "key-of-test-1"


async def test_t20_mutable_index_counts_by_creation_not_by_text(go: GoClient) -> None:
    name = "index-buildkit-1-0a1b2c3d"
    for number in range(1, 12):
        assert await go.save_mutable(name, str(number).encode()) == f"{name}#{number}"
        found = await go.load(f"{name}#")
        assert found
        assert found[0] == f"{name}#{number}"
        assert await go.read(found[1]) == str(number).encode()


async def test_t20_parallel_exports_take_different_numbers(go: GoClient) -> None:
    names = await asyncio.gather(*(go.save_mutable("index-x-1", b"%d" % n) for n in range(8)))
    assert sorted(int(name.rpartition("#")[2]) for name in names) == list(range(1, 9))


async def test_t12_a_read_only_job_fails_its_export_and_not_its_import(go: GoClient) -> None:
    await go.save("k", b"foobar")
    reader = GoClient(go.cache.as_job(scopes=[("refs/heads/main", 1)]), v2=go.v2)
    found = await reader.load("k")
    assert found
    assert await reader.read(found[1]) == b"foobar"
    with pytest.raises(GoError):
        await reader.save("k2", b"foobar")
