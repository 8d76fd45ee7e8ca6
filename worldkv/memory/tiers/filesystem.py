"""What the disk tier asks of a file system, in one place, so that a fault campaign can stand in its way.

Every operation names its fail point to `reach` just before it acts; a subclass may there crash, fail with an errno, or
wait. A crash at one point and the next leaves between them every state that a power cut can leave.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from worldkv.memory.format import pread_into


class FailPoint(StrEnum):
    """Where a fault can strike, in the order in which a put, a get and a removal pass them."""

    CREATE = "create"
    """Nothing of the chunk is on disk."""
    WRITE_HEAD = "write_head"
    """The temporary file is there, empty."""
    WRITE_PAYLOAD = "write_payload"
    """The temporary file holds the header alone."""
    SYNC_FILE = "sync_file"
    """The temporary file is whole, and may not be on the medium."""
    RENAME = "rename"
    """The temporary file is whole and on the medium."""
    SYNC_FOLDER = "sync_folder"
    """The file has its name, and a power cut may take that back."""
    WRITTEN = "written"
    """All is done but the tier's own books."""
    OPEN = "open"
    READ = "read"
    UNLINK = "unlink"
    SCAN = "scan"


PUT_POINTS = (
    FailPoint.CREATE,
    FailPoint.WRITE_HEAD,
    FailPoint.WRITE_PAYLOAD,
    FailPoint.SYNC_FILE,
    FailPoint.RENAME,
    FailPoint.SYNC_FOLDER,
    FailPoint.WRITTEN,
)


@dataclass(frozen=True)
class FileFound:
    """A file of a folder."""

    name: str
    size_bytes: int
    written_ns: int


class Disk:
    """The file system as it is. Every method blocks and raises OSError."""

    def reach(self, point: FailPoint, path: Path) -> None:
        """Called before each operation; does nothing here."""

    def write_new(self, path: Path, pieces: Sequence[bytes | memoryview]) -> None:
        """Write a file of these pieces and bring it to the medium; what a fault leaves of it stays."""
        self.reach(FailPoint.CREATE, path)
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        try:
            for place, piece in enumerate(pieces):
                self.reach(FailPoint.WRITE_PAYLOAD if place else FailPoint.WRITE_HEAD, path)
                _write_all(descriptor, memoryview(piece))
            self.reach(FailPoint.SYNC_FILE, path)
            self.sync(descriptor)
        finally:
            os.close(descriptor)

    def touch(self, path: Path) -> None:
        """Make an empty file where there is none; its name is on the medium after `sync_folder`."""
        self.reach(FailPoint.CREATE, path)
        path.touch(0o600)

    def publish(self, written: Path, final: Path) -> None:
        """Give the file its name, durably. Both lie in one folder."""
        self.reach(FailPoint.RENAME, written)
        written.rename(final)
        self.reach(FailPoint.SYNC_FOLDER, final)
        self.sync_folder(final.parent)
        self.reach(FailPoint.WRITTEN, final)

    def open(self, path: Path, *, whole: bool = True) -> int:
        """A descriptor to read the file with: from its start to its end, or only what is asked for."""
        self.reach(FailPoint.OPEN, path)
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        # From end to end the kernel shall read ahead further; for a header alone it shall not read ahead at all.
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_SEQUENTIAL if whole else os.POSIX_FADV_RANDOM)
        return descriptor

    def read_ahead(self, path: Path, size_bytes: int) -> None:
        """Ask the kernel to read the start of the file in the background; a hint, which may come to nothing."""
        with suppress(OSError):
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            try:
                os.posix_fadvise(descriptor, 0, size_bytes, os.POSIX_FADV_WILLNEED)
            finally:
                os.close(descriptor)

    def size_bytes(self, descriptor: int) -> int:
        """Of the open file."""
        return os.fstat(descriptor).st_size

    def read_into(self, descriptor: int, path: Path, offset: int, out: memoryview) -> int:
        """Fill `out` from `offset`; the bytes read, fewer only where the file ends."""
        self.reach(FailPoint.READ, path)
        return pread_into(descriptor, offset, out)

    def unlink(self, path: Path) -> None:
        """Remove the file; nothing happens where it alone is not there.

        Raises FileNotFoundError where its folder is gone too: then the file may come back with it.
        """
        self.reach(FailPoint.UNLINK, path)
        try:
            path.unlink()
        except FileNotFoundError:
            if not path.parent.is_dir():
                raise

    def move(self, source: Path, target: Path) -> None:
        """Rename within the file system, not waiting for the medium."""
        self.reach(FailPoint.RENAME, source)
        source.rename(target)

    def scan(self, folder: Path) -> Iterator[FileFound]:
        """The regular files of a folder, in no order."""
        self.reach(FailPoint.SCAN, folder)
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.is_file(follow_symlinks=False):
                    about = entry.stat(follow_symlinks=False)
                    yield FileFound(entry.name, about.st_size, about.st_mtime_ns)

    def names(self, folder: Path) -> set[str]:
        """Names of all that lies in a folder."""
        self.reach(FailPoint.SCAN, folder)
        return set(os.listdir(folder))

    def sync_folder(self, folder: Path) -> None:
        """Bring the names in a folder to the medium."""
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            self.sync(descriptor)
        finally:
            os.close(descriptor)

    def sync(self, descriptor: int) -> None:
        """Bring the open file or folder to the medium."""
        os.fsync(descriptor)


class ScratchDisk(Disk):
    """For what nobody reads after this process: nothing waits for the medium, which a power cut leaves as it may."""

    def sync(self, descriptor: int) -> None:
        """Not here: what the file system holds is there for as long as the process is."""

    def sync_folder(self, folder: Path) -> None:
        """Neither."""


def _write_all(descriptor: int, piece: memoryview) -> None:
    done = 0
    while done < len(piece):
        done += os.write(descriptor, piece[done:])
