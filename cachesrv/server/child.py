"""One forked process: how it is made, what it leaves behind of its parent, and how it says that it is ready.

A child never execs. It dies with its parent whatever happens to the parent (``PR_SET_PDEATHSIG`` on Linux, a thread
that watches ``getppid`` elsewhere): a half-alive group could serve from a folder that another server already owns.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NoReturn

import structlog

from cachesrv.server import logs

PR_SET_PDEATHSIG = 1
PARENT_POLL_SECONDS = 0.5
"""How often a child looks whether its parent still lives, where the kernel cannot tell it."""
EXIT_STARTUP = 3
"""Exit status of a child that could not start; its message went through the ready pipe."""
MESSAGE_BYTES = 4096
"""Longest start-up message: fits a pipe's buffer, so that writing it never waits."""

_log = structlog.stdlib.get_logger("cachesrv.server")


class StartupError(Exception):
    """A process cannot start for a reason that a person must mend. The message is fit to be printed."""


Body = Callable[[Callable[[], None]], None]
"""What a child runs. It gets a function to call once when it is ready, returns when SIGTERM asked it to."""


@dataclass(slots=True, eq=False)
class Child:
    """A running child as its parent sees it. ``ready_fd`` is readable when it is ready or gone."""

    name: str
    pid: int
    ready_fd: int
    started: float
    ready: bool = False
    message: str = ""
    """Why it could not start, if it said so."""
    stopping: bool = False
    """It was told to end, so its end is no surprise."""
    kill_at: float = field(default=float("inf"))
    """When (monotonic) it is killed if it has not ended by itself."""

    def listen(self) -> None:
        """Read what the ready pipe holds; closes it at its end."""
        said = b""
        with contextlib.suppress(BlockingIOError):
            said = os.read(self.ready_fd, MESSAGE_BYTES)
        if said == b"\x01":
            self.ready = True
        else:
            self.message = said.decode("utf-8", "replace")
        self.forget_pipe()

    def forget_pipe(self) -> None:
        if self.ready_fd >= 0:
            os.close(self.ready_fd)
            self.ready_fd = -1

    def signal(self, number: int) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, number)


def spawn(name: str, body: Body, *, close: Callable[[], None]) -> Child:
    """Fork a child that runs ``body`` and exits; ``close`` gives up, in the child, what only the parent owns.

    Signals stay blocked across the fork, so that none is taken by a handler of the parent in the child.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    read_end, write_end = os.pipe()
    os.set_blocking(read_end, False)
    parent = os.getpid()
    signals = {signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGCHLD}
    signal.pthread_sigmask(signal.SIG_BLOCK, signals)
    try:
        pid = os.fork()
        if pid == 0:
            _be_child(name, body, parent, read_end, write_end, close, signals)
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, signals)
    os.close(write_end)
    return Child(name, pid, read_end, time.monotonic())


def _be_child(
    name: str,
    body: Body,
    parent: int,
    read_end: int,
    write_end: int,
    close: Callable[[], None],
    signals: set[signal.Signals],
) -> NoReturn:
    code = 1
    try:
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        # A terminal sends these to the whole group; what they mean is the parent's decision.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, signals)
        _die_with_parent(parent)
        os.close(read_end)
        close()
        logs.name_process(name)

        try:
            body(lambda: _say(write_end, b"\x01"))
            code = 0
        except StartupError as error:
            _say(write_end, str(error).encode()[:MESSAGE_BYTES])
            code = EXIT_STARTUP
        except Exception:
            _log.exception("process ended by an error")
    finally:
        with contextlib.suppress(Exception):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)


def _say(pipe: int, what: bytes) -> None:
    """The one message of a child; a parent that is gone no longer cares."""
    with contextlib.suppress(BrokenPipeError):
        os.write(pipe, what)


def _die_with_parent(parent: int) -> None:
    if sys.platform == "linux":
        # SIGKILL, not SIGTERM: it also ends a child that is stopped or stuck, and nothing relies on a farewell.
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    else:
        threading.Thread(target=_watch_parent, args=(parent,), daemon=True, name="parent").start()
    if os.getppid() != parent:
        os._exit(1)


def _watch_parent(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(PARENT_POLL_SECONDS)
    os._exit(1)


def describe_end(status: int) -> str:
    """Why a process ended, from its wait status: "killed by SIGKILL" or "exited with 1"."""
    if os.WIFSIGNALED(status):
        return f"killed by {signal.Signals(os.WTERMSIG(status)).name}"
    return f"exited with {os.WEXITSTATUS(status)}"
