"""What was counted in each minute of the last day, kept in the store's side table so that it survives restarts.

Row format 1, in the table that ``PutRows`` writes; every value is a Snapshot (``cachesrv.observe.totals``)::

    "observe/last"                        the counters as of the last tick
    "observe/minute/" + minute (u32 BE)   what was counted up to this Unix minute since the row before it

The housekeeper ticks about once a minute. A tick writes both rows in one command, so a kill at any moment neither loses
nor doubles a count; the same tick repeated writes the same rows. An idle minute writes nothing. Rows older than
KEEP_MINUTES go, a batch a tick, so the table holds at most that many rows of at most TENANTS_A_ROW tenants each.
"""

from __future__ import annotations

import asyncio
import struct
import time
from collections.abc import Awaitable, Callable, Iterable
from pathlib import Path
from typing import Any, Final, Protocol

from cachesrv.observe.counters import counters_path, read_counters
from cachesrv.observe.layout import OTHER
from cachesrv.observe.totals import Snapshot, Totals, added, decode, encode
from cachesrv.store.commands import PutRows

LAST_KEY: Final = b"observe/last"
MINUTE_PREFIX: Final = b"observe/minute/"
KEEP_MINUTES: Final = 25 * 60
"""A day and a bit: "last day" must not lose its first hour to rounding."""
PRUNE_ROWS: Final = 100
"""Old rows that one tick deletes at most; more than it writes, so that the table shrinks after a pause."""
TENANTS_A_ROW: Final = 256
"""The busiest tenants of a minute that are kept by name; the others are one "(other)"."""


class SideRows(Protocol):
    """The part of the index that the history reads."""

    def side_range(self, start: bytes, stop: bytes, limit: int | None = None) -> Iterable[tuple[bytes, bytes]]:
        """Rows of PutRows with start <= key < stop, in key order."""
        ...


Submit = Callable[[PutRows], Awaitable[Any]]
"""Sends a command to the committer."""


def minute_key(minute: int) -> bytes:
    return MINUTE_PREFIX + struct.pack(">I", minute)


def read_last(rows: SideRows) -> Snapshot | None:
    """The counters as of the last tick."""
    for key, value in rows.side_range(LAST_KEY, LAST_KEY + b"\0"):
        if key == LAST_KEY:
            return decode(value)
    return None


def read_window(rows: SideRows, after_minute: int) -> Totals:
    """What was counted in the minutes after ``after_minute``, up to the last tick."""
    found = rows.side_range(minute_key(after_minute + 1), minute_key(0xFFFFFFFF))
    return added(snapshot.totals for _, value in found if (snapshot := decode(value)) is not None)


def _bounded(totals: Totals) -> Totals:
    if len(totals.tenants) > TENANTS_A_ROW:
        ranked = sorted(totals.tenants.items(), key=lambda item: sum(item[1].values()), reverse=True)
        totals.tenants = dict(ranked[: TENANTS_A_ROW - 1])
        totals.add(Totals(tenants={OTHER: {}}))
        for _, rest in ranked[TENANTS_A_ROW - 1 :]:
            totals.add(Totals(tenants={OTHER: rest}))
    return totals


class History:
    """Writes the history; one in the housekeeper. ``submit`` may raise StoreUnavailable, which ``tick`` lets out: the
    next tick then covers both minutes."""

    def __init__(self, root: Path, rows: SideRows, submit: Submit) -> None:
        self._path = counters_path(root)
        self._rows = rows
        self._submit = submit

    async def tick(self, now: float | None = None) -> bool:
        """Keep what was counted since the last tick. ``now`` is Unix seconds. Returns whether anything was written."""
        now = time.time() if now is None else now
        snapshot = await asyncio.to_thread(read_counters, self._path, now_ms=int(now * 1000))
        minute = int(now) // 60
        rows = {
            key: b"" for key, _ in self._rows.side_range(MINUTE_PREFIX, minute_key(minute - KEEP_MINUTES), PRUNE_ROWS)
        }
        if snapshot is not None:
            last = read_last(self._rows)
            delta = snapshot.since(last)
            if delta or (last is not None and last.life != snapshot.life):
                key = minute_key(minute)
                for _, value in self._rows.side_range(key, key + b"\0"):
                    if (before := decode(value)) is not None:
                        delta.add(before.totals)
                rows[key] = encode(Snapshot(snapshot.life, snapshot.taken_ms, _bounded(delta)))
                rows[LAST_KEY] = encode(snapshot)
        if not rows:
            return False
        await self._submit(PutRows(rows))
        return True
