"""The supervisor: owns the data folder and the listening sockets, forks the group, replaces who dies, ends it in order.

No event loop, no threads, no LMDB: it forks, and never execs. It wakes for signals (through a wake-up descriptor),
for children that report ready, and for its own deadlines.

* Start: the committer; once it is ready, workers and housekeeper.
* A child that dies is replaced at once; one that keeps dying young, after a pause that grows to a second.
* SIGTERM, SIGINT: workers drain, then the housekeeper ends, then the committer. A second signal shortens it.
* SIGHUP: settings are read again and every process is replaced, one after the other; workers overlap on the same
  sockets, so no connection is refused. Settings that do not hold are logged, and the old ones stay.
* ``kill -9`` of the supervisor: the kernel kills the children with it; the folder's lock goes with the last of them.
"""

from __future__ import annotations

import gc
import os
import selectors
import signal
import socket
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import FrameType
from typing import Final

import structlog

from cachesrv.addresses import Address
from cachesrv.config import Settings
from cachesrv.server import exposure, logs
from cachesrv.server.child import Child, StartupError, describe_end, spawn
from cachesrv.server.listeners import Listener, ListenError, close_listeners, open_listeners
from cachesrv.server.parts import Duty, Parts, Ready
from cachesrv.server.posts import LONGEST_PAUSE_SECONDS, Post, free_seat
from cachesrv.server.worker import run_housekeeper, run_worker
from cachesrv.settings_source import SettingsInvalid, SettingsUnreadable

DRAIN_MARGIN_SECONDS: Final = 5.0
"""A worker that is not gone this long after ``server.drain`` is killed."""
STOP_SECONDS: Final = 10.0
"""How long the housekeeper and the committer get to end."""
HURRY_SECONDS: Final = 1.0
"""After a second signal, what is left of either."""
START_ATTEMPTS: Final = 5
"""Deaths before the first time the whole group was ready, after which the start is given up."""

_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGCHLD)
_log = structlog.stdlib.get_logger("cachesrv.server")


