"""One write transaction over the index, with the rows that every command changes kept in memory until its end.

``flush`` writes them (counters, totals, namespaces, tenants); whoever made the batch then commits. A batch that is
thrown away leaves no trace. A namespace or tenant that holds nothing any more loses its rows; numbers are not reused.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Any, Final

from cachesrv.store.clock import tick
from cachesrv.store.commands import Space
from cachesrv.store.constants import GRAVE_SECONDS
from cachesrv.store.errors import LimitExceeded, StoreError
from cachesrv.store.index import lookup
from cachesrv.store.index.codec import space_key
from cachesrv.store.index.environment import Rows
from cachesrv.store.index.lookup import TOTALS_KEY, U32
from cachesrv.store.index.rows import (
    SpaceRow,
    State,
    TenantRow,
    pack_space,
    pack_state,
    pack_tenant,
    pack_totals,
    unpack_state,
)
from cachesrv.store.recency import Recency

STATE_KEY: Final = b"state"
_FREE_SLOT: Final = struct.Struct(">II")  # freed at (Unix seconds), slot
_NUMBERS: Final = 1 << 32


class Batch(Rows):
    """See the module. ``volatile`` gives the rows of the volatile environment, in a transaction begun when first asked.
    ``refusal`` is why commands that grow the index are refused now, or None."""

    __slots__ = ("_named", "_open_volatile", "_spaces", "_tenants", "recency", "refusal", "state", "totals")

    def __init__(
        self,
        txn: Any,
        tables: dict[str, Any],
        recency: Recency,
        open_volatile: Callable[[], Rows],
        refusal: StoreError | None,
    ) -> None:
        super().__init__(txn, tables)
        self.recency = recency
        self.refusal = refusal
        self._open_volatile = open_volatile
        self._spaces: dict[int, SpaceRow] = {}
        self._named: dict[Space, SpaceRow] = {}
        self._tenants: dict[int, TenantRow] = {}
        payload = self.get("core", STATE_KEY)
        self.state = State() if payload is None else unpack_state(payload)
        self.totals = lookup.totals(self)

    @property
    def volatile(self) -> Rows:
        return self._open_volatile()

    # -- numbers ------------------------------------------------------------------------------------------------------

    def lease(self, count: int) -> int:
        """Take ``count`` ids; the first."""
        first = self.state.next_id
        self.state.next_id += count
        return first

    def tick(self, now_ms: int) -> int:
        """The clock of the next entry. Raises LimitExceeded."""
        self.state.last_clock = tick(self.state.last_clock, now_ms)
        return self.state.last_clock

    def take_slot(self, now_s: int) -> int:
        """A recency slot, cleared; 0 when there is none. One that was freed just now may still be touched by somebody
        who holds the old entry, so fresh ones go first for GRAVE_SECONDS."""
        cursor = self.cursor("slotfree")
        key = cursor.key() if cursor.first() else None
        if key is not None:
            freed_s, slot = _FREE_SLOT.unpack(key)
            if freed_s + GRAVE_SECONDS <= now_s or self.state.next_slot >= self.recency.slots:
                if not self.recency.reserve(slot):
                    return 0
                self.delete("slotfree", key)
                self.recency.clear(slot)
                return int(slot)
        if self.state.next_slot >= self.recency.slots or not self.recency.reserve(self.state.next_slot):
            return 0
        slot = self.state.next_slot
        self.state.next_slot += 1
        self.recency.clear(slot)
        return slot

    def give_slot(self, slot: int, now_s: int) -> None:
        if slot:
            self.put("slotfree", _FREE_SLOT.pack(now_s, slot), b"")

    # -- namespaces and tenants ---------------------------------------------------------------------------------------

    def find_space(self, names: Space) -> SpaceRow | None:
        """The row of a namespace, to be changed in place."""
        row = self._named.get(names)
        if row is None:
            number = lookup.space_number(self, names)
            row = None if number is None else self.space(U32.unpack(number)[0])
            if row is not None:
                self._named[names] = row
        return row

    def space(self, number: int) -> SpaceRow | None:
        row = self._spaces.get(number)
        if row is None:
            row = lookup.space(self, number)
            if row is not None:
                self._spaces[number] = row
        return row

    def make_space(self, names: Space) -> SpaceRow:
        """The row of a namespace, made if there is none. Raises LimitExceeded when numbers run out."""
        row = self.find_space(names)
        if row is None:
            if self.state.next_space >= _NUMBERS:
                raise LimitExceeded("no more namespaces can be numbered")
            tenant = self._make_tenant(names)
            row = SpaceRow(self.state.next_space, tenant.number, 0, 0, names)
            self.state.next_space += 1
            self.put("space", space_key(names), U32.pack(row.number))
            self._spaces[row.number] = self._named[names] = row
        return row

    def tenant(self, number: int) -> TenantRow | None:
        row = self._tenants.get(number)
        if row is None:
            row = lookup.tenant(self, number)
            if row is not None:
                self._tenants[number] = row
        return row

    def _make_tenant(self, names: Space) -> TenantRow:
        key = _tenant_key(names.protocol, names.tenant)
        number = self.get("tenant", key)
        row = None if number is None else self.tenant(U32.unpack(number)[0])
        if row is None:
            if self.state.next_tenant >= _NUMBERS:
                raise LimitExceeded("no more tenants can be numbered")
            row = TenantRow(self.state.next_tenant, names.protocol, names.tenant)
            self.state.next_tenant += 1
            self.put("tenant", key, U32.pack(row.number))
            self._tenants[row.number] = row
        return row

    # -- the end ------------------------------------------------------------------------------------------------------

    def flush(self) -> None:
        """Write what was kept in memory. Nothing may be changed after it."""
        for space in self._spaces.values():
            if space.entries:
                self.put("spaceinfo", U32.pack(space.number), pack_space(space))
            else:
                self.delete("spaceinfo", U32.pack(space.number))
                self.delete("space", space_key(space.names))
        for tenant in self._tenants.values():
            if tenant.entries or tenant.disk_bytes:
                self.put("tenantinfo", U32.pack(tenant.number), pack_tenant(tenant))
            else:
                self.delete("tenantinfo", U32.pack(tenant.number))
                self.delete("tenant", _tenant_key(tenant.protocol, tenant.tenant))
        self.put("core", STATE_KEY, pack_state(self.state))
        self.put("core", TOTALS_KEY, pack_totals(self.totals))


def _tenant_key(protocol: str, tenant: str) -> bytes:
    return space_key(Space(protocol, tenant, "", ""))
