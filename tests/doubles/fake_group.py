"""``serve`` with doubles for the store, its processes and the rooms: the program's own behaviour, nothing below it.

Run as ``python fake_group.py [serve's arguments]``. Its room answers ``/pid``, ``/slow?seconds=S`` (after S seconds),
``/echo`` (PUT: counts the body), ``/boom`` (raises), ``/half`` (raises after the first bytes), ``/level`` (log.level).
``/readyz`` asks the fake committer over a real socket.
"""

from __future__ import annotations

import asyncio
import fcntl
import logging
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import click
from aiohttp import web

from cachesrv.cli import serve as serve_module
from cachesrv.config import Settings
from cachesrv.server.child import StartupError
from cachesrv.server.parts import Duty, Parts, Ready, Served
from cachesrv.store.errors import StoreLocked
from cachesrv.web.bodies import RequestBody
from cachesrv.web.room import Handler


class FakeRoom:
    name = "fake"

    def __init__(self, settings: Settings) -> None:
        self._settings = settings

    def match(self, method: str, path: str) -> Handler | None:
        handlers: dict[str, Handler] = {
            "/pid": self._pid,
            "/slow": self._slow,
            "/echo": self._echo,
            "/boom": self._boom,
            "/half": self._half,
            "/level": self._level,
        }
        return handlers.get(path)

    async def start(self) -> None:
        if os.environ.get("FAKE_BAD_LEVEL") == self._settings.log.level:
            raise StartupError("the fake room does not like this level")

    async def stop(self) -> None:
        return

    async def _pid(self, request: web.BaseRequest) -> web.StreamResponse:
        return web.Response(text=str(os.getpid()))

    async def _slow(self, request: web.BaseRequest) -> web.StreamResponse:
        await asyncio.to_thread(Path(os.environ["FAKE_MARKS"], "slow").touch)
        await asyncio.sleep(float(request.query["seconds"]))
        return web.Response(text="done")

    async def _echo(self, request: web.BaseRequest) -> web.StreamResponse:
        body = RequestBody(request, idle=30.0)
        async for _ in body:
            pass
        return web.Response(text=str(body.received))

    async def _boom(self, request: web.BaseRequest) -> web.StreamResponse:
        raise RuntimeError("a secret path /etc/hidden")

    async def _half(self, request: web.BaseRequest) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Length": "1000"})
        await response.prepare(request)
        await response.write(b"x" * 10)
        raise RuntimeError("half way")

    async def _level(self, request: web.BaseRequest) -> web.StreamResponse:
        return web.Response(text=self._settings.log.level)


@contextmanager
def own(root: Path) -> Iterator[socket.socket]:
    root.mkdir(parents=True, exist_ok=True)
    lock = os.open(root / "LOCK", os.O_RDWR | os.O_CREAT)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise StoreLocked("another cachesrv owns this data folder") from None
    path = root / "committer.sock"
    path.unlink(missing_ok=True)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen(64)
        yield listener


def seats(root: Path, count: int) -> Callable[[str], None]:
    def restarted(role: str) -> None:
        with (root / "restarts").open("a") as file:
            file.write(f"{role}\n")

    return restarted


def commit(duty: Duty, listener: socket.socket, ready: Ready) -> None:
    (duty.root / "committer.pid").write_text(str(os.getpid()))

    def ended(number: int, frame: object) -> None:
        with (duty.root / "ended").open("a") as file:
            file.write("committer\n")
        os._exit(0)

    signal.signal(signal.SIGTERM, ended)
    ready()
    while True:
        connection, _ = listener.accept()
        connection.sendall(b"here")
        connection.close()


async def keep(duty: Duty, stop: asyncio.Event, ready: Ready) -> None:
    (duty.root / "housekeeper.pid").write_text(str(os.getpid()))
    ready()
    await stop.wait()
    with (duty.root / "ended").open("a") as file:
        file.write("housekeeper\n")


@asynccontextmanager
async def serve(duty: Duty) -> AsyncIterator[Served]:
    async def check() -> None:
        reader, writer = await asyncio.open_unix_connection(duty.root / "committer.sock")
        assert await reader.read() == b"here"
        writer.close()

    try:
        yield Served([FakeRoom(duty.settings)], check)
    finally:
        with (duty.root / "ended").open("a") as file:
            file.write("worker\n")


PARTS = Parts(own=own, seats=seats, commit=commit, keep=keep, serve=serve)


@click.command()
@click.option("--config", type=click.Path(path_type=Path))
@click.option("--listen", multiple=True, default=["127.0.0.1:0"])
@click.option("--data", type=click.Path(path_type=Path), required=True)
@click.option("--workers", type=int, default=2)
def main(config: Path | None, listen: tuple[str, ...], data: Path, workers: int) -> None:
    flags: dict[str, dict[str, object]] = {
        "server": {"listen": list(listen), "workers": workers},
        "store": {"data": data},
    }
    try:
        serve_module.run(config, flags, PARTS)
    except Exception as error:
        logging.getLogger().debug("ended", exc_info=error)
        sys.exit(f"Error: {error}")


if __name__ == "__main__":
    main()
