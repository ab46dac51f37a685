"""Latency buckets: log-linear, four to the octave, from 16 us to 16.8 s.

A value lands in a bucket at most 25 % wide, so a quantile read back (linear inside the bucket) is at most 25 % off, and
usually under 10 %. Bucket 0 holds everything under 16 us, the last one everything from 16 us * 2^20 (16.8 s) on.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

FLOOR_SECONDS: Final = 16e-6
OCTAVES: Final = 20
STEPS: Final = 4
"""Buckets to an octave, equally wide inside it."""
BUCKETS: Final = 2 + OCTAVES * STEPS

_UNITS_A_SECOND: Final = STEPS / FLOOR_SECONDS
_LARGEST: Final = STEPS << OCTAVES

UPPER_SECONDS: Final[tuple[float, ...]] = (
    *(FLOOR_SECONDS * (1 << n // STEPS) * (1 + n % STEPS / STEPS) for n in range(OCTAVES * STEPS + 1)),
    float("inf"),
)
"""Upper bound (exclusive) of each bucket, in seconds."""


def bucket_of(seconds: float) -> int:
    """The bucket of a duration; anything below zero counts as zero, NaN as zero, infinity as the last."""
    scaled = seconds * _UNITS_A_SECOND
    if not scaled >= STEPS:
        return 0
    if scaled >= _LARGEST:
        return BUCKETS - 1
    units = int(scaled)
    octave = units.bit_length() - STEPS.bit_length()
    return 1 + octave * STEPS + ((units >> octave) - STEPS)


def quantile(counts: Sequence[int], share: float) -> float | None:
    """The duration in seconds below which ``share`` (0..1) of the samples lie; None without samples.

    Samples past the last bound are reported as that bound.
    """
    total = sum(counts)
    if not total:
        return None
    rank = share * total
    passed = 0
    for n, count in enumerate(counts):
        if count and passed + count >= rank:
            lower = UPPER_SECONDS[n - 1] if n else 0.0
            if n == BUCKETS - 1:
                return lower
            return lower + (UPPER_SECONDS[n] - lower) * (rank - passed) / count
        passed += count
    return UPPER_SECONDS[BUCKETS - 2]
