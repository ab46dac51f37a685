"""Free pages that the index always keeps, so that a delete still commits when the disk is full, and its upper bound.

LMDB writes every changed page to a new place, deletes too: without free pages in its file it cannot even shrink. Before
commands that grow the index run, the committer asks :meth:`Ballast.refusal`; it makes the file longer when free pages
ran low, and says why growth is refused when that fails or the bound is reached.
"""

from __future__ import annotations

import lmdb

from cachesrv.store.constants import BALLAST_BYTES, INDEX_LIMIT_BYTES
from cachesrv.store.errors import IndexFull, StoreError
from cachesrv.store.index.environment import Environment, refusal

_FILLER = b"filler"


class Ballast:
    """For the one writer of an environment. ``limit`` bounds the used pages, in bytes."""

    def __init__(self, environment: Environment, *, size: int = BALLAST_BYTES, limit: int = INDEX_LIMIT_BYTES) -> None:
        self._environment = environment
        self._size = size
        self._limit = limit

    def refusal(self) -> StoreError | None:
        """Why the index must not grow now; None: it may. Costs about 20 us unless the file must be made longer."""
        used, free = self.pages()
        if used > self._limit:
            return IndexFull("the index reached its bound (store.index_limit)")
        if free >= self._size:
            return None
        try:
            self._lengthen()
        except lmdb.PanicError:
            raise
        except (lmdb.Error, OSError) as error:
            return refusal(error)
        return None

    def pages(self) -> tuple[int, int]:
        """Bytes of used pages, and of free ones in the file."""
        env = self._environment.env
        with env.begin() as txn:
            stats = [txn.stat(), *(txn.stat(db=table) for table in self._environment.tables.values())]
        used = sum(stat["branch_pages"] + stat["leaf_pages"] + stat["overflow_pages"] for stat in stats)
        page = stats[0]["psize"]
        return used * page, (env.info()["last_pgno"] + 1 - used) * page

    def _lengthen(self) -> None:
        """One row as long as the ballast, written and deleted again: its pages stay with the file. Fewer pages than
        that were free, so it had to go to the end."""
        env, table = self._environment.env, self._environment.tables["core"]
        with env.begin(write=True) as txn:
            txn.put(_FILLER, bytes(self._size), db=table)
        with env.begin(write=True) as txn:
            txn.delete(_FILLER, db=table)
