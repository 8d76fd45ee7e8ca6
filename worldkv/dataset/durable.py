"""Every change to the file system, so that there is one place to make durable, to break in tests and to lock.

- A file is complete and on the disk before its name appears (`write_file` into staging, then `publish`).
- A name is on the disk once `sync` of its folder returned.
- Nothing here is undone on failure; `recovery` brings a folder back to what it counts.
"""

import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from worldkv.errors import OutputError


@contextmanager
def output_faults(root: Path) -> Iterator[None]:
    """Turn a refusal of the operating system (disk full, not writable) into one clear OutputError."""
    try:
        yield
    except OutputError:
        raise
    except OSError as error:
        raise OutputError(f"{error.filename or root}: {error.strerror or error}") from error


def write_file(path: Path, contents: bytes) -> None:
    """Write a file, replacing any other, and return once its bytes are on the disk."""
    with path.open("wb") as file:
        file.write(contents)
        file.flush()
        os.fsync(file.fileno())


def write_at(path: Path, contents: bytes, offset: int) -> None:
    """Make a file end with these bytes at this offset, whatever followed before; blocks until on the disk."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT, 0o644)
    with os.fdopen(descriptor, "wb") as file:
        file.truncate(offset)
        file.seek(offset)
        file.write(contents)
        file.flush()
        os.fsync(file.fileno())


def cut_file(path: Path, length: int) -> None:
    """Remove what a file holds beyond a length; blocks until on the disk."""
    if path.stat().st_size > length:
        os.truncate(path, length)
        sync(path)


def publish(staged: Path, target: Path) -> None:
    """Give a staged file its final name, atomically replacing an older version."""
    os.replace(staged, target)


def remove_file(path: Path) -> None:
    """Remove a file if it is there."""
    path.unlink(missing_ok=True)


def remove_folder(path: Path) -> None:
    """Remove a folder and all in it if it is there."""
    if path.exists():
        shutil.rmtree(path)


def make_folder(path: Path) -> None:
    """Make a folder and its missing parents; each new name is on the disk on return."""
    if path.is_dir():
        return
    make_folder(path.parent)
    path.mkdir(exist_ok=True)
    sync(path.parent)


def sync(path: Path) -> None:
    """Return once a file's contents, or all names in a folder, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


class FolderLock:
    """Keeps a second writer out of a folder; the operating system lets go of it when the process ends."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor: int | None = descriptor

    @classmethod
    def take(cls, path: Path) -> "FolderLock":
        """Lock by this file; raises OutputError if another writer has it."""
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # A writer that just closed has removed the file: a lock on that would keep nobody out.
            taken = os.fstat(descriptor).st_nlink == 0
        except BlockingIOError:
            taken = True
        if taken:
            os.close(descriptor)
            raise OutputError(f"{path.parent.parent}: another writer is at work here")
        return cls(descriptor)

    def release(self) -> None:
        """Let other writers in; releasing twice is allowed."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None
