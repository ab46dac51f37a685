"""The places of the group that must always be filled, and when the next process may take one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal

from cachesrv.server.child import Child

Role = Literal["committer", "worker", "housekeeper"]

SUDDEN_SECONDS: Final = 1.0
"""A process that dies younger than this counts as failing; its place waits longer each time."""
FIRST_PAUSE_SECONDS: Final = 0.05
LONGEST_PAUSE_SECONDS: Final = 1.0
"""A place is never given up, and never empty for longer than this before the next attempt."""


@dataclass(slots=True, eq=False)
class Post:
    """One place. ``child`` is in charge, ``heir`` starts to replace it (workers only: two committers must never be)."""

    role: Role
    number: int = 0
    child: Child | None = None
    heir: Child | None = None
    due: float = 0.0
    failures: int = 0

    @property
    def name(self) -> str:
        return f"worker-{self.number}" if self.role == "worker" else self.role

    def died(self, child: Child, now: float) -> None:
        """The process in charge is gone unasked: decide when the next one starts."""
        self.child = None
        self.failures = self.failures + 1 if now - child.started < SUDDEN_SECONDS else 0
        pause = FIRST_PAUSE_SECONDS * 2**self.failures if self.failures else 0.0
        self.due = now + min(pause, LONGEST_PAUSE_SECONDS)


def free_seat(children: Sequence[Child], seats: dict[int, int], limit: int) -> int | None:
    """The lowest seat below ``limit`` that no living child has; ``seats``: process id -> seat."""
    taken = {seats[child.pid] for child in children if child.pid in seats}
    return next((seat for seat in range(limit) if seat not in taken), None)
