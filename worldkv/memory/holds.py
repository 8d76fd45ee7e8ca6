"""Leases: holds of remote parties, which end by themselves when time passes. Time is passed in, never read."""

from __future__ import annotations

import heapq
import itertools
from dataclasses import dataclass

from worldkv.errors import LeaseExpired
from worldkv.memory.catalogue import Entry


@dataclass(frozen=True)
class Lease:
    """What the holder keeps of a lease."""

    number: int
    ids: tuple[str, ...]
    """The chunks it holds: those of the ones asked for that a tier held."""


class Leases:
    """All running leases; each counts one hold on each of its entries."""

    def __init__(self) -> None:
        self._entries: dict[int, list[Entry]] = {}
        self._until: dict[int, float] = {}
        self._queue: list[tuple[float, int]] = []
        self._numbers = itertools.count(1)

    def start(self, entries: list[Entry], until: float) -> int:
        """The number of a new lease on these."""
        number = next(self._numbers)
        for entry in entries:
            entry.leases += 1
        self._entries[number] = entries
        self._set(number, until)
        return number

    def renew(self, number: int, seconds: float, now: float) -> None:
        """Let it run until `now + seconds`. Raises LeaseExpired where it is over."""
        if number not in self._entries or self._until[number] <= now:
            ended = f"at {self._until[number]}" if number in self._until else "or was never given"
            raise LeaseExpired(f"lease {number} ran out {ended}; it is {now} now: fetch and lease again")
        self._set(number, now + seconds)

    def end(self, number: int) -> list[Entry]:
        """Its entries, held by it no more; nothing where it is over already."""
        self._until.pop(number, None)
        entries = self._entries.pop(number, [])
        for entry in entries:
            entry.leases -= 1
        return entries

    def expire(self, now: float) -> list[Entry]:
        """Entries of all leases that ran out by `now`, held by them no more."""
        ended: list[Entry] = []
        while self._queue and self._queue[0][0] <= now:
            until, number = heapq.heappop(self._queue)
            if self._until.get(number) == until:  # else it was renewed, or ended early
                ended += self.end(number)
        return ended

    def _set(self, number: int, until: float) -> None:
        self._until[number] = until
        heapq.heappush(self._queue, (until, number))
