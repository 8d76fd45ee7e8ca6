"""Which running sessions should go on elsewhere: off workers that drain, and from crowded to emptier ones if it pays.

A session moves at a chunk boundary. That costs the time to carry its chunks; it gains what the sessions left behind and
the session itself then save until they end. What a worker is for its sessions is its pace: how many they are, by its
speed. So a session also leaves a slow worker for a fast one that has nothing to do. Pure.
"""

from __future__ import annotations

import heapq
from collections import defaultdict
from typing import NamedTuple

from scheduler.contradictions import check_cluster
from scheduler.placement import NEAR_BYTES_PER_SECOND
from scheduler.snapshot import ClusterView, Resources, RunningView, WorkerView

PAYS = 2.0
"""A move must gain so many times its cost: what remains of a session is an estimate, the cost is not."""
RESTART_SECONDS = 1.0
"""To make a window anew elsewhere, on top of carrying the chunks."""
MOST_MOVES = 64
"""Per round: a cluster that moves more at once measures nothing but its moves."""


class Moved(NamedTuple):
    """A session that should go on elsewhere."""

    session: str
    from_worker: str
    to_worker: str
    gains_seconds: float
    """Expected, over its remaining time; infinite off a worker that drains."""


def plan_moves(
    view: ClusterView, *, bytes_per_second: float = NEAR_BYTES_PER_SECOND, most: int = MOST_MOVES
) -> tuple[Moved, ...]:
    """At most `most` moves, the most pressing first. Raises SnapshotError for a view that contradicts itself.

    Sharded sessions stay: their workers would have to come free together.
    """
    check_cluster(view)
    balance = _Balance(view)
    for name in balance.draining:
        for running in sorted(balance.on[name], key=lambda one: one.session):
            if len(balance.moves) < most and _may_move(running):
                balance.move(running, name, float("inf"))
    for name in sorted(balance.free, key=lambda name: (-balance.pace(name), name)):
        while len(balance.moves) < most and balance.relieve(name, bytes_per_second):
            pass
    return tuple(balance.moves)


class _Balance:
    """Who runs where while moves are planned."""

    def __init__(self, view: ClusterView) -> None:
        self.on: dict[str, list[RunningView]] = defaultdict(list)
        for running in view.running.views:
            for name in running.workers:
                self.on[name].append(running)
        alive = {worker.worker: worker for worker in view.workers if worker.alive}
        self.draining = sorted(name for name, worker in alive.items() if worker.draining)
        self.free = {name: self._room(worker) for name, worker in alive.items() if not worker.draining}
        """Of workers that may be given sessions."""
        self.moves: list[Moved] = []
        self._speed = {name: worker.speed for name, worker in alive.items()}
        self._heap = [(self.pace(name, 1), name) for name in sorted(self.free)]
        heapq.heapify(self._heap)

    def pace(self, name: str, more: int = 0) -> float:
        """How much slower a session is there than alone on an ordinary worker, once `more` have come."""
        return (len(self.on[name]) + more) / self._speed[name]

    def relieve(self, name: str, bytes_per_second: float) -> bool:
        """Move the session whose move gains most off a crowded worker; False where none pays."""
        least = self._heap[0][1]
        crowd, there = len(self.on[name]), len(self.on[least])
        pace, pace_there = self.pace(name), self.pace(least, 1)
        if pace_there >= pace:
            return False
        slowed = sum(one.remaining_seconds for one in self.on[least]) / max(1, there)
        offers = []
        for running in filter(_may_move, self.on[name]):
            # With one session fewer the rest are done sooner by 1 / crowd; the one that goes, by the ratio of paces.
            others = sum(one.remaining_seconds for one in self.on[name] if one is not running) / crowd
            own = running.remaining_seconds * (1 - pace_there / pace)
            cost = RESTART_SECONDS + (running.chunk_bytes / bytes_per_second if bytes_per_second else float("inf"))
            gain = others + own - slowed
            offers.append((gain - PAYS * cost, running.session, running, gain - cost))
        if not offers or max(offers)[0] <= 0:
            return False
        _, _, running, gain = max(offers)
        return self.move(running, name, gain)

    def move(self, running: RunningView, name: str, gain: float) -> bool:
        """To the worker with the best pace that has room for it, where that is better than the present one."""
        passed_over = []
        found = False
        while self._heap and not found:
            pace, target = heapq.heappop(self._heap)
            if pace != self.pace(target, 1) or target == name:
                continue
            if name in self.free and pace >= self.pace(name):
                passed_over.append((pace, target))
                break  # those behind it are as slow or slower
            if _fits(running.needs, self.free[target]):
                found = True
                self._carry(running, name, target)
                self.moves.append(Moved(running.session, name, target, gain))
            else:
                passed_over.append((pace, target))
        for entry in passed_over:
            heapq.heappush(self._heap, entry)
        if name in self.free:
            heapq.heappush(self._heap, (self.pace(name, 1), name))
        return found

    def _carry(self, running: RunningView, name: str, target: str) -> None:
        self.on[name].remove(running)
        self.on[target].append(running)
        self.free[target] = _less(self.free[target], running.needs)
        if name in self.free:
            self.free[name] = _less(self.free[name], running.needs, -1)
        heapq.heappush(self._heap, (self.pace(target, 1), target))

    def _room(self, worker: WorkerView) -> Resources:
        room = worker.total
        for running in self.on[worker.worker]:
            room = _less(room, running.needs)
        return room


def _may_move(running: RunningView) -> bool:
    return len(running.workers) == 1 and running.may_leave and not running.leaving


def _fits(needs: Resources, room: Resources) -> bool:
    return needs.slots <= room.slots and needs.device_bytes <= room.device_bytes and needs.host_bytes <= room.host_bytes


def _less(room: Resources, needs: Resources, times: int = 1) -> Resources:
    return Resources(
        room.slots - times * needs.slots,
        room.device_bytes - times * needs.device_bytes,
        room.host_bytes - times * needs.host_bytes,
    )
