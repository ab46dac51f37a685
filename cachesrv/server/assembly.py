"""The real pieces of the group (:class:`cachesrv.server.parts.Parts`): the store, its processes, and the rooms.

This is the one place that knows every floor. It decides nothing about requests.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from pathlib import Path
from typing import Final

import structlog

from cachesrv.config import Settings
from cachesrv.observe import layout
from cachesrv.observe.counters import SharedRecorder, counters_path, mark_started, open_counters
from cachesrv.observe.events import counting
from cachesrv.observe.history import History
from cachesrv.observe.recorder import NullRecorder, Recorder
from cachesrv.observe.room import ObserveRoom
from cachesrv.observe.view import IndexView
from cachesrv.protocols.actions.links import BLOB_PATH
from cachesrv.protocols.actions.room import ActionsRoom
from cachesrv.server.child import StartupError
from cachesrv.server.parts import Duty, Parts, Ready, Served
from cachesrv.settings_source import Problem, SettingsInvalid
from cachesrv.store import committer, housekeeper
from cachesrv.store.commands import MarkProven
from cachesrv.store.errors import StoreError, StoreLocked
from cachesrv.store.events import BlobQuarantined, Listener, StoreEvent, UploadReclaimed
from cachesrv.store.folder import DataFolder
from cachesrv.store.options import StoreOptions
from cachesrv.store.store import Store
from cachesrv.web.authenticator import Authenticator
from cachesrv.web.context import Context
from cachesrv.web.keys import UrlKeys, UrlKeysError
from cachesrv.web.principals import AuthSettingsError
from cachesrv.web.requests import BaseUrl
from cachesrv.web.signing import UrlSigner
from cachesrv.web.upstream import Upstream

LOCK_WAIT_SECONDS: Final = 5.0
"""A folder that is still locked by a group that was just killed is free within this time."""
LOCK_POLL_SECONDS: Final = 0.05
TICK_SECONDS: Final = 60.0
"""How often the housekeeper writes the history of the counters."""
FAREWELL_SECONDS: Final = 3.0
"""How long the last row of the history may take at the end."""
ROTATION_CHECK_SECONDS: Final = 3600.0
"""How often the housekeeper looks whether the keys of signed URLs are old."""
URL_KEYS: Final = "url-keys"

_log = structlog.stdlib.get_logger("cachesrv.server")


def real_parts() -> Parts:
    """What ``cachesrv serve`` runs."""
    return Parts(own=own_folder, seats=prepare_counters, commit=commit, keep=keep_house, serve=serve_rooms)


def store_options(settings: Settings) -> StoreOptions:
    """The settings that the store is told."""
    store, limits = settings.store, settings.limits
    return StoreOptions(
        max_size=store.max_size,
        min_free=store.min_free,
        durable=store.durability == "durable",
        stale_upload=store.stale_upload,
        expire_unused=store.expire_unused,
        quota=store.quota,
        quotas=store.quotas,
        scrub_rate=store.scrub_rate,
        zstd_level=store.zstd_level,
        index_limit=store.index_limit,
        max_entry=limits.max_entry,
        max_blocks=limits.max_blocks,
    )


@contextmanager
def own_folder(root: Path) -> Iterator[socket.socket]:
    """See ``Parts.own``. Waits a moment for a lock: the last process of a killed group may still be going."""
    folder = DataFolder(root)
    try:
        root.mkdir(mode=0o700, parents=True, exist_ok=True)
        folder.create_or_open()
    except OSError as error:
        raise StartupError(f"the data folder {root} cannot be made: {error.strerror}") from error
    except StoreError as error:
        raise StartupError(f"{root}: {error}") from error
    deadline = time.monotonic() + LOCK_WAIT_SECONDS
    while True:
        try:
            folder.lock()
            break
        except StoreLocked as error:
            if time.monotonic() > deadline:
                raise StartupError(f"{root}: {error}") from error
            time.sleep(LOCK_POLL_SECONDS)
    try:
        with committer.bind_listener(root) as listener:
            yield listener
    finally:
        folder.unlock()


def prepare_counters(root: Path, seats: int) -> Callable[[str], None]:
    """See ``Parts.seats``. Without a counters file (no space) the server runs uncounted."""
    try:
        open_counters(counters_path(root), layout.slots_for(seats))
        mark_started(root)
        return SharedRecorder(counters_path(root), layout.SUPERVISOR).restarted
    except (OSError, ValueError) as error:
        _log.warning("requests are not counted", reason=str(error))
        return lambda role: None


def commit(duty: Duty, listener: socket.socket, ready: Ready) -> None:
    """See ``Parts.commit``."""
    try:
        committer.run(duty.root, listener, store_options(duty.settings), ready=ready)
    except StoreError as error:
        raise StartupError(str(error)) from error


async def keep_house(duty: Duty, stop: asyncio.Event, ready: Ready) -> None:
    """See ``Parts.keep``: the store's housekeeping, the history of the counters, and fresh keys for signed URLs."""
    listener = _listener(_recorder(duty.root, layout.HOUSEKEEPER))
    store = await Store.start(duty.root, store_options(duty.settings), on_event=listener)
    view = IndexView(store.index, store.volatile)
    history = asyncio.create_task(_keep_history(History(duty.root, view, store.writer.submit), stop), name="history")
    keys = asyncio.create_task(_rotate_keys(duty), name="url-keys")
    ready()
    try:
        await housekeeper.keep(store, stop)
    finally:
        keys.cancel()
        stop.set()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(FAREWELL_SECONDS):
                await history
        await store.close()


