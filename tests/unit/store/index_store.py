"""A committer on a temporary folder, and commands in few words."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from cachesrv.store.commands import (
    Command,
    Commit,
    Committed,
    Filed,
    Form,
    LeaseIds,
    NewBlob,
    OpenSegment,
    Reserve,
    Space,
)
from cachesrv.store.committer import Committer
from cachesrv.store.constants import GRAVE_SECONDS, KiB
from cachesrv.store.errors import StoreError
from cachesrv.store.index import Index
from cachesrv.store.model import Entry, EntryFlag, Namespace
from cachesrv.store.options import StoreOptions
from cachesrv.store.recency import Recency

NOW = 1_800_000_000_000
MAIN = Space("actions", "octo/hello", "refs/heads/main", "v1")
IMMUTABLE = int(EntryFlag.IMMUTABLE)


def namespace(space: Space = MAIN) -> Namespace:
    return Namespace(space.protocol, space.tenant, space.scope, space.version)


def filed(file_id: int, disk_bytes: int = 1100, *, parts: int = 1, zstd: bool = False) -> Filed:
    return Filed(file_id, parts, 1000, 100, disk_bytes, zstd)


class IndexStore:
    """Applies commands one by one; a refused one raises."""

    def __init__(self, root: Path, *, slots: int = 1000, index_limit: int = 1 << 36, **sizes: int) -> None:
        self.root = root
        self.recency = Recency.open(root / "recency.map", slots)
        self.committer = Committer(
            root, StoreOptions(index_limit=index_limit), recency=self.recency, **{"ballast_bytes": 64 * KiB, **sizes}
        )
        self.index: Index = self.committer.index
        self.volatile = self.committer.volatile

    def __call__(self, command: Command) -> Any:
        (result,) = self.committer.apply([command])
        if isinstance(result, StoreError):
            raise result
        return result

    def ids(self, count: int = 1) -> int:
        return int(self(LeaseIds(count)))

    def save(
        self,
        key: str,
        size: int = 1000,
        *,
        space: Space = MAIN,
        flags: int = IMMUTABLE,
        form: Form | None = None,
        sha256: bytes = b"",
        now_ms: int = NOW,
        members: list[int] | None = None,
    ) -> Entry:
        """Commit a fresh blob (a file, unless ``form`` says otherwise) under a key."""
        blob = self.ids()
        new = NewBlob(blob, form or filed(blob, size + 100), size, sha256)
        done = self(Commit(space, key, flags, new, "w", now_ms, members=members or []))
        assert isinstance(done, Committed)
        entry = self.index.get(namespace(space), key)
        assert entry is not None
        assert entry.id == done.entry_id
        return entry

    def reserve(self, key: str, *, space: Space = MAIN, now_ms: int = NOW) -> int:
        upload = self.ids()
        assert self(Reserve(upload, space, key, IMMUTABLE, "w", now_ms)).outcome == "reserved"
        return upload

    def segment(self) -> int:
        segment = self.ids()
        assert self(OpenSegment(segment, NOW))
        return segment

    def due(self, after_s: int = GRAVE_SECONDS) -> list[tuple[int, int]]:
        return [(grave.due_s, grave.file_id) for grave in self.index.graves_due(NOW // 1000 + after_s, 100)]

    def reopen(self) -> IndexStore:
        self.close()
        return IndexStore(self.root)

    def close(self) -> None:
        self.committer.close()
        self.recency.close()
