"""Which waiting sessions start on which workers: one round. Pure, and deterministic to the last name.

    snapshot -> order of service -> as many as there is room for -> gangs, those whose chunks lie near, the rest

- Nobody is placed beyond what a worker has; a sharded session gets all its workers, of one node, or none.
- A session goes where its chunks lie unless another worker is so much emptier that fetching them costs less.
- Sessions are spread over failure domains, unless sharded ones need whole nodes kept free.
- A sharded session that starves has a node kept free for it: nothing new starts there until it fits.

Shapes: P pending sessions.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from scheduler.contradictions import check_cluster
from scheduler.fairness import STARVING_SECONDS, rows_of, service_order, unused_reservations
from scheduler.floor import Floor
from scheduler.giving_way import PATIENCE_SECONDS, who_gives_way
from scheduler.snapshot import ClusterView, Ints, PendingTable

NEAR_BYTES_PER_SECOND = 1e9
"""Between nodes: what moving a session's chunks to another worker costs. Taken, not measured: the cluster's own figure
belongs here."""
LOAD_SECONDS = 30.0
"""What one more session on the same worker costs over its life: each makes its chunks the slower."""
BATCHES = 4
"""Each as many of the waiting sessions as there are slots left for: where the first find no room, sharded ones say,
those behind them may. The others wait for the next round."""


@dataclass(frozen=True)
class PlacementSettings:
    """What a cluster may set differently."""

    near_bytes_per_second: float = NEAR_BYTES_PER_SECOND
    load_seconds: float = LOAD_SECONDS
    patience_seconds: float = PATIENCE_SECONDS
    starving_seconds: float = STARVING_SECONDS


@dataclass(frozen=True)
class PlacementPlan:
    """One round."""

    placed: tuple[tuple[str, tuple[str, ...]], ...] = ()
    """Session -> its workers, in the order of service."""
    suspended: tuple[str, ...] = ()
    """Sessions to give up their workers at their next chunk boundary, in favour of tenants below their share."""
    kept_free: Mapping[str, str] = field(default_factory=dict)
    """Node -> the starving sharded session for which nothing else starts there."""
    waiting: Mapping[str, int] = field(default_factory=dict)
    """Why others wait -> how many: limit, room, gang."""


def plan_placement(view: ClusterView, settings: PlacementSettings | None = None) -> PlacementPlan:
    """Where waiting sessions start, and who gives way. Raises SnapshotError for a view that contradicts itself."""
    check_cluster(view)
    settings = settings or PlacementSettings()
    floor, pending = Floor(view), view.pending
    order_P, reserved = service_order(view, floor.total, settings.starving_seconds)
    kept_free = _keep_free(view, order_P, floor, settings)
    placed = _place(pending, order_P[:reserved], floor, settings)
    floor.free_slots -= unused_reservations(view, placed)
    placed |= _place(pending, order_P[reserved:], floor, settings)
    placed_P = rows_of(pending, placed)
    gangs = int((~placed_P[order_P] & (pending.gang_P[order_P] > 1)).sum())
    waiting = {"limit": len(pending) - len(order_P), "gang": gangs, "room": len(order_P) - len(placed) - gangs}
    return PlacementPlan(
        tuple((pending.session_P[row], placed[row]) for row in order_P[placed_P[order_P]].tolist()),
        who_gives_way(view, placed, floor.total.slots, settings.patience_seconds),
        kept_free,
        {why: count for why, count in waiting.items() if count},
    )


def _place(
    pending: PendingTable, order_P: Ints, floor: Floor, settings: PlacementSettings
) -> dict[int, tuple[str, ...]]:
    """Row -> workers, of the first in order that there is room for; those that find none leave theirs to the next."""
    placed: dict[int, tuple[str, ...]] = {}
    for _ in range(BATCHES):
        if not len(order_P) or floor.free_slots <= 0:
            break
        asked_P = np.cumsum(pending.gang_P[order_P] * pending.needs_P3[order_P, 0])
        count = int(np.searchsorted(asked_P, floor.free_slots, side="right"))
        batch_P, order_P = order_P[:count], order_P[max(1, count) :]
        single_P = pending.gang_P[batch_P] == 1
        placed |= _place_gangs(pending, batch_P[~single_P].tolist(), floor)
        singles = batch_P[single_P].tolist()
        near = _place_near(pending, singles, floor, settings)
        placed |= near
        placed |= _place_plain(pending, [row for row in singles if row not in near], floor)
    return placed


def _place_gangs(pending: PendingTable, rows: Sequence[int], floor: Floor) -> dict[int, tuple[str, ...]]:
    """The largest first: smaller ones find room in what is left."""
    placed: dict[int, tuple[str, ...]] = {}
    for needs, alike in _by_needs(pending, rows).items():
        alike.sort(key=lambda row: -int(pending.gang_P[row]))
        gangs = [(int(pending.gang_P[row]), pending.session_P[row]) for row in alike]
        for row, workers in zip(alike, floor.take_gangs(needs, gangs), strict=True):
            if workers:
                placed[row] = workers
    return placed


def _place_near(
    pending: PendingTable, rows: Sequence[int], floor: Floor, settings: PlacementSettings
) -> dict[int, tuple[str, ...]]:
    """Those whose chunks lie on some worker or node, where that is better than the emptiest worker."""
    known = [row for row in rows if pending.near.get(row)]
    placed: dict[int, tuple[str, ...]] = {}
    for row, needs in zip(known, pending.needs_P3[known].tolist(), strict=True):
        worker = floor.take_near(needs, pending.near[row], settings)
        if worker is not None:
            placed[row] = (worker,)
    return placed


def _place_plain(pending: PendingTable, rows: Sequence[int], floor: Floor) -> dict[int, tuple[str, ...]]:
    """Those that need the same are given the emptiest workers together."""
    placed: dict[int, tuple[str, ...]] = {}
    for needs, alike in _by_needs(pending, rows).items():
        workers = floor.take_emptiest(needs, len(alike))
        placed.update((row, (worker,)) for row, worker in zip(alike, workers, strict=False))
    return placed


def _by_needs(pending: PendingTable, rows: Sequence[int]) -> dict[tuple[int, ...], list[int]]:
    """Rows by what they need, those that need most first: what needs less fits beside it."""
    alike: dict[tuple[int, ...], list[int]] = {}
    for row, needs in zip(rows, map(tuple, pending.needs_P3[list(rows)].tolist()), strict=True):
        alike.setdefault(needs, []).append(row)
    return dict(sorted(alike.items(), reverse=True))


def _keep_free(view: ClusterView, order_P: Ints, floor: Floor, settings: PlacementSettings) -> dict[str, str]:
    """Keep a node free for each starving gang that fits nowhere now."""
    pending = view.pending
    starving_P = view.now_seconds - pending.waits_since_P >= settings.starving_seconds
    starving_P &= pending.gang_P > 1
    for row in order_P[starving_P[order_P]].tolist():
        floor.keep_free(pending.needs_P3[row].tolist(), int(pending.gang_P[row]), pending.session_P[row])
    return floor.kept_free