async def _rotate_keys(duty: Duty) -> None:
    while True:
        try:
            keys = await asyncio.to_thread(UrlKeys.open, duty.root / URL_KEYS, duty.settings.actions.url_ttl)
            if await asyncio.to_thread(keys.rotate_if_due):
                _log.info("a new key will sign URLs")
        except (UrlKeysError, OSError) as error:
            _log.warning("the keys of signed URLs were not looked at", reason=str(error))
        await asyncio.sleep(ROTATION_CHECK_SECONDS)


async def _keep_history(history: History, stop: asyncio.Event) -> None:
    """Until ``stop``, and once more then: the workers are gone already, so nothing counted is missing."""
    while not stop.is_set():
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(TICK_SECONDS):
                await stop.wait()
        try:
            await history.tick()
        except (StoreError, OSError) as error:
            _log.warning("history of the counters not written", reason=str(error))


@asynccontextmanager
async def serve_rooms(duty: Duty) -> AsyncIterator[Served]:
    """See ``Parts.serve``."""
    settings = duty.settings
    recorder = _recorder(duty.root, layout.worker_slot(duty.seat))
    async with AsyncExitStack() as cleanup:
        store = await Store.start(duty.root, store_options(settings), worker=duty.seat, on_event=_listener(recorder))
        cleanup.push_async_callback(store.close)
        try:
            context = await _context(duty, store, recorder, cleanup)
        except (AuthSettingsError, UrlKeysError, ValueError) as error:
            raise SettingsInvalid(Problem("", "", str(error))) from error
        observe = ObserveRoom(
            duty.root,
            IndexView(store.index, store.volatile),
            budget=settings.store.max_size,
            local=duty.local,
            admin_token=settings.auth.admin_token,
            recorder=recorder if isinstance(recorder, SharedRecorder) else None,
        )

        async def check() -> None:
            await store.writer.submit(MarkProven([]))

        yield Served([observe, ActionsRoom(context)], check)


async def _context(duty: Duty, store: Store, recorder: Recorder, cleanup: AsyncExitStack) -> Context:
    settings = duty.settings
    authenticator = Authenticator(settings.auth, loopback_only=duty.local)
    keys = await asyncio.to_thread(UrlKeys.open, duty.root / URL_KEYS, settings.actions.url_ttl)
    base_url = BaseUrl(settings.server.base_url, settings.server.trusted_proxies)
    upstream = None
    if settings.actions.upstream:
        upstream = Upstream(settings.actions.upstream, settings.actions.upstream_hosts)
        await upstream.start()
        cleanup.push_async_callback(upstream.stop)
    await authenticator.start()
    cleanup.push_async_callback(authenticator.stop)
    following = asyncio.create_task(keys.keep(), name="url-keys")
    cleanup.callback(following.cancel)
    return Context(settings, store, recorder, authenticator, UrlSigner(keys, BLOB_PATH), base_url, upstream, time.time)


def _recorder(root: Path, slot: int) -> Recorder:
    try:
        return SharedRecorder(counters_path(root), slot)
    except (OSError, ValueError):
        return NullRecorder()


def _listener(recorder: Recorder) -> Listener:
    count = counting(recorder)

    def heard(event: StoreEvent) -> None:
        count(event)
        match event:
            case BlobQuarantined(blob, reason, entries):
                _log.error("blob quarantined", blob=blob, reason=reason, entries=entries)
            case UploadReclaimed(upload, size):
                _log.info("stale upload dropped", upload=upload, bytes=size)
            case _:
                return

    return heard
