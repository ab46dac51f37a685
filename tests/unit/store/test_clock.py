from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cachesrv.store.clock import milliseconds, tick
from cachesrv.store.constants import CLOCK_EPOCH_MS
from cachesrv.store.errors import LimitExceeded


@given(st.lists(st.integers(0, CLOCK_EPOCH_MS + (1 << 40)), min_size=1, max_size=50))
def test_clock_never_goes_back(times: list[int]) -> None:
    last = 0
    for now_ms in times:
        clock = tick(last, now_ms)
        assert last < clock < 1 << 53
        assert milliseconds(clock) >= now_ms
        last = clock


def test_clock_follows_the_wall_clock_again() -> None:
    clock = tick(0, CLOCK_EPOCH_MS + 1000)
    assert milliseconds(clock) == CLOCK_EPOCH_MS + 1000
    assert tick(clock, CLOCK_EPOCH_MS) == clock + 1
    assert milliseconds(tick(clock, CLOCK_EPOCH_MS + 2000)) == CLOCK_EPOCH_MS + 2000


def test_clock_more_than_fit_into_a_millisecond_run_ahead() -> None:
    clock = 0
    for _ in range(5000):
        clock = tick(clock, CLOCK_EPOCH_MS + 10)
    assert milliseconds(clock) == CLOCK_EPOCH_MS + 11


def test_clock_ends() -> None:
    with pytest.raises(LimitExceeded):
        tick(0, CLOCK_EPOCH_MS + (1 << 41))
