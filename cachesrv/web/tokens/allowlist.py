"""Whose repositories may use this cache, judged by what the token's signed claims show."""

from __future__ import annotations

from collections.abc import Sequence

from cachesrv.web.principals import NotAllowed
from cachesrv.web.tokens.claims import Facts


class AllowList:
    """``owners``: names, in any case. ``repositories``: owner/name, in any case, or an exact repository id.

    Both empty: everybody. An id is never compared with a name, nor an owner's name with an id: names may be digits.
    """

    def __init__(self, owners: Sequence[str], repositories: Sequence[str]) -> None:
        self._owners = frozenset(owner.casefold() for owner in owners)
        self._names = frozenset(name.casefold() for name in repositories if "/" in name)
        self._ids = frozenset(name for name in repositories if "/" not in name)

    @property
    def empty(self) -> bool:
        return not (self._owners or self._names or self._ids)

    def check(self, facts: Facts) -> None:
        """Raises NotAllowed; also when the claims do not show what the list asks for."""
        if self.empty:
            return
        if facts.owner and facts.owner.casefold() in self._owners:
            return
        if facts.name and facts.name.casefold() in self._names:
            return
        if facts.repository_id and facts.repository_id in self._ids:
            return
        raise NotAllowed("the token's repository is not on the allow-list of this cache")
