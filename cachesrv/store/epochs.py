"""Sync epochs: which blobs a power cut may have torn.

In durable mode every blob is synced before the index names it and its row carries epoch 0: proven. In relaxed mode a
row carries the epoch it was written in. The housekeeper advances: it opens epoch n+1, syncs the file system, then
records n as durable. At a start that follows a power cut (another boot id, no clean stop) every epoch after the
durable one becomes **suspect**: a blob of a suspect epoch is read whole and checked before it is served.

Meta rows (ASCII decimal): ``epoch`` the current one (starts at 1), ``durable-epoch`` the last synced one (from 0 on),
``suspect`` space separated ``lo-hi`` ranges, both ends inclusive; ``boot-id``; ``clean`` (``1`` after an orderly stop).
"""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


class Meta(Protocol):
    """What is needed of the index."""

    def meta(self, name: str) -> bytes | None: ...


def _number(index: Meta, name: str, default: int) -> int:
    value = index.meta(name)
    return default if value is None else int(value)


def current(index: Meta) -> int:
    """The epoch that a blob written now belongs to."""
    return _number(index, "epoch", 1)


def durable(index: Meta) -> int:
    """The last epoch that is on disk for certain."""
    return _number(index, "durable-epoch", 0)


def suspects(index: Meta) -> list[tuple[int, int]]:
    """Ranges of epochs, ends included, that an unclean stop left unproven."""
    value = index.meta("suspect") or b""
    return [(int(low), int(high)) for low, _, high in (part.partition("-") for part in value.decode().split())]


def is_suspect(index: Meta, epoch: int) -> bool:
    return any(low <= epoch <= high for low, high in suspects(index))


def boot_id() -> bytes:
    """This boot's name; empty where the system tells none (then every unclean stop counts as a power cut)."""
    try:
        return BOOT_ID.read_bytes().strip()
    except OSError:
        return b""


def at_start(index: Meta, boot: bytes) -> dict[str, bytes]:
    """Meta rows to write when the committer takes over the folder. Safe to repeat after a crash of the committer."""
    values = {"boot-id": boot, "clean": b"0"}
    crashed = index.meta("clean") == b"0"
    if crashed and (not boot or index.meta("boot-id") != boot):
        low, high = durable(index) + 1, current(index)
        ranges = [*suspects(index), (low, high)]
        values["suspect"] = b" ".join(b"%d-%d" % pair for pair in ranges)
        values["epoch"] = b"%d" % (high + 1)
        values["durable-epoch"] = b"%d" % high
    return values
