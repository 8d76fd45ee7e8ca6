"""Which running sessions should go on elsewhere: off workers that drain, and from crowded to emptier ones if it pays.

A session moves at a chunk boundary. That costs the time to carry its chunks; it gains what the sessions left behind and
the session itself then save until they end. Pure.
"""

from __future__ import annotations

import heapq
from collections import defaultdict
from collections.abc import Mapping
from typing import NamedTuple

from scheduler.placement import NEAR_BYTES_PER_SECOND
from scheduler.snapshot import ClusterView, Resources, RunningView, WorkerView, check_cluster

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
    on: dict[str, list[RunningView]] = defaultdict(list)
    for running in view.running.views:
        for name in running.workers:
            on[name].append(running)
    workers = {worker.worker: worker for worker in view.workers if worker.alive}
    open_to = {name: worker for name, worker in workers.items() if not worker.draining}
    free = {name: _free(worker, on[name]) for name, worker in open_to.items()}
    heap = [(len(on[name]), name) for name in sorted(open_to)]
    heapq.heapify(heap)
    moves: list[Moved] = []
    for name in sorted(workers.keys() - open_to.keys()):
        for running in sorted(on[name], key=lambda one: one.session):
            if len(moves) < most and len(running.workers) == 1 and not running.leaving:
                _move(running, name, float("inf"), heap, free, on, moves)
    crowded = sorted(open_to, key=lambda name: (-len(on[name]), name))
    for name in crowded:
        while len(moves) < most and heap and len(on[name]) - len(on[heap[0][1]]) >= 2:
            if not _relieve(name, bytes_per_second, heap, free, on, moves):
                break
    return tuple(moves)


def _relieve(
    name: str,
    bytes_per_second: float,
    heap: list[tuple[int, str]],
    free: dict[str, Resources],
    on: Mapping[str, list[RunningView]],
    moves: list[Moved],
) -> bool:
    """Move the session whose move gains most off a crowded worker; False where none pays."""
    crowd, there = len(on[name]), len(on[heap[0][1]])
    offers = []
    for running in on[name]:
        if len(running.workers) > 1 or running.leaving:
            continue
        # With one session fewer the rest are done sooner by 1 / crowd; the one that goes, by the ratio of crowds.
        others = sum(one.remaining_seconds for one in on[name] if one is not running) / crowd
        own = running.remaining_seconds * (1 - (there + 1) / crowd)
        # Those it comes to are done later.
        others -= sum(one.remaining_seconds for one in on[heap[0][1]]) / max(1, there)
        cost = RESTART_SECONDS + (running.chunk_bytes / bytes_per_second if bytes_per_second else float("inf"))
        offers.append((others + own - PAYS * cost, running.session, running, others + own - cost))
    if not offers or max(offers)[0] <= 0:
        return False
    _, _, running, gain = max(offers)
    return _move(running, name, gain, heap, free, on, moves)


def _move(
    running: RunningView,
    name: str,
    gain: float,
    heap: list[tuple[int, str]],
    free: dict[str, Resources],
    on: Mapping[str, list[RunningView]],
    moves: list[Moved],
) -> bool:
    """To the emptiest worker that has room for it."""
    passed_over = []
    found = False
    while heap and not found:
        load, target = heapq.heappop(heap)
        if load != len(on[target]) or target == name:
            continue
        room, needs = free[target], running.needs
        if name in free and load + 2 > len(on[name]):
            passed_over.append((load, target))
            break  # those behind it are as crowded or more
        if (
            needs.slots <= room.slots
            and needs.device_bytes <= room.device_bytes
            and needs.host_bytes <= room.host_bytes
        ):
            found = True
            on[name].remove(running)
            on[target].append(running)
            free[target] = _less(room, needs)
            if name in free:
                free[name] = _less(free[name], needs, -1)
                heapq.heappush(heap, (len(on[name]), name))
            heapq.heappush(heap, (len(on[target]), target))
            moves.append(Moved(running.session, name, target, gain))
        else:
            passed_over.append((load, target))
    for entry in passed_over:
        heapq.heappush(heap, entry)
    if not found and name in free:
        heapq.heappush(heap, (len(on[name]), name))
    return found


def _free(worker: WorkerView, sessions: list[RunningView]) -> Resources:
    room = worker.total
    for running in sessions:
        room = _less(room, running.needs)
    return room


def _less(room: Resources, needs: Resources, times: int = 1) -> Resources:
    return Resources(
        room.slots - times * needs.slots,
        room.device_bytes - times * needs.device_bytes,
        room.host_bytes - times * needs.host_bytes,
    )
