"""The index of the store: one LMDB environment of rows, written by the committer alone, read by everybody.

``rows`` and ``codec`` know the bytes, ``environment`` the file, ``reader`` what may be asked, the rest how each kind of
row is changed. Nothing is opened at import, so a process may fork first.
"""

from cachesrv.store.index.codec import RowDamaged
from cachesrv.store.index.reader import Index
from cachesrv.store.index.rows import (
    BlobRow,
    GraveKind,
    GraveRow,
    LruRow,
    SegmentRow,
    TenantRow,
    Totals,
    UploadRow,
    disk_bytes,
    stored_bytes,
)
from cachesrv.store.index.volatile import Volatile

__all__ = [
    "BlobRow",
    "GraveKind",
    "GraveRow",
    "Index",
    "LruRow",
    "RowDamaged",
    "SegmentRow",
    "TenantRow",
    "Totals",
    "UploadRow",
    "Volatile",
    "disk_bytes",
    "stored_bytes",
]
