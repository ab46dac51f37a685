"""Finding the piece table of a file from its end alone: for the sweep, when no index row says where it is."""

from __future__ import annotations

import os

from cachesrv.store.data.layout import FOOTER_BYTES, Layout, LayoutDamaged, trailer_length


def read_trailer(path: str) -> Layout:
    """The layout that ends the last part of a blob. Blocks. Raises LayoutDamaged, OSError."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        size = os.fstat(fd).st_size
        if size < FOOTER_BYTES:
            raise LayoutDamaged("a file is too short for a piece table")
        length = trailer_length(os.pread(fd, FOOTER_BYTES, size - FOOTER_BYTES))
        if length > size:
            raise LayoutDamaged("a piece table is cut short")
        return Layout.decode(os.pread(fd, length, size - length))
    finally:
        os.close(fd)
