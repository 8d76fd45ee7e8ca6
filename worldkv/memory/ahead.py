"""Chunks on their way to tier 0 while others compute: started early, landed when somebody asks for them.

- What was started is pinned until whoever asked for it lets go: it neither moves nor goes.
- Other threads read and the link copies; only the thread that owns the memory lands a chunk.
- No chunk that is held makes way for one that is only expected.
- Each chunk that was started becomes useful, late or wasted, or waits in tier 0 (`stats.PrefetchStats`).
"""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from typing import NamedTuple

from worldkv.durations import About, Span
from worldkv.errors import ChunkEvicted, TransferLate
from worldkv.memory.books import Books
from worldkv.memory.catalogue import Entry
from worldkv.memory.mover import Arrival, Mover
from worldkv.memory.placement import Placement


@dataclass(eq=False)
class Expected:
    """Chunks that are brought near for whoever holds this, and then stay there."""

    entries: list[Entry]
    _give_up: Callable[[Iterable[Entry]], None]

    def let_go(self) -> None:
        """Expect them no longer; what is still on its way is left. Twice is as good as once."""
        entries, self.entries = self.entries, []
        self._give_up(entries)


class _Began(NamedTuple):
    """What a time line has to know of a chunk that was started."""

    tier: str
    """Where it comes from."""
    seconds: float
    """When that was."""
    lane: int
    """Least number that no other on its way has: spans of one lane do not overlap."""


class _Coming(NamedTuple):
    """A chunk on its way."""

    level: int
    """The tier that it comes from."""
    arrival: Arrival
    began: _Began


class Ahead:
    """All chunks of a memory that are on their way."""

    def __init__(self, placement: Placement, books: Books, mover: Mover) -> None:
        self._placement, self._books, self._mover = placement, books, mover
        self._coming: dict[Entry, _Coming] = {}
        self._expected: Counter[Entry] = Counter()
        """By how many."""

    def start(self, entry: Entry) -> None:
        """Pin the chunk, which lies in some tier, and start to bring it near unless that is under way or done.

        A tier that is as fast as the copy itself is not worth a thread: from there it is copied here and now.
        """
        level = min(entry.copies)
        if level and entry not in self._coming and self._placement.room.has_room_near(entry, level):
            self._books.prefetch["issued"] += 1
            self._books.prefetch["issued_bytes"] += entry.copies[level].cost_bytes
            taken = {coming.began.lane for coming in self._coming.values()}
            lane = next(number for number in itertools.count(1) if number not in taken)
            began = _Began(self._placement.tiers[level].name, self._books.clock(), lane)
            arrival = self._placement.begin(entry, level)
            if arrival is not None:
                self._coming[entry] = _Coming(level, arrival, began)
            else:
                self._landed(entry, in_time=self._brought(entry, level))
                self._tell(entry, began, "in time" if entry.early else "late")
        entry.pins += 1
        self._expected[entry] += 1

    def land(self, entry: Entry, deadline: float) -> None:
        """Take in the chunk if it is on its way, blocking until it is here; nothing happens to any other.

        Raises TransferLate where the deadline has passed and it is not here yet: it stays on its way.
        """
        if entry not in self._coming:
            return
        coming = self._coming[entry]
        level, arrival = coming.level, coming.arrival
        in_time = arrival.done()
        if not in_time and self._mover.late(deadline):
            raise TransferLate(f"chunk {entry.id} on its way to tier 0: asked for by {deadline}, not here yet")
        del self._coming[entry]
        if entry.pins > self._expected[entry] or entry.leases:  # held by others too, where it lies
            arrival.cancel()
        else:
            self._placement.arrive(entry, level, arrival)
        self._landed(entry, in_time=in_time)
        self._tell(entry, coming.began, "in time" if entry.early else "late")

    def give_up(self, entries: Iterable[Entry]) -> None:
        """Unpin the chunks; those that nobody expects any more and that are still on their way are left."""
        for entry in entries:
            entry.pins -= 1
            self._expected[entry] -= 1
            if self._expected[entry]:
                continue
            del self._expected[entry]
            if entry in self._coming:
                coming = self._coming.pop(entry)
                coming.arrival.cancel()
                self._books.prefetch["wasted"] += 1
                self._tell(entry, coming.began, "given up")

    def close(self) -> None:
        """Leave all that is on its way."""
        for coming in self._coming.values():
            coming.arrival.cancel()
        self._coming.clear()

    def _tell(self, entry: Entry, began: _Began, outcome: str) -> None:
        about = About(tier=began.tier, tenant=entry.tenant, chunk=entry.id, outcome=outcome)
        self._books.told(Span(f"prefetch {began.lane}", "prefetch", began.seconds, self._books.clock(), about))

    def _brought(self, entry: Entry, level: int) -> bool:
        with suppress(ChunkEvicted):
            return self._placement.bring(entry, level, math.inf) is not None
        return False

    def _landed(self, entry: Entry, *, in_time: bool) -> None:
        entry.early = in_time and 0 in entry.copies
        self._books.prefetch["late"] += not entry.early
