"""Which waiting batches may start where only their number counts, not their place: the gate of a shared cluster. Pure.

    snapshot -> order of service -> as many of the first as there is room for; who gives way to the others

- Who is first waits for room: a large batch is not passed by small ones for ever.
- What is reserved and not wanted stays free.
"""

from __future__ import annotations

from dataclasses import dataclass

from scheduler.contradictions import check_cluster
from scheduler.fairness import STARVING_SECONDS, service_order, unused_reservations
from scheduler.giving_way import PATIENCE_SECONDS, who_gives_way
from scheduler.snapshot import ClusterView, Resources


@dataclass(frozen=True)
class AdmissionPlan:
    """One round."""

    started: tuple[str, ...] = ()
    """Those that may start now, in the order of service."""
    suspended: tuple[str, ...] = ()
    """Those that are to give up their slots at their next chunk boundary."""
    order: tuple[str, ...] = ()
    """All that wait and are within their tenants' limits, the next one first."""


def plan_admission(
    view: ClusterView,
    *,
    patience_seconds: float = PATIENCE_SECONDS,
    starving_seconds: float = STARVING_SECONDS,
) -> AdmissionPlan:
    """Who of those that wait may start. Raises SnapshotError for a view that contradicts itself."""
    check_cluster(view)
    pending, running = view.pending, view.running
    slots = sum(worker.total.slots for worker in view.workers if worker.alive)
    free = slots - int((running.gang_R * running.needs_R3[:, 0]).sum())
    order, reserved = service_order(view, Resources(slots), starving_seconds)
    started: list[int] = []
    for place, row in enumerate(order.tolist()):
        if place == reserved:
            free -= unused_reservations(view, started)
        needs = int(pending.needs_P3[row, 0] * pending.gang_P[row])
        if needs > free:
            break
        started.append(row)
        free -= needs
    names = pending.session_P
    return AdmissionPlan(
        tuple(names[row] for row in started),
        who_gives_way(view, started, slots, patience_seconds),
        tuple(names[row] for row in order.tolist()),
    )
