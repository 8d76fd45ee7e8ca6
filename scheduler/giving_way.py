"""Which running sessions give up their workers at their next chunk boundary, for tenants below their share. Pure.

Nothing made so far is lost: a session that gives way goes on from where it stood once it is its tenant's turn again.

Shapes: R running sessions, P pending ones.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection

import numpy as np

from scheduler.fairness import asked_slots, fair_slots, held_slots, rows_of
from scheduler.snapshot import ClusterView, Ints, RunningTable

PATIENCE_SECONDS = 0.0
"""A tenant below its share that waits longer has others' sessions give way at their next chunk boundary. What gives way
loses nothing but a restart, while every second of patience is one more that the tenant waits: from the second round on
none is left."""


def who_gives_way(view: ClusterView, placed: Collection[int], slots: int, patience_seconds: float) -> tuple[str, ...]:
    """Sessions of tenants that have most beyond their share of `slots`, once these pending rows are placed.

    Of them those whose next chunk boundary comes first, and of equal ones the latest started.
    """
    pending, running = view.pending, view.running
    placed_P = rows_of(pending, placed)
    impatient_P = ~placed_P & (view.now_seconds - pending.waits_since_P > patience_seconds)
    urgent = asked_slots(pending, impatient_P)
    if not urgent.total():
        return ()
    slots_R = running.gang_R * running.needs_R3[:, 0]
    leaving = int((slots_R * running.leaving_R).sum())
    held = held_slots(running) + asked_slots(pending, placed_P)
    wanted = held + asked_slots(pending, ~placed_P)
    for tenant, entitled in view.tenants.items():
        wanted[tenant] = max(wanted[tenant], entitled.reserved_slots)
    fair = fair_slots(wanted, view.tenants, slots)
    # Whole slots: a share of 2.5 is met by 2. Room that others are leaving goes to whoever has the smallest share.
    owed = sum(max(0, min(count, int(fair[tenant]) - held[tenant])) for tenant, count in urgent.items()) - leaving
    giving = Counter({name: count - int(np.ceil(fair[name])) for name, count in held.items() if count > fair[name]})
    chosen: list[str] = []
    for row in _soonest_first(running).tolist() if giving else ():
        one, needs = running.views[row], int(slots_R[row])
        if owed <= 0:
            break
        if one.may_leave and not one.leaving and needs <= giving[one.tenant]:
            chosen.append(one.session)
            giving[one.tenant] -= needs
            owed -= needs
    return tuple(chosen)


def _soonest_first(running: RunningTable) -> Ints:
    """Rows by their next chunk boundary, then the latest started; of those together the later in the table."""
    order: Ints = np.lexsort((-np.arange(len(running.views)), -running.started_R, running.boundary_R))
    return order
