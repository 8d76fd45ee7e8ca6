"""Which bytes of a slab are taken: extents, first fit from the low end, and how to slide them together. Pure books.

- Free and taken extents never overlap and together are the whole slab; neighbouring free ones are one.
- Every size is a whole number of grains, so a slab of one chunk size never fragments.
- Where sizes differ, room that is free but scattered is gathered: `plan_moves` names the fewest bytes to slide. So what
  no reader holds in place never keeps a chunk out that would fit.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections import deque
from collections.abc import Callable, Sequence
from typing import NamedTuple


class Extent(NamedTuple):
    """Bytes start..stop-1 of a slab."""

    start: int
    stop: int

    @property
    def nbytes(self) -> int:
        """Its length."""
        return self.stop - self.start

    def overlaps(self, other: Extent) -> bool:
        """Whether they share a byte."""
        return self.start < other.stop and other.start < self.stop


class Move(NamedTuple):
    """A taken extent and where it shall lie: always lower, and clear of what has not moved yet but itself."""

    old: Extent
    new: Extent


class Extents:
    """The free and taken extents of `capacity_bytes`, rounded down to whole grains."""

    def __init__(self, capacity_bytes: int, grain_bytes: int) -> None:
        self.grain_bytes = grain_bytes
        self.capacity_bytes = capacity_bytes // grain_bytes * grain_bytes
        self._free = [Extent(0, self.capacity_bytes)] if self.capacity_bytes else []
        self._taken: list[Extent] = []

    @property
    def free_bytes(self) -> int:
        """Bytes in no taken extent, wherever they lie."""
        return sum(gap.nbytes for gap in self._free)

    @property
    def largest_free_bytes(self) -> int:
        """The largest size that `take` can serve now."""
        return max((gap.nbytes for gap in self._free), default=0)

    def rounded(self, nbytes: int) -> int:
        """Bytes that `take(nbytes)` takes."""
        return max(1, -(-nbytes // self.grain_bytes)) * self.grain_bytes

    def take(self, nbytes: int) -> Extent | None:
        """The lowest free extent that is long enough, now taken; None where there is none."""
        nbytes = self.rounded(nbytes)
        for place, gap in enumerate(self._free):
            if gap.nbytes >= nbytes:
                taken = Extent(gap.start, gap.start + nbytes)
                self._free[place : place + 1] = [Extent(taken.stop, gap.stop)] if gap.nbytes > nbytes else []
                insort(self._taken, taken)
                return taken
        return None

    def give_back(self, extent: Extent) -> None:
        """Free a taken extent. Raises ValueError for one that is not taken."""
        self._forget(extent)
        place = bisect_left(self._free, extent)
        before, after = self._free[max(0, place - 1) : place], self._free[place : place + 1]
        start = before.pop().start if before and before[0].stop == extent.start else extent.start
        stop = after.pop().stop if after and after[0].start == extent.stop else extent.stop
        self._free[max(0, place - 1) : place + 1] = [*before, Extent(start, stop), *after]

    def plan_moves(self, nbytes: int, movable: Callable[[Extent], bool]) -> list[Move] | None:
        """The slides, in order, that make one free extent of `nbytes` at the least bytes moved; None: impossible.

        Changes nothing; `apply` books each move once its bytes lie there.
        """
        nbytes = self.rounded(nbytes)
        window: deque[tuple[Extent, bool]] = deque()
        free = moved = 0
        best: tuple[int, Extent] | None = None
        for extent, is_free in self._in_order():
            if not is_free and not movable(extent):
                window.clear()
                free = moved = 0
                continue
            window.append((extent, is_free))
            free, moved = (free + extent.nbytes, moved) if is_free else (free, moved + extent.nbytes)
            while window and (not window[0][1] or free - window[0][0].nbytes >= nbytes):
                first, first_free = window.popleft()
                free, moved = (free - first.nbytes, moved) if first_free else (free, moved - first.nbytes)
            if free >= nbytes and (best is None or moved < best[0]):
                best = moved, Extent(window[0][0].start, extent.stop)
        return None if best is None else self._slides(best[1])

    def apply(self, move: Move) -> None:
        """Book a move of `plan_moves`."""
        self.give_back(move.old)
        taken = self._cut(move.new)
        insort(self._taken, taken)

    def check(self) -> list[str]:
        """Faults: overlaps, gaps, or bytes that do not add up; empty when all is well."""
        faults, at, last_free = [], 0, False
        for extent, is_free in self._in_order():
            if extent.start != at or extent.nbytes <= 0:
                faults.append(f"bytes {at}..{extent.start} are neither free nor taken, or both ({extent})")
            if is_free and last_free:
                faults.append(f"free extents meet at byte {extent.start} and are not one")
            at, last_free = extent.stop, is_free
        if at != self.capacity_bytes:
            faults.append(f"extents end at byte {at} of {self.capacity_bytes}")
        return faults

    def _in_order(self) -> Sequence[tuple[Extent, bool]]:
        """All extents and whether each is free, by address."""
        return sorted([(gap, True) for gap in self._free] + [(extent, False) for extent in self._taken])

    def _slides(self, window: Extent) -> list[Move]:
        moves, at = [], window.start
        first = bisect_left(self._taken, (window.start,))
        for extent in self._taken[first : bisect_left(self._taken, (window.stop,))]:
            moves.append(Move(extent, Extent(at, at + extent.nbytes)))
            at += extent.nbytes
        return [move for move in moves if move.old != move.new]

    def _forget(self, extent: Extent) -> None:
        place = bisect_left(self._taken, extent)
        if self._taken[place : place + 1] != [extent]:
            raise ValueError(f"{extent} is not taken")
        del self._taken[place]

    def _cut(self, wanted: Extent) -> Extent:
        """Take these very bytes, which are free."""
        place = bisect_left(self._free, (wanted.start + 1,)) - 1
        gap = self._free[place]
        rest = [Extent(gap.start, wanted.start), Extent(wanted.stop, gap.stop)]
        self._free[place : place + 1] = [part for part in rest if part.nbytes > 0]
        return wanted
