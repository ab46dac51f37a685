"""Two folders, compared as a user would notice: names, kinds, permissions, link targets and every byte."""

from __future__ import annotations

import hashlib
import os
import stat
from pathlib import Path


def fingerprint(root: Path) -> dict[str, tuple[str, int, str]]:
    """Relative path -> (kind, permission bits, SHA-256 or link target) of everything below ``root``."""
    found: dict[str, tuple[str, int, str]] = {}
    for folder, folders, files in os.walk(root):
        for name in folders + files:
            path = Path(folder, name)
            status = path.lstat()
            mode = stat.S_IMODE(status.st_mode)
            relative = str(path.relative_to(root))
            if stat.S_ISLNK(status.st_mode):
                found[relative] = ("link", 0, os.readlink(path))
            elif stat.S_ISDIR(status.st_mode):
                found[relative] = ("folder", mode, "")
            else:
                with path.open("rb") as file:
                    found[relative] = ("file", mode, hashlib.file_digest(file, "sha256").hexdigest())
    return found