class Supervisor:
    """``reload`` reads the settings again (for SIGHUP); ``announce`` is called once, when every worker serves."""

    def __init__(
        self,
        settings: Settings,
        root: Path,
        parts: Parts,
        *,
        workers: int,
        reload: Callable[[], Settings],
        announce: Callable[[Sequence[Address]], None],
    ) -> None:
        self._settings = settings
        self._root = root
        self._parts = parts
        self._reload = reload
        self._announce = announce
        self._posts = [Post("committer"), *(Post("worker", n) for n in range(workers)), Post("housekeeper")]
        self._workers = workers
        self._seats: dict[int, int] = {}
        self._retiring: list[Child] = []
        self._renewing: list[Post] = []
        self._before_renewal = settings
        self._listeners: list[Listener] = []
        self._committer_socket: socket.socket | None = None
        self._restarted: Callable[[str], None] = lambda role: None
        self._selector = selectors.DefaultSelector()
        self._wake: tuple[socket.socket, socket.socket] | None = None
        self._announced = False
        self._committer_was_ready = False
        self._deaths = 0
        self._stopping: list[str] | None = None
        """Roles that have not been told to end yet, in order; None while not stopping."""
        self._failure = ""

    def run(self) -> None:
        """Serve until told to stop. Raises StartupError, SettingsInvalid, StoreError when it cannot start."""
        with ExitStack() as cleanup:
            self._committer_socket = cleanup.enter_context(self._parts.own(self._root))
            # Two seats a worker: while one is renewed, the old and the new process count at the same time.
            self._restarted = self._parts.seats(self._root, 2 * self._workers)
            try:
                addresses = [Address.parse(text) for text in self._settings.server.listen]
                self._listeners = open_listeners(addresses, self._workers)
            except ListenError as error:
                raise StartupError(str(error)) from None
            cleanup.callback(lambda: close_listeners(self._listeners, unlink=True))
            self._take_signals(cleanup)
            gc.collect()
            gc.freeze()
            while not self._finished():
                self._step()
        if self._failure:
            raise StartupError(self._failure)

    # -- the loop ------------------------------------------------------------------------------------------------------

    def _step(self) -> None:
        self._fill_posts()
        self._renew_next()
        now = time.monotonic()
        for key, _ in self._selector.select(self._pause(now)):
            if isinstance(key.data, Child):
                self._selector.unregister(key.fileobj)
                key.data.listen()
                self._heard(key.data)
        for number in self._signals():
            self._told(number)
        self._reap()
        self._enforce(time.monotonic())
        self._stop_next()

    def _pause(self, now: float) -> float | None:
        moments = [child.kill_at for child in self._children()]
        moments += [post.due for post in self._posts if post.child is None and self._may_start(post)]
        first = min(moments, default=float("inf"))
        return None if first == float("inf") else max(0.0, first - now)

    def _take_signals(self, cleanup: ExitStack) -> None:
        reading, writing = socket.socketpair()
        reading.setblocking(False)
        writing.setblocking(False)
        self._wake = (reading, writing)
        self._selector.register(reading, selectors.EVENT_READ)
        before = {number: signal.signal(number, _note) for number in _SIGNALS}
        previous = signal.set_wakeup_fd(writing.fileno(), warn_on_full_buffer=False)

        def restore() -> None:
            signal.set_wakeup_fd(previous)
            for number, handler in before.items():
                signal.signal(number, handler)
            self._selector.close()
            reading.close()
            writing.close()

        cleanup.callback(restore)

    def _signals(self) -> Sequence[int]:
        assert self._wake is not None
        try:
            return list(self._wake[0].recv(4096))
        except BlockingIOError:
            return ()

    def _told(self, number: int) -> None:
        if number in (signal.SIGTERM, signal.SIGINT):
            self._stop()
        elif number == signal.SIGHUP and self._stopping is None:
            self._read_settings()

    # -- children ------------------------------------------------------------------------------------------------------

    def _children(self) -> list[Child]:
        held = [child for post in self._posts for child in (post.child, post.heir) if child is not None]
        return held + self._retiring

    def _may_start(self, post: Post) -> bool:
        if self._stopping is not None:
            return post.role == "committer" and "committer" in self._stopping
        return post.role == "committer" or self._committer_was_ready

    def _fill_posts(self) -> None:
        now = time.monotonic()
        for post in self._posts:
            if post.child is None and post.due <= now and self._may_start(post):
                try:
                    post.child = self._fork(post)
                except OSError as error:
                    _log.error("cannot fork", child=post.name, reason=error.strerror)
                    post.due = now + LONGEST_PAUSE_SECONDS

    def _fork(self, post: Post) -> Child:
        seat = 0
        if post.role == "worker":
            free = free_seat(self._children(), self._seats, 2 * self._workers)
            # All taken by processes that drain: sharing one costs a few counts, waiting would cost requests.
            seat = post.number if free is None else free
        body = self._body(post, Duty(self._root, self._settings, exposure.is_local(self._settings), seat))
        child = spawn(post.name, body, close=lambda: self._give_up(post))
        if post.role == "worker":
            self._seats[child.pid] = seat
        self._selector.register(child.ready_fd, selectors.EVENT_READ, child)
        _log.debug("process started", child=post.name, pid=child.pid)
        return child

    def _body(self, post: Post, duty: Duty) -> Callable[[Ready], None]:
        parts = self._parts
        if post.role == "worker":
            sockets = [listener.socket_of(post.number) for listener in self._listeners]
            return lambda ready: run_worker(duty, sockets, parts, ready)
        if post.role == "housekeeper":
            return lambda ready: run_housekeeper(duty, parts, ready)
        committer_socket = self._committer_socket
        assert committer_socket is not None
        return lambda ready: parts.commit(duty, committer_socket, ready)

    def _give_up(self, post: Post) -> None:
        """In a new child: close what is not its own. The folder's lock stays, so that it goes with the last process."""
        assert self._wake is not None
        self._selector.close()
        for end in self._wake:
            end.close()
        for child in self._children():
            child.forget_pipe()
        for listener in self._listeners:
            own = listener.socket_of(post.number) if post.role == "worker" else None
            for each in listener.sockets:
                if each is not own:
                    each.close()
        if post.role != "committer" and self._committer_socket is not None:
            self._committer_socket.close()

    def _heard(self, child: Child) -> None:
        """A child is ready, or said why it cannot be, or is gone."""
        post = next((post for post in self._posts if child in (post.child, post.heir)), None)
        if post is None:
            return
        if child.message and self._announced:
            _log.error("process cannot start", child=child.name, reason=child.message)
        if not child.ready:
            return
        if post.role == "committer":
            self._committer_was_ready = True
        if child is post.heir:
            self._inherit(post)
        if not self._announced and all(
            post.child and post.child.ready for post in self._posts if post.role == "worker"
        ):
            self._announced = True
            self._announce([listener.address for listener in self._listeners])

    def _reap(self) -> None:
        for child in self._children():
            pid, status = os.waitpid(child.pid, os.WNOHANG)
            if pid:
                if child.ready_fd >= 0:
                    self._selector.unregister(child.ready_fd)
                    child.listen()
                self._seats.pop(child.pid, None)
                self._ended(child, describe_end(status))

    def _ended(self, child: Child, how: str) -> None:
        now = time.monotonic()
        if child in self._retiring:
            self._retiring.remove(child)
            return
        post = next(post for post in self._posts if child in (post.child, post.heir))
        if child is post.heir:
            post.heir = None
            self._abandon_renewal(child, how)
        elif child.stopping:
            post.child, post.due = None, now
        else:
            post.died(child, now)
            self._lost(post, child, how, now)

    def _lost(self, post: Post, child: Child, how: str, now: float) -> None:
        _log.warning(
            "process died",
            child=child.name,
            pid=child.pid,
            how=how,
            lived_seconds=round(now - child.started, 3),
            next_in_seconds=round(max(0.0, post.due - now), 3),
        )
        if self._announced:
            self._restarted(post.role)
            return
        self._deaths += 1
        if child.message or self._deaths >= START_ATTEMPTS:
            self._failure = child.message or f"{child.name} could not start: {how} (the log says why)"
            self._stop()

    def _enforce(self, now: float) -> None:
        for child in self._children():
            if child.kill_at <= now:
                _log.warning("process killed, it did not end in time", child=child.name, pid=child.pid)
                child.kill_at = float("inf")
                child.signal(signal.SIGKILL)

    # -- stopping ------------------------------------------------------------------------------------------------------

    def _stop(self) -> None:
        if self._stopping is not None:
            _log.warning("stopping at once")
            for child in self._children():
                if child.stopping:
                    child.signal(signal.SIGTERM)
                    child.kill_at = min(child.kill_at, time.monotonic() + HURRY_SECONDS)
            return
        _log.info("stopping", drain_seconds=self._settings.server.drain)
        self._stopping = ["worker", "housekeeper", "committer"]
        self._renewing.clear()
        # The port is given up with the last copy of its sockets: the workers close theirs when they drain.
        close_listeners(self._listeners)

    def _stop_next(self) -> None:
        """End the next kind of process once the one before is gone."""
        while self._stopping:
            role = self._stopping[0]
            limit = self._settings.server.drain + DRAIN_MARGIN_SECONDS if role == "worker" else STOP_SECONDS
            mine = [child for child in self._children() if child.name.startswith(role)]
            for child in mine:
                if not child.stopping:
                    self._end(child, limit)
            if mine and role != "committer":
                return
            self._stopping.pop(0)

    def _end(self, child: Child, limit: float) -> None:
        child.stopping = True
        child.kill_at = time.monotonic() + limit
        child.signal(signal.SIGTERM)

    def _finished(self) -> bool:
        return self._stopping is not None and not self._stopping and not self._children()

    # -- renewing ------------------------------------------------------------------------------------------------------

    def _read_settings(self) -> None:
        try:
            wanted = self._reload()
            new = exposure.renewed(self._settings, wanted)
        except (SettingsInvalid, SettingsUnreadable) as error:
            for line in str(error).splitlines():
                _log.error("settings not taken, the old ones stay", reason=line)
            return
        for key in exposure.restart_needed(self._settings, wanted):
            _log.warning("this setting changes at the next start only", key=key)
        if not self._renewing:
            self._before_renewal = self._settings
        self._settings = new
        _use_logs(new)
        exposure.warn_if_open(new)
        order = {"worker": 0, "housekeeper": 1, "committer": 2}
        self._renewing = sorted(self._posts, key=lambda post: order[post.role])
        _log.info("settings read again, replacing every process")

    def _renew_next(self) -> None:
        """One at a time, and only while every post is held by a process that is ready."""
        while self._renewing and not self._retiring:
            held = [post.child for post in self._posts if post.child is not None and post.heir is None]
            if len(held) < len(self._posts) or any(child.stopping or not child.ready for child in held):
                return
            post = self._renewing.pop(0)
            if post.role == "worker":
                post.heir = self._fork(post)
            elif post.child is not None:
                self._end(post.child, STOP_SECONDS)
            if not self._renewing:
                self._before_renewal = self._settings

    def _inherit(self, post: Post) -> None:
        assert post.heir is not None
        old, post.child, post.heir = post.child, post.heir, None
        if old is not None:
            self._retiring.append(old)
            self._end(old, self._settings.server.drain + DRAIN_MARGIN_SECONDS)

    def _abandon_renewal(self, heir: Child, how: str) -> None:
        """A worker cannot live with the new settings: those before them stay in force for whoever starts from now."""
        if self._stopping is not None:
            return
        _log.error("settings not taken, the old ones stay", child=heir.name, how=how, reason=heir.message)
        self._settings = self._before_renewal
        _use_logs(self._settings)
        self._renewing.clear()


def _use_logs(settings: Settings) -> None:
    logs.configure(settings.log.format, settings.log.level)
    logs.hide(settings.auth.shared_secret, settings.auth.admin_token)


def _note(number: int, frame: FrameType | None) -> None:
    """Python must have a handler for the wake-up descriptor to be written."""
