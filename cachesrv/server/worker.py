"""The processes that have an event loop: a worker's life and the housekeeper's.

A worker opens the store, starts its rooms, serves its sockets until SIGTERM, then drains: it stops accepting, finishes
requests in progress within ``server.drain``, stops the rooms, closes the store. A second SIGTERM cuts the drain short.

The loop is asyncio's own: uvloop has no sendfile (measured: 1.43 instead of 2.0 GB/s on 256 MiB downloads).
"""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import socket
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack
from typing import Final

import structlog

from cachesrv.server.application import Application
from cachesrv.server.child import StartupError
from cachesrv.server.connections import HttpServer
from cachesrv.server.health import HealthRoom
from cachesrv.server.listeners import BACKLOG
from cachesrv.server.memory import keep_trimmed, use_one_heap
from cachesrv.server.parts import Duty, Parts, Ready
from cachesrv.settings_source import SettingsInvalid
from cachesrv.store.errors import StoreError

EXECUTOR_THREADS: Final = 8
"""Threads of the loop's default executor: name look-ups and what rooms send to ``asyncio.to_thread``."""
HOUSEKEEPER_NICE: Final = 10
"""What is done behind the acknowledgement yields the cores to what somebody waits for: a tenth of a worker's weight."""
GC_THRESHOLD: Final = 20_000
"""New objects between two passes of the collector: with Python's 700 it runs every few requests."""
ACCEPT_TURNS: Final = 3
"""Turns of the loop from an accepted connection to its transport, and one to spare."""

_log = structlog.stdlib.get_logger("cachesrv.server")


def run_worker(duty: Duty, sockets: Sequence[socket.socket], parts: Parts, ready: Ready) -> None:
    """The body of a worker process. Raises StartupError when it cannot start for a reason a person must mend."""
    use_one_heap()
    _run(lambda stop, hurry: _serve(duty, sockets, parts, ready, stop, hurry))


def run_housekeeper(duty: Duty, parts: Parts, ready: Ready) -> None:
    """The body of the housekeeper process."""

    async def keep(stop: asyncio.Event, hurry: asyncio.Event) -> None:
        await parts.keep(duty, stop, ready)

    os.nice(HOUSEKEEPER_NICE)

    _run(keep)


def _run(life: Callable[[asyncio.Event, asyncio.Event], Awaitable[None]]) -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        loop.set_default_executor(ThreadPoolExecutor(EXECUTOR_THREADS, "default"))
        stop, hurry = asyncio.Event(), asyncio.Event()

        def told() -> None:
            (hurry if stop.is_set() else stop).set()

        loop.add_signal_handler(signal.SIGTERM, told)
        await life(stop, hurry)

    try:
        asyncio.run(main())
    except (SettingsInvalid, StoreError) as error:
        raise StartupError(str(error)) from error


async def _serve(
    duty: Duty,
    sockets: Sequence[socket.socket],
    parts: Parts,
    ready: Ready,
    stop: asyncio.Event,
    hurry: asyncio.Event,
) -> None:
    loop = asyncio.get_running_loop()
    async with AsyncExitStack() as cleanup:
        served = await cleanup.enter_async_context(parts.serve(duty))
        rooms = [HealthRoom(served.check, stop.is_set), *served.rooms]
        for room in rooms:
            await room.start()
            cleanup.push_async_callback(room.stop)
        http = HttpServer(Application(rooms), access=duty.settings.log.access)
        listening = []
        for each in sockets:
            # Not create_unix_server: it unlinks the path when this worker stops.
            listening.append(await loop.create_server(http, sock=each, backlog=BACKLOG))
        # What start-up made stays for ever: the collector need not walk it again and again between requests.
        gc.collect()
        gc.freeze()
        gc.set_threshold(GC_THRESHOLD, 10, 50)
        ready()
        trimming = asyncio.create_task(keep_trimmed(), name="trim-memory")
        cleanup.callback(trimming.cancel)
        await stop.wait()
        await _stop_accepting(listening)
        cut = await http.drain(duty.settings.server.drain, hurry)
        if cut:
            _log.warning("requests cut off", requests=cut, after_seconds=duty.settings.server.drain)


async def _stop_accepting(listening: Sequence[asyncio.Server]) -> None:
    """Give up this process's copies of the sockets without losing a connection that was just accepted: asyncio resets
    those whose transport is not made yet when ``Server.close`` is called (seen under load)."""
    loop = asyncio.get_running_loop()
    for server in listening:
        for each in server.sockets:
            loop.remove_reader(each.fileno())
    for _ in range(ACCEPT_TURNS):
        await asyncio.sleep(0)
    for server in listening:
        server.close()
