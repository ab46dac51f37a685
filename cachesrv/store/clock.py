"""The hybrid logical clock that names entries: creation order that never goes back.

An id is (milliseconds since CLOCK_EPOCH_MS) << CLOCK_COUNTER_BITS | counter, and always greater than the last one, also
when the wall clock steps back or more than 4,096 entries fall into one millisecond (it then runs ahead). Below 2^53.
"""

from __future__ import annotations

from cachesrv.store.constants import CLOCK_COUNTER_BITS, CLOCK_EPOCH_MS
from cachesrv.store.errors import LimitExceeded
from cachesrv.store.model import EntryId

_END = 1 << 53


def tick(last: int, now_ms: int) -> EntryId:
    """The id behind ``last`` (0: none yet) at a wall clock of ``now_ms``. Raises LimitExceeded past the year 2093."""
    clock = max((now_ms - CLOCK_EPOCH_MS) << CLOCK_COUNTER_BITS, last + 1)
    if clock >= _END:
        raise LimitExceeded("the time of this command is past the end of the clock")
    return EntryId(clock)


def milliseconds(clock: int) -> int:
    """The Unix milliseconds in an id."""
    return (clock >> CLOCK_COUNTER_BITS) + CLOCK_EPOCH_MS
