"""What the scheduler reads of a job, and what its plans come to: which worker gets which batch, who goes on elsewhere.

Pure. A batch is one session to the scheduler: it is never split, and takes one slot of a worker.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from math import inf
from statistics import fmean

from scheduler.placement import PlacementSettings, plan_placement
from scheduler.rebalancing import plan_moves
from scheduler.snapshot import (
    ClusterView,
    PendingView,
    Resources,
    RunningTable,
    RunningView,
    WorkerView,
    pending_table,
    running_table,
)
from worldkv.runs.batch import Batch
from worldkv.stats import WorkerStats

# What the newest chunk counts for in a worker's pace: a hiccup changes little, a node that slows down is noticed soon.
NEWEST = 0.2
# Priorities: a worker should go on with the worlds it has drawn, and two should not draw the same ones.
DRAWN, FREE, TAKEN = 2, 1, 0
# The order of batches stands in for the time they wait: none starves, for the first has its turn to be committed, and
# others may run only so far ahead of it. And among batches of one job nobody gives way.
SETTINGS = PlacementSettings(patience_seconds=inf, starving_seconds=inf)


@dataclass(frozen=True)
class Seat:
    """A worker that is open, as its driver sees it."""

    slot: int
    node: str
    domain: str = ""
    """What fails together with it beyond its node."""
    batch: Batch | None = None
    """Under way."""
    leaving: bool = False
    """It gets no other batch, for its node is to be left."""
    stats: WorkerStats | None = None
    """Its newest word."""

    @property
    def at_work(self) -> WorkerStats | None:
        """Its newest word where that is of its present batch."""
        told = self.stats
        return told if told is not None and self.batch is not None and told.batch == self.batch.number else None


@dataclass(frozen=True)
class Facts:
    """What holds for all batches of a job."""

    tenant: str
    window_bytes: Mapping[str, int]
    """Policy -> what the windows of a batch bring back and hold at once in the first tier."""
    resumable: Collection[str]
    """Policies whose batches go on elsewhere from any chunk, to the same bytes."""
    world_bytes: int
    """Of a world as a worker has drawn it."""


@dataclass
class Paces:
    """How long each worker takes over a chunk of each policy."""

    _seconds: dict[tuple[int, str], float] = field(default_factory=dict)
    _newest: dict[int, tuple[int | None, int]] = field(default_factory=dict)
    """Slot -> batch and chunk that were counted last."""

    def note(self, seat: Seat) -> None:
        """Count the chunk that a worker told of last, once."""
        told = seat.at_work
        if told is None or seat.batch is None or told.chunk_seconds <= 0:
            return
        if told.chunk and self._newest.get(seat.slot) != (told.batch, told.chunk):
            self._newest[seat.slot] = (told.batch, told.chunk)
            key = (seat.slot, seat.batch.policy)
            before = self._seconds.get(key, told.chunk_seconds)
            self._seconds[key] = before + NEWEST * (told.chunk_seconds - before)

    def forget(self, slot: int) -> None:
        """The worker of the slot is another one now, maybe elsewhere."""
        self._newest.pop(slot, None)
        for key in [key for key in self._seconds if key[0] == slot]:
            del self._seconds[key]

    def seconds(self, slot: int, policy: str) -> float | None:
        """For one chunk; None where none was made."""
        return self._seconds.get((slot, policy))

    def speeds(self) -> dict[int, float]:
        """Slot -> speed beside the others, over policies that both made chunks of; without who cannot be compared."""
        of_policy: defaultdict[str, list[float]] = defaultdict(list)
        for (_, policy), seconds in self._seconds.items():
            of_policy[policy].append(seconds)
        found: defaultdict[int, list[float]] = defaultdict(list)
        for (slot, policy), seconds in self._seconds.items():
            if len(of_policy[policy]) > 1:
                found[slot].append(fmean(of_policy[policy]) / seconds)
        return {slot: fmean(speeds) for slot, speeds in found.items()}


@dataclass
class Planner:
    """The scheduler's policy on one job."""

    facts: Facts
    paces: Paces = field(default_factory=Paces)
    drawn: dict[int, tuple[int, ...]] = field(default_factory=dict)
    """Slot -> worlds that its worker has drawn."""
    left_at: dict[int, tuple[str, int]] = field(default_factory=dict)
    """Batch that was written down -> node that did it, and bytes of its chunks."""

    def assign(self, seats: Sequence[Seat], pending: Sequence[Batch]) -> list[tuple[int, Batch]]:
        """Which of the waiting batches, in their order, starts on which idle worker; at most one on each."""
        view = ClusterView(0.0, self._floor(seats), self._running(seats), pending_table(self._waiting(seats, pending)))
        named = {str(batch.number): batch for batch in pending}
        return [(int(worker), named[name]) for name, (worker,) in plan_placement(view, SETTINGS).placed]

    def moves(self, seats: Sequence[Seat]) -> list[tuple[Batch, int]]:
        """Batches that should go on at another worker, where that pays. For when none waits."""
        under_way = {str(seat.batch.number): seat.batch for seat in seats if seat.batch is not None}
        view = ClusterView(0.0, self._floor(seats), self._running(seats))
        return [(under_way[move.session], int(move.to_worker)) for move in plan_moves(view)]

    def stored_bytes(self, seat: Seat) -> int:
        """Of the chunks that its batch would have to take along; those of a shared tier stay where they are."""
        told = seat.at_work
        if told is None or told.work is None:
            return 0
        return sum(tier.used_bytes for tier in told.work.memory.tiers if tier.name != "node")

    def _floor(self, seats: Iterable[Seat]) -> tuple[WorkerView, ...]:
        speeds = self.paces.speeds()
        return tuple(
            WorkerView(
                str(seat.slot),
                seat.node,
                Resources(1, _capacity(seat, "device"), _capacity(seat, "host")),
                draining=seat.leaving,
                domain=seat.domain,
                speed=speeds.get(seat.slot, 1.0),
            )
            for seat in seats
        )

    def _needs(self, policy: str, seats: Iterable[Seat]) -> Resources:
        """A slot and what its windows hold; tiers smaller than that make do, for windows are brought back in turn."""
        least = min((_capacity(seat, "device") for seat in seats), default=0)
        return Resources(1, min(self.facts.window_bytes[policy], least))

    def _running(self, seats: Sequence[Seat]) -> RunningTable:
        return running_table(self._under_way(seat, seat.batch, seats) for seat in seats if seat.batch is not None)

    def _under_way(self, seat: Seat, batch: Batch, seats: Sequence[Seat]) -> RunningView:
        told, pace = seat.at_work, self.paces.seconds(seat.slot, batch.policy)
        known = told is not None and pace is not None
        return RunningView(
            *(str(batch.number), self.facts.tenant, (str(seat.slot),), self._needs(batch.policy, seats)),
            remaining_seconds=(told.chunks - told.chunk) * pace if told is not None and pace is not None else 0.0,
            chunk_bytes=self.stored_bytes(seat),
            may_leave=known and batch.policy in self.facts.resumable,
        )

    def _waiting(self, seats: Sequence[Seat], pending: Sequence[Batch]) -> list[PendingView]:
        has = {seat.slot: self.drawn.get(seat.slot) for seat in seats if seat.batch is None and not seat.leaving}
        # Worlds -> idle workers that have drawn them and are not spoken for yet.
        free = Counter(has.values())
        taken = {seat.batch.seeds for seat in seats if seat.batch is not None}
        views = []
        for place, batch in enumerate(pending):
            near, priority = {}, TAKEN if batch.seeds in taken else FREE
            if free[batch.seeds]:
                free[batch.seeds] -= 1
                priority = DRAWN
                nbytes = self.facts.world_bytes * len(batch.seeds)
                near = {str(slot): nbytes for slot, seeds in has.items() if seeds == batch.seeds}
            if batch.number in self.left_at:
                node, nbytes = self.left_at[batch.number]
                near[node] = nbytes
            taken.add(batch.seeds)
            needs, since = self._needs(batch.policy, seats), float(place - len(pending))
            views.append(PendingView(str(batch.number), self.facts.tenant, needs, 1, priority, since, near))
        return views


def _capacity(seat: Seat, name: str) -> int:
    work = None if seat.stats is None else seat.stats.work
    return 0 if work is None else sum(tier.capacity_bytes for tier in work.memory.tiers if tier.name == name)
