"""``cachesrv stats --url`` against a server: the answer, the token, and servers that are something else."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from aiohttp import web
from aiohttp.test_utils import RawTestServer
from click.testing import CliRunner, Result

from cachesrv.cli.stats import stats
from cachesrv.observe import layout
from cachesrv.observe.counters import SharedRecorder, counters_path, open_counters
from cachesrv.observe.room import ObserveRoom
from cachesrv.web.room import Handler
from tests.unit.observe.fake_view import FakeView


@contextmanager
def serving(make: Callable[[], Handler]) -> Iterator[str]:
    """A server on a loop of its own, as the command has its own; gives the URL."""
    started = threading.Event()
    found: list[str] = []
    loops: list[tuple[asyncio.AbstractEventLoop, asyncio.Event]] = []

    async def life() -> None:
        stop = asyncio.Event()
        async with RawTestServer(make()) as server:
            found.append(str(server.make_url("/")))
            loops.append((asyncio.get_running_loop(), stop))
            started.set()
            await stop.wait()

    thread = threading.Thread(target=asyncio.run, args=(life(),))
    thread.start()
    assert started.wait(10)
    yield found[0]
    loop, stop = loops[0]
    loop.call_soon_threadsafe(stop.set)
    thread.join()


def ask(*arguments: str, **environ: str) -> Result:
    return CliRunner().invoke(stats, arguments, env=environ)


@pytest.fixture
def closed(tmp_path: Path) -> Iterator[str]:
    open_counters(counters_path(tmp_path), layout.slots_for(1))
    recorder = SharedRecorder(counters_path(tmp_path), layout.worker_slot(0))
    recorder.request("actions", "lookup", "hit", tenant="octo/repo", seconds=0.001)

    def make() -> Handler:
        room = ObserveRoom(tmp_path, FakeView(), budget=10, local=False, admin_token="sesame")

        async def answer(request: web.BaseRequest) -> web.StreamResponse:
            handler = room.match(request.method, request.path)
            return await handler(request) if handler else web.Response(status=404)

        return answer

    with serving(make) as url:
        yield url


def test_the_token_comes_from_the_flag_or_the_settings(closed: str) -> None:
    for arguments, environ in ((["--token", "sesame"], {}), ([], {"CACHESRV_AUTH__ADMIN_TOKEN": "sesame"})):
        result = ask("--url", closed, "--json", *arguments, **environ)
        assert result.exit_code == 0, result.output
        assert json.loads(result.output)["windows"]["all"]["total"]["hits"] == 1
    shown = ask("--url", closed, "--token", "sesame")
    assert "octo/repo" in shown.output


def test_a_refusal_says_why(closed: str) -> None:
    result = ask("--url", closed)
    assert result.exit_code == 1
    assert "401" in result.output
    assert "auth.admin_token" in result.output
    assert "403" in ask("--url", closed, "--token", "wrong").output


@pytest.mark.parametrize(("status", "body"), [(404, b"<html>"), (200, b"<html>"), (200, b'{"schema": 1}'), (302, b"")])
def test_something_else_answers_there(status: int, body: bytes) -> None:
    async def answer(request: web.BaseRequest) -> web.StreamResponse:
        return web.Response(status=status, body=body, headers={"Location": "/elsewhere"} if status == 302 else {})

    with serving(lambda: answer) as url:
        for arguments in ([], ["--json"]):
            result = ask("--url", url, *arguments)
            assert result.exit_code == 1, (arguments, result.output)
            assert "Traceback" not in result.output
