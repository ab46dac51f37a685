"""What the processes of the group run, as interfaces: the real ones are in ``assembly``, tests bring doubles.

The server itself (supervisor, workers, sockets, drain, logs) knows the floors below only through :class:`Parts`.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager, AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

from cachesrv.config import Settings
from cachesrv.server.health import Check
from cachesrv.web.room import Room

Ready = Callable[[], None]
"""A process calls it once, when others may rely on it."""


@dataclass(frozen=True, slots=True)
class Duty:
    """What a process needs to know of the group.

    ``seat``: a small number that no living worker shares (0 for the committer and the housekeeper); whoever takes it
    goes on with its counters. ``local``: no other machine can reach the group.
    """

    root: Path
    settings: Settings
    local: bool
    seat: int = 0


@dataclass(frozen=True, slots=True)
class Served:
    """What a worker serves, in the order in which rooms are asked, and whether its store works."""

    rooms: Sequence[Room]
    check: Check


@dataclass(frozen=True, slots=True)
class Parts:
    """The pieces. Each may raise StartupError, SettingsInvalid or a StoreError, whose message a person can use."""

    own: Callable[[Path], AbstractContextManager[socket.socket]]
    """Supervisor, before the first fork: make and lock the data folder, bind the committer's socket (yielded)."""
    seats: Callable[[Path, int], Callable[[str], None]]
    """Supervisor: prepare counters for this many seats. Gives what to call with a role whose process was replaced."""
    commit: Callable[[Duty, socket.socket, Ready], None]
    """The committer process: until SIGTERM."""
    keep: Callable[[Duty, asyncio.Event, Ready], Awaitable[None]]
    """The housekeeper process: until the event is set."""
    serve: Callable[[Duty], AbstractAsyncContextManager[Served]]
    """A worker: open the store, build the rooms (not started); closing ends both."""
