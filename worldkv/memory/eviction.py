"""What leaves a full tier first: pure policies, from a snapshot of candidates to an order.

A policy is told candidates least recently used first and gives them back in the order in which they should go. It
decides nothing else: pins, reservations and how many go are the caller's (`choose`).

Shapes: N candidates, P = 6 numbers of a summarised pose.
"""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from worldkv.memory.catalogue import SeenFrom

# A policy that compares candidates looks at so many of the least recently used: the time of an eviction is then
# independent of the size of the memory, and what lies further back was used lately anyway.
COMPARED = 64
# Length at which a change of place counts like looking the other way. The published distance divides by the largest
# distance among the candidates instead; an absolute one keeps a verdict independent of who else is compared.
TURN_LENGTH = 1.0


@dataclass(frozen=True)
class Candidate:
    """What a policy may know of one chunk in the tier."""

    id: str
    tenant: str
    cost_bytes: int
    last_use: int
    """On the catalogue's clock, in which each use is one tick."""
    uses: int
    seen_from: SeenFrom | None
    group: Hashable
    """Only chunks of one group can stand in for each other; None never can."""
    refetch_seconds: float | None = None
    """To bring it back from where it would lie once it has left the tier; None: from nowhere."""


class EvictionPolicy(Protocol):
    """Orders candidates by how little they would be missed."""

    def victims(self, candidates: Iterable[Candidate], now: int) -> Iterator[Candidate]:
        """The candidates, first the one to go first. Ties go to the less recently used."""
        ...


@dataclass(frozen=True)
class LeastRecentlyUsed:
    """In the order of the last use."""

    def victims(self, candidates: Iterable[Candidate], now: int) -> Iterator[Candidate]:
        """See `EvictionPolicy`. Looks at no more candidates than are taken."""
        return iter(candidates)


@dataclass(frozen=True)
class Refetch:
    """How long a tier takes to give a chunk back."""

    latency_seconds: float
    """Before the first byte comes."""
    bytes_per_second: float
    """From then on."""

    def seconds(self, nbytes: int) -> float:
        """For a chunk of so many bytes."""
        return self.latency_seconds + nbytes / self.bytes_per_second


@dataclass(frozen=True)
class CostAware:
    """By what a byte of the tier is worth: expected revisits x seconds to bring the chunk back / bytes."""

    lost_seconds: float = 10.0
    """Counted for a chunk that nothing brings back: more than any tier takes, and the same whatever its size."""

    def victims(self, candidates: Iterable[Candidate], now: int) -> Iterator[Candidate]:
        """See `EvictionPolicy`; beyond the compared ones, by last use."""
        rest = iter(candidates)
        compared = sorted(itertools.islice(rest, COMPARED), key=lambda candidate: self.worth(candidate, now))
        return itertools.chain(compared, rest)

    def worth(self, candidate: Candidate, now: int) -> float:
        """Seconds expected to be saved per byte kept. What was used often and lately is used again."""
        revisits = (1 + candidate.uses) / (1 + now - candidate.last_use)
        back = candidate.refetch_seconds
        refetch_seconds = self.lost_seconds if back is None else back
        return revisits * refetch_seconds / max(1, candidate.cost_bytes)


@dataclass(frozen=True)
class PoseRedundancy:
    """First what another kept chunk of the group sees from nearest by; chunks that see alone go last."""

    def victims(self, candidates: Iterable[Candidate], now: int) -> Iterator[Candidate]:
        """See `EvictionPolicy`; beyond the compared ones, by last use."""
        rest = iter(candidates)
        yield from self._ordered(list(itertools.islice(rest, COMPARED)))
        yield from rest

    def _ordered(self, compared: Sequence[Candidate]) -> Iterator[Candidate]:
        """Of the closest pair the less recently used goes, then of the closest pair among those left, and so on."""
        distance_NN = _distances(compared)
        left = np.ones(len(compared), dtype=bool)
        for _ in compared:
            left_n = np.flatnonzero(left)
            # The first of equal ones: of a pair the one used less recently, and of all that see alone as well.
            gone = int(left_n[distance_NN[left_n].min(axis=1).argmin()])
            left[gone] = False
            distance_NN[gone], distance_NN[:, gone] = math.inf, math.inf
            yield compared[gone]


def _distances(compared: Sequence[Candidate]) -> np.ndarray[tuple[int, int], np.dtype[np.float64]]:
    """How far apart each two see; infinite for a chunk and itself, or where one cannot stand in for the other."""
    pose_NP = np.array([candidate.seen_from or (0.0,) * 6 for candidate in compared]).reshape(-1, 6)
    pose_NP[:, :3] *= 2 / TURN_LENGTH  # directions are two apart when opposite
    distance_NN = np.linalg.norm(pose_NP[:, None] - pose_NP[None], axis=-1)
    numbers: dict[Hashable, int] = {}
    group_N = np.array(
        [
            -1 - place
            if candidate.seen_from is None or candidate.group is None
            else numbers.setdefault((candidate.tenant, candidate.group), len(numbers))
            for place, candidate in enumerate(compared)
        ]
    )
    alone_NN = (group_N[:, None] != group_N[None]) | np.eye(len(compared), dtype=bool)
    return np.where(alone_NN, math.inf, distance_NN)


EVICTION_POLICIES: dict[str, Callable[[], EvictionPolicy]] = {
    "lru": LeastRecentlyUsed,
    "cost": CostAware,
    "pose": PoseRedundancy,
}
"""By the name that the configuration uses."""


def choose(ordered: Iterable[Candidate], need_bytes: int, spare_bytes: dict[str, int]) -> list[Candidate]:
    """The first of `ordered` that free `need_bytes`, or all that may go if they free less.

    `spare_bytes`: what each tenant may lose; of others nothing is taken. Pure.
    """
    chosen: list[Candidate] = []
    taken: Counter[str] = Counter()
    if need_bytes <= 0:
        return chosen
    for candidate in ordered:
        if taken[candidate.tenant] + candidate.cost_bytes <= spare_bytes.get(candidate.tenant, 0):
            chosen.append(candidate)
            taken[candidate.tenant] += candidate.cost_bytes
            if taken.total() >= need_bytes:
                break
    return chosen
