"""Which entry answers a lookup: the one order that v1 and v2 share, and the limits on keys and versions.

Inside one repository, for each readable scope in the order of the token, for each key (the primary one, then the
restore keys): the entry with exactly this key, else the newest-created one whose key starts with it. Scope is the outer
loop: a restore key's hit on the own branch beats an exact hit on the default branch. Literal, case-sensitive, version
exact.

A positive answer is a promise: the entry is touched first (so that it is not evicted), then proven whole. One that is
not is passed over, and the search goes on.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from typing import Final

from cachesrv.protocols.actions.errors import Reason, Refusal
from cachesrv.store.api import CacheStore
from cachesrv.store.model import Entry, EntryId, Namespace

PROTOCOL: Final = "actions"
"""The namespace protocol and the recorder's name of this room."""
MAX_KEY: Final = 512
"""UTF-16 units, as JavaScript counts: what npm refuses before it asks."""
MAX_VERSION: Final = 512
MAX_RESTORE_KEYS: Final = 64
"""npm sends 9 at most; each costs index reads in each scope."""
_PASSED_OVER: Final = 8
"""Damaged newest entries of one prefix that a lookup passes over before it calls the prefix a miss."""


def namespace(repository: str, scope: str, version: str) -> Namespace:
    return Namespace(PROTOCOL, repository, scope, version)


def check_text(name: str, value: str, limit: int) -> str:
    """``value``, 1 to ``limit`` UTF-16 units of Unicode. Raises Refusal(INVALID)."""
    if not value:
        raise Refusal(Reason.INVALID, f"{name} is missing or empty")
    try:
        units = len(value.encode("utf-16-le")) // 2 if len(value) > limit // 2 else 0
        value.encode()
    except UnicodeEncodeError:
        raise Refusal(Reason.INVALID, f"{name} is not valid Unicode") from None
    if units > limit:
        raise Refusal(Reason.INVALID, f"{name} is longer than {limit} characters")
    return value


def check_name(key: str, version: str) -> None:
    """The name of an entry. Raises Refusal(INVALID)."""
    check_text("key", key, MAX_KEY)
    check_text("version", version, MAX_VERSION)


def search_keys(key: str, restore_keys: Iterable[str]) -> list[str]:
    """The keys to try, in order, each once; empty restore keys name nothing. Raises Refusal(INVALID)."""
    wanted = dict.fromkeys([key])
    for restore_key in restore_keys:
        if restore_key and restore_key not in wanted:
            wanted[check_text("restore key", restore_key, MAX_KEY)] = None
    if len(wanted) > MAX_RESTORE_KEYS + 1:
        raise Refusal(Reason.INVALID, f"more than {MAX_RESTORE_KEYS} restore keys")
    return list(wanted)


async def find(
    store: CacheStore, repository: str, scopes: Sequence[str], keys: Sequence[str], version: str
) -> Entry | None:
    """The entry that answers, touched and proven, or None. Raises what the store raises."""
    for scope in scopes:
        place = namespace(repository, scope, version)
        for nth, key in enumerate(keys):
            if nth:
                await asyncio.sleep(0)
            entry = await _match(store, place, key)
            if entry:
                return entry
    return None


async def _match(store: CacheStore, place: Namespace, key: str) -> Entry | None:
    rejected: set[EntryId] = set()
    entry = store.lookup(place, key)
    while True:
        entry = entry or store.newest(place, key)
        if entry is None or entry.id in rejected or len(rejected) > _PASSED_OVER:
            return None
        store.touch(entry)
        if await store.prove(entry):
            return entry
        rejected.add(entry.id)
        entry = None
