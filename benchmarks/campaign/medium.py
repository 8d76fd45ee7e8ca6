"""Media that fail as they are told to: a disk's file system, and an object store in a folder.

Both count their calls, and stamp files from one clock of their own, so that a campaign's order of files, which a
restart reads, is its seed's and not the kernel's.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from fsspec.implementations.local import LocalFileSystem

from worldkv.memory.tiers.filesystem import Disk, FailPoint


class PowerCut(BaseException):
    """The process is no more: nothing it does afterwards reaches a medium."""


@dataclass
class Faults:
    """What goes wrong on one medium until further notice."""

    errnos: dict[str, int] = field(default_factory=dict)
    """Point -> errno of the OSError raised there."""
    away: bool = False
    """Every call fails."""
    flips: int = 0
    """So many reads give a flipped bit; the medium itself is sound."""
    short: int = 0
    """So many writes lose their second half and say nothing."""
    delay_seconds: float = 0.0
    """Of each call."""
    cut_after: int | None = None
    """Calls until the power goes."""
    wait: Callable[[float], None] = lambda seconds: None
    calls: int = 0
    struck: int = 0
    stamp: int = 0

    @property
    def armed(self) -> bool:
        """Whether any call may fail."""
        return bool(self.errnos or self.away or self.flips or self.short or self.cut_after is not None)

    def heal(self) -> None:
        """From now on everything works."""
        self.errnos, self.away, self.flips, self.short, self.delay_seconds = {}, False, 0, 0, 0.0
        self.cut_after = None

    def reach(self, point: str) -> None:
        """One call is about to happen. Raises PowerCut or OSError where it shall not."""
        self.calls += 1
        if self.delay_seconds:
            self.wait(self.delay_seconds)
        if self.cut_after is not None:
            if self.cut_after <= 0:
                raise PowerCut(point)
            self.cut_after -= 1
        if self.away or point in self.errnos:
            self.struck += 1
            code = errno.ENXIO if self.away else self.errnos[point]
            raise OSError(code, os.strerror(code), point)

    def next_stamp(self) -> int:
        """The time of the next write, in ns."""
        self.stamp += 1
        return self.stamp * 10**9

    def read(self, data: memoryview) -> None:
        """What was read goes by; some of it with another bit."""
        if self.flips and len(data):
            self.flips -= 1
            self.struck += 1
            data[len(data) // 2] ^= 4


class FaultyDisk(Disk):
    """A file system that obeys `faults`."""

    def __init__(self, faults: Faults) -> None:
        self.faults = faults

    def reach(self, point: FailPoint, path: Path) -> None:
        """See `Disk.reach`."""
        self.faults.reach(point)
        if point == FailPoint.RENAME:
            with suppress(OSError):
                os.utime(path, ns=(self.faults.next_stamp(),) * 2)

    def read_into(self, descriptor: int, path: Path, offset: int, out: memoryview) -> int:
        """See `Disk.read_into`."""
        found = super().read_into(descriptor, path, offset, out)
        self.faults.read(out)
        return found


class FaultyStore(LocalFileSystem):
    """A store that shows objects while they are being written, as sftp does, and obeys `faults`."""

    protocol = "faulty"
    cachable = False

    def __init__(self, faults: Faults) -> None:
        super().__init__(auto_mkdir=True)
        self.faults = faults

    def pipe_file(self, path: str, value: bytes, mode: str = "overwrite", **options: object) -> None:
        """Writes half of the bytes before the fault of `write_rest` strikes."""
        self.faults.reach("create")
        half = len(value) // 2
        with open(path, "wb") as file:
            file.write(value[:half])
            file.flush()
            self.faults.reach("write_rest")
            if self.faults.short:
                self.faults.short -= 1
                self.faults.struck += 1
                return
            file.write(value[half:])

    def info(self, path: str, **options: object) -> dict[str, object]:
        """See `fsspec`."""
        self.faults.reach("info")
        found: dict[str, object] = super().info(path, **options)
        return found

    def mv(self, path1: str, path2: str, recursive: bool = True, **options: object) -> None:
        """See `fsspec`."""
        self.faults.reach("rename")
        with suppress(OSError):
            os.utime(path1, ns=(self.faults.next_stamp(),) * 2)
        super().mv(path1, path2, recursive, **options)
        self.faults.reach("renamed")

    def cat_file(self, path: str, start: int | None = None, end: int | None = None, **options: object) -> bytes:
        """See `fsspec`."""
        self.faults.reach("read")
        with open(path, "rb") as file:
            data = bytearray(file.read()[start:end])
        self.faults.read(memoryview(data))
        return bytes(data)

    def rm_file(self, path: str) -> None:
        """See `fsspec`."""
        self.faults.reach("unlink")
        os.remove(path)

    def find(self, path: str, *places: object, **options: object) -> object:
        """See `fsspec`."""
        self.faults.reach("scan")
        return super().find(path, *places, **options)
