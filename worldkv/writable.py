"""Whether a folder could be made and written, found out without making or writing anything."""

from __future__ import annotations

import errno
import os
from pathlib import Path


def check_writable(folder: Path) -> None:
    """Raise OSError where the folder, or the nearest one above it that is there, cannot be written."""
    folder = folder.absolute()
    nearest = next(path for path in (folder, *folder.parents) if path.exists())
    if not nearest.is_dir():
        raise NotADirectoryError(errno.ENOTDIR, f"{nearest} is a file", str(nearest))
    if not os.access(nearest, os.W_OK | os.X_OK):
        raise PermissionError(errno.EACCES, f"{nearest} cannot be written", str(nearest))
