"""From a job's batches to its workers: carries out what the scheduler plans, asks the gate, keeps the queue's figures.

- A batch goes to an idle worker once the gate lets it start. What it holds of the gate stays with it when it moves.
- A batch that is to give way, or to go on elsewhere, ends at its next chunk and is written down; then it waits as
  others do, or goes to the worker for which it left.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol, TypedDict

from cluster.admission import Asked
from cluster.book import Book
from cluster.gate import Wishes
from cluster.planning import Planner, Seat
from cluster.pool import Pool
from worldkv.durations import DurationBook
from worldkv.runs.batch import Batch

# A batch that no worker is at may run ahead of the commits by so many per worker: what waits takes room on storage.
AHEAD_PER_WORKER = 8


class Gate(Protocol):
    """Who says when a batch may start."""

    def ask(self, wanted: Mapping[int, Asked]) -> dict[int, str]:
        """Per batch '' when it may; else why it waits, in words. Blocks for an answer, but not until it may."""
        ...

    def release(self, batch: int) -> None:
        """Its sessions are over."""
        ...

    def wishes(self) -> Wishes:
        """What the cluster wants; batches by number."""
        ...


class OpenGate:
    """Of a cluster that nobody shares."""

    def ask(self, wanted: Mapping[int, Asked]) -> dict[int, str]:
        """Always at once."""
        return dict.fromkeys(wanted, "")

    def release(self, batch: int) -> None:
        """Nothing was held."""

    def wishes(self) -> Wishes:
        """None."""
        return Wishes()


class Queue(TypedDict):
    """What of a job waits for a worker, in sessions: fields of `JobState`."""

    queued: int
    oldest_wait_seconds: float
    wait_counts: tuple[int, ...]
    wait_seconds: float


@dataclass
class Assigner:
    """See the module."""

    book: Book
    pool: Pool
    gate: Gate
    planner: Planner
    workers: int
    waits_for: str = ""
    """Why the gate lets no batch start, in words."""
    moved: int = 0
    """Batches that went on at another worker because that paid."""
    gave_way: int = 0
    """Batches that ended early for others."""
    _moving: dict[int, int] = field(default_factory=dict)
    """Batch -> slot for which it leaves its worker."""
    _ever_moved: set[int] = field(default_factory=set)
    _leaving: set[int] = field(default_factory=set)
    """Batches that were asked to end early."""
    _since: dict[int, float] = field(default_factory=dict)
    """Batch -> since when it waits, where that is later than the job's start."""
    _started: float = field(default_factory=time.monotonic)
    _waits: DurationBook = field(default_factory=DurationBook)

    def step(self) -> None:
        """Give idle workers what they should have, and see to what the cluster wants."""
        seats = self.pool.seats()
        for seat in seats:
            self.planner.paces.note(seat)
        self._give(seats)
        self._rebalance()
        wishes = self.gate.wishes()
        if wishes.nodes:
            self.pool.leave(set(wishes.nodes))
        for seat in self.pool.seats():
            if seat.batch is not None and seat.batch.number in wishes.give_way - self._leaving:
                self._leave(seat, seat.batch)

    def came_back(self, batch: Batch) -> None:
        """It ended early, or its worker died: it waits again."""
        self.book.give_back(batch)
        self._since[batch.number] = time.monotonic()
        self.gave_way += batch.number in self._leaving and batch.number not in self._moving
        self._leaving.discard(batch.number)
        if batch.number not in self._moving:
            self.gate.release(batch.number)

    def over(self, batch: Batch) -> None:
        """No worker has to be at it any more."""
        self._moving.pop(batch.number, None)
        self._leaving.discard(batch.number)
        self.planner.left_at.pop(batch.number, None)
        self.gate.release(batch.number)

    def forget(self, slot: int) -> None:
        """There is another worker in the slot."""
        self.planner.drawn.pop(slot, None)
        self.planner.paces.forget(slot)

    def close(self) -> None:
        """Give back to the gate whatever is still held."""
        for batch in self.book.batches:
            self.gate.release(batch.number)

    def queue(self) -> Queue:
        """How it stands."""
        waiting, now = self.book.pending, time.monotonic()
        oldest = min((self._since.get(number, self._started) for number in waiting), default=now)
        waits = self._waits.frozen()
        return Queue(
            queued=sum(len(self.book.batches[number].seeds) for number in waiting),
            oldest_wait_seconds=now - oldest,
            wait_counts=waits.counts,
            wait_seconds=waits.seconds,
        )

    def _give(self, seats: list[Seat]) -> None:
        self.waits_for = ""
        idle = {seat.slot for seat in seats if seat.batch is None and not seat.leaving}
        pending = self.book.near(AHEAD_PER_WORKER * self.workers)
        if not idle or not pending:
            return
        chosen = self._arrived(idle, pending) or self.planner.assign(seats, pending)
        resumable = self.planner.facts.resumable
        answers = self.gate.ask({b.number: Asked(len(b.seeds), b.policy in resumable) for _, b in chosen})
        for slot, batch in chosen:
            if answers[batch.number]:
                self.waits_for = answers[batch.number]
                continue
            self.book.take(batch)
            self.planner.drawn[slot] = batch.seeds
            now = time.monotonic()
            for _ in batch.seeds:
                self._waits.add(now - self._since.get(batch.number, self._started))
            self.pool.give(slot, batch)

    def _arrived(self, idle: set[int], pending: list[Batch]) -> list[tuple[int, Batch]]:
        """What left its worker for one that is idle now. A target that is not there any more is forgotten."""
        found = []
        for batch in pending:
            slot = self._moving.pop(batch.number, None)
            if slot in idle:
                idle.discard(slot)
                self.moved += 1
                found.append((slot, batch))
        return found

    def _rebalance(self) -> None:
        """At the end of a job, when workers have nothing to do: let them take over from those that are slow."""
        seats = self.pool.seats()
        if self.book.pending or self._moving or all(seat.batch is not None for seat in seats):
            return
        seat_of = {seat.batch.number: seat for seat in seats if seat.batch is not None}
        for batch, slot in self.planner.moves(seats):
            # Once: paces are estimates, and a batch that is carried to and fro is not made.
            if batch.number not in self._ever_moved | self._leaving and not seat_of[batch.number].leaving:
                self._ever_moved.add(batch.number)
                self._moving[batch.number] = slot
                self._leave(seat_of[batch.number], batch)

    def _leave(self, seat: Seat, batch: Batch) -> None:
        self._leaving.add(batch.number)
        self.planner.left_at[batch.number] = (seat.node, self.planner.stored_bytes(seat))
        self.pool.suspend(seat.slot)
