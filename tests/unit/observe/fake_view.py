"""A StoreView in memory: side rows as the committer would keep them, and sums that a test sets."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from cachesrv.observe.report import Sums
from cachesrv.store.api import Usage
from cachesrv.store.commands import PutRows


class FakeView:
    def __init__(self, usage: Iterable[Usage] = (), sums: Sums | None = None) -> None:
        self.rows: dict[bytes, bytes] = {}
        self.writes = 0
        self.held = list(usage)
        self.total = sums or Sums(0, 0, 0, 0, 0, 0)

    async def submit(self, command: PutRows) -> bool:
        self.writes += 1
        for key, value in command.rows.items():
            if value:
                self.rows[key] = value
            else:
                self.rows.pop(key, None)
        return True

    def side_range(self, start: bytes, stop: bytes, limit: int | None = None) -> Iterator[tuple[bytes, bytes]]:
        found = sorted((key, value) for key, value in self.rows.items() if start <= key < stop)
        return iter(found[:limit])

    def usage(self) -> Iterable[Usage]:
        return self.held

    def sums(self) -> Sums:
        return self.total
