"""A disk that fails where it is told to."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from worldkv.memory.tiers.filesystem import Disk, FailPoint


class PowerCut(BaseException):
    """The process is no more; nothing it does afterwards reaches the disk."""


class FaultyDisk(Disk):
    """Fails at one point with an errno, for as long as `failing` holds it; a power cut ends everything."""

    def __init__(self) -> None:
        self.failing: dict[FailPoint, int] = {}
        self.cut_at: FailPoint | None = None
        self.cut = False
        self.passed: list[FailPoint] = []
        self.damage: Callable[[memoryview], None] | None = None

    def reach(self, point: FailPoint, path: Path) -> None:
        self.passed.append(point)
        self.cut = self.cut or point == self.cut_at
        if self.cut:
            raise PowerCut(point)
        if point in self.failing:
            raise OSError(self.failing[point], os.strerror(self.failing[point]), str(path))

    def read_into(self, descriptor: int, path: Path, offset: int, out: memoryview) -> int:
        found = super().read_into(descriptor, path, offset, out)
        if self.damage is not None:
            self.damage(out)
        return found


def bytes_on_disk(folder: Path) -> int:
    """Of all chunks and leftovers, in whole pages."""
    files = (
        os.path.join(place, name)
        for place, _, names in os.walk(folder)
        for name in names
        if name.endswith((".wkv", ".part"))
    )
    return sum(-(-os.path.getsize(file) // 4096) * 4096 for file in files)
