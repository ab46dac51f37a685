"""PyPI opendal's ``ghac`` service: protobuf v2, 16-byte block ids, ranges, and v1 with a raw version text."""

from __future__ import annotations

import hashlib
import os
import random

import opendal
import pytest

from tests.clients.npm_clients import cache_environment
from tests.job_token import job_token
from tests.server_process import ServerProcess

pytestmark = pytest.mark.client("opendal")

both_dialects = pytest.mark.parametrize("dialect", ["v1", "v2"])


@pytest.fixture
def operator(
    shared_server: ServerProcess, repository: str, dialect: str, monkeypatch: pytest.MonkeyPatch
) -> opendal.Operator:
    for name in [name for name in os.environ if name.startswith(("ACTIONS_", "GITHUB_"))]:
        monkeypatch.delenv(name)
    for name, value in cache_environment(shared_server.url, job_token(repository), dialect).items():
        monkeypatch.setenv(name, value)
    return opendal.Operator("ghac", version="tests-1", root="/project")


@both_dialects
def test_write_and_read(operator: opendal.Operator) -> None:
    operator.write("dir/a b+c%d#é.bin", b"some bytes")
    assert operator.read("dir/a b+c%d#é.bin") == b"some bytes"


@both_dialects
def test_ranges_and_size(operator: opendal.Operator) -> None:
    content = random.Random(1).randbytes(100_003)
    operator.write("ranged", content)
    assert operator.stat("ranged").content_length == len(content)
    with operator.open("ranged", "rb") as file:
        assert file.read(10) == content[:10]
        file.seek(99_990)
        assert file.read() == content[99_990:]


@both_dialects
def test_a_miss_is_a_miss(operator: opendal.Operator) -> None:
    assert not operator.exists("never-written")
    with pytest.raises(opendal.exceptions.NotFound):
        operator.read("never-written")


@both_dialects
def test_an_object_of_many_blocks(operator: opendal.Operator) -> None:
    content = random.Random(2).randbytes(3 * 1024**2 + 17)
    with operator.open("blocks", "wb") as file:
        for start in range(0, len(content), 100_000):
            file.write(content[start : start + 100_000])
    assert hashlib.sha256(operator.read("blocks")).digest() == hashlib.sha256(content).digest()


@both_dialects
def test_a_second_write_changes_nothing(operator: opendal.Operator) -> None:
    operator.write("once", b"first")
    with pytest.raises(opendal.exceptions.AlreadyExists):
        operator.write("once", b"second")
    assert operator.read("once") == b"first"
