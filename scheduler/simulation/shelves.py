"""Where chunks lie in the simulated tiers: bounded, exclusive, demoted one tier down when something must go."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

from scheduler.simulation.hardware import Hardware

Key = tuple[int, int]
"""Session number, chunk index."""


class Lying(NamedTuple):
    """A chunk in a tier."""

    nbytes: int
    tenant: str


@dataclass(eq=False)
class Shelf:
    """One instance of a tier. Least recently used first."""

    capacity_bytes: float
    lying: OrderedDict[Key, Lying] = field(default_factory=OrderedDict)
    used_bytes: int = 0
    """With room that is promised."""
    leaving: list[Key] = field(default_factory=list)
    """What a plan would rather lose, least worth last; beyond it the least recently used goes."""

    def add(self, key: Key, nbytes: int, tenant: str) -> None:
        """The chunk is here now; its room is accounted for already."""
        self.lying[key] = Lying(nbytes, tenant)

    def take(self, key: Key) -> Lying:
        """The chunk is here no more, nor is its room used."""
        gone = self.lying.pop(key)
        self.used_bytes -= gone.nbytes
        return gone

    def touch(self, key: Key) -> None:
        """The chunk was used."""
        self.lying.move_to_end(key)

    def victims(self) -> Iterator[Key]:
        """What goes first: what the last plan names, then the least recently used."""
        named: set[Key] = set()
        while self.leaving:
            key = self.leaving.pop()
            if key in self.lying and key not in named:
                named.add(key)
                yield key
        yield from [key for key in self.lying if key not in named]


class Shelves:
    """All tiers of the cluster. `moved(key, tier)` is told whenever a chunk is demoted."""

    def __init__(self, hardware: Hardware, pinned: Callable[[Key], bool], moved: Callable[[Key, int], None]) -> None:
        self.hardware, self._pinned, self._moved = hardware, pinned, moved
        self._shelves = [
            [Shelf(tier.capacity_bytes) for _ in range(hardware.instances(tier.scope))] for tier in hardware.tiers
        ]

    def shelf(self, tier: int, worker: int) -> Shelf:
        """The instance of a tier that a worker sees."""
        return self._shelves[tier][self.hardware.instance(self.hardware.tiers[tier].scope, worker)]

    def promise(
        self, tier: int, worker: int, nbytes: int, order: Callable[[Shelf], Iterator[Key]] | None = None
    ) -> bool:
        """Account for room, demoting what may go, in `order` if given; False where none is left: nothing changed."""
        shelf = self.shelf(tier, worker)
        short = shelf.used_bytes + nbytes - shelf.capacity_bytes
        if short > 0:
            chosen: list[Key] = []
            for key in (order or Shelf.victims)(shelf):
                if self._pinned(key):
                    continue
                chosen.append(key)
                short -= shelf.lying[key].nbytes
                if short <= 0:
                    break
            if short > 0:
                return False
            for key in chosen:
                self.demote(key, tier, worker)
        shelf.used_bytes += nbytes
        return True

    def demote(self, key: Key, tier: int, worker: int) -> None:
        """One tier down, or farther where there is no room; the last tier takes all."""
        gone = self.shelf(tier, worker).take(key)
        below = tier + 1
        while not self.promise(below, worker, gone.nbytes):
            below += 1
        self.shelf(below, worker).add(key, gone.nbytes, gone.tenant)
        self._moved(key, below)
